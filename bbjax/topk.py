"""Exactly k largest entries per unit, by counting instead of sorting.

Floats map to integers of the same order, their keys, and the k-th largest key of a
unit is the largest `t` with `#{key >= t} >= k`. A pass compares `m` thresholds and
divides the range of `t` by `m + 1`: with `m = 7`, a float32 takes 11 passes. The
search ends once `#{key >= t} == k` for all units. Where equal scores straddle the
k-th place, the same search runs over positions, so that the lowest indices win:

    mask = key >= t + (place < p),   place = n - 1 - index

No sort, no gather, no scatter: of a sharded axis only unit-sized counts are reduced
over devices. `mask` has the shape of `scores`, `k` that of the axes not selected.
Reference: Munro and Paterson, "Selection and sorting with limited storage", 1980.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_METHODS = ("auto", "count", "top_k")
_FASTEST = {"cpu": "count"}  # benchmarks/speed/topk.py; not measured: "count"


def top_k_mask(
    scores: Any, k: Any, *, axis: int | Sequence[int], method: str = "auto"
) -> Array:
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


def kth_largest(scores: Any, k: Any, axis: int | Sequence[int]) -> Array:
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


def share_out(scores: Sequence[Any], k: Any) -> list[Array]:
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
def _share_out(scores: list[Array], k: Array) -> list[Array]:
    views = [_view(s, jnp.zeros((), jnp.int32), tuple(range(s.ndim))) for s in scores]

    def counts(thresholds: list[Array]) -> list[Array]:
        each = [_counts([v.keys >= t for t in thresholds], v) for v in views]
        return [_sum(of_one) for of_one in zip(*each, strict=True)]

    top = _top(jnp.float32)
    every = jnp.asarray(sum(s.size for s in scores), jnp.int32)
    keys = _Range(np.array(-top - 1, np.int32), 2 * top + 2, every)
    t, _ = _search(counts, k, keys, min(v.thresholds for v in views), exact=True)
    reach = [_sum(_counts([v.keys >= t], v)) for v in views]
    above = [_sum(_counts([v.keys > t], v)) for v in views]
    left = k - _sum(above)  # what equal scores share, the first arrays first
    shares = []
    for n, more in zip(reach, above, strict=True):
        take = jnp.clip(left, 0, n - more)
        left = left - take
        shares.append(more + take)
    return shares


def _sum(counts: Sequence[Array]) -> Array:
    """The sum of arrays of one entry each."""
    return jnp.sum(jnp.stack([jnp.reshape(c, ()) for c in counts]), dtype=jnp.int32)


class _View(NamedTuple):
    """Keys with every selected axis split in two: (parts, entries of a part)."""

    keys: Array
    places: Array  # n - 1 - index; broadcasts to keys
    need: Array  # k, with unit axes in the place of the selected ones
    outer: tuple[int, ...]  # axes of parts
    inner: tuple[int, ...]  # axes of entries of a part
    thresholds: int  # compared in one pass
    n: int  # entries of a unit


@functools.partial(jax.jit, static_argnums=2)
def _mask_by_count(scores: Array, k: Array, axes: tuple[int, ...]) -> Array:
    view = _view(scores, k, axes)
    t, count = _search_keys(view, _top(scores.dtype))

    def keep(p: Array) -> Array:
        return view.keys >= t + (view.places < p).astype(t.dtype)

    # Nothing to do without ties, for then all counts are right already.
    few = _Range(np.array(0, np.int32), view.n, count)
    p, _ = _search(_counting(keep, view), view.need, few, view.thresholds)
    return _merge(keep(p), view)


@functools.partial(jax.jit, static_argnums=2)
def _kth_by_count(scores: Array, k: Array, axes: tuple[int, ...]) -> Array:
    view, top = _view(scores, k, axes), _top(scores.dtype)
    t, _ = _search_keys(view, top, exact=True)
    t = jnp.where(view.need > 0, t, top).squeeze(view.outer + view.inner)
    bits = jnp.where(t < 0, jnp.abs(t) | jnp.iinfo(t.dtype).min, t)
    return lax.bitcast_convert_type(bits, scores.dtype)  # top + 1 is a NaN


def _search_keys(view: _View, top: int, exact: bool = False) -> tuple[Array, Array]:
    every = jnp.full_like(view.need, view.n)
    keys = _Range(np.array(-top - 1, view.keys.dtype), 2 * top + 2, every)
    counts = _counting(lambda t: view.keys >= t, view)
    return _search(counts, view.need, keys, view.thresholds, exact)


class _Range(NamedTuple):
    """Where a search looks: from `low` on, over `size` values; `held` at `low`."""

    low: np.ndarray
    size: int
    held: Array


Counts = Callable[[list[Array]], list[Array]]  # thresholds -> entries at or above each


def _counting(keep: Callable[[Array], Array], view: _View) -> Counts:
    return lambda thresholds: _counts([keep(t) for t in thresholds], view)


def _search(
    counts: Counts, need: Array, among: _Range, m: int, exact: bool = False
) -> tuple[Array, Array]:
    """Largest t of a range with `counts(t) >= need`, and that count.

    Counts fall with t; `m` of them are taken in one pass. Unless `exact`, ends at any t
    with `counts(t) == need`.
    """

    def unsettled(carry: tuple[Array, Array, Array]) -> Array:
        _, count, step = carry
        return (step > 0) if exact else (step > 0) & jnp.any(count != need)

    def narrow(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        t, count, step = carry
        for c in counts([t + step * i for i in range(1, m + 1)]):
            t = jnp.where(c >= need, t + step, t)  # counts fall: the first ones hold
            count = jnp.where(c >= need, c, count)
        # The answer is in [t, t + step) now: a step of 1 leaves one candidate.
        return t, count, jnp.where(step > 1, (step - 1) // (m + 1) + 1, 0)

    step = jnp.asarray(-(-among.size // (m + 1)), among.low.dtype)
    t = jnp.full_like(need, among.low, dtype=among.low.dtype)
    return lax.while_loop(unsettled, narrow, (t, among.held, step))[:2]


def _counts(masks: list[Array], view: _View) -> list[Array]:
    """How many are True per unit, all masks in one pass.

    On CPU the comparisons fuse into a reduction of several operands, where a plain
    sum would write them out first. The parts are summed plainly, because partitioners
    make an all-reduce of a plain sum only.
    """
    ones = tuple(mask.astype(jnp.int32) for mask in masks)
    partial = lax.reduce(ones, (np.int32(0),) * len(ones), _add, view.inner)
    outer = tuple(a - sum(i < a for i in view.inner) for a in view.outer)
    sums = [jnp.sum(c, outer, dtype=jnp.int32) for c in partial]
    return [jnp.expand_dims(c, view.outer + view.inner) for c in sums]


def _add(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(map(operator.add, a, b))


def _view(scores: Array, k: Array, axes: tuple[int, ...]) -> _View:
    parts, thresholds = _parts(scores, axes)
    keys = _key(scores)
    for a in sorted(axes, reverse=True):
        rest = keys.shape[a] // parts[a]
        keys = keys.reshape(keys.shape[:a] + (parts[a], rest) + keys.shape[a + 1 :])
    outer = tuple(a + sum(b < a for b in axes) for a in axes)
    inner = tuple(a + 1 for a in outer)
    order = [i for pair in zip(outer, inner, strict=True) for i in pair]
    like = jax.typeof(jnp.sum(keys, order, keepdims=True)).sharding
    need = _reshard(jnp.expand_dims(k, order), like)
    n = math.prod(keys.shape[i] for i in order)
    return _View(keys, _places(keys.shape, order), need, outer, inner, thresholds, n)


def _merge(mask: Array, view: _View) -> Array:
    """Undoes the split, one axis at a time so that shardings follow by themselves."""
    for a in sorted(view.outer, reverse=True):
        mask = mask.reshape(mask.shape[:a] + (-1,) + mask.shape[a + 2 :])
    return mask


def _places(shape: tuple[int, ...], order: list[int]) -> Array:
    """Position from the end of a unit; `order` names its axes, slowest first."""
    places, stride = jnp.zeros([1] * len(shape), jnp.int32), 1
    for a in reversed(order):
        along = [size if i == a else 1 for i, size in enumerate(shape)]
        index = lax.broadcasted_iota(jnp.int32, along, a)
        places = places + (shape[a] - 1 - index) * stride
        stride *= shape[a]
    return places


def _parts(scores: Array, axes: tuple[int, ...]) -> tuple[dict[int, int], int]:
    """The number of parts of each selected axis, and the thresholds per pass.

    A part never straddles devices, however the axis is sharded. On CPU the fused loop
    is fast along the minor axis, or over so few rows that they are unrolled.
    """
    shape, last = scores.shape, max(axes)
    devices = math.lcm(jax.device_count(), jax.typeof(scores).sharding.mesh.size or 1)
    parts = {a: math.gcd(shape[a], devices) for a in axes}
    if last == scores.ndim - 1 or jax.default_backend() != "cpu":
        return parts, 7
    for rows in range(16, 3, -1):
        if shape[last] // parts[last] % rows == 0:
            return {a: shape[a] for a in axes} | {last: shape[last] // rows}, 3
    return parts, 3


def _key(scores: Array) -> Array:
    """Integers in the order of the scores: 0 for both zeros, -top - 1 for NaN."""
    # XLA folds the bits of a transposed constant in the wrong order (jax 0.10.2, a jit
    # inside a jit): behind a barrier, which costs nothing, it sees no constant.
    scores = lax.optimization_barrier(scores)
    bits = lax.bitcast_convert_type(scores, f"int{scores.dtype.itemsize * 8}")
    size = bits & jnp.iinfo(bits.dtype).max
    nan = size > _top(scores.dtype)
    return jnp.where(nan, -_top(scores.dtype) - 1, jnp.where(bits < 0, -size, size))


def _top(dtype: Any) -> int:
    """The key of +inf."""
    return int(np.array(np.inf, dtype).view(f"int{jnp.dtype(dtype).itemsize * 8}"))


@functools.partial(jax.jit, static_argnums=2)
def _mask_by_top_k(scores: Array, k: Array, axes: tuple[int, ...]) -> Array:
    keys, k, last = _whole(_key(scores)), _whole(k), range(-len(axes), 0)
    rows = jnp.moveaxis(keys, axes, last).reshape(k.size, -1)
    _, order = lax.top_k(rows, rows.shape[1])
    kept = jnp.arange(rows.shape[1], dtype=jnp.int32)[None] < k.reshape(-1, 1)
    mask = jnp.put_along_axis(jnp.zeros_like(kept), order, kept, 1, inplace=False)
    split = k.shape + tuple(scores.shape[a] for a in axes)
    mask = jnp.moveaxis(mask.reshape(split), last, axes)
    return _reshard(mask, jax.typeof(scores).sharding)


def _whole(x: Array) -> Array:
    """All of x on every device."""
    spec = jax.sharding.PartitionSpec(*[None] * x.ndim)
    return _reshard(x, jax.typeof(x).sharding.update(spec=spec))


def _reshard(x: Array, sharding: jax.sharding.NamedSharding) -> Array:
    """Does nothing but on meshes where the sharding is part of the type."""
    same = jax.typeof(x).sharding == sharding
    return x if same else jax.sharding.reshard(x, sharding)


def _checked(scores: Any, k: Any, axis: Any) -> tuple[Array, Array, tuple[int, ...]]:
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


def _degrees(k: Any, n: int, shape: tuple[int, ...]) -> Array:
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
