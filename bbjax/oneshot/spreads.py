"""Slopes of the balance, chosen from calibration data: `bb.spreads`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bbjax.budgets.allocation import Density
from bbjax.model.leaves import Leaves
from bbjax.model.units import Units
from bbjax.oneshot.prune import Job
from bbjax.rules.base import Fitted, Rule
from bbjax.rules.patterns import Pattern
from bbjax.training import arguments, observations


def spreads(
    params: Any,
    units: Units,
    rule: Rule,
    density: Density = None,
    *,
    stats: Any,
    pattern: Pattern | None = None,
    masks: Mapping[str, Any] | None = None,
    k_min: int = 1,
) -> dict[str, Fitted]:
    """Slopes that `bb.rules.budgeted_broadcast(spread="calibrated")` chooses.

    Above 0 is the balance of Budgeted Broadcast (rarely active units keep more edges),
    below 0 its reverse, 0 neither.

    Args:
      params: as for `prune`, which takes the same arguments and chooses alike.
      units: likewise.
      rule: one whose spread is calibrated.
      density: likewise.
      stats: likewise; with the Gram matrices of the inputs.
      pattern: likewise.
      masks: likewise.
      k_min: likewise.

    Returns:
      By path, `Fitted(spread, error, level)`: the slope, the mean square change of the
      outputs with it and with slope 0 (equal degrees if `competition` is 0), float32 of
      the shape of the stack axes.

    Raises:
      TypeError: as `prune`.
      ValueError: as `prune`; a rule that chooses no slope.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import bbjax as bb
      >>> def fn(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params = {"up": jax.random.normal(keys[0], (16, 32)), "down": jnp.eye(32)}
      >>> x = jax.random.normal(keys[1], (100, 16))
      >>> units = bb.trace(fn, params, x)
      >>> rule = bb.rules.budgeted_broadcast(spread="calibrated", competition=0)
      >>> stats = bb.calibrate(fn, units, params, [(x,)], needs=rule.needs)
      >>> found = spreads(params, units, rule, density=0.3, stats=stats)["up"]
      >>> bool(found.error <= found.level)
      True
    """
    arguments.check_rule(rule)
    if not rule.fits:
        raise ValueError(
            f"expected a rule that chooses its slope, got {rule.name!r}; use "
            'bb.rules.budgeted_broadcast(spread="calibrated")'
        )
    job = Job.of(units, rule, density, pattern, masks, k_min)
    observations.check_call(rule, stats, None, "bb.spreads")
    return {
        kernel.path: choice.fitted
        for kernel, choice in job.choices(Leaves.of(params), stats, None)
        if choice.fitted is not None
    }
