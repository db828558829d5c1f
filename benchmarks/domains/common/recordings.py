"""Recordings as log-mel spectra with their words; LibriSpeech's folders.

A recording becomes frames of 40 numbers, windows of 25 ms every 10 ms; each band is
standardised over the recording.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from benchmarks.common.files import member, there
from benchmarks.common.sound import log_mel, mel_bands

RATE, WINDOW, HOP, BANDS, FLOOR = 16_000, 400, 160, 40, 2.5e-9


class Utterance(NamedTuple):
    """A recording and what was said."""

    frames: np.ndarray
    words: tuple[str, ...]


def spectrum(sound: np.ndarray) -> np.ndarray:
    """Log-mel spectrum of a recording in [-1, 1], (frames, BANDS) float32."""
    sound = np.pad(sound, (0, max(0, WINDOW - len(sound))))
    found = log_mel(sound, mel_bands(RATE, WINDOW, BANDS), HOP, FLOOR)
    return (found - found.mean(0)) / (found.std(0) + 1e-3)


def read(content: bytes) -> np.ndarray:
    """The log-mel spectrum of a sound file."""
    sound, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    if rate != RATE or sound.ndim != 1:
        raise SystemExit(
            f"expected recordings of one channel at {RATE} Hz, got shape {sound.shape} "
            f"at {rate} Hz; convert them first"
        )
    return spectrum(sound)


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
