"""Nets whose hidden units can be silenced by hand: the oracle of `bbjax.model.removal`.

`net.fn(params, x, on)` multiplies the units that readers of the kernels in
`net.groups` see by `on[group]`, 1 where nothing is given: what a unit that is removed
has to amount to. No size is written into the functions, so they run on smaller arrays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tests.support.zoo_case import normal, relu, weights

IMAGES = normal(41, 2, 6, 4, 3)
ROWS = normal(42, 5, 4)


class Net(NamedTuple):
    """A function with gates on hidden units.

    Attributes:
      fn: function of `(params, x, on)`.
      params: dict of arrays.
      x: input.
      groups: kernels whose units go together, the first one names the gate.
      shrinks: whether the function runs on smaller arrays.
    """

    fn: Callable[..., Any]
    params: Any
    x: Any
    groups: tuple[tuple[str, ...], ...]
    shrinks: bool = True


def lift(bias, like):
    """A bias, with size-1 axes to meet an array."""
    return jnp.reshape(bias, (1,) * (like.ndim - 1) + (-1,))


def conv(x, w, groups=1):
    return lax.conv_general_dilated(
        x,
        w,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def mlp(p, x, on):
    h = relu(x @ p["up"] + lift(p["bias"], x)) * on.get("up", 1)
    return h @ p["down"] + lift(p["last"], x)


def deep(p, x, on):
    a = jnp.tanh(x @ p["a"] + lift(p["bias"], x)) * on.get("a", 1)
    b = jax.nn.sigmoid(a @ p["b"]) * on.get("b", 1)
    return b @ p["c"]


def flattened(p, x, on):
    """Convolution, pooling, and a flatten in the order H, W, C."""
    h = relu(conv(x, p["conv"]) + lift(p["bias"], x)) * on.get("conv", 1)
    h = lax.reduce_window(h, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return h.reshape(h.shape[0], -1) @ p["dense"]


def channels_first(p, x, on):
    """The same flatten in the order C, H, W."""
    h = relu(conv(x, p["conv"])) * on.get("conv", 1)
    return jnp.moveaxis(h, 3, 1).reshape(x.shape[0], -1) @ p["dense"]


def batch_norm(p, x, on):
    """A batch norm, in training, between two kernels."""
    h = x @ p["up"]
    mean = jnp.mean(h, axis=0, keepdims=True)
    var = jnp.mean(jnp.square(h - mean), axis=0, keepdims=True)
    h = (h - mean) * (lift(p["scale"], x) * lax.rsqrt(var + 1e-3))
    return (relu(h + lift(p["shift"], x)) * on.get("up", 1)) @ p["down"]


def gated(p, x, on):
    h = jax.nn.sigmoid(x @ p["gate"]) * (x @ p["up"] + lift(p["bias"], x))
    return (h * on.get("gate", 1)) @ p["down"]


def grouped(p, x, on):
    h = relu(conv(x, p["conv"]) + lift(p["bias"], x)) * on.get("conv", 1)
    return jnp.mean(conv(h, p["groups"], 2), axis=(1, 2))


def scanned(p, x, on):
    """Hidden units in three scanned layers on a residual stream."""
    gates = on.get("up", jnp.ones((p["up"].shape[0], 1)))

    def layer(x, now):
        w, gate = now
        h = relu(x @ w["up"] + lift(w["bias"], x)) * gate[None]
        return x + h @ w["down"], None

    x, _ = lax.scan(jax.checkpoint(layer), x, ({n: p[n] for n in LAYER}, gates))
    return x @ p["head"]


LAYER = ("up", "bias", "down")


def residual(p, x, on):
    """Two blocks on a stream that starts with a kernel."""
    stream = on.get("embed", 1)
    x = x @ p["embed"] + lift(p["start"], x)
    a = relu((x * stream) @ p["up0"]) * on.get("up0", 1)
    x = relu(x + a @ p["down0"])
    b = relu((x * stream) @ p["up1"]) * on.get("up1", 1)
    x = x + b @ p["down1"]
    return (x * stream) @ p["head"]


def two_readers(p, x, on):
    h = relu(x @ p["up"]) * on.get("up", 1)
    return h @ p["left"], jnp.tanh(2 * h) @ p["right"]


def attention(p, x, on):
    """Values of two heads that four query heads average over positions."""
    scores = jnp.einsum("btd,bsd->bts", x, x)[:, None]
    v = jnp.einsum("btd,dgk->btgk", x, p["v"]) + p["bias"][None, None]
    v = jnp.broadcast_to(v[:, :, :, None], (*v.shape[:3], 2, v.shape[3]))
    mixed = jnp.einsum("bhts,bsgnk->btgnk", jax.nn.softmax(scores), v)
    if "v" in on:
        mixed = mixed * on["v"][None, None, :, None, :]
    return mixed.reshape(*x.shape[:2], -1) @ p["o"]


def experts(p, x, on):
    h = relu(jnp.einsum("ecd,edf->ecf", x, p["up"]))
    if "up" in on:
        h = h * on["up"][:, None]
    return jnp.einsum("ecf,efd->ecd", h, p["down"])


NETS = {
    "mlp": Net(
        mlp,
        weights(up=(4, 6), bias=(6,), down=(6, 3), last=(3,)),
        ROWS,
        (("up",),),
    ),
    "deep": Net(
        deep,
        weights(a=(4, 6), bias=(6,), b=(6, 5), c=(5, 2)),
        ROWS,
        (("a",), ("b",)),
    ),
    "flattened": Net(
        flattened,
        weights(conv=(3, 3, 3, 4), bias=(4,), dense=(24, 2)),
        IMAGES,
        (("conv",),),
    ),
    "channels_first": Net(
        channels_first,
        weights(conv=(1, 1, 3, 4), dense=(96, 2)),
        IMAGES,
        (("conv",),),
    ),
    "batch_norm": Net(
        batch_norm,
        weights(up=(4, 6), scale=(6,), shift=(6,), down=(6, 3)),
        ROWS,
        (("up",),),
    ),
    "gated": Net(
        gated,
        weights(gate=(4, 6), up=(4, 6), bias=(6,), down=(6, 3)),
        ROWS,
        (("gate", "up"),),
    ),
    "grouped": Net(
        grouped,
        weights(conv=(3, 3, 3, 4), bias=(4,), groups=(2, 2, 2, 6)),
        IMAGES,
        (("conv",),),
        shrinks=False,
    ),
    "scanned": Net(
        scanned,
        weights(up=(3, 4, 6), bias=(3, 6), down=(3, 6, 4), head=(4, 2)),
        ROWS,
        (("up",),),
    ),
    "residual": Net(
        residual,
        weights(
            embed=(4, 5),
            start=(5,),
            up0=(5, 6),
            down0=(6, 5),
            up1=(5, 7),
            down1=(7, 5),
            head=(5, 2),
        ),
        ROWS,
        (("embed", "down0", "down1"), ("up0",), ("up1",)),
    ),
    "two_readers": Net(
        two_readers,
        weights(up=(4, 6), left=(6, 3), right=(6, 2)),
        ROWS,
        (("up",),),
    ),
    "attention": Net(
        attention,
        weights(v=(4, 2, 3), bias=(2, 3), o=(12, 4)),
        normal(43, 2, 5, 4),
        (("v",),),
        shrinks=False,
    ),
    "experts": Net(
        experts,
        weights(up=(3, 4, 6), down=(3, 6, 2)),
        normal(44, 3, 5, 4),
        (("up",),),
    ),
}
