"""The net: two convolutions and three dense layers on 8 x 8 images.

    image -> Conv_0 32 -> Conv_1 64, stride 2 -> 4 x 4 x 64 -> Dense_0 128
          -> Dense_1 64 -> Dense_2 10            (3 x 3 windows, a ReLU after each but
                                                  the last)

Budgeted are the kernels between hidden units, `PRUNED`; the first convolution (one
input channel) and the head stay dense. A fan-in budget and a fan-out budget count the
edges of the same three kernels from their two ends, so every method keeps the same
number of edges.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

import bbjax as bb
from bbjax.training.metrics import DEAD

PRUNED = ("Conv_1/kernel", "Dense_0/kernel", "Dense_1/kernel")
HIDDEN = ("Conv_0/kernel", *PRUNED)
HEAD = "Dense_2/kernel"
PATTERN = "|".join(f"^{path}$" for path in PRUNED)
WIDTHS = (32, 64, 128, 64)


class Net(nn.Module):
    """(n, 8, 8, 1) images to (n, 10) logits.

    Attributes:
        widths: numbers of hidden units, layer by layer.
    """

    widths: tuple[int, int, int, int] = WIDTHS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch."""
        first, second, third, fourth = self.widths
        x = nn.relu(nn.Conv(first, (3, 3))(x))
        x = nn.relu(nn.Conv(second, (3, 3), strides=(2, 2))(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(third)(x))
        x = nn.relu(nn.Dense(fourth)(x))
        return nn.Dense(10)(x)


FULL = Net()


def initial(seed: int) -> Any:
    """Parameters of a seed."""
    return FULL.init(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)))["params"]


def logits(params: Any, x: ArrayLike, net: Net = FULL) -> jax.Array:
    """Logits of a batch, (n, 10)."""
    return jnp.asarray(net.apply({"params": params}, x))


def loss(params: Any, x: ArrayLike, y: ArrayLike, net: Net = FULL) -> jax.Array:
    """Mean cross-entropy of a batch."""
    found = logits(params, x, net)
    return optax.softmax_cross_entropy_with_integer_labels(found, y).mean()


def accuracy(params: Any, x: ArrayLike, y: ArrayLike) -> jax.Array:
    """Share of images whose largest logit is their digit's."""
    return jnp.mean((jnp.argmax(logits(params, x), axis=-1) == y).astype(jnp.float32))


def trace() -> bb.Units:
    """The kernels of the net, read off its loss.

    Example:
        >>> list(trace())[:2]
        ['Conv_0/kernel', 'Conv_1/kernel']
    """
    params = jax.eval_shape(lambda: initial(0))
    x = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    y = jax.ShapeDtypeStruct((2,), jnp.int32)
    return bb.trace(loss, params, x, y)


def degrees(units: bb.Units, params: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Nonzero edges of each kernel, counted from both ends.

    Returns:
        By path, int32 fan-in of the output units and fan-out of the input units; of a
        dense net they are the full ones.
    """
    found = {}
    for path in units:
        layer, name = path.split("/")
        kernel = units[path]
        kept = kernel.edge_mask(params[layer][name] != 0)
        found[path] = kernel.gather(kept, "outputs"), kernel.gather(kept, "inputs")
    return found


def dead_units(units: bb.Units, params: Any, activity: Any) -> jax.Array:
    """Number of hidden units that carry nothing, alike for every method.

    Args:
        units: from `trace`.
        params: sparse parameters.
        activity: of all kernels, over the training images.

    Returns:
        int32 count of units that are on for at most 0.1 % of the (image, position)
        pairs, or have no edge left on their incoming or on their outgoing side.
    """
    kept = degrees(units, params)
    count = jnp.zeros((), jnp.int32)
    for made_by, read_by in zip(HIDDEN, (*HIDDEN[1:], HEAD), strict=True):
        incoming, outgoing = kept[made_by][0], kept[read_by][1]
        # A flattened image has one row per position and channel, channels last.
        outgoing = outgoing.reshape(-1, incoming.shape[-1]).sum(axis=0)
        silent = activity[made_by].outputs.on_rate <= DEAD
        dead = silent | (incoming == 0) | (outgoing == 0)
        count += jnp.sum(dead, dtype=jnp.int32)
    return count
