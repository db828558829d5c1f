"""scikit-learn's digits for a multilayer perceptron: real data in milliseconds.

1078 training and 719 test images of 8 x 8 pixels, as the demo splits them; the net is
64-128-64-10 and both hidden kernels are budgeted.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.demo import data
from benchmarks.claims.common.net import Params, Task, logits, losses, right

SIZES = (64, 128, 64, 10)
KERNELS = "layer_[01]/kernel"


@functools.cache
def images() -> data.Data:
    """The digits as rows: train_x (1078, 64), labels, test_x (719, 64), labels."""
    loaded = data.load()
    rows = [np.reshape(x, (len(x), -1)) for x in (loaded.train_x, loaded.test_x)]
    return data.Data(rows[0], loaded.train_y, rows[1], loaded.test_y)


def task() -> Task:
    """The task; batches are drawn with replacement."""
    held = images()

    def sample(key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        rows = jax.random.randint(key, (n,), 0, len(held.train_y))
        return jnp.asarray(held.train_x)[rows], jnp.asarray(held.train_y)[rows]

    return Task(SIZES, sample)


def tested(params: Params) -> dict[str, jax.Array]:
    """Loss in nats and accuracy in percent on the test images."""
    held = images()
    scores, y = logits(params, held.test_x), jnp.asarray(held.test_y)
    return {
        "loss": losses(scores, y).mean(),
        "accuracy": 100 * right(scores, y).mean(),
    }
