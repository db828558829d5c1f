"""Dense, masked and shrunk, called in turns, at one batch.

    speed-up    ms dense / ms shrunk, within a round
    ideal       operations dense / operations shrunk
    efficiency  speed-up / ideal

Operations are those of products, as `Shrunk.report.flops` counts them; what XLA's cost
analysis counts (it adds element-wise operations and leaves out the padding of
convolutions) stands beside it. A program that waits for memory cannot be faster than
its bytes, so there is a second ideal: bytes of parameters, cache and inputs, dense over
shrunk.

Dense and masked models run the same executable on other values. A turn is several calls
of one model in a row, so that a model that fits a cache finds itself there, as it would
in service.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bbjax as bb
from bbjax.shrinking import costs
from benchmarks.common.measure import milliseconds, spread
from benchmarks.latency import cut
from benchmarks.latency.models import Task

DENSITIES = (0.75, 0.5, 0.25)
GOAL = 0.9  # of the ideal speed-up, at the large batch
TOLERANCE = 1e-4  # of the largest entry, shrunk against masked
SEED = 300


@dataclasses.dataclass
class Variant:
    """A compiled model with its arguments.

    Attributes:
      program: what is called.
      params: its parameters.
      args: what it is called with behind them.
      flops: operations of its products.
      xla_flops: operations as XLA counts them.
      bytes: of parameters and arguments that a call reads.
    """

    program: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]
    flops: int
    xla_flops: float
    bytes: int

    def call(self) -> Any:
        """One call."""
        return self.program(self.params, *self.args)

    def scores(self) -> np.ndarray:
        """The first output, waited for."""
        return np.asarray(jax.tree.leaves(self.call())[0])


def variant(task: Task, params: Any, inputs: jax.Array) -> Variant:
    """A model, compiled for its parameters' shapes."""
    args = task.timed_args(params, inputs)
    program = jax.jit(task.timed).lower(params, *args).compile()
    return Variant(
        program,
        params,
        args,
        costs.flops(jax.make_jaxpr(task.timed)(params, *args)),
        float(program.cost_analysis()["flops"]),
        task.read(params, args),
    )


@dataclasses.dataclass
class Pruned:
    """One density: the same model masked and shrunk."""

    masked: Variant
    shrunk: Variant
    widths: cut.Widths
    params: tuple[int, int]


def pruned(task: Task, dense: Variant, inputs: jax.Array, density: float) -> Pruned:
    """Cuts units, and shrinks."""
    masks, widths = cut.masks(task, dense.params, inputs, density, SEED)
    small = bb.shrink(task.fn, dense.params, masks, inputs)
    changes = {c.group: (c.before, c.after) for c in small.report.changes}
    if changes != widths:
        raise RuntimeError(
            f"{task.name}: expected widths {widths}, got {changes}; every group that "
            "was cut is free and loses exactly what was cut"
        )
    params = cut.masked(dense.params, masks)
    masked = dataclasses.replace(
        dense, params=params, args=task.timed_args(params, inputs)
    )
    shrunk = variant(task, small.params, inputs)
    counted = (dense.flops, shrunk.flops)
    if task.step is None and counted != small.report.flops:
        raise RuntimeError(
            f"{task.name}: counted {counted} operations, "
            f"the report {small.report.flops}"
        )
    return Pruned(masked, shrunk, widths, small.report.params)


def error(task: Task, found: Pruned) -> float:
    """How far shrunk outputs are from masked ones, of the largest entry."""
    if jax.default_backend() == "cpu":
        one, two = found.masked.scores(), found.shrunk.scores()
    else:  # the fast products of accelerators round more than what is asked here
        with jax.default_matmul_precision("highest"):
            exact = jax.jit(task.timed)
            one, two = (
                np.asarray(jax.tree.leaves(exact(v.params, *v.args))[0])
                for v in (found.masked, found.shrunk)
            )
    apart = float(jnp.max(jnp.abs(one - two)) / jnp.max(jnp.abs(one)))
    if not apart <= TOLERANCE:
        raise RuntimeError(
            f"{task.name}: expected shrunk outputs within {TOLERANCE} of masked ones, "
            f"got {apart:.2g}"
        )
    return apart


