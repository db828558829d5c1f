"""Bytes and FLOPs: what the optimizer remembers, and what a step needs besides.

    python -m benchmarks.speed --parts bytes

State is counted from shapes alone: of dense Adam, and with `bb.transform` as it comes,
with `dormant_dtype=bfloat16` and with `regrow=False`; of the first also what is masks,
dormant weights and the rest (running means, counters).

    bits_per_edge = 8 masks / edges

An edge of a convolution is its whole window. Bytes of a program (temporaries,
arguments, outputs, outputs that take an argument's place) and its FLOPs are the
compiler's own account; the branch that refreshes is part of the program. Nothing runs.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import optax

from benchmarks.common.measure import nbytes
from benchmarks.speed import programs
from benchmarks.speed.options import Options
from benchmarks.speed.programs import Program
from benchmarks.speed.tasks import Task, task

ACCOUNT = {
    "temporary": "temp_size_in_bytes",
    "arguments": "argument_size_in_bytes",
    "outputs": "output_size_in_bytes",
    "aliased": "alias_size_in_bytes",
}


def state_of(program: Program) -> Any:
    """Shapes of the state."""
    return program.shapes()[1]


def by_field(program: Program) -> dict[str, Any]:
    """What `bb.transform` adds to the state, and bits per edge."""
    state, units = state_of(program), program.task.units()
    masks = optax.tree.get(state, "bb_masks")
    dormant = optax.tree.get(state, "bb_dormant")
    edges = sum(math.prod(units[path].edge_shape) for path in masks)
    added = nbytes(state) - nbytes(state_of(programs.dense(program.task)))
    return {
        "kernels": len(masks),
        "edges": edges,
        "budgeted_weights": sum(math.prod(units[path].shape) for path in masks),
        "masks": nbytes(masks),
        "dormant": nbytes(dormant),
        "rest": added - nbytes(masks) - nbytes(dormant),
        "bits_per_edge": 8 * nbytes(masks) / edges,
    }


def account(program: Program) -> dict[str, float | None]:
    """What the compiler says of a program; null where it says nothing."""
    executable = programs.compiled(program)
    said, costs = executable.memory_analysis(), executable.cost_analysis() or {}
    found = {ours: getattr(said, theirs, None) for ours, theirs in ACCOUNT.items()}
    return found | {"flops": costs.get("flops")}


def row(what: Task) -> dict[str, Any]:
    """One model."""
    made = {
        "dense": programs.dense(what),
        "observe": programs.observe(what),
        "bb": programs.pruned(what),
    }
    leaner = {
        "bb, dormant bfloat16": programs.pruned(what, dormant_dtype=jnp.bfloat16),
        "bb, regrow=False": programs.pruned(what, regrow=False),
    }
    kept = {"dense": made["dense"], "bb": made["bb"]} | leaner
    return what.about() | {
        "weight_bytes": nbytes(what.shapes()[0]),
        "state": {name: nbytes(state_of(program)) for name, program in kept.items()},
        "added": by_field(made["bb"]),
        "programs": {name: account(program) for name, program in made.items()},
    }


def rows(options: Options) -> Iterator[tuple[str, dict[str, Any]]]:
    """A row for every model."""
    for name in options.models:
        yield name, row(task(name, options.size))
