"""What a case of the model zoo is, and the words its oracles are written in.

An oracle states, by hand and with plain `jax.numpy`, which values the units of every
kernel take: `{path: (inputs, outputs)}`, two on-rates per kernel in the kernel's own
order of axes, stack axes first.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

relu = jax.nn.relu


class Model(NamedTuple):
    """A function to observe, and what to call it with."""

    fn: Callable[..., Any]
    params: Any
    args: tuple[Any, ...] = ()
    has_aux: bool = False


@dataclasses.dataclass(frozen=True)
class Case:
    """One small model.

    Attributes:
      name: unique in the zoo.
      make: builds the model, the same one at every call.
      layout: `fan_in`, `fan_out` and what else is not empty, by path of kernel.
      oracle: on-rates of inputs and outputs by path, from `(params, *args)`.
      nonlinearity: name expected at some paths.
      reads: kernels that a kernel's inputs are units of, at some paths.
      lenient: whether the library needs JAX's usual type and rank promotion.
    """

    name: str
    make: Callable[[], Model]
    layout: dict[str, dict[str, Any]]
    oracle: Callable[..., dict[str, tuple[Any, Any]]]
    nonlinearity: dict[str, str] = dataclasses.field(default_factory=dict)
    reads: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    lenient: bool = False


def dense(fan_in: Any = (0,), fan_out: Any = (1,), **more: Any) -> dict[str, Any]:
    """The layout of a kernel; without arguments, of a Flax dense one."""
    return {"fan_in": fan_in, "fan_out": fan_out, **more}


def conv(window: int, **more: Any) -> dict[str, Any]:
    """The layout of a Flax convolution with `window` spatial axes."""
    more = {"spatial": tuple(range(window)), **more}
    return {"fan_in": (window,), "fan_out": (window + 1,), **more}


def normal(seed: int, *shape: int) -> jax.Array:
    """Reproducible data."""
    return jax.random.normal(jax.random.key(seed), shape)


def weights(**shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    """Reproducible parameters by name."""
    return {n: normal(100 + i, *s) for i, (n, s) in enumerate(shapes.items())}


def rate(x: Any, units: int = 1, lead: int = 0) -> np.ndarray:
    """Share of positive entries, over all axes but `lead` first and `units` last."""
    on = np.asarray(x, np.float32) > 0
    middle = tuple(range(lead, on.ndim - units))
    return on.mean(axis=middle)


def loss(x: jax.Array) -> jax.Array:
    """A scalar that depends on every entry."""
    return jnp.mean(jnp.square(x))
