"""The problems: digits that come with scikit-learn, and MNIST where files are given.

MNIST is read from a folder with the four original idx files, gzipped or not; the first
10,000 training images are used, all 10,000 test images. Pixels are standardised with
the mean and the standard deviation of the training images.
"""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bbjax.demo.data import load as load_digits

TRAIN_IMAGES = 10_000


class Problem(NamedTuple):
    """Images as rows, labels, and the net that is trained on them."""

    name: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    hidden: tuple[int, ...]
    steps: int


def digits() -> Problem:
    """1,078 images of 8 x 8 pixels to train on, 719 to test."""
    data = load_digits()
    rows = [x.reshape(len(x), -1) for x in (data.train_x, data.test_x)]
    return Problem(
        "digits", rows[0], data.train_y, rows[1], data.test_y, (128, 64), 1000
    )


def mnist(folder: Path) -> Problem:
    """10,000 images of 28 x 28 pixels to train on, 10,000 to test."""
    train_x, test_x = (_images(folder, kind) for kind in ("train", "t10k"))
    train_y, test_y = (_labels(folder, kind) for kind in ("train", "t10k"))
    train_x, train_y = train_x[:TRAIN_IMAGES], train_y[:TRAIN_IMAGES]
    mean, sd = train_x.mean(), train_x.std()
    return Problem(
        "mnist",
        (train_x - mean) / sd,
        train_y,
        (test_x - mean) / sd,
        test_y,
        (300, 100),
        1000,
    )


def _images(folder: Path, kind: str) -> np.ndarray:
    pixels = _read(folder, f"{kind}-images-idx3-ubyte", offset=16)
    return pixels.reshape(-1, 28 * 28).astype(np.float32)


def _labels(folder: Path, kind: str) -> np.ndarray:
    return _read(folder, f"{kind}-labels-idx1-ubyte", offset=8).astype(np.int32)


def _read(folder: Path, name: str, offset: int) -> np.ndarray:
    """The bytes of an idx file behind its header."""
    ways: list[tuple[str, Callable]] = [(".gz", gzip.open), ("", open)]
    for suffix, opener in ways:
        path = folder / (name + suffix)
        if path.exists():
            with opener(path, "rb") as file:
                return np.frombuffer(file.read(), np.uint8, offset=offset)
    raise SystemExit(
        f"expected {name}.gz or {name} in {folder}, found neither; pass the folder of "
        "the original MNIST files with --data"
    )
