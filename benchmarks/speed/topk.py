"""Selecting k entries per unit: counting against sorting, next to one read pass.

    python -m benchmarks.speed --parts topk

Every unit has its own k, drawn from 0 to n. In turns run

    count    `top_k_mask(method="count")`
    top_k    `top_k_mask(method="top_k")`, the reference: sort, then make the mask
    sort     `lax.top_k` alone, not charged for making a mask of its indices
    unstable the same with `is_stable=False`, where this version of JAX has it: the fast
             path of GPUs, but equal scores may be taken in any order
    approx   `lax.approx_max_k` of half the entries, recall 0.95: a bound, not exact
    read     one pass that reads the scores, a maximum along the axis
    copy     a copy of the scores on the device: the least that a pass which reads and
             writes as many bytes can take

The masks of both methods must be equal, or the run stops. Where that check takes more
than `SLOW_MS`, what sorts runs in two rounds only, and its ratios are over these. On
two CPU cores nearly all the time goes into the sorting of 8192 x 8192.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bbjax import top_k_mask
from benchmarks.common.measure import interleaved, milliseconds, spread
from benchmarks.speed.options import Options

SHAPES = ((512, 2048), (2048, 512), (2048, 2048), (4096, 4096), (8192, 8192))
SMALL_SHAPES = ((32, 64), (128, 64))
DTYPES = ("float32", "bfloat16")
SLOW_MS = 1500.0
SLOW_ROUNDS = 2
QUICK = ("count", "read", "copy")  # what does not sort
RATIOS = ("top_k/count", "sort/count", "unstable/count", "approx/count") + tuple(
    f"count/{name}" for name in QUICK[1:]
)
Calls = Mapping[str, Callable[[], Any]]


def draw(shape: tuple[int, int], dtype: str, axis: int) -> tuple[jax.Array, jax.Array]:
    """Scores, and a k for every unit."""
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=shape).astype(np.float32)).astype(dtype)
    k = jnp.asarray(rng.integers(0, shape[axis] + 1, shape[1 - axis]), jnp.int32)
    return scores, k


def methods(scores: jax.Array, k: jax.Array, axis: int) -> Calls:
    """The calls that are compared, compiled."""

    def ready(fn: Callable[..., Any], *args: jax.Array) -> Callable[[], Any]:
        executable = jax.jit(fn).lower(*args).compile()
        return lambda: executable(*args)

    def select(method: str) -> Callable[..., jax.Array]:
        return lambda s, k: top_k_mask(s, k, axis=axis, method=method)

    def sorting(**how: bool) -> Callable[..., Any]:
        return lambda s: jax.lax.top_k(jnp.moveaxis(s, axis, 1), n, **how)

    def approximately(s: jax.Array) -> Any:
        return jax.lax.approx_max_k(s, max(n // 2, 1), reduction_dimension=axis)

    n = scores.shape[axis]
    calls = {
        "count": ready(select("count"), scores, k),
        "top_k": ready(select("top_k"), scores, k),
        "sort": ready(sorting(), scores),
        "approx": ready(approximately, scores),
        "read": ready(lambda s: jnp.max(s, axis), scores),
        "copy": ready(jnp.copy, scores),
    }
    if "is_stable" in inspect.signature(jax.lax.top_k).parameters:
        calls["unstable"] = ready(sorting(is_stable=False), scores)
    return calls


def check(calls: Calls, k: jax.Array, axis: int) -> None:
    """Stops the run where masks differ or do not hold k entries."""
    count, top_k = calls["count"](), calls["top_k"]()
    if not bool((count == top_k).all()):
        wrong = int((count != top_k).sum())
        raise RuntimeError(f"expected equal masks, got {wrong} entries that differ")
    if not bool((count.sum(axis) == k).all()):
        raise RuntimeError("expected k entries for every unit, got another number")


def in_turns(calls: Calls, rounds: int, slow: bool) -> dict[str, np.ndarray]:
    """Milliseconds by round; where sorting is slow, it takes part in the first only."""
    if not slow or rounds <= SLOW_ROUNDS:
        return interleaved(calls, rounds)
    times = interleaved(calls, SLOW_ROUNDS, warmup=0)
    quick = {name: calls[name] for name in QUICK}
    more = interleaved(quick, rounds - SLOW_ROUNDS)
    return times | {name: np.append(times[name], more[name]) for name in quick}


def ratio(times: Mapping[str, np.ndarray], over: str, under: str) -> dict[str, float]:
    """Spread of a ratio over the rounds that both took part in."""
    both = min(len(times[over]), len(times[under]))
    return spread(times[over][:both] / times[under][:both])


def case(shape: tuple[int, int], dtype: str, axis: int, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    scores, k = draw(shape, dtype, axis)
    calls = methods(scores, k, axis)
    took = milliseconds(lambda: check(calls, k, axis))  # runs what sorts once
    times = in_turns(calls, rounds, slow=took > SLOW_MS)
    return {
        "shape": list(shape),
        "dtype": dtype,
        "axis": axis,
        "rounds": {name: len(t) for name, t in times.items()},
        "ms": {name: spread(t) for name, t in times.items()},
    } | {
        pair: ratio(times, *pair.split("/"))
        for pair in RATIOS
        if set(pair.split("/")) <= set(times)
    }


def rows(options: Options) -> Iterator[tuple[str, dict[str, Any]]]:
    """A row for every shape, dtype and axis."""
    rounds = options.times(small=2, cpu=7, accelerator=30)
    for shape in SMALL_SHAPES if options.small else SHAPES:
        for dtype in DTYPES:
            for axis in (0, 1):
                name = f"{shape[0]}x{shape[1]} {dtype} axis {axis}"
                yield name, case(shape, dtype, axis, rounds)
