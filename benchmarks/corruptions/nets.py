"""The two nets, under one signature: state is what a net carries beside its weights.

    demo       the net of `bbjax.demo.model`, which has no state
    residual   image -> stem 32, stride 2 -> down 32, stride 2 -> 4 x 4 x 32
               h = relu(h + norm(second(relu(norm(first h)))))          32, 32
               -> dense 64 -> head 10

Every product of the residual net but the head is followed by a BatchNorm, and its units
are measured behind norm and ReLU. Training uses the statistics of the batch and keeps
running ones, which are the state; testing uses those. Budgeted are the kernels between
hidden units; the first convolution and the head stay dense.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import bbjax as bb
from bbjax.demo import model
from bbjax.demo.data import Data, load
from benchmarks.corruptions.images import mnist

WIDTH = 32


@dataclasses.dataclass(frozen=True)
class Net:
    """A net and the images it learns.

    Attributes:
      key: name in the files.
      title: name for readers.
      pruned: paths of the budgeted kernels.
      initial: seed to `(params, state)`.
      loss: `(params, state, x, y)` to the mean loss and the next state.
      logits: `(params, state, x)` to logits, for testing.
      data: folder to images; the folder may be None where none is needed.
    """

    key: str
    title: str
    pruned: tuple[str, ...]
    initial: Callable[[int], tuple[Any, Any]]
    loss: Callable[..., tuple[jax.Array, Any]]
    logits: Callable[..., jax.Array]
    data: Callable[[Path | None], Data]

    @property
    def pattern(self) -> str:
        """Matches the budgeted kernels and no other."""
        return "|".join(f"^{path}$" for path in self.pruned)

    def trace(self, data: Data) -> bb.Units:
        """The kernels of the net, read off its loss."""
        params, state = jax.eval_shape(partial(self.initial, 0))
        return bb.trace(self.loss, params, state, data.train_x[:2], data.train_y[:2])


class Residual(nn.Module):
    """(n, 14, 14, 1) images to (n, 10) logits."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits of a batch, by the batch's statistics or the running ones."""
        conv = partial(nn.Conv, WIDTH, (3, 3), use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        h = nn.relu(norm(name="stem_norm")(conv(strides=2, name="stem")(x)))
        h = nn.relu(norm(name="down_norm")(conv(strides=2, name="down")(h)))
        inner = nn.relu(norm(name="first_norm")(conv(name="first")(h)))
        h = nn.relu(h + norm(name="second_norm")(conv(name="second")(inner)))
        h = nn.Dense(64, use_bias=False, name="dense")(h.reshape(h.shape[0], -1))
        return nn.Dense(10, name="head")(nn.relu(norm(name="dense_norm")(h)))


def _residual_initial(seed: int) -> tuple[Any, Any]:
    x = jnp.zeros((1, 14, 14, 1))
    made = Residual().init(jax.random.key(seed), x, train=False)
    return made["params"], made["batch_stats"]


def _residual_loss(params: Any, state: Any, x: Any, y: Any) -> tuple[jax.Array, Any]:
    variables = {"params": params, "batch_stats": state}
    out, new = Residual().apply(variables, x, train=True, mutable=["batch_stats"])
    return _cross_entropy(out, y), new["batch_stats"]


def _residual_logits(params: Any, state: Any, x: Any) -> jax.Array:
    return Residual().apply({"params": params, "batch_stats": state}, x, train=False)


def _residual_data(folder: Path | None) -> Data:
    if folder is None:
        raise SystemExit(
            "expected --data with the MNIST files for the residual net, got none; pass "
            "it, or --nets demo"
        )
    return mnist(folder)


def _demo_loss(params: Any, state: Any, x: Any, y: Any) -> tuple[jax.Array, Any]:
    return model.loss(params, x, y), state


def _cross_entropy(logits: jax.Array, y: Any) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


NETS = {
    net.key: net
    for net in (
        Net(
            "demo",
            "demo's net, digits",
            model.PRUNED,
            lambda seed: (model.initial(seed), {}),
            _demo_loss,
            lambda params, state, x: model.logits(params, x),
            lambda folder: load(),
        ),
        Net(
            "residual",
            "residual net with BatchNorm, MNIST",
            ("down/kernel", "first/kernel", "second/kernel", "dense/kernel"),
            _residual_initial,
            _residual_loss,
            _residual_logits,
            _residual_data,
        ),
    )
}
