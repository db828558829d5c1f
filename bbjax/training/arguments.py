"""Checks of what users pass to the transform: expected, got, what to do.

Arguments are checked when the transform is built. Traced values (under
`inject_hyperparams` or `vmap`) are not known then and not checked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.activity.statistics import SIDED
from bbjax.budgets.allocation import Density, Together, all_edges, per_kernel
from bbjax.budgets.exact import check_density
from bbjax.model.checks import check_bools, check_by_path, meant
from bbjax.model.numbers import (
    INT32,
    are_numbers,
    check_called,
    check_flag,
    check_int,
    check_number,
)
from bbjax.model.units import Actuator, Kernel, Units
from bbjax.rules.base import Rule
from bbjax.rules.patterns import Pattern, check_pattern, groups_per_unit
from bbjax.training.options import Options
from bbjax.training.plan import Budgeted

FOREVER = 2**30  # a step after which no schedule changes any more


DENSITY = 0.7  # of `bb.transform`, where none is given


def check(units: Any, options: Options) -> tuple[Budgeted, Options]:
    """Checks the arguments of `bb.transform`.

    Returns:
      The budgeted kernels, and the options with the density that follows from them.
    """
    rule = options.rule
    check_units(units)
    check_rule(rule)
    options = _check_kinds(options)
    k_min, pattern = options.k_min, options.pattern
    if rule.one_shot:
        raise ValueError(
            f"expected a rule that can refresh masks while training, got "
            f"{rule.name!r}, which prunes once; use bb.prune, then bb.hold(masks) to "
            "train on"
        )
    large = [need for need in rule.needs if need.split(".")[-1] in SIDED]
    if large:
        raise ValueError(
            f"expected a rule that reads statistics per unit, got {rule.name!r}, which "
            f"needs {large}: running means of these are not kept; use bb.prune"
        )
    _check_hysteresis(rule, options.hysteresis)
    budgeted = check_kernels(units, rule, k_min, pattern)
    if options.rescale and not any("in" in actuators for _, actuators in budgeted):
        raise ValueError(
            "expected a kernel with actuator 'in' to rescale, got none: only their "
            "kept weights are scaled; leave rescale out"
        )
    if options.masks is not None:
        check_masks(budgeted, options.masks)
    density = density_of(rule, options.density, pattern, DENSITY)
    check_densities(budgeted, rule, density, k_min, pattern, _steps(options))
    return budgeted, dataclasses.replace(options, density=density)


def check_units(units: Any) -> None:
    """Refuses what did not come from `bb.trace`."""
    if not isinstance(units, Units):
        raise TypeError(
            f"expected units from bb.trace, got {type(units).__name__}; call "
            "bb.trace(loss_fn, params, *args) first"
        )


def check_rule(rule: Any) -> None:
    """Refuses what no factory of `bb.rules` made."""
    if not isinstance(rule, Rule):
        raise TypeError(
            f"expected a rule from bb.rules, got {rule!r}; call its factory, e.g. "
            "bb.rules.magnitude()"
        )


def check_kernels(units: Units, rule: Rule, k_min: Any, pattern: Any) -> Budgeted:
    """The kernels to prune, once they can be pruned in this way."""
    budgeted = tuple((units[p], a) for p, a in units.budgeted.items())
    if not budgeted:
        raise ValueError(
            "expected at least one kernel to prune, got none: no hidden kernel of the "
            f"trace is followed by a nonlinearity; choose with units.select(...) out "
            f"of {list(units.paths)}"
        )
    for kernel, _ in budgeted:
        if kernel.dtype.startswith("complex"):
            raise ValueError(
                f"expected real weights for {kernel.path!r}, got {kernel.dtype}: "
                "scores are real numbers; leave the kernel out, or keep its real and "
                "imaginary part as two parameters"
            )
    for kernel, actuators in budgeted if rule.one_sided else ():
        if len(actuators) > 1:
            raise ValueError(
                f"expected one actuator for {kernel.path!r} with rule {rule.name!r}, "
                f"got {' and '.join(actuators)}; select one of the two"
            )
    _check_pattern(budgeted, rule, pattern)
    for kernel, actuators in budgeted:
        _check_size(kernel, actuators, k_min)
    if rule.joint and sum(all_edges(k) for k, _ in budgeted) >= 2**31:
        raise ValueError(
            f"expected fewer than 2**31 edges in all kernels together for rule "
            f"{rule.name!r}, got {sum(all_edges(k) for k, _ in budgeted)}; counts are "
            "int32, use several transforms on parts of the model"
        )
    return budgeted


def check_pattern_kind(pattern: Any) -> None:
    """Refuses what `bb.n_m` did not make."""
    if not isinstance(pattern, Pattern):
        raise TypeError(
            f"expected a pattern from bb.n_m, got {pattern!r}; e.g. "
            "pattern=bb.n_m(2, 4)"
        )


def _check_pattern(budgeted: Budgeted, rule: Rule, pattern: Any) -> None:
    if pattern is None:
        return
    check_pattern_kind(pattern)
    if not rule.patterned:
        raise ValueError(
            f"expected a rule that can keep the pattern {pattern}, got {rule.name!r}, "
            "whose degrees are outcomes or whole units; leave pattern out or choose "
            "another rule"
        )
    for kernel, actuators in budgeted:
        check_pattern(kernel, actuators, pattern)


def density_of(
    rule: Rule, density: Density, pattern: Pattern | None, default: float | None
) -> Density:
    """The density, given or not.

    Args:
      rule: chooses the edges.
      density: what was passed; None if nothing was.
      pattern: has a density of its own.
      default: the density if nothing else sets one; None if it is required.

    Returns:
      The density; None where it is an outcome of the rule.

    Raises:
      ValueError: a density that the rule or the pattern contradicts, or none at all.
    """
    if rule.free:
        if density is not None:
            raise ValueError(
                f"expected no density for rule {rule.name!r}, got {density!r}: with "
                "this rule it is an outcome; leave density out"
            )
        return None
    if pattern is None:
        if density is None and default is None:
            raise ValueError(
                f"expected a density for rule {rule.name!r}, got None; pass the "
                "share of edges to keep, e.g. density=0.5"
            )
        return default if density is None else density
    if density is None:
        return pattern.density
    if isinstance(density, int | float) and density != pattern.density:
        raise ValueError(
            f"expected density {pattern.density} with the pattern {pattern}, got "
            f"{density!r}; leave density out, or pass a schedule that ends there"
        )
    return density


def check_held(masks: Any) -> None:
    """Refuses what cannot be held: no masks, or masks without entries to choose."""
    check_by_path(masks)
    check_bools(masks)
    bare = [path for path, mask in masks.items() if jnp.ndim(mask) == 0]
    if bare or not masks:
        raise ValueError(
            f"expected at least one mask, each with axes, got {bare or 'none'}; pass "
            "what bb.prune or bb.masks returned"
        )


def check_masks(budgeted: Budgeted, masks: Any) -> None:
    """Refuses masks that do not fit the budgeted kernels, listing what differs."""
    check_by_path(masks)
    check_bools(masks)
    wrong = []
    for kernel, _ in budgeted:
        shape = jnp.shape(masks[kernel.path]) if kernel.path in masks else None
        if shape != kernel.shape:
            question = meant(kernel.path, masks) if shape is None else ""
            wrong.append(
                f"{kernel.path!r}: expected {kernel.shape}, got {shape}{question}"
            )
    if wrong:
        raise ValueError(
            "expected a mask of the shape of every budgeted kernel; differences: "
            + "; ".join(wrong)
        )


def _check_kinds(options: Options) -> Options:
    """The options with counts as ints and flags as bools."""
    remedy = "it counts updates, and is part of the compiled step"
    start = check_int("start", options.start, 0, INT32, remedy)
    stop = options.stop
    if stop is not None:
        stop = check_int("stop", stop, 0, INT32, remedy)
        if stop <= start:
            raise ValueError(
                f"expected stop > start = {start}, got {stop!r}: nothing would ever "
                "be pruned; raise stop or lower start"
            )
    remedy_ema = "it is the decay of the running mean, e.g. 0.99"
    check_number("ema", options.ema, "[0, 1)", remedy_ema)
    dtype = options.dormant_dtype
    if dtype is not None and not _is_float(dtype):
        raise ValueError(
            f"expected dormant_dtype to be a float dtype, got {dtype!r}; e.g. "
            "jnp.bfloat16"
        )
    rescale = options.rescale
    return dataclasses.replace(
        options,
        every=check_int("every", options.every, 1, INT32, remedy),
        start=start,
        stop=stop,
        regrow=check_flag("regrow", options.regrow),
        rescale=None if rescale is None else check_flag("rescale", rescale),
        k_min=check_k_min(options.k_min),
    )


def check_k_min(k_min: Any) -> int:
    """The least number of edges of a unit as an int."""
    remedy = "it is the least number of edges of a unit"
    return check_int("k_min", k_min, 0, INT32, remedy)


def check_optimizer(optimizer: Any) -> None:
    """Refuses what is no optimizer of Optax."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"expected an optimizer of Optax, got {optimizer!r}; call its factory, "
            "e.g. optax.adam(1e-3)"
        )


