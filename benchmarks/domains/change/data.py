"""Pairs of pictures of one place: two Landsat scenes, and LEVIR-CD's folders.

Each scene is a pair of pictures (height, width, bands), standardised band by band, and
labels: 1 changed, 0 unchanged, -1 unlabelled.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from PIL import Image

from benchmarks.common.files import member, there

CROP = 64
FEWEST = 64  # labelled pixels of a crop


class Scene(NamedTuple):
    """Two pictures and what changed."""

    before: np.ndarray
    after: np.ndarray
    label: np.ndarray


def landsat(path: Path) -> tuple[Scene, Scene]:
    """Taizhou, to train on, and Nanjing, to test."""
    with np.load(there(path)) as held:
        taizhou, nanjing = (
            Scene(
                _standardised(held[f"{name}_t1"]),
                _standardised(held[f"{name}_t2"]),
                _labels(held[f"{name}_label"]),
            )
            for name in ("taizhou", "nanjing")
        )
    return taizhou, nanjing


def _labels(stored: np.ndarray) -> np.ndarray:
    """255 stands for no label in the file."""
    label = stored.astype(np.int32)
    return np.where(label == 255, -1, label)


def levir(path: Path, split: str) -> Iterator[Scene]:
    """The crops of a split of an archive with LEVIR-CD's folders."""
    with tarfile.open(there(path)) as archive:
        names = {Path(n).parts[-2:]: n for n in archive.getnames() if Path(n).suffix}
        for line in member(archive, names["list", f"{split}.txt"]).decode().split():
            pictures = [
                np.asarray(Image.open(io.BytesIO(member(archive, names[kind, line]))))
                for kind in ("A", "B", "label")
            ]
            label = (pictures[2] > 127).astype(np.int32)
            yield Scene(*map(_standardised, pictures[:2]), label)


def _standardised(picture: np.ndarray) -> np.ndarray:
    picture = picture.astype(np.float32)
    return (picture - picture.mean((0, 1))) / (picture.std((0, 1)) + 1e-6)


def batches(scene: Scene, seed: int, steps: int, size: int) -> Iterator[Any]:
    """Batches of crops that hold labels, turned and mirrored."""
    both = np.concatenate([scene.before, scene.after, scene.label[..., None]], -1)
    height, width = scene.label.shape
    bands = scene.before.shape[-1]

    def crop(index: int, rng: np.random.Generator) -> np.ndarray:
        while True:
            top = rng.integers(0, height - CROP + 1)
            left = rng.integers(0, width - CROP + 1)
            part = both[top : top + CROP, left : left + CROP]
            if np.sum(part[..., -1] >= 0) >= FEWEST:
                break
        part = np.rot90(part, rng.integers(4))
        return part[:, ::-1] if rng.random() < 0.5 else part

    made = grain.MapDataset.range(size).seed(seed).repeat().random_map(crop).batch(size)
    for number in range(steps):
        part = made[number]
        yield (
            part[..., :bands],
            part[..., bands : 2 * bands],
            part[..., -1].astype(np.int32),
        )
