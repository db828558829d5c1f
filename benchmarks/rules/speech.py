"""Spoken digits as log-mel spectra, for the task `speech`.

A recording becomes 32 frames of 12 numbers: windows of 32 ms every 20 ms, the power of
each in 12 triangular bands, equally far apart on the mel scale, and its logarithm.
Longer recordings are cut behind 0.65 s, shorter ones are followed by silence. Each
number is standardised by its mean and standard deviation over the training recordings.
Data: Free Spoken Digit Dataset, its official split (takes 0 to 4 of each speaker and
digit are for testing).
"""

import io
import tarfile
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.common.files import there
from benchmarks.common.sound import log_mel, mel_bands
from benchmarks.rules.data import WIDE, Task, accuracy

RATE, WINDOW, HOP = 8000, 256, 160
FRAMES, BANDS = 32, 12
LENGTH = (FRAMES - 1) * HOP + WINDOW
FLOOR = 1e-6  # power of what counts as silence, where full scale is 1
TEST_TAKES = 5


def spectrum(sound: np.ndarray) -> np.ndarray:
    """Log-mel spectrum of a recording in [-1, 1], (FRAMES, BANDS) float32."""
    sound = np.pad(sound[:LENGTH], (0, max(0, LENGTH - len(sound))))
    return log_mel(sound, mel_bands(RATE, WINDOW, BANDS), HOP, FLOOR)


class Recording(NamedTuple):
    """A spoken digit: its spectrum, (FRAMES, BANDS), and whose take it is."""

    spectrum: np.ndarray
    digit: int
    speaker: str
    take: int


def recordings(folder: Path) -> Iterator[Recording]:
    """All of the data set."""
    with tarfile.open(there(folder / "fsdd" / "fsdd.tar.xz")) as archive:
        for member in archive:  # in order: the archive allows no other way
            if not member.name.endswith(".wav"):
                continue
            digit, speaker, take = Path(member.name).stem.split("_")
            found = spectrum(_sound(archive.extractfile(member).read()))
            yield Recording(found, int(digit), speaker, int(take))


def speech(folder: Path) -> Task:
    """2,700 recordings of six speakers to train on, 300 to test."""
    spectra, labels, _, takes = zip(*recordings(folder), strict=True)
    x, y = np.stack(spectra).reshape(len(spectra), -1), np.array(labels, np.int32)
    test = np.array(takes) < TEST_TAKES
    mean, sd = x[~test].mean(0), x[~test].std(0)
    x = (x - mean) / sd
    return Task(
        "speech",
        x[~test],
        y[~test],
        x[test],
        y[test],
        (FRAMES * BANDS, 200, 100, 10),
        WIDE,
        accuracy,
    )


def _sound(content: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(content)) as file:
        if (file.getframerate(), file.getsampwidth()) != (RATE, 2):
            raise SystemExit(
                f"expected recordings of 16 bits at {RATE} Hz, got "
                f"{8 * file.getsampwidth()} bits at {file.getframerate()} Hz; pass the "
                "folder with the original recordings with --data"
            )
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return samples.astype(np.float32) / 2**15
