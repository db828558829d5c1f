"""AN4: recordings with their words, as batches of spectra and of numbers.

Words are numbers of a vocabulary; 0 is padding (and CTC's blank), 1 begins and 2 ends
an utterance.
"""

import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from benchmarks.common.files import member, there
from benchmarks.domains.common.recordings import BANDS, Utterance, read

PAD, BEGIN, END, FIRST = 0, 1, 2, 3
FRAMES = (272, 400, 640)  # lengths that batches are padded to
WORDS = 20  # of an utterance at most, begin and end included
# Of training: SpecAugment's masks, and by how much speech is slower or faster.
MASKS, WIDEST_BAND, LONGEST = 2, 10, 30
FASTER = 0.15


class Speech(NamedTuple):
    """Utterances to train on and to test, and the words of the former."""

    train: list[Utterance]
    test: list[Utterance]
    vocabulary: tuple[str, ...]

    def encoded(self, words: Iterable[str]) -> np.ndarray:
        """The numbers of words, begin and end included, padded to `WORDS`.

        A word that is not known is as padding.
        """
        place = {word: i + FIRST for i, word in enumerate(self.vocabulary)}
        numbers = [BEGIN, *(place.get(word, PAD) for word in words), END]
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
    words = {word for u in parts["train"] for word in u.words}
    return Speech(parts["train"], parts["test"], tuple(sorted(words)))


# Batches -----------------------------------------------------------------------------
def padded(
    some: list[Utterance], speech: Speech, length: int | None = None
) -> dict[str, np.ndarray]:
    """Utterances of one batch: frames, how many there are, words.

    All have `length` frames then, or the least of `FRAMES` that holds them.
    """
    if length is None:
        length = next(n for n in FRAMES if n >= max(len(u.frames) for u in some))
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
