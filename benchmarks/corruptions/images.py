"""Images of the two problems, standardised by the training images.

    digits   8 x 8, as in the demo: 1,078 to train on, 719 to test
    mnist    the first 10,000 training images, every 5th of the test images (2,000),
             averaged over 2 x 2 pixels to 14 x 14

The first half of MNIST's test images is easier than the second: every 5th has both.
"""

import gzip
from pathlib import Path

import numpy as np

from bbjax.demo.data import Data

TRAIN_IMAGES = 10_000
EVERY = 5
_FILES = {
    "train_x": ("train-images-idx3-ubyte", 16),
    "train_y": ("train-labels-idx1-ubyte", 8),
    "test_x": ("t10k-images-idx3-ubyte", 16),
    "test_y": ("t10k-labels-idx1-ubyte", 8),
}


def mnist(folder: Path) -> Data:
    """MNIST at 14 x 14.

    Args:
      folder: with the four idx files, gzipped or not, or with a folder `mnist` of them.
    """
    inner = folder / "mnist"
    place = inner if inner.is_dir() else folder
    raw = {key: _read(place, *file) for key, file in _FILES.items()}
    train_x = _pooled(raw["train_x"].reshape(-1, 28, 28)[:TRAIN_IMAGES])
    test_x = _pooled(raw["test_x"].reshape(-1, 28, 28)[::EVERY])
    mean, sd = train_x.mean(), train_x.std()
    return Data(
        (train_x - mean) / sd,
        raw["train_y"][:TRAIN_IMAGES].astype(np.int32),
        (test_x - mean) / sd,
        raw["test_y"][::EVERY].astype(np.int32),
    )


def _pooled(pixels: np.ndarray) -> np.ndarray:
    """Means over 2 x 2 pixels, with an axis for the one channel."""
    count, height, width = pixels.shape
    tiles = pixels.reshape(count, height // 2, 2, width // 2, 2)
    return tiles.mean((2, 4), dtype=np.float32)[..., None]


def _read(folder: Path, name: str, offset: int) -> np.ndarray:
    """The bytes of an idx file behind its header."""
    for suffix, opener in ((".gz", gzip.open), ("", open)):
        path = folder / (name + suffix)
        if path.exists():
            with opener(path, "rb") as file:
                return np.frombuffer(file.read(), np.uint8, offset=offset)
    raise SystemExit(
        f"expected {name}.gz or {name} in {folder}, found neither; pass the folder of "
        "the original MNIST files, or the one above it, with --data"
    )
