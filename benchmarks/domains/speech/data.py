"""Recordings as log-mel spectra with their words: AN4, and LibriSpeech's folders.

A recording becomes frames of 40 numbers, windows of 25 ms every 10 ms: the logarithm of
the power in 40 triangular bands, equally far apart on the mel scale; each band is
standardised over the recording. Words are numbers of a vocabulary; 0 is padding (and
CTC's blank), 1 begins and 2 ends an utterance.
"""

import io
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
import soundfile

from benchmarks.domains.common.files import member, there

RATE, WINDOW, HOP, BANDS = 16_000, 400, 160, 40
PAD, BEGIN, END, FIRST = 0, 1, 2, 3
FRAMES = (272, 400, 640)  # lengths that batches are padded to
WORDS = 20  # of an utterance at most, begin and end included
# Of training: SpecAugment's masks, and by how much speech is slower or faster.
MASKS, WIDEST_BAND, LONGEST = 2, 10, 30
FASTER = 0.15


class Utterance(NamedTuple):
    """A recording and what was said."""

    frames: np.ndarray
    words: tuple[str, ...]


class Speech(NamedTuple):
    """Utterances to train on and to test, and the words there are."""

    train: list[Utterance]
    test: list[Utterance]
    vocabulary: tuple[str, ...]

    def encoded(self, words: Iterable[str]) -> np.ndarray:
        """The numbers of words, begin and end included, padded to `WORDS`."""
        place = {word: i + FIRST for i, word in enumerate(self.vocabulary)}
        numbers = [BEGIN, *(place[word] for word in words), END]
        return np.pad(np.array(numbers, np.int32), (0, WORDS - len(numbers)))

    def buckets(self) -> tuple[list[str], list[str], list[str]]:
        """Head, middle and tail: words that make up 20, 70 and 10 % of what is said.

        A word belongs where its own middle falls, the most frequent words first.
        """
        counts = Counter(word for u in self.train for word in u.words)
        ranked = sorted(self.vocabulary, key=lambda word: (-counts[word], word))
        own = np.array([counts[word] for word in ranked])
        middle = (np.cumsum(own) - own / 2) / own.sum()
        first, second = np.searchsorted(middle, (0.2, 0.9))
        return ranked[:first], ranked[first:second], ranked[second:]


# Sound -------------------------------------------------------------------------------
def bands() -> np.ndarray:
    """Triangular mel bands over the frequencies of a window, (BANDS, frequencies)."""
    ends = 2595 * np.log10(1 + np.array([80.0, RATE / 2]) / 700)
    hertz = 700 * (10 ** (np.linspace(*ends, BANDS + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(WINDOW, 1 / RATE)
    low, middle, high = (hertz[i : i + BANDS, None] for i in range(3))
    up = (frequencies - low) / (middle - low)
    down = (high - frequencies) / (high - middle)
    return np.maximum(0, np.minimum(up, down))


def log_mel(sound: np.ndarray) -> np.ndarray:
    """Log-mel spectrum of a recording in [-1, 1], (frames, BANDS) float32."""
    sound = np.pad(sound, (0, max(0, WINDOW - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW))) ** 2
    found = np.log(power @ bands().T + 1e-6)
    return ((found - found.mean(0)) / (found.std(0) + 1e-3)).astype(np.float32)


def read(content: bytes) -> np.ndarray:
    """The log-mel spectrum of a sound file."""
    sound, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    if rate != RATE or sound.ndim != 1:
        raise SystemExit(
            f"expected recordings of one channel at {RATE} Hz, got shape {sound.shape} "
            f"at {rate} Hz; convert them first"
        )
    return log_mel(sound)


# Data sets ---------------------------------------------------------------------------
def an4(path: Path, most: int | None = None) -> Speech:
    """AN4 with its own split; `most` utterances of each part for a trial."""
    parts: dict[str, list[Utterance]] = {"train": [], "test": []}
    with tarfile.open(there(path)) as archive:
        rows = member(archive, "an4/manifest.tsv").decode().splitlines()[1:]
        for row in rows:
            split, where, _, _, text = row.split("\t")
            if most is None or len(parts[split]) < most:
                sound = read(member(archive, f"an4/{where}"))
                parts[split].append(Utterance(sound, tuple(text.split())))
    words = {word for part in parts.values() for u in part for word in u.words}
    return Speech(parts["train"], parts["test"], tuple(sorted(words)))


def librispeech(path: Path, split: str) -> Iterator[Utterance]:
    """The utterances of a split of an archive with LibriSpeech's folders."""
    with tarfile.open(there(path)) as archive:
        names = [n for n in archive.getnames() if f"/{split}/" in n]
        for listed in sorted(n for n in names if n.endswith(".trans.txt")):
            folder = listed.rpartition("/")[0]
            for line in member(archive, listed).decode().splitlines():
                name, _, text = line.partition(" ")
                sound = read(member(archive, f"{folder}/{name}.flac"))
                yield Utterance(sound, tuple(text.split()))


# Batches -----------------------------------------------------------------------------
def padded(some: list[Utterance], speech: Speech) -> dict[str, np.ndarray]:
    """Utterances of one batch: frames, how many there are, words."""
    longest = max(len(u.frames) for u in some)
    length = next((n for n in FRAMES if n >= longest), longest)
    frames = [np.pad(u.frames, ((0, length - len(u.frames)), (0, 0))) for u in some]
    return {
        "frames": np.stack(frames),
        "length": np.array([len(u.frames) for u in some], np.int32),
        "words": np.stack([speech.encoded(u.words) for u in some]),
    }


def batches(
    speech: Speech, seed: int, steps: int, size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Shuffled batches of utterances of like length, spectra masked at random."""
    parts, low = [], 0
    for high in FRAMES:
        # Slower speech has to fit as well; the longest is not slowed down further.
        most = high if high == FRAMES[-1] else high * (1 - FASTER)
        part = [u for u in speech.train if low < len(u.frames) <= most]
        low = most
        if len(part) >= size:
            parts.append(part)

    def of(part: list[Utterance]) -> Any:
        made = grain.MapDataset.source(part).seed(seed).shuffle().repeat()
        made = made.random_map(_changed)
        return made.batch(size, batch_fn=lambda some: padded(list(some), speech))

    total = sum(map(len, parts))
    mixed = grain.MapDataset.mix(
        [of(part) for part in parts], weights=[len(part) / total for part in parts]
    )
    for number in range(steps):
        yield jax.tree.map(np.asarray, mixed[number])


def _changed(utterance: Utterance, rng: np.random.Generator) -> Utterance:
    """Another speed, then bands and stretches of time at the mean (SpecAugment)."""
    speed = 1 + FASTER * rng.uniform(-1, 1)
    length = min(round(len(utterance.frames) / speed), FRAMES[-1])
    at = np.linspace(0, len(utterance.frames) - 1, length)
    before = np.floor(at).astype(int)
    after, part = np.minimum(before + 1, len(utterance.frames) - 1), at - before
    frames = utterance.frames[before] * (1 - part[:, None])
    frames = (frames + utterance.frames[after] * part[:, None]).astype(np.float32)
    for _ in range(MASKS):
        wide, long = rng.integers(0, WIDEST_BAND + 1), rng.integers(0, LONGEST + 1)
        band = rng.integers(0, BANDS - wide + 1)
        time = rng.integers(0, max(len(frames) - long, 0) + 1)
        frames[:, band : band + wide] = 0
        frames[time : time + long] = 0
    return utterance._replace(frames=frames)
