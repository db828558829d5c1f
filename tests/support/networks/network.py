"""What a re-created network is: its function, and its hidden units worked out again.

`hand` computes the network a second time, in plain `jax.numpy` and from the same
parameters, and returns its result with the values of the units of each kernel. That the
two results agree is part of the test.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["value"], meta_fields=["after"]
)
@dataclasses.dataclass(frozen=True)
class Hidden:
    """The value of a kernel's units, and the name of the nonlinearity before it."""

    value: Any
    after: str


@dataclasses.dataclass(frozen=True)
class Network:
    """One small network.

    Attributes:
      fn: function of `(params, *args)`.
      params: its parameters.
      args: further arguments.
      hand: the same function, which returns `(result, {path: Hidden})`. A value has
        the stack axes of the kernel first and the axes of its units last.
      selected: kernels of the default selection.
      refused: reason by path, a part of it, of parameters that are no kernels.
    """

    fn: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]
    hand: Callable[..., tuple[Any, dict[str, Hidden]]]
    selected: tuple[str, ...]
    refused: dict[str, str] = dataclasses.field(default_factory=dict)


def result_of(hand: Callable[..., tuple[Any, Any]]) -> Callable[..., Any]:
    """The network itself, where `hand` is how it is written."""
    return lambda params, *args: hand(params, *args)[0]


def normal(seed: int, *shape: int) -> np.ndarray:
    """Reproducible data."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def filled(shapes: Any, seed: int = 7) -> Any:
    """Parameters of given shapes: no bias is 0, no scale is 1.

    Matrices keep the size of what they multiply.
    """
    leaves, form = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    made = []
    for leaf in leaves:
        drawn = rng.normal(size=leaf.shape).astype(np.float32)
        wide = len(leaf.shape) > 1
        fan = max(1, np.prod(leaf.shape[:-1])) if wide else 1
        made.append(jnp.asarray(drawn / np.sqrt(fan)))
    return jax.tree.unflatten(form, made)


def weights(seed: int, **shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    """Reproducible parameters by name."""
    named = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    return filled(named, seed)


def initial(net: Any, *args: Any, seed: int = 7) -> Any:
    """Parameters of a linen module."""
    return filled(jax.eval_shape(net.init, jax.random.key(0), *args), seed)


def rate(value: Any, stack: int, units: int) -> np.ndarray:
    """Share of positive entries, over the axes between the stack and the units."""
    on = np.asarray(value) > 0
    return on.mean(axis=tuple(range(stack, on.ndim - units)))


# Layers in plain jax.numpy ---------------------------------------------------------
def dense(p: Any, x: jax.Array) -> jax.Array:
    """`x W + b` from the parameters of a dense layer."""
    y = jnp.tensordot(x, p["kernel"], 1)
    return y + p["bias"] if "bias" in p else y


def conv(
    x: jax.Array,
    w: jax.Array,
    strides: int = 1,
    groups: int = 1,
    padding: Any = "SAME",
) -> jax.Array:
    """A convolution over the axes between the first and the last."""
    window = w.ndim - 2
    space = "HW"[:window]
    numbers = ("N" + space + "C", space + "IO", "N" + space + "C")
    return lax.conv_general_dilated(
        x,
        w,
        (strides,) * window,
        padding,
        dimension_numbers=numbers,
        feature_group_count=groups,
    )


def layer_norm(x: jax.Array, p: Any = None, eps: float = 1e-6) -> jax.Array:
    """Mean 0 and variance 1 over the last axis, then scale and bias."""
    mean = x.mean(-1, keepdims=True)
    y = (x - mean) * lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + eps)
    return y if p is None else y * p["scale"] + p["bias"]


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Mean square 1 over the last axis, then a scale."""
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def group_norm(x: jax.Array, groups: int, p: Any) -> jax.Array:
    """Mean 0 and variance 1 over positions and the channels of a group."""
    y = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean = y.mean((1, 3), keepdims=True)
    y = (y - mean) * lax.rsqrt(((y - mean) ** 2).mean((1, 3), keepdims=True) + 1e-6)
    return y.reshape(x.shape) * p["scale"] + p["bias"]


def batch_norm(x: jax.Array, p: Any) -> jax.Array:
    """Mean 0 and variance 1 over all axes but the last, then scale and bias."""
    axes = tuple(range(x.ndim - 1))
    y = (x - x.mean(axes)) * lax.rsqrt(x.var(axes) + 1e-5)
    return y * p["scale"] + p["bias"]


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: Any = 0.0,
    scale: float | None = None,
) -> jax.Array:
    """Softmax attention of `(..., positions, heads, width)`."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = jnp.einsum("...qhd,...khd->...hqk", q * scale, k) + bias
    return jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(scores), v)
