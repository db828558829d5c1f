"""The integer at which counts fall below what is needed, for many units at once.

Entries of a unit are counted at thresholds, `counts(t) = #{entry >= t}`, and wanted is
the largest `t` with `counts(t) >= need`: with `need = k` the k-th largest entry. It
lies in a bracket `[low, high)` with `counts(low) >= need > counts(high)`, which passes
over the entries make smaller:

    narrow    counts at `m` thresholds between `low` and `high`: width / (m + 1)
    tighten   low, high = the least and the largest entry in the bracket (plus 1)

The first pass tightens, then come narrow ones, and once few entries are left the two
take turns, so that neither close entries nor equal ones cost more passes. The search
ends when `counts(t) == need` for all units: for 512 normal float32 each after some 9
passes with `m = 7`, where bisection takes 31. Arrays here are per unit, of any shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_FEW = 8  # entries in a bracket from which on tightening it pays
_ROUND = 6  # narrow passes after which it is tried all the same


class Entries(NamedTuple):
    """What a search asks about the entries of every unit, each in one pass.

    Attributes:
      counts: from `width` thresholds, on a new first axis, to the entries at or above
        each of them.
      ends: from `low` and `high` to the least entry from `low` on and the largest one
        below `high`.
      width: thresholds that one pass compares, at least 3.
    """

    counts: Callable[[Array], Array]
    ends: Callable[[Array, Array], tuple[Array, Array]]
    width: int


class Bracket(NamedTuple):
    """Per unit `low <= t < high`, and how many entries are at or above them."""

    low: Array
    above: Array  # >= need
    high: Array
    below: Array  # < need

    @classmethod
    def of(cls, low: int, high: int, need: Array, held: Array, dtype: Any) -> Bracket:
        """Every t from `low`, which holds `held`, to `high`, which none do.

        Where nothing is needed the answer is `high`.
        """
        some = need > 0
        start, end = (np.array(value, dtype) for value in (low, high))
        return cls(
            low=jnp.where(some, start, end),
            above=jnp.where(some, held, 0),
            high=jnp.full_like(need, high + 1, dtype=dtype),
            below=jnp.zeros_like(need),
        )

    def unsettled(self, need: Array, exact: bool = False) -> Array:
        """Where the answer is not yet `low`."""
        wide = self.high - 1 != self.low  # a width of 2**31 would be negative
        return wide if exact else wide & (self.above != need)

    def between(self, m: int, tight: Array) -> Array:
        """`m` thresholds at one distance; at the ends where these are entries."""
        unsigned = jnp.dtype(f"uint{self.low.dtype.itemsize * 8}")
        width = lax.bitcast_convert_type(self.high - self.low, unsigned)[None]
        i = lax.broadcasted_iota(unsigned, (m,) + (1,) * self.low.ndim, 0)
        parts = unsigned.type(m + 1)
        step = width // parts * (i + 1) + width % parts * (i + 1) // parts
        at = self.low[None] + lax.bitcast_convert_type(step, self.low.dtype)
        at = jnp.where(tight & (i == 0), self.low[None] + 1, at)
        return jnp.where(tight & (i == m - 1), self.high[None] - 1, at)

    def cut(self, at: Array, counts: Array, need: Array) -> Bracket:
        """The part of it that the answer is in, after counting at some thresholds."""
        enough = counts >= need[None]
        low, high = self.low[None], self.high[None]
        above, below = self.above[None], self.below[None]
        return Bracket(  # counts fall: the highest threshold that holds enough, ...
            low=jnp.max(jnp.where(enough, jnp.maximum(at, low), low), 0),
            above=jnp.min(jnp.where(enough, jnp.minimum(counts, above), above), 0),
            high=jnp.min(jnp.where(enough, high, jnp.minimum(at, high)), 0),
            below=jnp.max(jnp.where(enough, below, jnp.maximum(counts, below)), 0),
        )


class _State(NamedTuple):
    bracket: Bracket
    passes: Array  # since one that tightened
    tight: Array  # whether the next one does


def search(
    entries: Entries, need: Array, bracket: Bracket, *, exact: bool = False
) -> Bracket:
    """The bracket that begins at the largest t with `counts(t) >= need`.

    Unless `exact`, begins at any t with `counts(t) == need`.
    """

    def tighten(loop: tuple[Array, Bracket]) -> tuple[Array, Bracket]:
        b = loop[1]
        least, most = entries.ends(b.low, b.high)
        still = b.unsettled(need, exact)
        high = jnp.where(still, most + 1, b.high)
        if exact:  # where all entries are wanted, the least one is the answer
            high = jnp.where(still & (b.above == need), least + 1, high)
        low = jnp.where(still, least, b.low)
        return jnp.zeros((), bool), b._replace(low=low, high=high)

    def one_pass(state: _State) -> _State:
        b, passes, tight = state
        # A loop of one or no iteration: it reads the entries only if it has to.
        b = lax.while_loop(lambda loop: loop[0], tighten, (tight, b))[1]
        at = b.between(entries.width, tight)
        b = b.cut(at, entries.counts(at), need)
        many = b.unsettled(need, exact) & (b.above - b.below > _FEW)
        passes = jnp.where(tight, 0, passes + 1)
        return _State(b, passes, ~jnp.any(many) | (passes >= _ROUND))

    def unfinished(state: _State) -> Array:
        return jnp.any(state.bracket.unsettled(need, exact))

    start = _State(bracket, jnp.zeros((), jnp.int32), jnp.ones((), bool))
    return lax.while_loop(unfinished, one_pass, start).bracket
