"""Several reductions of one array in one pass, on each device by itself.

A reduced axis of `n` entries is split in (parts, entries of a part). The entries of a
part are reduced by one operation with several operands. Comparisons and casts fuse into
it; before a plain sum, a CPU would write a comparison to memory. The parts are then
reduced by plain sums, which become an all-reduce on several devices.

No part lies on two devices, however the axis is sharded. On CPU the fused loop is fast
along the minor axis; along other axes it is fast only over so few rows that they are
unrolled, so parts are small there.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Integer, Num, Shaped

_ROWS = range(16, 3, -1)  # unrolled together


class Parts(NamedTuple):
    """How the reduced axes of an array are split.

    Attributes:
      axes: the reduced axes, as given.
      counts: the number of parts of each of them.
      width: thresholds that one pass over the split array compares well.
      fused: whether the loop over a part is fast.
    """

    axes: tuple[int, ...]
    counts: tuple[int, ...]
    width: int
    fused: bool

    @classmethod
    def of(cls, x: Shaped[Array, "..."], axes: Sequence[int]) -> Parts:
        """The parts of an array to be reduced over some axes."""
        mesh = jax.typeof(x).sharding.mesh
        devices = math.lcm(jax.device_count(), mesh.size or 1)
        counts = {a: math.gcd(x.shape[a], devices) for a in axes}
        last = max(axes)
        if last == x.ndim - 1 or jax.default_backend() != "cpu":
            return cls(tuple(axes), tuple(counts.values()), width=7, fused=True)
        fits = [rows for rows in _ROWS if x.shape[last] // counts[last] % rows == 0]
        if fits:
            counts = {a: x.shape[a] for a in axes} | {last: x.shape[last] // fits[0]}
        return cls(tuple(axes), tuple(counts.values()), width=3, fused=bool(fits))

    @property
    def outer(self) -> tuple[int, ...]:
        """Axes of parts in the split array."""
        return tuple(a + sum(b < a for b in self.axes) for a in self.axes)

    @property
    def inner(self) -> tuple[int, ...]:
        """Axes of the entries of a part in the split array."""
        return tuple(a + 1 for a in self.outer)

    @property
    def split(self) -> tuple[int, ...]:
        """Both kinds of axes, in the order of the reduced axes."""
        pairs = zip(self.outer, self.inner, strict=True)
        return tuple(axis for pair in pairs for axis in pair)

    def cut(self, x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """Splits an array, one axis at a time so that shardings follow."""
        for a, count in sorted(zip(self.axes, self.counts, strict=True), reverse=True):
            x = x.reshape(*x.shape[:a], count, x.shape[a] // count, *x.shape[a + 1 :])
        return x

    def join(self, x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """Undoes the split."""
        for a in sorted(self.outer, reverse=True):
            x = x.reshape(*x.shape[:a], -1, *x.shape[a + 2 :])
        return x

    def sums(self, arrays: Sequence[Num[Array, "*split"]]) -> Num[Array, "sums ..."]:
        """Sums of split arrays of one dtype, in one pass, on a new first axis."""
        zero = np.zeros((), arrays[0].dtype)
        partial = lax.reduce(tuple(arrays), (zero,) * len(arrays), _add, self.inner)
        axes = tuple(a + 1 for a in self._left)
        return jnp.sum(jnp.stack(partial), axes, dtype=zero.dtype)

    def ends(
        self, low: Integer[Array, "*split"], high: Integer[Array, "*split"]
    ) -> tuple[Integer[Array, "*left"], Integer[Array, "*left"]]:
        """The least entry of one split array and the largest of another."""
        limits = jnp.iinfo(low.dtype)
        first = np.array(limits.max, low.dtype), np.array(limits.min, high.dtype)
        pair = lax.reduce((low, high), first, _min_max, self.inner)
        return jnp.min(pair[0], self._left), jnp.max(pair[1], self._left)

    def restored(
        self, x: Shaped[Array, "..."], leading: int = 0
    ) -> Shaped[Array, "..."]:
        """The reduced axes of the split array again, of size 1, after leading ones."""
        return jnp.expand_dims(x, tuple(a + leading for a in self.split))

    @property
    def _left(self) -> tuple[int, ...]:
        """Axes of parts once the entries of a part are reduced."""
        return tuple(a - sum(i < a for i in self.inner) for a in self.outer)


def sums(
    arrays: Sequence[Num[Array, "*shape"]], axes: Sequence[int]
) -> Sequence[Num[Array, "*left"]]:
    """Sums of arrays of one shape and dtype over some axes, in one pass if that pays.

    Example:
      >>> x = jnp.array([[1.0, -1.0], [1.0, 2.0]])
      >>> [s.tolist() for s in sums([x, x * x], (0,))]
      [[2.0, 1.0], [2.0, 5.0]]
    """
    if axes and arrays[0].size and jax.default_backend() == "cpu":
        parts = Parts.of(arrays[0], axes)
        if parts.fused:
            return list(parts.sums([parts.cut(a) for a in arrays]))
    return [jnp.sum(a, tuple(axes), dtype=a.dtype) for a in arrays]


Pair = tuple[Array, Array]


def _add(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(map(operator.add, a, b))


def _min_max(a: Pair, b: Pair) -> Pair:
    return lax.min(a[0], b[0]), lax.max(a[1], b[1])
