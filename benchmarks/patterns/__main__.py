"""Does 2 of every 4 pay: `python -m benchmarks.patterns`.

    python -m benchmarks.patterns [--small] [--rounds N] [--out FOLDER] [--redraw]

A decoding step through feed-forward blocks (`ways.py`), their kernels pruned to 2 of
every 4 weights: with zeros, or stored packed and multiplied by what XLA offers, on a
GPU also by a Pallas kernel that reads them so. A program that waits for memory can be
faster by the bytes that it does not read:

    ideal       bytes of dense kernels / bytes of packed ones
    speed-up    ms dense / ms packed, within a round

Takes 5 minutes on 2 CPU cores; `--small` takes seconds on toy sizes, whose times say
nothing. Writes patterns.json (on an accelerator patterns_<backend>.json) and the
results of README.md.
"""

import functools
from typing import Any

import jax
import numpy as np

from benchmarks.common import command
from benchmarks.common.measure import nbytes, spread
from benchmarks.latency import measure
from benchmarks.patterns import page, ways

BATCHES = (1, 16, 64)
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}  # of the largest entry


def run(size: ways.Size, rounds: int) -> dict[str, Any]:
    """Every way at every batch."""
    params, masks = ways.pruned(size)
    kinds = ways.ways(1, jax.default_backend())
    kernels = {way: ways.stored(way, params, masks) for way in kinds}
    return {
        "size": {"blocks": size.blocks, "width": size.width, "hidden": size.hidden},
        "dtype": np.dtype(size.dtype).name,
        "bytes": {way: nbytes(tree) for way, tree in kernels.items()},
        "batches": {
            str(batch): compare(size, batch, kernels, rounds) for batch in BATCHES
        },
    }


def compare(
    size: ways.Size, batch: int, kernels: dict[str, Any], rounds: int
) -> dict[str, Any]:
    """All ways at one batch, in turns, against the dense one."""
    x = jax.random.normal(jax.random.key(1), (batch, size.width)).astype(size.dtype)
    calls, outputs = {}, {}
    for way in ways.ways(batch, jax.default_backend()):
        fn = jax.jit(ways.blocks(ways.PRODUCTS[way]))
        program = fn.lower(kernels[way], x).compile()
        calls[way] = functools.partial(program, kernels[way], x)
        outputs[way] = np.asarray(calls[way]().astype("float32"))
    errors = {way: apart(outputs["dense"], out, size) for way, out in outputs.items()}
    ms = measure.in_turns(calls, rounds, measure.calls_per_turn(batch))
    return {
        way: {
            "ms": spread(taken),
            "speedup": spread(ms["dense"] / taken),
            "error": errors[way],
        }
        for way, taken in ms.items()
    }


def apart(dense: np.ndarray, other: np.ndarray, size: ways.Size) -> float:
    """How far outputs are from the dense ones, of the largest entry."""
    found = float(np.max(np.abs(dense - other)) / np.max(np.abs(dense)))
    most = TOLERANCE[np.dtype(size.dtype).name]
    if not found <= most:
        raise RuntimeError(
            f"expected outputs within {most} of the dense ones, got {found:.2g}"
        )
    return found


def main(given: list[str] | None = None) -> None:
    """Measures, prints and writes."""
    args = command.parsed(command.parser("patterns", __doc__), given)
    if args.redraw:
        page.PAGE.publish()
        return
    watch = command.Watch(page.PAGE, args)
    watch.finish(run(ways.SIZES[command.size(args)], args.rounds))


if __name__ == "__main__":
    main()
