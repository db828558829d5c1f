"""Checks of what a rule reads: the activity and gradients passed to an update.

Their presence and shapes are known while tracing. Values are checked where they are
concrete; under jit, statistics that are not finite are left out of the running means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.activity.statistics import PER_EDGE, SIDED
from bbjax.model.checks import APPLY_MASKS
from bbjax.model.units import Kernel
from bbjax.model.warn import warn
from bbjax.rules.base import Rule, side_in


def check_needs(rule: Rule, activity: Any, grads: Any) -> None:
    """Refuses an update that lacks what the rule reads."""
    if activity is None and rule.reads_activity:
        raise ValueError(
            f"expected activity, which rule {rule.name!r} needs, got None; call "
            "tx.update(grads, opt_state, params, activity=activity) with the activity "
            "that bb.value_and_grad(loss_fn, units) or bb.observe(loss_fn, units) "
            "returns; Flax's own TrainState does not pass it on, bb.linen.TrainState "
            "does"
        )
    if grads is None and "grads" in rule.needs:
        raise ValueError(
            f"expected dense gradients, which rule {rule.name!r} needs, got None; call "
            "tx.update(..., grads=grads), or use bb.wrap"
        )


def check_call(rule: Rule, stats: Any, grads: Any, call: str) -> None:
    """Refuses a call of a one-shot function that lacks what the rule reads."""
    if stats is None and rule.reads_activity:
        raise ValueError(
            f"expected stats, which rule {rule.name!r} needs, got None; pass "
            f"{call}(..., stats=bb.calibrate(fn, units, params, batches, "
            "needs=rule.needs))"
        )
    if grads is None and "grads" in rule.needs:
        raise ValueError(
            f"expected gradients, which rule {rule.name!r} needs, got None; pass "
            f"{call}(..., grads=grads), a tree like params (see bb.saliency)"
        )


def check_activity(kernel: Kernel, names: tuple[str, ...], activity: Any) -> Any:
    """The activity of one kernel, once it has all the statistics by those names."""
    try:
        sides = activity[kernel.path]
    except (KeyError, TypeError, IndexError) as error:
        held = list(activity)[:5] if isinstance(activity, dict) else type(activity)
        raise ValueError(
            f"expected activity of {kernel.path!r}, got {held}; observe with the units "
            "that the transform was built with"
        ) from error
    for name in names:
        side, statistic = name.split(".")
        if statistic == "weight":
            continue
        value = getattr(getattr(sides, side), statistic, None)
        if value is None:
            raise ValueError(
                f"expected statistic {statistic!r} of the {side} of {kernel.path!r}, "
                "got none; pass needs=rule.needs to bb.value_and_grad, bb.observe or "
                "bb.calibrate"
            )
        _check_statistic(kernel, name, value)
    return sides


def check_measured(kernel: Kernel, names: tuple[str, ...], sides: Any) -> None:
    """Refuses statistics of units that did not run on the calibration batches.

    Whole stack slices (experts) may be without activity, if others have some.
    """
    for side in sorted({name.split(".")[0] for name in names}):
        count = getattr(getattr(sides, side), "count", None)
        if count is None or isinstance(count, jax.core.Tracer):
            continue
        if not getattr(count, "is_fully_addressable", True):
            continue
        none = np.reshape(np.asarray(count) == 0, (math.prod(kernel.stack_shape), -1))
        if none.all() or (none.any(1) != none.all(1)).any():
            raise ValueError(
                f"expected activity of all {side} of {kernel.path!r}, got none for "
                f"{none.sum()} of {none.size}: they did not run; calibrate on more "
                "batches, or leave this kernel out"
            )


def of_inputs(kernel: Kernel, statistic: str, what: str, stats: Any) -> Any:
    """A statistic of a kernel's inputs, where no rule reads it.

    Args:
      kernel: whose inputs they are.
      statistic: its name, without the side.
      what: its name in words.
      stats: activity by path.

    Raises:
      ValueError: it was not measured, has another shape, or is not finite.
    """
    sides = stats.get(kernel.path) if isinstance(stats, dict) else None
    name = f"inputs.{statistic}"
    if getattr(getattr(sides, "inputs", None), statistic, None) is None:
        raise ValueError(
            f"expected {what} of the inputs of {kernel.path!r}, got none; calibrate "
            "with units that select the kernel, bb.calibrate(fn, units, params, "
            f'batches, needs=["{name}"])'
        )
    sides = check_activity(kernel, (name,), stats)
    check_measured(kernel, (name,), sides)
    return getattr(sides.inputs, statistic)


def warn_of_stray(looked: jax.Array, stray: Mapping[str, jax.Array]) -> None:
    """Warns of pruned weights that are not 0, where values are known (outside jit).

    Args:
      looked: whether they were counted in this update, bool scalar.
      stray: by path, their share of all edges.
    """
    values = (looked, *stray.values())
    if any(isinstance(value, jax.core.Tracer) for value in values):
        return
    if not np.any(looked):
        return
    shares = {path: float(np.max(share)) for path, share in stray.items()}
    wrong = [f"{share:.3g} of {path!r}" for path, share in shares.items() if share]
    if wrong:
        warn(
            "expected pruned weights to be 0 in params, got others, as a share of all "
            f"edges: {', '.join(wrong)}; {APPLY_MASKS}"
        )


def _shape_of(kernel: Kernel, name: str) -> tuple[int, ...] | None:
    """The shape of a statistic; None where it depends on the inputs of the model."""
    statistic = name.split(".")[-1]
    if statistic in PER_EDGE:
        return kernel.edge_shape
    if statistic == "gram":
        n = kernel.unit_count("out")
        return (*kernel.stack_shape, n, n)
    return None if statistic in SIDED else kernel.per_unit_shape(side_in(name))


def _check_statistic(kernel: Kernel, name: str, value: Any) -> None:
    expected = _shape_of(kernel, name)
    if expected is not None and tuple(jnp.shape(value)) != expected:
        raise ValueError(
            f"expected {name} of {kernel.path!r} of shape {expected}, got "
            f"{tuple(jnp.shape(value))}; measure it with the units at hand"
        )
    if isinstance(value, jax.core.Tracer):
        return
    if not getattr(value, "is_fully_addressable", True):
        return  # of several processes, none sees all of it
    value = np.asarray(value)
    if not np.isfinite(value).all():
        raise ValueError(
            f"expected finite {name} of {kernel.path!r}, got NaN or infinity; check "
            "the forward pass (under jit such values are left out of the running mean)"
        )
    if name.endswith(".on_rate") and not ((value >= 0) & (value <= 1)).all():
        raise ValueError(
            f"expected {name} of {kernel.path!r} in [0, 1], got values outside; an "
            "on-rate is the share of samples on which a unit is on"
        )
