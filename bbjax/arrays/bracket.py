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
from jax import lax
from jaxtyping import Array, Bool, Int

from bbjax.arrays.loop import when

_FEW = 4  # entries too many in a bracket, below which tightening it pays
_ROUND = 6  # narrow passes after which it is tried all the same

# How far a unit is; the search is as far as the last one.
_DONE, _TIED, _CLOSE, _FAR = range(4)


class Entries(NamedTuple):
    """What a search asks about the entries of every unit, each in one pass.

    Attributes:
      counts: from `width` thresholds, on a new first axis, to the entries at or above
        each of them.
      ends: from `low` and `high` to the least entry from `low` on and the largest one
        below `high`.
      width: thresholds that one pass compares, at least 3.
    """

    counts: Callable[[Int[Array, " width *units"]], Int[Array, " width *units"]]
    ends: Callable[[Array, Array], tuple[Array, Array]]
    width: int


class Bracket(NamedTuple):
    """Per unit `low <= t < high`, and how many entries are at `low` or above."""

    low: Int[Array, "*units"]
    above: Int[Array, "*units"]  # >= need
    high: Int[Array, "*units"]

    @classmethod
    def of(
        cls,
        low: int,
        high: int,
        need: Int[Array, "*units"],
        held: Int[Array, "*units"],
        dtype: Any,
    ) -> Bracket:
        """Every t from `low`, which holds `held`, to `high`, which none do.

        Where nothing is needed the answer is `high`.
        """
        some = need > 0
        start, end = (np.array(value, dtype) for value in (low, high))
        return cls(
            low=jnp.where(some, start, end),
            above=jnp.where(some, held, 0),
            high=jnp.full_like(need, high + 1, dtype=dtype),
        )

    def unsettled(
        self, need: Int[Array, "*units"], exact: bool
    ) -> Bool[Array, "*units"]:
        """Where the answer is not yet `low`."""
        wide = self.high - 1 != self.low  # a width of 2**31 would be negative
        return wide if exact else wide & (self.above != need)

    def left(self, need: Int[Array, "*units"], exact: bool) -> Int[Array, ""]:
        """What is left to do for the unit that is behind all others, one number."""
        over = self.above - need
        wide = jnp.where(over > _FEW, _FAR, _CLOSE)
        found = jnp.where(over > 0, _TIED, _DONE)
        each = jnp.where(self.unsettled(need, exact), wide, found)
        return jnp.max(each.astype(jnp.int32))

    def between(self, m: int, tight: Bool[Array, ""]) -> Int[Array, " {m} *units"]:
        """`m` thresholds at one distance; at the ends where these are entries."""
        unsigned = jnp.dtype(f"uint{self.low.dtype.itemsize * 8}")
        width = lax.bitcast_convert_type(self.high - self.low, unsigned)[None]
        i = np.arange(1, m + 1, dtype=unsigned).reshape(m, *[1] * self.low.ndim)
        parts = unsigned.type(m + 1)
        step = width // parts * i + width % parts * i // parts
        at = self.low[None] + lax.bitcast_convert_type(step, self.low.dtype)
        at = jnp.where(tight & (i == 1), self.low[None] + 1, at)
        return jnp.where(tight & (i == m), self.high[None] - 1, at)

    def cut(
        self,
        at: Int[Array, " width *units"],
        counts: Int[Array, " width *units"],
        need: Int[Array, "*units"],
    ) -> Bracket:
        """The part of it that the answer is in, after counting at some thresholds."""
        enough = counts >= need[None]
        low, high, above = self.low[None], self.high[None], self.above[None]
        return Bracket(  # counts fall: the highest threshold that holds enough, ...
            low=jnp.max(jnp.where(enough, jnp.maximum(at, low), low), 0),
            above=jnp.min(jnp.where(enough, jnp.minimum(counts, above), above), 0),
            high=jnp.min(jnp.where(enough, high, jnp.minimum(at, high)), 0),
        )


class Found(NamedTuple):
    """The bracket that begins at the answer, and how the search got there."""

    bracket: Bracket
    left: Int[Array, ""]
    passes: Int[Array, ""]  # since one that tightened

    @property
    def tied(self) -> Bool[Array, ""]:
        """Whether there are units with `counts(answer) > need`."""
        return self.left == _TIED


def search(
    entries: Entries,
    need: Int[Array, "*units"],
    bracket: Bracket,
    *,
    exact: bool = False,
) -> Found:
    """The bracket that begins at the largest t with `counts(t) >= need`.

    Unless `exact`, begins at any t with `counts(t) == need`.
    """

    def tighten(b: Bracket) -> Bracket:
        least, most = entries.ends(b.low, b.high)
        still = b.unsettled(need, exact)
        high = jnp.where(still, most + 1, b.high)
        if exact:  # where all entries are wanted, the least one is the answer
            high = jnp.where(still & (b.above == need), least + 1, high)
        low = jnp.where(still, least, b.low)
        return b._replace(low=low, high=high)

    def one_pass(found: Found) -> Found:
        b, left, passes = found
        tight = (left == _CLOSE) | (passes == _ROUND)
        b = when(tight, tighten, b)  # reads the entries only if it has to
        at = b.between(entries.width, tight)
        b = b.cut(at, entries.counts(at), need)
        return Found(b, b.left(need, exact), jnp.where(tight, 0, passes + 1))

    def unfinished(found: Found) -> Bool[Array, ""]:
        return found.left >= _CLOSE

    start = Found(bracket, jnp.int32(_CLOSE), jnp.int32(0))
    return lax.while_loop(unfinished, one_pass, start)
