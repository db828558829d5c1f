"""A stack of electron micrographs and its synapses, a quarter as fine in the plane."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from PIL import Image

from benchmarks.common.files import member, there

SECTIONS, TRAIN, TEST = 20, 15, 4  # one between them is left out
CROP = (8, 48, 48)
SMALLER = 4


class Stack(NamedTuple):
    """Sections, standardised, and where synapses are: (sections, 256, 256) both."""

    raw: np.ndarray
    synapse: np.ndarray


def vnc(path: Path) -> tuple[Stack, Stack]:
    """The first 15 sections to train on, the last 4 to test."""
    parts: dict[str, dict[int, np.ndarray]] = {"raw": {}, "synapses": {}}
    with tarfile.open(there(path)) as archive:
        for name in archive.getnames():
            kind = Path(name).parent.name
            if kind in parts and Path(name).suffix in (".tif", ".png"):
                with Image.open(io.BytesIO(member(archive, name))) as image:
                    pixels = np.asarray(image.convert("L"), np.float32)
                parts[kind][int(Path(name).stem)] = _smaller(pixels)
    raw, synapse = (
        np.stack([parts[kind][i] for i in range(SECTIONS)]) for kind in parts
    )
    raw = (raw - raw[:TRAIN].mean()) / raw[:TRAIN].std()
    whole = Stack(raw, (synapse > 127).astype(np.float32))
    train, test = (
        Stack(*(x[at] for x in whole)) for at in (np.s_[:TRAIN], np.s_[-TEST:])
    )
    return train, test


def _smaller(image: np.ndarray) -> np.ndarray:
    """Means over squares of pixels."""
    height, width = (n // SMALLER for n in image.shape)
    return image.reshape(height, SMALLER, width, SMALLER).mean((1, 3))


def batches(stack: Stack, seed: int, steps: int, size: int) -> Iterator[Any]:
    """Batches of crops, turned and mirrored; every other one is round a synapse."""
    inside = np.argwhere(stack.synapse)
    room = np.array(stack.raw.shape) - CROP

    def crop(index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        if index % 2:
            corner = inside[rng.integers(len(inside))] - rng.integers(0, CROP)
            corner = np.clip(corner, 0, room)
        else:
            corner = rng.integers(0, room + 1)
        at = tuple(slice(c, c + n) for c, n in zip(corner, CROP, strict=True))
        turn, flips = rng.integers(4), rng.integers(0, 2, 2)

        def moved(x: np.ndarray) -> np.ndarray:
            x = np.rot90(x[at], turn, (1, 2))
            return np.ascontiguousarray(x[:: 1 - 2 * flips[0], :, :: 1 - 2 * flips[1]])

        return moved(stack.raw)[..., None], moved(stack.synapse)

    made = grain.MapDataset.range(size).seed(seed).repeat().random_map(crop).batch(size)
    for number in range(steps):
        yield made[number]
