"""The model zoo, convolutions in raw JAX: 1-D to 3-D, grouped, depthwise, vmapped."""

import jax
import jax.numpy as jnp
from jax import lax

from tests.support.zoo_case import Case, Model, conv, loss, normal, rate, relu, weights


def convolution(x, w, **options):
    n = w.ndim - 2
    spec = (
        "N" + "DHW"[3 - n :] + "C",
        "DHW"[3 - n :] + "IO",
        "N" + "DHW"[3 - n :] + "C",
    )
    options = {"window_strides": (1,) * n, "padding": "SAME", **options}
    return lax.conv_general_dilated(x, w, dimension_numbers=spec, **options)


def conv_nets(p, x):
    h = relu(convolution(x, p["a"]))
    return loss(convolution(h, p["b"], feature_group_count=2))


def conv_nets_rates(p, x):
    h = relu(convolution(x, p["a"]))
    out = rate(convolution(h, p["b"], feature_group_count=2))
    return {"a": (rate(x), rate(h)), "b": (rate(h), out)}


def vmapped_conv(p, x):
    h = jax.vmap(lambda w, x: relu(convolution(x, w)))(p["w"], x)
    return loss(h), h


def vmapped_conv_rates(p, x):
    h = jnp.stack([relu(convolution(v, w)) for w, v in zip(p["w"], x, strict=True)])
    return {"w": (rate(x, lead=1), rate(h, lead=1))}


def vmapped_grouped(p, x):
    """Every member sees the same input: one layer with more output units per group."""

    def member(w):
        return convolution(x, w, feature_group_count=2)

    return loss(jax.vmap(member)(p["w"]))


def vmapped_grouped_rates(p, x):
    outs = [convolution(x, w, feature_group_count=2) for w in p["w"]]
    members = jnp.stack([rate(y).reshape(2, 3) for y in outs], 1)  # group, member, unit
    return {"w": (rate(x), members.reshape(-1))}


def _windows(n):
    """A convolution over `n` axes and a grouped one."""
    window = (3, 2, 2)[:n]
    return Case(
        f"conv{n}d",
        lambda: Model(
            conv_nets,
            weights(a=(*window, 2, 4), b=(*window, 2, 6)),
            (normal(3, 2, *(5, 4, 3)[:n], 2),),
        ),
        {"a": conv(n), "b": conv(n, groups=2)},
        conv_nets_rates,
        nonlinearity={"a": "relu", "b": ""},
        reads={"b": ("a",)},
    )


CASES = [
    *[_windows(n) for n in (1, 2, 3)],
    Case(
        "depthwise",
        lambda: Model(
            lambda p, x: loss(relu(convolution(x, p["w"], feature_group_count=4))),
            weights(w=(3, 1, 8)),
            (normal(3, 2, 5, 4),),
        ),
        {"w": conv(1, groups=4)},
        lambda p, x: {
            "w": (rate(x), rate(convolution(x, p["w"], feature_group_count=4)))
        },
    ),
    Case(
        "depthwise_single",
        lambda: Model(
            lambda p, x: loss(relu(convolution(x, p["w"], feature_group_count=4))),
            weights(w=(3, 1, 4)),
            (normal(3, 2, 5, 4),),
        ),
        {"w": conv(1, groups=4)},
        lambda p, x: {
            "w": (rate(x), rate(convolution(x, p["w"], feature_group_count=4)))
        },
    ),
    Case(
        "vmapped_grouped",
        lambda: Model(vmapped_grouped, weights(w=(3, 2, 2, 6)), (normal(3, 2, 5, 4),)),
        {"w": {"fan_in": (2,), "fan_out": (0, 3), "spatial": (1,), "groups": 2}},
        vmapped_grouped_rates,
    ),
    Case(
        "vmapped_conv",
        lambda: Model(
            vmapped_conv, weights(w=(3, 2, 2, 4)), (normal(3, 3, 2, 5, 2),), True
        ),
        {"w": {"fan_in": (2,), "fan_out": (3,), "spatial": (1,), "stack": (0,)}},
        vmapped_conv_rates,
    ),
]
