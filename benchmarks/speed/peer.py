"""The FFN step under JaxPruner's magnitude pruning, beside ours.

    python -m benchmarks.speed --parts jaxpruner --jaxpruner PATH

PATH is a checkout of JaxPruner (github.com/google-research/jaxpruner); it needs
`ml_collections`. Today's JAX has no `jax.tree_map`, which JaxPruner calls: the name is
restored before the import, and nothing else is changed. All in one run, in turns:

    bb                 Budgeted Broadcast, which measures activity
    bb, magnitude      our magnitude rule with one budget per kernel, as JaxPruner's
    JaxPruner, bytes   masks of one byte per weight, its default
    JaxPruner, bits    masks packed into bits

Same density, same steps between updates, Adam inside. An "update step" of JaxPruner is
called refresh here. Its own way of use: `wrap_optax`, then `post_gradient_update`.
"""

import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import optax

import bbjax as bb
from benchmarks.speed import programs, steps
from benchmarks.speed.memory import nbytes, state_of
from benchmarks.speed.options import DENSITY, Options, every
from benchmarks.speed.programs import RATE, Program
from benchmarks.speed.tasks import Task, task

MODEL = "ffn-256"


def load(path: Path) -> ModuleType:
    """Imports JaxPruner from a checkout."""
    if not (path / "jaxpruner" / "__init__.py").is_file():
        raise FileNotFoundError(
            f"expected a checkout of JaxPruner at {path}, got no file "
            "jaxpruner/__init__.py there; clone github.com/google-research/jaxpruner "
            "and name that folder"
        )
    if not hasattr(jax, "tree_map"):
        jax.tree_map = jax.tree.map
    sys.path.insert(0, str(path))
    return importlib.import_module("jaxpruner")


def jaxpruner(peer: ModuleType, what: Task, bits: bool) -> Program:
    """The dense step with JaxPruner's magnitude pruning."""
    distributions = importlib.import_module("jaxpruner.sparsity_distributions")
    pruner = peer.MagnitudePruning(
        scheduler=peer.PeriodicSchedule(
            update_freq=every(), update_start_step=0, update_end_step=None
        ),
        sparsity_distribution_fn=functools.partial(
            distributions.uniform, sparsity=1 - DENSITY
        ),
        use_packed_masks=bits,
    )
    tx = pruner.wrap_optax(optax.adam(RATE))

    def step(params: Any, state: Any, *batch: jax.Array) -> Any:
        _, grads = jax.value_and_grad(what.loss)(params, *batch)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return pruner.post_gradient_update(params, state), state

    return Program(what, step, tx.init)


def rows(options: Options) -> Iterator[tuple[str, dict[str, Any]]]:
    """One row: all of them on one model."""
    if options.jaxpruner is None:
        raise ValueError("expected a checkout of JaxPruner, got none; give its path")
    peer, what = load(options.jaxpruner), task(MODEL, options.size)
    by_layer = bb.rules.magnitude(scope="layer")
    made = {
        "bb": programs.pruned(what),
        "bb, magnitude": programs.pruned(what, by_layer),
        "JaxPruner, bytes": jaxpruner(peer, what, bits=False),
        "JaxPruner, bits": jaxpruner(peer, what, bits=True),
    }
    row = steps.row(made, {}, options.times(small=2, cpu=10, accelerator=40))
    dense = state_of(programs.dense(what))
    row["state"] = {"dense": nbytes(dense)}
    row["state"] |= {name: nbytes(state_of(p)) for name, p in made.items()}
    yield MODEL, row
