"""What a training step costs, against the dense step of the same round.

    python -m benchmarks.speed --parts step [--models ffn-256 ...] [--no-regrow]

Steps of one process run in turns, round after round:

    refresh, after, settle    of every pruned program: the step that refreshes all its
                              kernels, the one after it (cold caches, fresh pages), one
                              that is not counted
    dense, plain, observe     a turn each; a turn is several calls where the options say

A ratio is taken within a round; reported are medians and quartiles over the rounds.
Amortised over `every` steps, also within a round:

    ((every - 2) plain + after + refresh) / every
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.common.measure import milliseconds, spread
from benchmarks.speed import programs
from benchmarks.speed.options import EVERY, Options, burst
from benchmarks.speed.programs import Program
from benchmarks.speed.tasks import task

Times = dict[str, np.ndarray]


class Turn(NamedTuple):
    """So many calls of a program, under a label; without one they are not counted."""

    program: str
    label: str | None
    calls: int = 1


def turns(pruned: list[str], others: list[str], calls: int) -> list[Turn]:
    """One round. Every pruned program takes 3 + `calls` steps, the first a refresh."""
    order = []
    for name in pruned:
        order += [Turn(name, f"{name}/refresh"), Turn(name, f"{name}/after")]
        order.append(Turn(name, None))
    if calls > 1:  # what a single step is compared with
        order.append(Turn("dense", "dense/once"))
    order.append(Turn("dense", "dense", calls))
    order += [Turn(name, f"{name}/plain", calls) for name in pruned]
    return order + [Turn(name, name, calls) for name in others]


def timed(
    made: Mapping[str, Program], order: list[Turn], rounds: int, warmup: int
) -> Times:
    """Milliseconds per call of every label, one value a round."""
    first = next(iter(made.values())).task
    batch = jax.jit(first.batch)(jax.random.key(1))
    held = {}
    for name, program in made.items():
        params = jax.jit(first.init)(jax.random.key(0))
        held[name] = (params, jax.jit(program.init)(params))

    def run(turn: Turn) -> float:
        execute = programs.compiled(made[turn.program])

        def call() -> Any:
            for _ in range(turn.calls):
                # Donated: what was held is gone, what comes out takes its place.
                held[turn.program] = execute(*held[turn.program], *batch)[:2]
            return held[turn.program]

        return milliseconds(call) / turn.calls

    for program in made.values():
        programs.compiled(program)
    jax.block_until_ready((held, batch))
    rows = [[run(turn) for turn in order] for _ in range(warmup + rounds)]
    columns = np.array(rows[warmup:]).T
    named = zip(order, columns, strict=True)
    return {turn.label: column for turn, column in named if turn.label}


def amortised(plain: Any, after: Any, refresh: Any, every: int) -> Any:
    """Mean cost of a step where one in `every` refreshes."""
    return ((every - 2) * plain + after + refresh) / every


def against_dense(times: Times, name: str) -> dict[str, Any]:
    """What a pruned program's steps cost: milliseconds, and ratios to dense."""
    once = times.get("dense/once", times["dense"])
    beside = {"plain": times["dense"], "after": once, "refresh": once}
    ms = {kind: times[f"{name}/{kind}"] for kind in beside}
    ratio = {kind: ms[kind] / beside[kind] for kind in beside}
    return {
        "ms": {kind: spread(value) for kind, value in ms.items()},
        "ratio": {kind: spread(value) for kind, value in ratio.items()},
        "amortised": {str(n): spread(amortised(**ratio, every=n)) for n in EVERY},
    }


def row(
    pruned: Mapping[str, Program], others: Mapping[str, Program], rounds: int
) -> dict[str, Any]:
    """Times pruned programs and others of one task beside its dense step."""
    what = next(iter(pruned.values())).task
    made = {"dense": programs.dense(what)} | dict(others) | dict(pruned)
    order = turns(list(pruned), list(others), burst())
    times = timed(made, order, rounds, warmup=min(2, rounds))
    plain = {name: times[name] for name in others}
    return what.about() | {
        "rounds": rounds,
        "calls_per_turn": burst(),
        "dense_ms": spread(times["dense"]),
        "dense_once_ms": spread(times.get("dense/once", times["dense"])),
        "others": {
            name: {"ms": spread(t), "ratio": spread(t / times["dense"])}
            for name, t in plain.items()
        },
        "pruned": {name: against_dense(times, name) for name in pruned},
    }


def rows(options: Options) -> Iterator[tuple[str, dict[str, Any]]]:
    """A row for every model."""
    rounds = options.times(small=2, cpu=15, accelerator=40)
    for name in options.models:
        what = task(name, options.size)
        pruned = {
            "bb": programs.pruned(what),
            "bb, competition": programs.pruned(what, programs.default()),
        }
        if options.no_regrow:
            pruned["bb, regrow=False"] = programs.pruned(what, regrow=False)
        yield name, row(pruned, {"observe": programs.observe(what)}, rounds)
