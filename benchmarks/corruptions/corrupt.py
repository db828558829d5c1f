"""Five ways to spoil test images, two strengths each.

    gaussian      x + s n, n standard normal                     s in sd of all pixels
    salt_pepper   a share s of the pixels becomes black or white
    blur          Gaussian filter of sd s pixels
    contrast      x - s (x - m), m the mean of the image
    occlusion     a square of s widths of the image is the mean grey

Images are standardised: the mean grey of the training images is 0. Draws belong to
(draw, corruption, image), whatever else is in the batch; strengths share them, so that
the stronger one spoils the same pixels and more.
"""

from collections.abc import Callable, Iterator

import numpy as np
from scipy.ndimage import gaussian_filter

STRENGTHS: dict[str, tuple[float, float]] = {
    "gaussian": (0.5, 1.0),
    "salt_pepper": (0.05, 0.15),
    "blur": (0.7, 1.0),
    "contrast": (0.6, 0.8),
    "occlusion": (0.35, 0.5),
}
LABELS = {
    "clean": "clean",
    "gaussian": "Gaussian noise",
    "salt_pepper": "salt and pepper",
    "blur": "blur",
    "contrast": "lower contrast",
    "occlusion": "occlusion",
}
CLEAN = "clean"
CELLS = tuple(f"{kind} {s:g}" for kind, both in STRENGTHS.items() for s in both)
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def corrupted(x: np.ndarray, kind: str, strength: float, draw: int) -> np.ndarray:
    """Spoiled images.

    Args:
      x: float32 (n, height, width, 1), standardised.
      kind: one of `STRENGTHS`.
      strength: what it means depends on the kind; 0 leaves images as they are.
      draw: seed of what is random.

    Returns:
      float32 of the same shape.
    """
    if kind not in STRENGTHS:
        raise ValueError(
            f"expected a corruption of {list(STRENGTHS)}, got {kind!r}; pass one"
        )
    return _KINDS[kind](x, strength, draw).astype(np.float32)


def all_cells(x: np.ndarray, draw: int) -> Iterator[tuple[str, np.ndarray]]:
    """Clean images, then those of every cell, with their names."""
    yield CLEAN, x
    for kind, strengths in STRENGTHS.items():
        for strength in strengths:
            yield f"{kind} {strength:g}", corrupted(x, kind, strength, draw)


def _draws(x: np.ndarray, kind: str, draw: int, make: Draw) -> np.ndarray:
    """What is random, image by image."""
    of_kind, shape = list(STRENGTHS).index(kind), x.shape[1:]
    made = [
        make(np.random.default_rng((draw, of_kind, i)), shape) for i in range(len(x))
    ]
    return np.stack(made)


def _gaussian(x: np.ndarray, strength: float, draw: int) -> np.ndarray:
    noise = _draws(x, "gaussian", draw, lambda rng, shape: rng.standard_normal(shape))
    return x + strength * noise


def _salt_pepper(x: np.ndarray, strength: float, draw: int) -> np.ndarray:
    both = _draws(x, "salt_pepper", draw, lambda rng, shape: rng.random((2, *shape)))
    hit, white = both[:, 0] < strength, both[:, 1] < 0.5
    return np.where(hit, np.where(white, x.max(), x.min()), x)


def _blur(x: np.ndarray, strength: float, draw: int) -> np.ndarray:
    del draw
    return gaussian_filter(x, (0, strength, strength, 0), mode="nearest")


def _contrast(x: np.ndarray, strength: float, draw: int) -> np.ndarray:
    del draw
    mean = x.mean((1, 2, 3), keepdims=True)
    return x - strength * (x - mean)


def _occlusion(x: np.ndarray, strength: float, draw: int) -> np.ndarray:
    # Squares of both strengths have one centre; they may reach over the edge.
    height, width = x.shape[1:3]
    at = _draws(x, "occlusion", draw, lambda rng, shape: rng.random(2))
    half = strength * width / 2
    rows = np.abs(np.arange(height) + 0.5 - height * at[:, :1]) < half
    columns = np.abs(np.arange(width) + 0.5 - width * at[:, 1:]) < half
    hidden = rows[:, :, None, None] & columns[:, None, :, None]
    return np.where(hidden, np.float32(0), x)


_KINDS: dict[str, Callable[[np.ndarray, float, int], np.ndarray]] = {
    "gaussian": _gaussian,
    "salt_pepper": _salt_pepper,
    "blur": _blur,
    "contrast": _contrast,
    "occlusion": _occlusion,
}