def _check_hysteresis(rule: Rule, share: Any) -> None:
    remedy = "it is the share by which something must be better than what is kept"
    share = check_number("hysteresis", share, "[0, inf)", f"{remedy}, e.g. 0.2")
    if not isinstance(share, jax.core.Tracer) and share == 0:
        return
    if rule.free or not rule.favours:
        raise ValueError(
            f"expected a rule that can favour what is kept, got {rule.name!r}, which "
            "exchanges edges by design or whose density is an outcome; leave "
            "hysteresis out"
        )


def _is_float(dtype: Any) -> bool:
    try:
        return jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        return False


def _steps(options: Options) -> dict[int, str]:
    """Steps at which to check a schedule, the first and the last refresh, in words."""
    every, start, stop = options.every, options.start or 0, options.stop
    last = FOREVER if stop is None else start + (stop - 1 - start) // every * every
    return {
        step: f" (what the density schedule gives {_when(step)})"
        for step in dict.fromkeys((start, last))
    }


def _when(step: int) -> str:
    return "in the long run" if step == FOREVER else f"at step {step}"


def check_densities(
    budgeted: Budgeted,
    rule: Rule,
    density: Density,
    k_min: int,
    pattern: Pattern | None,
    steps: Mapping[int, str],
) -> None:
    """Refuses densities that are none, or that `k_min` does not allow."""
    if density is None:
        return
    plain = density.density if isinstance(density, Together) else density
    shares = per_kernel(plain, [kernel for kernel, _ in budgeted])
    checked = [_values(one, steps) for one in shares]
    together = isinstance(density, Together) or rule.joint
    for values, (kernel, actuators) in zip(checked, budgeted, strict=True):
        for when, value in values:
            try:
                check_density(value)
                if not together and not isinstance(value, jax.core.Tracer):
                    _check_budget(kernel, actuators, value, k_min, pattern)
            except ValueError as error:
                raise ValueError(f"{error}{when}") from None
    for place in (0, -1) if together else ():
        _check_total(budgeted, [values[place] for values in checked], k_min)


