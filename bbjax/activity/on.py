"""What counts as "on": functions of a value, elementwise, to [0, 1].

The on-rate of a unit is the mean of one of these over batch and positions. Which value
of a unit is measured, `bbjax.tracing.flow.kernels` decides.

    positive            x > 0                         ReLU and its kind (default)
    above(t)            |x| > t                       known scales
    above(t, "rms")     |x| > t * rms(x)              GELU, SiLU, gated products
    soft(T)             sigmoid(x / T)                a graded count, for slow drifts

For smooth activations no definition is published. `positive` is near one half for every
unit at initialisation, and is still meaningful where negative outputs are small (GELU,
SiLU). With `above(t, "rms")` a unit is on where its value is large for its layer. Any
callable from an array to an array of the same shape works as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num, Shaped

from bbjax.model.numbers import check_number

On = Callable[..., Array]


def positive(x: Num[Array, "*shape"]) -> Bool[Array, "*shape"]:
    """On where `x > 0`.

    Example:
      >>> positive(jnp.array([-1.0, 0.0, 2.0])).tolist()
      [False, False, True]
    """
    return x > 0


@dataclasses.dataclass(frozen=True)
class Above:
    """On where `|x|` exceeds a threshold; made by `above`."""

    threshold: float
    relative_to: Literal["rms"] | None = None

    def __call__(
        self, x: Num[Array, "*shape"], valid: Shaped[Array, "*shape"] | None = None
    ) -> Bool[Array, "*shape"]:
        """Applies to an array; `valid` (same shape) is False at padding."""
        size = jnp.abs(x.astype(jnp.float32))
        if self.relative_to is None:
            return size > self.threshold
        square = jnp.square(size)
        if valid is None:
            rms = jnp.sqrt(jnp.mean(square))
        else:
            total = jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0)
            rms = jnp.sqrt(jnp.sum(jnp.where(valid, square, 0.0)) / total)
        return size > self.threshold * rms


def above(threshold: float, relative_to: Literal["rms"] | None = None) -> Above:
    """On where `|x| > threshold`, or `> threshold * rms` of the layer.

    Args:
      threshold: at least 0, in units of `x` or of its root mean square.
      relative_to: `None` or `"rms"` (over batch, positions and units of the value).

    Raises:
      TypeError: threshold is no number.
      ValueError: negative or non-finite threshold, unknown `relative_to`.

    Example:
      >>> above(0.5)(jnp.array([-1.0, 0.2, 2.0])).tolist()
      [True, False, True]
    """
    remedy = "it is the size above which a value counts as on"
    threshold = check_number("threshold", threshold, "[0, inf)", remedy)
    if relative_to not in (None, "rms"):
        raise ValueError(
            f'expected relative_to None or "rms", got {relative_to!r}; leave it out '
            "for an absolute threshold"
        )
    return Above(threshold, relative_to)


def soft(temperature: float = 1.0) -> On:
    """A graded count: `sigmoid(x / temperature)`.

    Args:
      temperature: above 0; small values approach `positive`.

    Raises:
      TypeError: temperature is no number.
      ValueError: temperature not finite and positive.

    Example:
      >>> float(soft(0.5)(jnp.array(0.0)))
      0.5
    """
    remedy = "use on.positive for a hard count"
    check_number("temperature", temperature, "(0, inf)", remedy)

    def graded(x: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jax.nn.sigmoid(x.astype(jnp.float32) / temperature)

    return graded
