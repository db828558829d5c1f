"""Checks of what users pass to the transform: expected, got, what to do.

Everything that is known when the transform is built is checked then; values that are
traced (under `inject_hyperparams` or `vmap`) are taken on trust.
"""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.budget import check_density
from bbjax.rules.base import Rule, side_in
from bbjax.units import Actuator, Kernel, Units

Budgeted = tuple[tuple[Kernel, tuple[Actuator, ...]], ...]
FOREVER = 2**30  # a step by which every schedule has settled


def check(units: Any, rule: Any, *, density: Any, k_min: Any, **rest: Any) -> Budgeted:
    """Checks the arguments of `bb.transform`; returns the budgeted kernels."""
    if not isinstance(units, Units):
        raise TypeError(
            f"expected units from bb.trace, got {type(units).__name__}; call "
            "bb.trace(loss_fn, params, *args) first"
        )
    if not isinstance(rule, Rule):
        raise TypeError(
            f"expected a rule from bb.rules, got {rule!r}; call its factory, e.g. "
            "bb.rules.magnitude()"
        )
    every, start, stop = (rest[k] for k in ("every", "start", "stop"))
    _check_schedule(every, start, stop)
    _check_options(rest["regrow"], rest["rescale"], rest["ema"], rest["dormant_dtype"])
    budgeted = tuple((units[p], a) for p, a in units.budgeted.items())
    if not budgeted:
        raise ValueError(
            "expected at least one kernel to prune, got none: no hidden kernel of the "
            f"trace is followed by a nonlinearity; choose with units.select(...) out "
            f"of {list(units.paths)}"
        )
    _integer("k_min", k_min, 0)
    if rest["rescale"] and not any("in" in actuators for _, actuators in budgeted):
        raise ValueError(
            "expected a kernel with actuator 'in' to rescale, got none: only their "
            "kept weights are scaled; leave rescale out"
        )
    for when, density_at in _densities(density, every, start, stop):
        try:
            check_density(density_at)
            for kernel, actuators in budgeted:
                _check_budget(kernel, actuators, density_at, k_min)
        except ValueError as error:
            raise ValueError(f"{error}{when}") from None
    return budgeted


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


def _densities(
    density: Any, every: int, start: int, stop: int | None
) -> list[tuple[str, Any]]:
    """Densities to check: a schedule's at its first and at its last refresh."""
    if isinstance(density, jax.core.Tracer):
        return [("", density)]
    if not callable(density):
        is_array = hasattr(density, "shape")
        return [("", density if is_array else _number("density", density))]
    last = FOREVER if stop is None else start + (stop - 1 - start) // every * every
    checked = []
    for step in dict.fromkeys((start, last)):
        value = density(jnp.asarray(step))
        if not isinstance(value, jax.core.Tracer):
            value = _number("density", value)
        where = "in the long run" if step == FOREVER else f"at step {step}"
        checked.append((f" (what the density schedule gives {where})", value))
    return checked


def _check_budget(
    kernel: Kernel, actuators: tuple[Actuator, ...], density: Any, k_min: int
) -> None:
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
    if isinstance(density, jax.core.Tracer):
        return
    units = sum(kernel.unit_count(a) for a in actuators)
    budget = round(float(density) * kernel.edge_count)
    if budget < k_min * units:
        raise ValueError(
            f"expected a density of at least {k_min * units / kernel.edge_count:.4g} "
            f"for {kernel.path!r} ({kernel.edge_count} edges, {units} budgeted units "
            f"with k_min={k_min} edges each), got {float(density):.4g}; raise density "
            "or lower k_min"
        )


def check_needs(rule: Rule, activity: Any, grads: Any) -> None:
    """Refuses an update that lacks what the rule reads."""
    if activity is None and any(n != "grads" for n in rule.needs):
        raise ValueError(
            f"expected activity, which rule {rule.name!r} needs, got None; call "
            "tx.update(grads, opt_state, params, activity=activity) with the activity "
            "that bb.observe(loss_fn, units) returns"
        )
    if grads is None and "grads" in rule.needs:
        raise ValueError(
            f"expected dense gradients, which rule {rule.name!r} needs, got None; call "
            "tx.update(..., grads=grads), or use bb.wrap"
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
                "got none; pass needs=rule.needs to bb.observe"
            )
        _check_statistic(kernel, name, value)
    return sides


def _check_statistic(kernel: Kernel, name: str, value: Any) -> None:
    expected = kernel.per_unit_shape(side_in(name))
    if tuple(jnp.shape(value)) != expected:
        raise ValueError(
            f"expected {name} of {kernel.path!r} of shape {expected}, got "
            f"{tuple(jnp.shape(value))}; statistics are per unit (stack + units)"
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
