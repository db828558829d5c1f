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
from bbjax.rules.base import Rule
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
    _check_schedule(**{k: rest[k] for k in ("every", "start", "stop")})
    _check_options(rest["regrow"], rest["rescale"], rest["ema"], rest["dormant_dtype"])
    budgeted = tuple((units[p], a) for p, a in units.budgeted.items())
    if not budgeted:
        raise ValueError(
            "expected at least one kernel to prune, got none: no hidden kernel of the "
            f"trace is followed by a nonlinearity; choose with units.select(...) out "
            f"of {list(units.paths)}"
        )
    _integer("k_min", k_min, 0)
    for density_at in _densities(density, rest["start"]):
        check_density(density_at)
        for kernel, actuators in budgeted:
            _check_budget(kernel, actuators, density_at, k_min)
    return budgeted


def _check_schedule(every: Any, start: Any, stop: Any) -> None:
    _integer("every", every, 1)
    _integer("start", start, 0)
    if stop is not None:
        _integer("stop", stop, 0)


def _check_options(regrow: Any, rescale: Any, ema: Any, dormant_dtype: Any) -> None:
    for name, value in (("regrow", regrow), ("rescale", rescale)):
        if not isinstance(value, bool | np.bool_ | None.__class__):
            raise TypeError(f"expected {name} to be True or False, got {value!r}")
    if not isinstance(ema, jax.core.Tracer) and not 0 <= float(ema) < 1:
        raise ValueError(
            f"expected ema in [0, 1), got {ema!r}; it is the decay of the running "
            "mean, e.g. 0.99"
        )
    if dormant_dtype is not None and not jnp.issubdtype(dormant_dtype, jnp.floating):
        raise ValueError(
            f"expected dormant_dtype to be a float dtype, got {dormant_dtype!r}; e.g. "
            "jnp.bfloat16"
        )


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


def _densities(density: Any, start: int) -> list[Any]:
    """Densities to check: a schedule's first and last."""
    if callable(density):
        ends = [density(jnp.asarray(n)) for n in (start, FOREVER)]
        return [d if isinstance(d, jax.core.Tracer) else float(d) for d in ends]
    return [density]


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
    units = kernel.in_units if name.startswith("inputs.") else kernel.out_units
    expected = kernel.stack_shape + units
    if tuple(jnp.shape(value)) != expected:
        raise ValueError(
            f"expected {name} of {kernel.path!r} of shape {expected}, got "
            f"{tuple(jnp.shape(value))}; statistics are per unit (stack + units)"
        )
    if not isinstance(value, jax.core.Tracer) and not np.isfinite(value).all():
        raise ValueError(
            f"expected finite {name} of {kernel.path!r}, got NaN or infinity; check "
            "the forward pass (under jit such values are left out of the running mean)"
        )
