"""Handwritten digits: 1797 images of 8 x 8 pixels that come inside scikit-learn.

    x = (pixel - mean) / sd        over all pixels of the training images

The split is stratified by digit and the same in every run: two fifths are held out, so
that one image is 0.14 points of test accuracy. No decision looks at the test images.
Reference: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HELD_OUT = 0.4
BATCH = 64


class Data(NamedTuple):
    """Images float32 (n, 8, 8, 1) and labels int32 (n,), for training and testing."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def load() -> Data:
    """The digits, split and standardised by the training images.

    Example:
        >>> data = load()
        >>> data.train_x.shape, data.test_x.shape
        ((1078, 8, 8, 1), (719, 8, 8, 1))
    """
    digits = load_digits()
    images = digits.images[..., None].astype(np.float32)
    labels = digits.target.astype(np.int32)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=HELD_OUT, stratify=labels, random_state=0
    )
    mean, sd = train_x.mean(), train_x.std()
    return Data((train_x - mean) / sd, train_y, (test_x - mean) / sd, test_y)


def batches(seed: int, steps: int, count: int, size: int = BATCH) -> np.ndarray:
    """Which images each step of a seed sees: reshuffled epochs without remainder.

    Args:
        seed: of the order.
        steps: number of batches.
        count: number of training images, at least `size`.
        size: images per batch.

    Returns:
        int (steps, size); no image twice within a batch or an epoch.

    Example:
        >>> batches(0, steps=3, count=10, size=5).shape
        (3, 5)
    """
    rng = np.random.default_rng(seed)
    per_epoch = count // size
    epochs = -(-steps // per_epoch)
    rows = [rng.permutation(count)[: per_epoch * size] for _ in range(epochs)]
    return np.concatenate(rows).reshape(-1, size)[:steps]
