"""How much every layer of a scan changes what it is given: 1 minus their cosine.

Reference: the block influence of ShortGPT (Men et al., arXiv 2403.03853), there of
hidden states `X[i]` before and `X[i + 1]` after a layer:

    1 - mean of X[i] . X[i + 1] / (|X[i]| |X[i + 1]|)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from bbjax.activity.per_unit import valid_entries
from bbjax.activity.statistics import Raw
from bbjax.activity.tapped import Env, Tapped, constant
from bbjax.tracing.flow.contract import Scope


class LayerTap(NamedTuple):
    """What a layer is given and what it makes of it.

    Attributes:
      stack: name of the stack of the layer.
      scope: of the body of its scan.
      layers: the scopes of the bodies of all scans around, each with None, its own last
        with its name.
      before: the variable that holds what it is given.
      after: the variable that holds what it makes of it.
    """

    stack: str
    scope: Scope
    layers: tuple[tuple[Scope, str | None], ...]
    before: Any
    after: Any


@dataclasses.dataclass(frozen=True)
class LayerProbe(Tapped[LayerTap]):
    """The evaluation of a jaxpr with taps at its layers.

    Attributes:
      where: padding mask, or None.
    """

    where: Shaped[Array, "..."] | None = None

    def reads(self, here: Mapping[int, LayerTap], scope: Scope) -> Sequence[Any]:
        """The variables of a scope that measurements read."""
        return [var for tap in here.values() for var in (tap.before, tap.after)]

    def measure(
        self, here: Mapping[int, LayerTap], env: Env, jaxpr: Any
    ) -> dict[int, Raw]:
        """Sums over all positions, and their number."""
        return {i: self._sums(tap, env) for i, tap in here.items()}

    def _sums(self, tap: LayerTap, env: Env) -> Raw:
        before, after = constant(env, tap.before), constant(env, tap.after)
        each = changes(before, after)
        valid = jnp.ones((1,) * each.ndim, bool)
        if self.where is not None:
            last = (before.ndim - 1,)
            mask = valid_entries(self.where, before.shape, last, tap.stack)
            valid = jnp.squeeze(mask, -1)
        valid = jnp.broadcast_to(valid, each.shape)
        total = jnp.sum(jnp.where(valid, each, jnp.zeros_like(each)))
        return {"change": total, "count": jnp.sum(valid, dtype=each.dtype)}


def changes(
    before: Shaped[Array, "*positions units"], after: Shaped[Array, "*positions units"]
) -> Float[Array, "*positions"]:
    """1 minus the cosine of two vectors at every position, in [0, 2].

    It is half the squared distance of the two unit vectors, which rounding changes
    little where they are nearly equal; exactly 0 where the vectors are. A zero vector
    is at right angles to every other: 1.

    Args:
      before: vectors along the last axis.
      after: likewise.

    Example:
      >>> x, y = (
      ...     jnp.array([[1.0, 0], [1, 0], [1, 0]]),
      ...     jnp.array([[2.0, 0], [0, 3], [-1, 0]]),
      ... )
      >>> changes(x, y).tolist()
      [0.0, 1.0, 2.0]
    """
    one, two = _unit(before), _unit(after)
    found = jnp.sum(jnp.square(one - two), axis=-1) / 2
    zeros = jnp.all(before == 0, axis=-1) != jnp.all(after == 0, axis=-1)
    found = jnp.where(zeros, jnp.ones_like(found), found)
    return jnp.where(jnp.all(before == after, axis=-1), jnp.zeros_like(found), found)


def _unit(x: Shaped[Array, "..."]) -> Float[Array, "..."]:
    """Vectors of length 1, in float32; zero vectors stay as they are."""
    x = x.astype(jnp.float32)
    for size in (
        lambda x: jnp.max(jnp.abs(x), axis=-1, keepdims=True),  # squares stay finite
        lambda x: jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True)),
    ):
        by = size(x)
        x = x / jnp.where(by == 0, jnp.ones_like(by), by)
    return x