# Times ---------------------------------------------------------------------------
def calls_per_turn(batch: int) -> int:
    """Several; more where one is short."""
    return 3 if jax.default_backend() == "cpu" and batch > 1 else 10


def turn(call: Callable[[], Any], count: int) -> float:
    """Milliseconds of a call, of several in a row.

    On a CPU each is waited for, since two at once would share its cores, and the median
    leaves out the first, which finds other models in the caches. An accelerator has
    them as a queue, with one wait, so that dispatch is hidden as it is in service.
    """
    if jax.default_backend() != "cpu":
        return milliseconds(lambda: [call() for _ in range(count)]) / count
    return float(np.median([milliseconds(call) for _ in range(count)]))


def in_turns(
    calls: Mapping[Any, Callable[[], Any]], rounds: int, count: int
) -> dict[Any, np.ndarray]:
    """Milliseconds of a call of each, by round."""
    taken: dict[Any, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(rounds + 1):
        for name, call in calls.items():
            taken[name].append(turn(call, count))
    return {name: np.array(ms[1:]) for name, ms in taken.items()}


def figures(
    dense: np.ndarray,
    masked: np.ndarray,
    shrunk: np.ndarray,
    flops: tuple[float, float],
    read: tuple[float, float],
) -> dict[str, Any]:
    """Ratios within rounds, ideals and efficiencies.

    Args:
      dense: milliseconds by round.
      masked: the same.
      shrunk: the same.
      flops: dense and shrunk.
      read: bytes, dense and shrunk.
    """
    ideal = {"flops": flops[0] / flops[1], "bytes": read[0] / read[1]}
    speedup = dense / shrunk
    return {
        "ms": {"masked": spread(masked), "shrunk": spread(shrunk)},
        "ratio": {"masked": spread(masked / dense), "shrunk": spread(shrunk / dense)},
        "speedup": spread(speedup),
        "ideal": ideal,
        "efficiency": {kind: spread(speedup / most) for kind, most in ideal.items()},
    }


def compare(task: Task, batch: int, rounds: int) -> dict[str, Any]:
    """A model at one batch, at all densities."""
    params = task.params()
    inputs = task.inputs(batch)
    dense = variant(task, params, inputs)
    found = {d: pruned(task, dense, inputs, d) for d in DENSITIES}
    errors = {d: error(task, p) for d, p in found.items()}
    variants = {"dense": dense}
    for density, p in found.items():
        variants |= {f"masked {density}": p.masked, f"shrunk {density}": p.shrunk}
    calls = {name: v.call for name, v in variants.items()}
    ms = in_turns(calls, rounds, calls_per_turn(batch))
    return {
        "batch": batch,
        "dense_ms": spread(ms["dense"]),
        "calls": calls_per_turn(batch),
        "densities": {
            str(d): {
                "widths": p.widths,
                "params": p.params,
                "flops": (dense.flops, p.shrunk.flops),
                "xla_flops": (dense.xla_flops, p.shrunk.xla_flops),
                "bytes": (dense.bytes, p.shrunk.bytes),
                "error": errors[d],
            }
            | figures(
                ms["dense"],
                ms[f"masked {d}"],
                ms[f"shrunk {d}"],
                (dense.flops, p.shrunk.flops),
                (dense.bytes, p.shrunk.bytes),
            )
            for d, p in found.items()
        },
    }


def row(task: Task, rounds: int) -> dict[str, Any]:
    """A model at batch 1 and at the large batch."""
    return {
        "one": compare(task, 1, rounds),
        "large": compare(task, task.large, rounds),
    }
