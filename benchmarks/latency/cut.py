"""Masks that cut a share of the units of every free group.

A unit is cut with all its edges in and out and its companions (biases, norms, running
statistics): wherever an axis of a parameter is the units of the group and of no other,
its entries there are False. Where an axis carries several groups (a concatenation) it
is left alone: what is cut says 0 there.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bbjax as bb
from benchmarks.latency.models import Task

Widths = dict[str, tuple[int, int]]


def left(size: int, density: float) -> int:
    """Units that stay, at least one."""
    return max(1, round(density * size))


def masks(
    task: Task, params: Any, inputs: Any, density: float, seed: int
) -> tuple[dict[str, np.ndarray], Widths]:
    """Masks of units drawn at random, and widths of groups before and after."""
    graph = bb.trace(task.fn, params, inputs).graph
    shapes = _shapes(params)
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    widths: Widths = {}
    for group in graph:
        if group.fixed or not re.search(task.cut, group.name):
            continue
        stay = left(group.size, density)
        widths[group.name] = (group.size, stay)
        keep = np.zeros(group.size, bool)
        keep[rng.permutation(group.size)[:stay]] = True
        for member in group.members:
            shape = shapes[member.path]
            if shape[member.axis] == group.size:
                mask = found.setdefault(member.path, np.ones(shape, bool))
                along = [1] * len(shape)
                along[member.axis] = group.size
                mask &= keep.reshape(along)
    return found, widths


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {"/".join(str(k.key) for k in path): leaf.shape for path, leaf in leaves}


def masked(params: Any, chosen: dict[str, np.ndarray]) -> Any:
    """Parameters of the same shapes, with zeros."""

    def apply(path: Any, leaf: jax.Array) -> jax.Array:
        mask = chosen.get("/".join(str(k.key) for k in path))
        return leaf if mask is None else jnp.where(mask, leaf, jnp.zeros_like(leaf))

    return jax.tree_util.tree_map_with_path(apply, params)
