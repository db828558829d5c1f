"""bbjax: activity-dependent pruning for JAX, as an Optax gradient transformation.

    units = bb.trace(loss_fn, params, batch)
    tx = optax.chain(optax.adamw(3e-4), bb.transform(units, density=0.25))

    @jax.jit
    def train_step(params, opt_state, batch):
        loss, grads, activity = bb.value_and_grad(loss_fn, units)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params, activity=activity)
        return optax.apply_updates(params, updates), opt_state, loss

From update 100 on (`start`), pruned entries of `params` are exactly 0.

The packages, in the order of the story; each imports only those above it:

    package     what it is about               main names
    arrays      bits, exact top-k              top_k_mask
    model       kernels and their units        Kernel, Units, graph
    adapters    Flax linen and NNX             linen, nnx
    tracing     where units are                trace
    activity    when units are on              value_and_grad, calibrate, observe, on
    budgets     how many edges a unit keeps    degrees, laws, ramp, erk, owl
    attention   which pairs of tokens          budgeted_attention, budgeted_pairs
    rules       which edges                    rules, n_m
    training    when masks are chosen          transform, wrap, hold, masks, metrics
    oneshot     pruning a trained network      prune, sensitivity, reconstruct, recover
    shrinking   smaller arrays                 shrink, unitwise, depth
    files       masks and models on disk       save, load, save_masks, load_masks
    reporting   what pruning did               report, diff_masks, overlap
    demo        rules compared on real data    python -m bbjax.demo
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

# The imports below take seconds, in which a user of the demo may press Ctrl-C.
if sys.argv[:1] == ["-m"] and "bbjax.demo" in sys.orig_argv:
    from bbjax.demo.interrupt import end_at_once

    end_at_once()

from bbjax import activity, rules
from bbjax.activity import on
from bbjax.activity.calibrate import calibrate, merge
from bbjax.activity.gradients import value_and_grad
from bbjax.activity.observe import observe
from bbjax.arrays.topk import top_k_mask
from bbjax.attention.attention import budgeted_attention, budgeted_pairs
from bbjax.budgets import laws
from bbjax.budgets.allocation import erk
from bbjax.budgets.degrees import degrees
from bbjax.budgets.outliers import owl
from bbjax.budgets.schedules import ramp
from bbjax.files.masks import load_masks, save_masks
from bbjax.files.params import load, save
from bbjax.model import removal as graph
from bbjax.model.units import Kernel, Units
from bbjax.model.version import __version__ as __version__
from bbjax.oneshot import recover, saliency
from bbjax.oneshot.fine_pruning.personalise import personalise
from bbjax.oneshot.nnrelief.relieve import relieve
from bbjax.oneshot.nnrelief.residual import Residual
from bbjax.oneshot.nnrelief.rounds import densities_of, relieve_and_train
from bbjax.oneshot.prune import apply_masks, prune, prune_in_order
from bbjax.oneshot.reconstruct import reconstruct
from bbjax.oneshot.refine import refine
from bbjax.oneshot.sensitivity import sensitivity
from bbjax.oneshot.spreads import spreads
from bbjax.reporting import report
from bbjax.reporting.compare import diff_masks, overlap, overlap_table
from bbjax.rules.patterns import n_m
from bbjax.shrinking import depth, shrink, shrink_rounds, unitwise, unstack
from bbjax.tracing.trace import trace
from bbjax.training.adopt import adopt
from bbjax.training.metrics import metrics
from bbjax.training.moments import moment_paths, reset_moments
from bbjax.training.resume import restore_target
from bbjax.training.state import degrees_of, masks, on_rates
from bbjax.training.transform import hold, transform, wrap

if TYPE_CHECKING:
    from bbjax.adapters import linen as linen
    from bbjax.adapters import nnx as nnx

__all__ = [
    "Kernel",
    "Residual",
    "Units",
    "activity",
    "adopt",
    "apply_masks",
    "budgeted_attention",
    "budgeted_pairs",
    "calibrate",
    "degrees",
    "degrees_of",
    "densities_of",
    "depth",
    "diff_masks",
    "erk",
    "graph",
    "hold",
    "laws",
    "load",
    "load_masks",
    "masks",
    "merge",
    "metrics",
    "moment_paths",
    "n_m",
    "observe",
    "on",
    "on_rates",
    "overlap",
    "overlap_table",
    "owl",
    "personalise",
    "prune",
    "prune_in_order",
    "ramp",
    "reconstruct",
    "recover",
    "refine",
    "relieve",
    "relieve_and_train",
    "report",
    "reset_moments",
    "restore_target",
    "rules",
    "saliency",
    "save",
    "save_masks",
    "sensitivity",
    "shrink",
    "shrink_rounds",
    "spreads",
    "top_k_mask",
    "trace",
    "transform",
    "unitwise",
    "unstack",
    "value_and_grad",
    "wrap",
]

_ADAPTERS = ("linen", "nnx")


def __getattr__(name: str) -> ModuleType:
    """Imports an adapter when it is first used: importing Flax takes seconds."""
    if name in _ADAPTERS:
        return importlib.import_module(f"{__name__}.adapters.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ADAPTERS])
