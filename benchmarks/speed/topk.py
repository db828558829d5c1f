"""Selecting k entries per unit: counting against `lax.top_k`.

    python -m benchmarks.speed.topk [--out results.json] [--repeats 5]

Every unit has its own k, from 0 to n. The methods are run in turns and the medians
compared, next to one pass that reads the scores. `lax.top_k` sorts only: it is not
charged for making a mask of its indices. About two minutes on two CPU cores.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from bbjax.topk import top_k_mask
from benchmarks.common import machine

SHAPES = ((512, 2048), (2048, 512), (2048, 2048), (4096, 4096))
DTYPES = ("float32", "bfloat16")


def interleaved(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each call, all of them run in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(t) for name, t in times.items()}


def case(shape: tuple[int, int], dtype: str, axis: int, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=shape).astype(np.float32)).astype(dtype)
    k = jnp.asarray(rng.integers(0, shape[axis] + 1, shape[1 - axis]), jnp.int32)
    sort = jax.jit(lambda x: jax.lax.top_k(jnp.moveaxis(x, axis, 1), x.shape[axis]))
    read = jax.jit(lambda x: jnp.max(x, axis))
    masks = {m: top_k_mask(scores, k, axis=axis, method=m) for m in ("count", "top_k")}
    assert (masks["count"] == masks["top_k"]).all()
    ms = interleaved(
        {
            "count": lambda: top_k_mask(scores, k, axis=axis, method="count"),
            "top_k": lambda: sort(scores),
            "read": lambda: read(scores),
        },
        repeats,
    )
    return {
        "shape": shape,
        "dtype": dtype,
        "axis": axis,
        "ms": ms,
        "top_k/count": ms["top_k"] / ms["count"],
        "count/read": ms["count"] / ms["read"],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the table."""
    table = Table("shape", "dtype", "axis", "count ms", "top_k ms", "read ms", "faster")
    for row in rows:
        ms = (f"{row['ms'][name]:.2f}" for name in ("count", "top_k", "read"))
        shape = "×".join(map(str, row["shape"]))
        faster = f"{row['top_k/count']:.1f}×"
        table.add_row(shape, row["dtype"], str(row["axis"]), *ms, faster)
    Console().print(table)


def main() -> None:
    """Measures every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rows = [
        case(shape, dtype, axis, args.repeats)
        for shape in SHAPES
        for dtype in DTYPES
        for axis in (0, 1)
    ]
    show(rows)
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
