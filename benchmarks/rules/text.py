"""The next character from the last ten, for the task `text`.

A net reads ten characters, each as 16 learnt numbers, and says how likely every
character is to come next. It is judged by nats a character, the mean of -log p of the
right one, on 8,000 positions of the last tenth of the text, drawn once. The same mean
over the positions whose right character makes up less than half a percent of the
training text is its loss on rare characters. Data: tinyshakespeare.
"""

import gzip
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.files import there
from benchmarks.rules.data import SMALL, Scores, Task

CONTEXT, NUMBERS = 10, 16
HELD_OUT, POSITIONS = 0.1, 8000
RARE = 0.005


def text(folder: Path) -> Task:
    """About a million positions to train on, 8,000 to test."""
    path = there(folder / "text_lm" / "tinyshakespeare.txt.gz")
    with gzip.open(path, "rt", encoding="utf8") as file:
        letters = np.array(list(file.read()))
    alphabet, codes = np.unique(letters, return_inverse=True)
    codes = codes.astype(np.uint8)
    split = round((1 - HELD_OUT) * len(codes))
    train_x, train_y = windows(codes[:split])
    test_x, test_y = windows(codes[split:])
    some = np.random.default_rng(0).choice(len(test_y), POSITIONS, replace=False)
    common = np.bincount(train_y, minlength=len(alphabet)) / len(train_y)
    rare = common < RARE

    def measure(logits: jax.Array, y: jax.Array, known: jax.Array) -> Scores:
        del known
        return nats(logits, y, jnp.asarray(rare))

    return Task(
        "text",
        train_x,
        train_y.astype(np.int32),
        test_x[some],
        test_y[some].astype(np.int32),
        (CONTEXT * NUMBERS, 192, 128, len(alphabet)),
        SMALL,
        measure,
        batch=128,
        rate=4e-3,
        embedding=(len(alphabet), NUMBERS),
        smooth=True,
    )


def windows(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every run of `CONTEXT` characters, and the character after it."""
    runs = np.lib.stride_tricks.sliding_window_view(codes, CONTEXT)[:-1]
    return np.ascontiguousarray(runs), codes[CONTEXT:]


def nats(logits: jax.Array, y: jax.Array, rare: jax.Array) -> Scores:
    """Mean of -log p of the right character, over all positions and the rare ones."""
    right = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)[:, 0]
    weight = rare[y].astype(right.dtype)
    return {
        "nats": -jnp.mean(right),
        "rare nats": -jnp.sum(weight * right) / jnp.sum(weight),
    }
