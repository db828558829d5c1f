"""The tasks: what is trained on what, and how it is judged.

    digits     8 x 8 pixels that come with scikit-learn
    mnist      28 x 28 pixels, 10,000 images to train on
    longtail   MNIST at 14 x 14 pixels, class sizes that fall 50-fold
    speech     spoken digits as log-mel spectra (`speech.py`)
    text       the next character from the last ten (`text.py`)

All but the first are read from a folder of data sets. Inputs are standardised by the
training part. A seed may choose its own training samples, always equally many, so that
seeds can be batched.
"""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.demo.data import load as load_digits
from benchmarks.common.files import there

TRAIN_IMAGES = 10_000
POOL, LARGEST, FALL, TAIL = 20_000, 1000, 50, 3
WIDE = (0.3, 0.1, 0.03, 0.01)
# One edge for every unit does not fit into .01 of these nets.
SMALL = (0.3, 0.1, 0.03)

# Of every task, what it is judged by, and whether higher is better; the first decides.
METRICS = {
    "digits": {"accuracy": True},
    "mnist": {"accuracy": True},
    "longtail": {"balanced accuracy": True, "tail accuracy": True},
    "speech": {"accuracy": True},
    "text": {"nats": False, "rare nats": False},
}

Scores = dict[str, jax.Array]


class Choice(NamedTuple):
    """The training samples of a seed, and what its metrics have to know."""

    samples: np.ndarray
    known: np.ndarray


class Task(NamedTuple):
    """Samples as rows, labels, the net, and how it is trained and judged.

    Attributes:
      sizes: of the net's layers, inputs first.
      densities: at which methods are compared.
      measure: `(logits, labels, known)` to the metrics of a net, as in `METRICS`.
      choose: a seed's samples; all of them, in order, where it is None.
      embedding: characters and numbers a character, for inputs that are characters.
      smooth: units are GELU units, not ReLU units.
    """

    name: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    sizes: tuple[int, ...]
    densities: tuple[float, ...]
    measure: Callable[..., Scores]
    choose: Callable[[int], Choice] | None = None
    batch: int = 64
    rate: float = 1e-3
    embedding: tuple[int, int] | None = None
    smooth: bool = False

    def samples(self, seed: int) -> Choice:
        """The training samples of a seed."""
        if self.choose is None:
            return Choice(np.arange(len(self.train_x)), np.zeros(0, np.int32))
        return self.choose(seed)


def accuracy(logits: jax.Array, y: jax.Array, known: jax.Array) -> Scores:
    """Share of right answers, in percent."""
    del known
    return {"accuracy": 100 * jnp.mean(jnp.argmax(logits, -1) == y)}


def balanced(logits: jax.Array, y: jax.Array, known: jax.Array) -> Scores:
    """Mean of the classes' accuracies, and that of the classes in `known`, percent."""
    right = (jnp.argmax(logits, -1) == y).astype(jnp.float32)
    member = jax.nn.one_hot(y, logits.shape[-1])
    by_class = 100 * (right @ member) / jnp.sum(member, 0)
    return {
        "balanced accuracy": jnp.mean(by_class),
        "tail accuracy": jnp.mean(by_class[known]),
    }


# Pictures ------------------------------------------------------------------------
def digits() -> Task:
    """1,078 images of 8 x 8 pixels to train on, 719 to test."""
    data = load_digits()
    rows = [x.reshape(len(x), -1) for x in (data.train_x, data.test_x)]
    return Task(
        "digits",
        rows[0],
        data.train_y,
        rows[1],
        data.test_y,
        (64, 128, 64, 10),
        SMALL,
        accuracy,
    )


def mnist(folder: Path) -> Task:
    """10,000 images of 28 x 28 pixels to train on, 10,000 to test."""
    train, test = (read_images(folder / "mnist", kind) for kind in ("train", "t10k"))
    train_y, test_y = (
        read_labels(folder / "mnist", kind) for kind in ("train", "t10k")
    )
    train, test = standardised(train[:TRAIN_IMAGES], test)
    return Task(
        "mnist",
        train.reshape(len(train), -1),
        train_y[:TRAIN_IMAGES],
        test.reshape(len(test), -1),
        test_y,
        (784, 300, 100, 10),
        WIDE,
        accuracy,
    )


def longtail(folder: Path) -> Task:
    """Images of 14 x 14 pixels; each seed draws classes of very different sizes."""
    train, test = (read_images(folder / "mnist", kind) for kind in ("train", "t10k"))
    labels, test_y = (read_labels(folder / "mnist", kind) for kind in ("train", "t10k"))
    train, test = standardised(pooled(train[:POOL]), pooled(test))
    labels = labels[:POOL]
    return Task(
        "longtail",
        train.reshape(len(train), -1),
        labels,
        test.reshape(len(test), -1),
        test_y,
        (196, 300, 100, 10),
        WIDE,
        balanced,
        lambda seed: draw_tail(labels, seed),
    )


def class_sizes(classes: int = 10) -> np.ndarray:
    """Sizes that fall geometrically from `LARGEST` to a `FALL`-th of it."""
    fall = float(FALL) ** (-np.arange(classes) / (classes - 1))
    return np.round(LARGEST * fall).astype(int)


def draw_tail(labels: np.ndarray, seed: int) -> Choice:
    """A seed's samples, shuffled, and its rarest classes.

    Which class gets which size is the seed's: no result is that of one digit.
    """
    rng = np.random.default_rng([seed, FALL])
    classes = rng.permutation(10)
    picked = [
        rng.choice(np.flatnonzero(labels == digit), size, replace=False)
        for digit, size in zip(classes, class_sizes(), strict=True)
    ]
    samples = rng.permutation(np.concatenate(picked))
    return Choice(samples, classes[-TAIL:].astype(np.int32))


def pooled(images: np.ndarray) -> np.ndarray:
    """Means over 2 x 2 pixels."""
    count, height, width = images.shape
    return images.reshape(count, height // 2, 2, width // 2, 2).mean((2, 4))


def standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both by the mean and the standard deviation of all training values."""
    mean, sd = train.mean(), train.std()
    return (train - mean) / sd, (test - mean) / sd


# Files ---------------------------------------------------------------------------
def read_images(folder: Path, kind: str) -> np.ndarray:
    """Images of MNIST, (n, 28, 28) float32 in [0, 255]; kind "train" or "t10k"."""
    pixels = _read(folder, f"{kind}-images-idx3-ubyte", offset=16)
    return pixels.reshape(-1, 28, 28).astype(np.float32)


def read_labels(folder: Path, kind: str) -> np.ndarray:
    """Their digits."""
    return _read(folder, f"{kind}-labels-idx1-ubyte", offset=8).astype(np.int32)


def _read(folder: Path, name: str, offset: int) -> np.ndarray:
    """The bytes of an idx file behind its header."""
    with gzip.open(there(folder / f"{name}.gz"), "rb") as file:
        return np.frombuffer(file.read(), np.uint8, offset=offset)
