"""Small functions whose traces say who listens to units, and what goes with them."""

import jax.numpy as jnp

import bbjax as bb
from tests.support.zoo_case import normal, relu, weights

X = normal(61, 6, 4)
SHAPES = {
    "up": (4, 6),
    "other": (4, 6),
    "down": (6, 2),
    "bias": (6,),
    "scale": (6,),
    "slope": (6,),
    "row": (1, 6),
    "table": (6, 6),
    "one": (),
}


def traced(fn, *names, x=X, **shapes):
    """The trace of a function of some of the usual parameters, and of others."""
    params = weights(**{n: SHAPES[n] for n in names}, **shapes)
    return bb.trace(fn, params, x)


def wide(p, n):
    return p[n].reshape(1, -1)


def head(p, h):
    return relu(h) @ p["down"]


def layer_normed(p, x):
    h = x @ p["up"]
    h = h - jnp.mean(h, 1, keepdims=True)
    return head(p, h * wide(p, "scale") + wide(p, "bias"))
