"""The ORL faces: 40 people, 10 images each, at half their size."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from PIL import Image

from benchmarks.common.files import there

TRAIN = 5  # images of each person, the first ones, as is usual
SHIFT = 3


class Faces(NamedTuple):
    """Images (n, 56, 46, 1), each standardised, and who is on them."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def orl(path: Path) -> Faces:
    """Images 1 to 5 of everybody to train on, 6 to 10 to test."""
    parts: dict[bool, list[tuple[np.ndarray, int]]] = {True: [], False: []}
    with tarfile.open(there(path)) as archive:
        for member in archive:
            if not member.name.endswith(".pgm"):
                continue
            person, number = Path(member.name).parts[-2:]
            with Image.open(io.BytesIO(archive.extractfile(member).read())) as image:
                pixels = _halved(np.asarray(image, np.float32))
            part = parts[int(number.removesuffix(".pgm")) <= TRAIN]
            part.append((pixels, int(person[1:]) - 1))
    arrays = [
        np.array(column)
        for part in (True, False)
        for column in zip(*parts[part], strict=True)
    ]
    return Faces(*arrays)


def _halved(image: np.ndarray) -> np.ndarray:
    """Means over 2 x 2 pixels, with mean 0 and standard deviation 1."""
    height, width = image.shape
    small = image.reshape(height // 2, 2, width // 2, 2).mean((1, 3))
    return ((small - small.mean()) / small.std())[..., None]


def batches(faces: Faces, seed: int, steps: int, size: int) -> Iterator[Any]:
    """Shuffled batches of images and labels; images are moved and mirrored."""
    made = grain.MapDataset.range(len(faces.train_y)).seed(seed).shuffle().repeat()

    def changed(index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.int32]:
        image = faces.train_x[index]
        by = rng.integers(-SHIFT, SHIFT + 1, 2)
        wide = np.pad(image, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
        top, left = by + SHIFT
        image = wide[top : top + image.shape[0], left : left + image.shape[1]]
        if rng.random() < 0.5:
            image = image[:, ::-1]
        return image, np.int32(faces.train_y[index])

    made = made.random_map(changed).batch(size)
    for number in range(steps):
        yield made[number]
