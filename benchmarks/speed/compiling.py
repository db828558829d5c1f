"""How long a training step takes to trace and compile, against the dense step.

    python -m benchmarks.speed --parts compile

Dense, observe and pruned programs are compiled in turns; JAX forgets what it traced
before each, and keeps nothing on disk. All were compiled once before, so that the
compiler itself is warm.

    lower      from Python to the compiler's input: tracing, gradient, lowering
    backend    the compiler
    total      lower + backend; the ratio is that of totals within a round

`trace_ms` is `bb.trace`, once per model and no part of the step. With the model gpt
comes gpt-24, the same with 24 scanned layers, for which there is a budget.
"""

import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.common.measure import milliseconds, spread
from benchmarks.speed import programs
from benchmarks.speed.options import Options
from benchmarks.speed.programs import Program
from benchmarks.speed.tasks import Task, task


def once(program: Program) -> tuple[float, float]:
    """Milliseconds of lowering and of the compiler."""
    jax.clear_caches()
    started = time.perf_counter()
    lowered = program.lower()
    between = time.perf_counter()
    lowered.compile()
    return 1e3 * (between - started), 1e3 * (time.perf_counter() - between)


def tracing(what: Task) -> float:
    """Milliseconds of `bb.trace`."""
    jax.clear_caches()
    return milliseconds(lambda: what.units() and None)


def row(what: Task, rounds: int) -> dict[str, Any]:
    """One model."""
    made = {
        "dense": programs.dense(what),
        "observe": programs.observe(what),
        "bb": programs.pruned(what),
    }
    for program in made.values():
        programs.compiled(program)
    # (rounds, programs, parts)
    taken = np.array([[once(p) for p in made.values()] for _ in range(rounds)])
    totals = taken.sum(-1)
    parts = {
        name: {
            "lower_ms": spread(taken[:, i, 0]),
            "backend_ms": spread(taken[:, i, 1]),
            "total_ms": spread(totals[:, i]),
        }
        for i, name in enumerate(made)
    }
    return what.about() | {
        "rounds": rounds,
        "trace_ms": spread([tracing(what) for _ in range(rounds)]),
        "programs": parts,
        "ratio": {
            name: spread(totals[:, i] / totals[:, 0]) for i, name in enumerate(made)
        },
    }


def rows(options: Options) -> Iterator[tuple[str, dict[str, Any]]]:
    """A row for every model."""
    names = options.models + (("gpt-24",) if "gpt" in options.models else ())
    rounds = options.times(small=1, cpu=3, accelerator=1)
    for name in names:
        yield name, row(task(name, options.size), min(rounds, 3))
