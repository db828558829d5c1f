"""The largest integer at which something still holds, for many units at once.

    t = max{t: holds(f(t))}      f rises with t, so that it stops to hold at one place

Every unit has a bracket: `f` holds at `low` and no longer at `high`. A pass computes
`f` at thresholds between the two and keeps the part in which it stops to hold. What
`f` is at both ends is kept beside them: computed again by other code, the same float
expression may be rounded differently. Over the keys of floats (`bbjax.arrays.keys`)
this is an exact search over all floats.

    bisect        one threshold per pass, until the ends are neighbours
    kth_largest   the k-th largest of many entries: `f(t) = k - #{entry >= t}` holds
                  while it is at most 0

Entries that are counted cost a pass over memory, so `kth_largest` takes fewer passes.
Two kinds of them make a bracket smaller:

    narrow    counts at `m` thresholds between `low` and `high`: width / (m + 1)
    tighten   low, high = the least and the largest entry in the bracket (plus 1)

The first pass tightens, then come narrow ones, and once few entries are left the two
take turns, so that neither close entries nor equal ones cost more passes. The search
ends when `f(t) == 0` for all units: for 512 normal float32 each after some 9 passes
with `m = 7`, where bisection takes 31. Arrays here are per unit, of any shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Num

from bbjax.arrays.loop import repeat, when

T = TypeVar("T")

_FEW = 4  # entries too many in a bracket, below which tightening it pays
_ROUND = 6  # narrow passes after which it is tried all the same

# How far a unit is; the search is as far as the last one.
_DONE, _TIED, _CLOSE, _FAR = range(4)


class Bracket(NamedTuple, Generic[T]):
    """The integers that an answer is among, and what `f` is at both ends.

    Attributes:
      low: `f` holds here.
      at_low: `f(low)`, arrays whose first axes are those of the units.
      high: `f` does not hold here, or is not asked.
      at_high: `f(high)`.
    """

    low: Int[Array, "*units"]
    at_low: T
    high: Int[Array, "*units"]
    at_high: T

    @property
    def wide(self) -> Bool[Array, "*units"]:
        """Where there is an integer between the two ends."""
        return self.low + 1 < self.high

    def between(self, m: int) -> Int[Array, " {m} *units"]:
        """`m` thresholds at one distance from each other, on a new first axis."""
        unsigned = jnp.dtype(f"uint{self.low.dtype.itemsize * 8}")
        width = lax.bitcast_convert_type(self.high - self.low, unsigned)[None]
        i = np.arange(1, m + 1, dtype=unsigned).reshape(m, *[1] * self.low.ndim)
        parts = unsigned.type(m + 1)
        step = width // parts * i + width % parts * i // parts
        return self.low[None] + lax.bitcast_convert_type(step, self.low.dtype)

    def cut(
        self, at: Int[Array, " m *units"], found: T, holds: Bool[Array, " m *units"]
    ) -> Bracket[T]:
        """The part of it that the answer is in.

        Args:
          at: thresholds, in any order.
          found: what `f` is there, on a first axis.
          holds: where it holds.
        """

        def last(new: Num[Array, "..."], old: Num[Array, "..."]) -> Num[Array, "..."]:
            """The largest value where it holds; `f` rises, so it is the last one."""
            yes, old = _over(holds, new), old[None]
            return jnp.max(jnp.where(yes, jnp.maximum(new, old), old), 0)

        def first(new: Num[Array, "..."], old: Num[Array, "..."]) -> Num[Array, "..."]:
            """The least value where it does not hold."""
            yes, old = _over(holds, new), old[None]
            return jnp.min(jnp.where(yes, old, jnp.minimum(new, old)), 0)

        return Bracket(
            low=last(at, self.low),
            at_low=jax.tree.map(last, found, self.at_low),
            high=first(at, self.high),
            at_high=jax.tree.map(first, found, self.at_high),
        )


def _over(
    holds: Bool[Array, " m *units"], found: Num[Array, "..."]
) -> Bool[Array, "..."]:
    """One answer per unit, for every entry of what was found there."""
    return jnp.expand_dims(holds, range(holds.ndim, found.ndim))


def bisect(
    f: Callable[[Int[Array, "*units"]], T],
    holds: Callable[[T], Bool[Array, "*units"]],
    bracket: Bracket[T],
) -> Bracket[T]:
    """The bracket whose ends are neighbours: `f` holds at one and not at the other.

    Args:
      f: from an integer per unit to arrays that rise with it.
      holds: whether the result for each unit will do.
      bracket: where to look; `f` is taken to hold at its lower end.

    Example:
      >>> def square(t):
      ...     return t * t
      >>> start = Bracket(jnp.int32(0), jnp.int32(0), jnp.int32(9), jnp.int32(81))
      >>> found = bisect(square, lambda square: square <= 20, start)
      >>> int(found.low), int(found.at_low), int(found.at_high)
      (4, 16, 25)
    """

    def one_pass(b: Bracket[T]) -> Bracket[T]:
        at = b.between(1)
        found = f(at[0])
        return b.cut(at, jax.tree.map(lambda x: x[None], found), holds(found)[None])

    return repeat(lambda b: jnp.any(b.wide), one_pass, bracket)


# Entries that are counted --------------------------------------------------------
class Countable(NamedTuple):
    """Entries of every unit, and how they are looked at: in one pass each.

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


