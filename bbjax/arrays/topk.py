"""Exactly k largest entries per unit, by counting instead of sorting.

Floats map to integers of the same order, their keys, and the k-th largest key of a
unit is the largest `t` with `#{key >= t} >= k`, found by `bbjax.arrays.bracket` in a
few passes that compare several thresholds each. Where equal scores straddle the k-th
place, the same search runs over positions, so that the lowest indices win:

    mask = key >= t + (place < p),   place = n - 1 - index

No sort, no gather, no scatter: of a sharded axis only unit-sized counts are reduced
over devices. `mask` has the shape of `scores`, `k` that of the axes not selected.
Reference: Munro and Paterson, "Selection and sorting with limited storage", 1980.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Integer

from bbjax.arrays import bracket
from bbjax.arrays.bracket import Bracket, Countable, Ranked
from bbjax.arrays.keys import from_key, key, top_key
from bbjax.arrays.loop import repeat, when
from bbjax.arrays.reductions import Parts
from bbjax.arrays.sharding import match, whole

_METHODS = ("auto", "count", "top_k")
_FASTEST = {"cpu": "count"}  # benchmarks.speed; not measured: "count"


def top_k_mask(
    scores: Float[ArrayLike, "*shape"],
    k: Integer[ArrayLike, "..."],
    *,
    axis: int | Sequence[int],
    method: str = "auto",
) -> Bool[Array, "*shape"]:
    """Marks the k largest scores of every unit.

    Equal scores are taken in order of index (row-major over `axis`), -0.0 equals 0.0,
    and NaN ranks below everything, -inf included.

    Args:
      scores: float array of any dtype and shape.
      k: int or int array, possibly traced, of the shape of the axes not in `axis` or
        broadcastable to it; clipped to `[0, n]` where a unit has `n` entries.
      axis: the axis or axes along which the entries of one unit lie.
      method: "count" (search by counting), "top_k" (sort with `lax.top_k`, the
        reference) or "auto" (the faster one on this backend). The masks are equal.

    Returns:
      Bool array of the shape of `scores` with exactly `k` True along `axis`.

    Raises:
      TypeError: scores are not floats, or k or axis not integers.
      ValueError: unknown method, axis out of range or repeated, k of another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> scores = jnp.array([[3.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
      >>> top_k_mask(scores, jnp.array([1, 2]), axis=1).astype(int).tolist()
      [[1, 0, 0], [1, 1, 0]]
    """
    if method not in _METHODS:
        raise ValueError(f"expected method in {_METHODS}, got {method!r}; use 'auto'")
    scores, k, axes = _checked(scores, k, axis)
    if method == "auto":
        method = _FASTEST.get(jax.default_backend(), "count")
    if scores.size == 0:
        return jnp.zeros_like(scores, bool)
    select = _mask_by_count if method == "count" else _mask_by_top_k
    return select(scores, k, axes)


def kth_largest(
    scores: Float[ArrayLike, "..."],
    k: Integer[ArrayLike, "..."],
    axis: int | Sequence[int],
) -> Float[Array, "*others"]:
    """Returns the k-th largest score of every unit, the smallest that is kept.

    Takes what `top_k_mask` takes and raises what it raises. The result has the other
    axes' shape and the dtype of `scores` (float32 for 8-bit floats): +inf where
    `k == 0`, 0.0 for -0.0, NaN where a NaN is kept.

    Example:
      >>> import jax.numpy as jnp
      >>> kth_largest(jnp.array([[3.0, 1.0, 2.0]]), 2, axis=1).tolist()
      [2.0]
    """
    return _kth_by_count(*_checked(scores, k, axis))


def share_out(
    scores: Sequence[Float[ArrayLike, "..."]], k: Integer[ArrayLike, ""]
) -> list[Int[Array, ""]]:
    """How many of the `k` largest scores of several arrays lie in each of them.

    Equal scores are taken in the order of the arrays; NaN ranks below everything.

    Args:
      scores: float arrays of any shapes; compared as float32.
      k: int scalar, possibly traced; the arrays together have less than 2**31 entries.

    Returns:
      For each array an int32 scalar; their sum is `k`, clipped to what there is.

    Example:
      >>> import jax.numpy as jnp
      >>> first, second = jnp.array([9.0, 1.0]), jnp.array([[8.0, 7.0], [0.0, 2.0]])
      >>> [int(n) for n in share_out([first, second], 3)]
      [1, 2]
    """
    flat = [jnp.asarray(s).astype(jnp.float32) for s in scores]
    most = sum(s.size for s in flat)
    return list(_share_out(flat, jnp.clip(jnp.asarray(k, jnp.int32), 0, most)))


@jax.jit
def _share_out(
    scores: list[Float[Array, "..."]], k: Int[Array, ""]
) -> list[Int[Array, ""]]:
    views = [_view(s, jnp.zeros((), jnp.int32), tuple(range(s.ndim))) for s in scores]

    def counts(at: Int[Array, " width"]) -> Int[Array, " width"]:
        return functools.reduce(operator.add, (_flat(v.counts(at)) for v in views))

    def ends(
        low: Int[Array, ""], high: Int[Array, ""]
    ) -> tuple[Int[Array, ""], Int[Array, ""]]:
        pairs = [v.ends(low, high) for v in views]
        least, most = (
            jnp.concatenate([_flat(end) for end in ends])
            for ends in zip(*pairs, strict=True)
        )
        return jnp.min(least), jnp.max(most)

    entries = Countable(counts, ends, min(v.parts.width for v in views))
    everywhere = _all_keys(jnp.float32, k, sum(s.size for s in scores))
    t = bracket.kth_largest(entries, k, everywhere, exact=True).bracket.low
    pairs = [_flat(v.counts(jnp.stack([t, t + 1]))) for v in views]
    reach, above = jnp.stack(pairs, 1)
    # Of equal scores at the threshold, those of the first arrays are taken first.
    left = k - jnp.sum(above, dtype=jnp.int32)
    shares = []
    for n, more in zip(reach, above, strict=True):
        take = jnp.clip(left, 0, n - more)
        left = left - take
        shares.append(more + take)
    return shares


def _flat(per_unit: Int[Array, "..."]) -> Int[Array, " width"]:
    """Without the axes of one unit, but for a leading one of thresholds."""
    return jnp.reshape(per_unit, per_unit.shape[:1] if per_unit.ndim else (1,))


class _View(NamedTuple):
    """Keys with every selected axis split in two: (parts, entries of a part)."""

    keys: Int[Array, "*split"]
    places: Int[Array, "..."]  # n - 1 - index; broadcasts to keys
    k: Int[Array, "*units"]  # with axes of size 1 in the place of the selected ones
    parts: Parts
    n: int  # entries of a unit

    def counts(self, at: Int[Array, "width ..."]) -> Int[Array, "width ..."]:
        """Keys at or above each of some thresholds, which lie along a first axis."""
        each = (lax.index_in_dim(at, i, keepdims=False) for i in range(at.shape[0]))
        ones = [(self.keys >= t).astype(jnp.int32) for t in each]
        return self.parts.restored(self.parts.sums(ones), leading=1)

    def ends(
        self, low: Int[Array, "..."], high: Int[Array, "..."]
    ) -> tuple[Int[Array, "*units"], Int[Array, "*units"]]:
        """The least key from `low` on, and the largest one below `high`."""
        limits = jnp.iinfo(self.keys.dtype)
        over = jnp.where(self.keys >= low, self.keys, np.array(limits.max, low.dtype))
        under = jnp.where(self.keys < high, self.keys, np.array(limits.min, low.dtype))
        least, most = self.parts.ends(over, under)
        return self.parts.restored(least), self.parts.restored(most)

    def search(self, start: Bracket[Array], *, exact: bool = False) -> Ranked:
        """Looks for the k-th largest key of every unit."""
        entries = Countable(self.counts, self.ends, self.parts.width)
        return bracket.kth_largest(entries, self.k, start, exact=exact)

    def ranks(
        self, keys: Int[Array, "*split"], t: Int[Array, "*units"]
    ) -> Int[Array, "*split"]:
        """Keys that order equal ones: places of those that equal `t`, `n` above it."""
        equals = jnp.where(keys == t, self.places, -1)
        return jnp.where(keys > t, self.n, equals).astype(keys.dtype)


class _Settling(NamedTuple):
    """A search, and a second one where equal scores straddle the k-th place."""

    again: Bool[Array, ""]
    tied: Bool[Array, ""]  # whether this is the second one
    keys: Int[Array, "*split"]  # by place in the second one
    t: Int[Array, "*units"]
    lacking: Int[Array, "*units"]  # k less the keys from t on


@functools.partial(jax.jit, static_argnums=2)
def _mask_by_count(
    scores: Float[Array, "*shape"], k: Int[Array, "*others"], axes: tuple[int, ...]
) -> Bool[Array, "*shape"]:
    view = _view(scores, k, axes)

    def settle(state: _Settling) -> _Settling:
        _, tied, keys, t, lacking = state
        keys = when(tied, lambda keys: view.ranks(keys, t), keys)
        few = bracket.all_from(0, view.n, view.k, lacking, keys.dtype)
        every = _all_keys(scores.dtype, view.k, view.n)
        start = jax.tree.map(functools.partial(jnp.where, tied), few, every)
        found = view._replace(keys=keys).search(start)
        low, lacking, *_ = found.bracket
        return _Settling(found.tied, found.tied, keys, low, lacking)

    yes, none = jnp.ones((), bool), jnp.zeros_like(view.k)
    start = _Settling(yes, ~yes, view.keys, none.astype(view.keys.dtype), none)
    last = repeat(lambda state: state.again, settle, start)
    return view.parts.join(last.keys >= last.t)


@functools.partial(jax.jit, static_argnums=2)
def _kth_by_count(
    scores: Float[Array, "..."], k: Int[Array, "*others"], axes: tuple[int, ...]
) -> Float[Array, "*others"]:
    view, top = _view(scores, k, axes), top_key(scores.dtype)
    everywhere = _all_keys(scores.dtype, view.k, view.n)
    t = view.search(everywhere, exact=True).bracket.low
    t = jnp.where(view.k > 0, t, top).squeeze(view.parts.split)
    return from_key(t, scores.dtype)


def _all_keys(dtype: Any, k: Int[Array, "*units"], n: int) -> Bracket[Array]:
    """The bracket of all keys of a dtype, for units of `n` entries."""
    top, wide = top_key(dtype), jnp.dtype(dtype).itemsize == 8
    keys = "int64" if wide else "int32"
    return bracket.all_from(-top - 1, top + 1, k, k - n, keys)


def _view(
    scores: Float[Array, "..."], k: Int[Array, "*others"], axes: tuple[int, ...]
) -> _View:
    parts = Parts.of(scores, axes)
    keys = key(parts.cut(scores))
    per_unit = jnp.sum(keys, parts.split, keepdims=True)  # for its sharding alone
    k = match(jnp.expand_dims(k, parts.split), per_unit)
    n = math.prod(keys.shape[i] for i in parts.split)
    return _View(keys, _places(keys.shape, parts.split), k, parts, n)


def _places(shape: tuple[int, ...], order: Sequence[int]) -> Int[Array, "..."]:
    """Position from the end of a unit; `order` names its axes, slowest first."""
    places, stride = jnp.zeros([1] * len(shape), jnp.int32), 1
    for a in reversed(tuple(order)):
        along = [size if i == a else 1 for i, size in enumerate(shape)]
        index = lax.broadcasted_iota(jnp.int32, along, a)
        places = places + (shape[a] - 1 - index) * stride
        stride *= shape[a]
    return places


@functools.partial(jax.jit, static_argnums=2)
def _mask_by_top_k(
    scores: Float[Array, "*shape"], k: Int[Array, "*others"], axes: tuple[int, ...]
) -> Bool[Array, "*shape"]:
    keys, k, last = whole(key(scores)), whole(k), range(-len(axes), 0)
    rows = jnp.moveaxis(keys, axes, last).reshape(k.size, -1)
    _, order = lax.top_k(rows, rows.shape[1])
    kept = jnp.arange(rows.shape[1], dtype=jnp.int32)[None] < k.reshape(-1, 1)
    mask = jnp.put_along_axis(jnp.zeros_like(kept), order, kept, 1, inplace=False)
    split = k.shape + tuple(scores.shape[a] for a in axes)
    mask = jnp.moveaxis(mask.reshape(split), last, axes)
    return match(mask, scores)


def _checked(
    scores: Float[ArrayLike, "..."], k: Integer[ArrayLike, "..."], axis: Any
) -> tuple[Float[Array, "..."], Int[Array, "..."], tuple[int, ...]]:
    scores = jnp.asarray(scores)
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise TypeError(f"expected float scores, got {scores.dtype}; cast them")
    if scores.dtype.itemsize == 1:  # some of these have no inf; the cast is exact
        scores = scores.astype(jnp.float32)
    axes = _axes(axis, scores.ndim)
    others = tuple(s for a, s in enumerate(scores.shape) if a not in axes)
    return scores, _degrees(k, math.prod(scores.shape[a] for a in axes), others), axes


def _axes(axis: Any, ndim: int) -> tuple[int, ...]:
    try:
        given = [operator.index(a) for a in np.atleast_1d(np.array(axis, object))]
    except TypeError:
        text = f"expected axis to be an int or a tuple of ints, got {axis!r}; use ints"
        raise TypeError(text) from None
    axes = tuple(a % ndim for a in given if -ndim <= a < ndim)
    if not given or len(set(axes)) < len(given):
        raise ValueError(
            f"expected distinct axes of scores with {ndim} axes, got {axis!r}; give "
            f"one or more from {-ndim} to {ndim - 1}"
        )
    return axes


def _degrees(
    k: Integer[ArrayLike, "..."], n: int, shape: tuple[int, ...]
) -> Int[Array, "..."]:
    k = k if isinstance(k, jax.Array) else np.asarray(k)
    if not jnp.issubdtype(k.dtype, jnp.integer):
        raise TypeError(f"expected integer k, got {k.dtype}; round it and cast it")
    sizes = zip(reversed(k.shape), reversed(shape), strict=False)
    if k.ndim > len(shape) or any(a not in (1, b) for a, b in sizes):
        raise ValueError(
            f"expected k of shape {shape} (the other axes of scores) or broadcastable "
            f"to it, got {k.shape}; give one k per unit"
        )
    if k.dtype.itemsize < 4:  # n may not fit
        k = k.astype(np.int32)
    return jnp.broadcast_to(jnp.asarray(k.clip(0, n).astype(np.int32)), shape)
