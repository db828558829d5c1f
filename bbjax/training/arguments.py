"""Checks of what users pass to the transform: expected, got, what to do.

Everything that is known when the transform is built is checked then; values that are
traced (under `inject_hyperparams` or `vmap`) are taken on trust.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.activity.statistics import SIDED
from bbjax.budgets.allocation import Density, Erk, all_edges, per_kernel
from bbjax.budgets.exact import check_density
from bbjax.model.units import Actuator, Kernel, Units
from bbjax.rules.base import Rule
from bbjax.rules.patterns import Pattern, check_pattern, groups_per_unit

Budgeted = tuple[tuple[Kernel, tuple[Actuator, ...]], ...]
FOREVER = 2**30  # a step by which every schedule has settled


class _Unsaid(float):
    """A density nobody asked for: a pattern or a free rule may put another in place."""


DENSITY = _Unsaid(0.7)


def check(
    units: Any,
    rule: Any,
    *,
    density: Any,
    k_min: Any,
    pattern: Any = None,
    masks: Any = None,
    **rest: Any,
) -> tuple[Budgeted, Density]:
    """Checks the arguments of `bb.transform`.

    Returns:
      The budgeted kernels, and the density: None where it is an outcome.
    """
    check_units(units)
    check_rule(rule)
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
    every, start, stop = (rest[k] for k in ("every", "start", "stop"))
    _check_schedule(every, start, stop)
    _check_options(rest["regrow"], rest["rescale"], rest["ema"], rest["dormant_dtype"])
    _check_hysteresis(rule, rest["hysteresis"])
    budgeted = check_kernels(units, rule, k_min, pattern)
    if rest["rescale"] and not any("in" in actuators for _, actuators in budgeted):
        raise ValueError(
            "expected a kernel with actuator 'in' to rescale, got none: only their "
            "kept weights are scaled; leave rescale out"
        )
    if masks is not None:
        check_masks(budgeted, masks)
    density = settled_density(rule, density, pattern)
    steps = _steps(every, start, stop)
    check_densities(budgeted, rule, density, k_min, pattern, steps)
    return budgeted, density


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
    for kernel, actuators in budgeted if rule.one_sided else ():
        if len(actuators) > 1:
            raise ValueError(
                f"expected one actuator for {kernel.path!r} with rule {rule.name!r}, "
                f"got {' and '.join(actuators)}; select one of the two"
            )
    _integer("k_min", k_min, 0)
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


def _check_pattern(budgeted: Budgeted, rule: Rule, pattern: Any) -> None:
    if pattern is None:
        return
    if not isinstance(pattern, Pattern):
        raise TypeError(
            f"expected a pattern from bb.n_m, got {pattern!r}; e.g. "
            "pattern=bb.n_m(2, 4)"
        )
    if not rule.patterned:
        raise ValueError(
            f"expected a rule that can keep the pattern {pattern}, got {rule.name!r}, "
            "whose degrees are outcomes or whole units; leave pattern out or choose "
            "another rule"
        )
    for kernel, actuators in budgeted:
        check_pattern(kernel, actuators, pattern)


def settled_density(rule: Rule, density: Any, pattern: Pattern | None) -> Density:
    """The density, from what was said and what follows: None if it is an outcome."""
    unsaid = isinstance(density, _Unsaid)
    if rule.free:
        if not unsaid:
            raise ValueError(
                f"expected no density for rule {rule.name!r}, got {density!r}: with "
                "this rule it is an outcome; leave density out"
            )
        return None
    if density is None:
        _number("density", density)
    if pattern is None:
        return density
    if unsaid:
        return pattern.density
    if isinstance(density, int | float) and density != pattern.density:
        raise ValueError(
            f"expected density {pattern.density} with the pattern {pattern}, got "
            f"{density!r}; leave density out, or pass a schedule that ends there"
        )
    return density


def check_held(masks: Any) -> None:
    """Refuses what cannot be held: no masks, or masks without entries to choose."""
    _check_mapping(masks)
    bare = [path for path, mask in masks.items() if jnp.ndim(mask) == 0]
    if bare or not masks:
        raise ValueError(
            f"expected at least one mask, each with axes, got {bare or 'none'}; pass "
            "what bb.prune or bb.masks returned"
        )


def _check_mapping(masks: Any) -> None:
    if not isinstance(masks, Mapping):
        raise TypeError(
            f"expected masks by path, got {type(masks).__name__}; pass what bb.prune "
            "or bb.masks returned"
        )


def check_masks(budgeted: Budgeted, masks: Any) -> None:
    """Refuses masks that do not fit the budgeted kernels, listing what differs."""
    _check_mapping(masks)
    wrong = []
    for kernel, _ in budgeted:
        shape = jnp.shape(masks[kernel.path]) if kernel.path in masks else None
        if shape != kernel.shape:
            wrong.append(f"{kernel.path!r}: expected {kernel.shape}, got {shape}")
    if wrong:
        raise ValueError(
            "expected a mask of the shape of every budgeted kernel; differences: "
            + "; ".join(wrong)
        )


def _check_schedule(every: Any, start: Any, stop: Any) -> None:
    _integer("every", every, 1)
    _integer("start", start, 0)
    if stop is not None:
        _integer("stop", stop, 0)
        if stop <= start:
            raise ValueError(
                f"expected stop > start = {start}, got {stop!r}: nothing would ever be "
                "pruned; raise stop or lower start"
            )


def _check_options(regrow: Any, rescale: Any, ema: Any, dormant_dtype: Any) -> None:
    rescale = False if rescale is None else rescale
    for name, value in (("regrow", regrow), ("rescale", rescale)):
        if not isinstance(value, bool | np.bool_):
            raise TypeError(
                f"expected {name} to be True or False, got {value!r}; pass a bool"
            )
    if not isinstance(ema, jax.core.Tracer) and not 0 <= _number("ema", ema) < 1:
        raise ValueError(
            f"expected ema in [0, 1), got {ema!r}; it is the decay of the running "
            "mean, e.g. 0.99"
        )
    if dormant_dtype is not None and not _is_float(dormant_dtype):
        raise ValueError(
            f"expected dormant_dtype to be a float dtype, got {dormant_dtype!r}; e.g. "
            "jnp.bfloat16"
        )


def _check_hysteresis(rule: Rule, share: Any) -> None:
    if not isinstance(share, jax.core.Tracer):
        if not 0 <= _number("hysteresis", share) < math.inf:
            raise ValueError(
                f"expected hysteresis >= 0, got {share!r}; it is the share by which "
                "something must be better than what is kept, e.g. 0.2"
            )
        if share == 0:
            return
    if rule.free or not rule.favours:
        raise ValueError(
            f"expected a rule that can favour what is kept, got {rule.name!r}, which "
            "exchanges edges by design or whose density is an outcome; leave "
            "hysteresis out"
        )


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"expected {name} to be a number, got {value!r}; pass a float"
        ) from error


def _is_float(dtype: Any) -> bool:
    try:
        return jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        return False


def _integer(name: str, value: Any, least: int) -> None:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(
            f"expected {name} to be an integer >= {least}, got {value!r}; it is part "
            "of the compiled step and cannot be traced"
        ) from error
    if number < least:
        raise ValueError(f"expected {name} >= {least}, got {value!r}; raise it")


def _steps(every: int, start: int, stop: int | None) -> dict[int, str]:
    """Steps at which to check a schedule, the first and the last refresh, in words."""
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
    plain = density.density if isinstance(density, Erk) else density
    shares = per_kernel(plain, [kernel for kernel, _ in budgeted])
    checked = [_values(one, steps) for one in shares]
    together = isinstance(density, Erk) or rule.joint
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
        return [("", density if is_array else _number("density", density))]
    checked = []
    for step, words in steps.items():
        value = density(jnp.asarray(step))
        if not isinstance(value, jax.core.Tracer):
            value = _number("density", value)
        checked.append((words, value))
    return checked


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