class Ranked(NamedTuple):
    """The k-th largest entry of every unit, or on the way to it.

    Attributes:
      bracket: begins at the k-th largest entry; `at_low` is `k` less the entries from
        there on.
      left: what is left to do.
      passes: since one that tightened.
    """

    bracket: Bracket[Int[Array, "*units"]]
    left: Int[Array, ""]
    passes: Int[Array, ""]

    @property
    def tied(self) -> Bool[Array, ""]:
        """Whether there are units with more than `k` entries from there on."""
        return self.left == _TIED


def all_from(
    low: int, high: int, k: Int[Array, "*units"], lacking: Array, dtype: Any
) -> Bracket[Int[Array, "*units"]]:
    """Every integer from `low`, where `lacking` is known, to `high`, the last one.

    Where `k` is 0 the answer is `high`.
    """
    some = k > 0
    start, end = (np.array(value, dtype) for value in (low, high))
    return Bracket(
        low=jnp.where(some, start, end),
        at_low=jnp.where(some, lacking, 0),
        high=jnp.full_like(k, high + 1, dtype=dtype),
        at_high=k,
    )


def kth_largest(
    entries: Countable,
    k: Int[Array, "*units"],
    bracket: Bracket[Int[Array, "*units"]],
    *,
    exact: bool = False,
) -> Ranked:
    """The bracket that begins at the k-th largest entry.

    Args:
      entries: what to look at.
      k: entries wanted from the answer on.
      bracket: from `all_from`.
      exact: whether the answer has to be an entry; else it is any integer from which
        on there are exactly `k` entries, if there is one.
    """

    def unsettled(b: Bracket[Int[Array, "*units"]]) -> Bool[Array, "*units"]:
        return b.wide if exact else b.wide & (b.at_low != 0)

    def left(b: Bracket[Int[Array, "*units"]]) -> Int[Array, ""]:
        """What is left to do for the unit that is behind all others."""
        open_ = jnp.where(-b.at_low > _FEW, _FAR, _CLOSE)
        closed = jnp.where(b.at_low < 0, _TIED, _DONE)
        return jnp.max(jnp.where(unsettled(b), open_, closed).astype(jnp.int32))

    def tighten(b: Bracket[Int[Array, "*units"]]) -> Bracket[Int[Array, "*units"]]:
        least, most = entries.ends(b.low, b.high)
        still = unsettled(b)
        high = jnp.where(still, most + 1, b.high)
        if exact:  # where all entries are wanted, the least one is the answer
            high = jnp.where(still & (b.at_low == 0), least + 1, high)
        return b._replace(low=jnp.where(still, least, b.low), high=high)

    def one_pass(state: Ranked) -> Ranked:
        tight = (state.left == _CLOSE) | (state.passes == _ROUND)
        b = when(tight, tighten, state.bracket)  # reads the entries only if it has to
        at, m = b.between(entries.width), entries.width
        i = np.arange(1, m + 1).reshape(m, *[1] * b.low.ndim)
        at = jnp.where(tight & (i == 1), b.low[None] + 1, at)  # the ends are entries
        at = jnp.where(tight & (i == m), b.high[None] - 1, at)
        lacking = k[None] - entries.counts(at)
        b = b.cut(at, lacking, lacking <= 0)
        return Ranked(b, left(b), jnp.where(tight, 0, state.passes + 1))

    def unfinished(state: Ranked) -> Bool[Array, ""]:
        return state.left >= _CLOSE

    start = Ranked(bracket, jnp.int32(_CLOSE), jnp.int32(0))
    return repeat(unfinished, one_pass, start)
