"""Continues a state with the settings of a transform, or refuses it.

A state may come from a file, or from a transform that was built otherwise. Both are
compared once, while an update is traced: what is compared is static.

    density, schedule, regrow, dormant_dtype, k_min,    the new settings count
    ema, pattern, hysteresis, what counts as on
    kernels, shapes, actuators, rule, statistics,       refused, with what differs
    rescale

`bb.adopt` (`bbjax.training.adopt`) is the deliberate way from one to the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bbjax.model.leaves import Leaves
from bbjax.model.units import Kernel
from bbjax.rules.base import side_in
from bbjax.training.options import Options
from bbjax.training.plan import Plan
from bbjax.training.refresh import stored
from bbjax.training.state import (
    PruneState,
    first_dormant,
    is_pruning,
    leading,
    packed_shape,
)

SHOWN = 4  # differences and paths that a message lists


class Contents(NamedTuple):
    """What a state holds of one kernel.

    Attributes:
      kernel: the kernel.
      means: names of the running means, `"side.statistic"`.
      rescale: whether weights are scaled.
    """

    kernel: Kernel
    means: tuple[str, ...]
    rescale: bool


def check(state: PruneState, plan: Plan, contents: Iterable[Contents]) -> None:
    """Refuses a state that a transform cannot continue.

    Args:
      state: that came with an update.
      plan: of the transform.
      contents: what the transform keeps of each of its kernels.

    Raises:
      TypeError: it is no pruning state.
      ValueError: it is a state of other settings, with what differs; or it has leading
        axes.
    """
    if not is_pruning(state):
        raise TypeError(
            f"expected the state of a pruning transform, got {type(state).__name__}; "
            "restore checkpoints into the tree of a fresh state, as tx.init(params) "
            "makes it"
        )
    if axes := leading(state):
        raise ValueError(
            f"expected the state of one model, got one with leading axes {axes}; map "
            "the update over them, e.g. jax.vmap(tx.update)"
        )
    differ = [*_plans(state.bb_plan, plan), *_contents(state, contents)]
    if differ:
        raise ValueError(
            "expected a state of the kernels, actuators, rule and rescale of this "
            f"transform, got one that differs (state -> transform): {_some(differ)}; "
            "build the transform as it was, or carry masks and means over: opt_state = "
            "bb.adopt(opt_state, tx, params)"
        )


def _plans(old: Plan, new: Plan) -> list[str]:
    """What differs between two plans, in words."""
    if old == new:
        return []
    before = {kernel.path: (kernel, acts) for kernel, acts in old.kernels}
    after = {kernel.path: (kernel, acts) for kernel, acts in new.kernels}
    differ = [] if old.rule == new.rule else [f"rule {old.rule!r} -> {new.rule!r}"]
    if more := [path for path in after if path not in before]:
        differ.append(f"kernels that only the transform has: {_some(map(repr, more))}")
    if fewer := [path for path in before if path not in after]:
        differ.append(f"kernels that only the state has: {_some(map(repr, fewer))}")
    for path in after:
        if path in before:
            differ += _kernels(before[path], after[path])
    return differ


def _kernels(old: tuple[Kernel, Any], new: tuple[Kernel, Any]) -> list[str]:
    """What differs between two kernels of one path, and between their actuators."""
    differ, path = [], old[0].path
    if old[0].shape != new[0].shape:
        differ.append(f"{path!r} of shape {old[0].shape} -> {new[0].shape}")
    elif (old[0].split, old[0].roles) != (new[0].split, new[0].roles):
        roles = [" ".join(kernel.roles) for kernel, _ in (old, new)]
        differ.append(f"{path!r} with axes {roles[0]} -> {roles[1]}")
    if old[1] != new[1]:
        acts = ["+".join(actuators) or "none" for _, actuators in (old, new)]
        differ.append(f"{path!r} with actuator {acts[0]} -> {acts[1]}")
    return differ


def _contents(state: PruneState, contents: Iterable[Contents]) -> list[str]:
    """What a state lacks, or has beyond, of kernels that it has."""
    differ = []
    for kernel, names, rescale in contents:
        path = kernel.path
        if path not in state.bb_masks:
            continue
        means, scale = state.bb_means.get(path, {}), state.bb_scale.get(path)
        if set(means) != set(names):
            shown = [_some(sorted(each)) or "none" for each in (means, names)]
            differ.append(f"{path!r} with statistics {shown[0]} -> {shown[1]}")
        if (scale is not None) != rescale:
            differ.append(f"{path!r} with rescale {scale is not None} -> {rescale}")
        shapes = {"masks": (state.bb_masks[path], packed_shape(kernel))}
        for name in set(means) & set(names):
            shapes[name] = (means[name], kernel.per_unit_shape(side_in(name)))
        if scale is not None:
            shapes["scales"] = (scale, kernel.per_unit_shape("outputs"))
        differ += [
            f"{path!r} with {name} of shape {jnp.shape(array)} -> {shape}"
            for name, (array, shape) in shapes.items()
            if jnp.shape(array) != shape
        ]
    return differ


def _some(words: Iterable[str]) -> str:
    """The first few words of a list."""
    words = list(words)
    rest = len(words) - SHOWN
    return ", ".join(words[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def dormant_as(
    held: Mapping[str, jax.Array],
    kernels: Iterable[Kernel],
    options: Options,
    params: Leaves,
) -> dict[str, jax.Array]:
    """Dormant weights as a transform stores them: in its dtype, or not at all.

    A weight that was pruned while none were stored comes back at 0.

    Args:
      held: by path, of the state.
      kernels: of the transform.
      options: of the transform.
      params: the parameters.
    """
    if not options.dormant:
        return {}
    found = {}
    for kernel in kernels:
        weights = params.get(kernel, "parameter")
        asked = options.dormant_dtype
        dtype = jnp.dtype(weights.dtype if asked is None else asked)
        old = held.get(kernel.path)
        if old is None:
            old = first_dormant(kernel, weights, None, dtype)
        found[kernel.path] = old if old.dtype == dtype else stored(old, dtype)
    return found