def _values(density: Any, steps: Mapping[int, str]) -> list[tuple[str, Any]]:
    """Densities to check, with words for where they come from."""
    if isinstance(density, jax.core.Tracer):
        return [("", density)]
    if not callable(density):
        is_array = hasattr(density, "shape")
        return [("", density if is_array else _share(density))]
    check_called("density", density, "the step", "bb.ramp(0.5, 0, 100)")
    checked = []
    for step, words in steps.items():
        value = density(jnp.asarray(step))
        if not isinstance(value, jax.core.Tracer):
            value = _share(value)
        checked.append((words, value))
    return checked


def _share(density: Any) -> float:
    if not are_numbers(density) or np.ndim(density):
        raise TypeError(
            f"expected density to be a number, got {density!r}; pass a float, or a "
            "schedule of the step (bb.ramp)"
        )
    return float(density)


def _check_size(kernel: Kernel, actuators: tuple[Actuator, ...], k_min: int) -> None:
    for actuator in actuators:
        if k_min > kernel.fan(actuator):
            raise ValueError(
                f"expected k_min <= {kernel.fan(actuator)}, the full degree of the "
                f"units of {kernel.path!r} (actuator {actuator!r}), got "
                f"{k_min}; lower k_min"
            )
    if kernel.edge_count >= 2**31:
        raise ValueError(
            f"expected fewer than 2**31 edges per stack slice, got {kernel.edge_count} "
            f"for {kernel.path!r}; counts are int32, leave this kernel dense"
        )


def least_edges(budgeted: Budgeted, k_min: int) -> list[int]:
    """For each kernel, edges that the floors of its units take, per stack slice."""
    return [k_min * sum(k.unit_count(a) for a in acts) for k, acts in budgeted]


def _check_budget(
    kernel: Kernel,
    actuators: tuple[Actuator, ...],
    density: Any,
    k_min: int,
    pattern: Pattern | None,
) -> None:
    (least,) = least_edges(((kernel, actuators),), k_min)
    if pattern is not None and k_min:
        groups = groups_per_unit(kernel, actuators[0], pattern)
        least = -(-k_min // groups) * groups * kernel.unit_count(actuators[0])
    if round(float(density) * kernel.edge_count) < least:
        units = sum(kernel.unit_count(a) for a in actuators)
        raise ValueError(
            f"expected a density of at least {least / kernel.edge_count:.4g} "
            f"for {kernel.path!r} ({kernel.edge_count} edges, {units} budgeted units "
            f"with k_min={k_min} edges each), got {float(density):.4g}; raise density, "
            "lower k_min, or leave it out (units.select, or a density of its own)"
        )


def _check_total(
    budgeted: Budgeted, densities: list[tuple[str, Any]], k_min: int
) -> None:
    """Refuses densities of all kernels together that floors alone exceed."""
    if any(isinstance(value, jax.core.Tracer) for _, value in densities):
        return
    kernels = [kernel for kernel, _ in budgeted]
    floors = least_edges(budgeted, k_min)
    least = sum(
        math.prod(k.stack_shape) * low for k, low in zip(kernels, floors, strict=True)
    )
    edges = sum(all_edges(k) for k in kernels)
    pairs = zip(kernels, densities, strict=True)
    density = sum(float(value) * all_edges(k) for k, (_, value) in pairs) / edges
    if round(density * edges) < least:
        raise ValueError(
            f"expected a density of at least {least / edges:.4g} for all kernels "
            f"together ({edges} edges, floors of k_min={k_min} edges per unit take "
            f"{least}), got {density:.4g}; raise density, lower k_min, or "
            "leave the kernel out (units.select, or a density of its own)"
            f"{densities[0][0]}"
        )
