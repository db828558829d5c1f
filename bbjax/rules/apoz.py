"""Network Trimming: units that are zero far more often than others of their layer go.

    APoZ_u = share of zeros of unit u after ReLU, over samples and positions
    prune u if APoZ_u > mean + sigmas * std

with mean and (population) standard deviation over the units of the slice that still
have edges. Units go whole, with all their edges on the budgeted side, and do not come
back; the density is an outcome. Every refresh trims again. The paper retrains the
remaining weights between two trims, so leave enough steps between refreshes. Shapes:
shares of zeros `stack + units`. Reference: Hu, Peng, Tai, Tang, arXiv 1607.03250.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bbjax.arrays.types import Number
from bbjax.model.numbers import check_number
from bbjax.model.units import Actuator
from bbjax.rules.base import Candidates, Rule
from bbjax.rules.parts.whole_units import alive, edges_of

# Shares and bar are rounded to this grid. The last bits of a mean depend on the order
# of the units; a unit whose share is mathematically equal to the bar has to stay.
_STEP = 2.0**-20


def apoz(
    *,
    sigmas: Number = 1.0,
    statistic: Literal["zero_share", "off_rate"] = "zero_share",
) -> Rule:
    """Prunes units whose average percentage of zeros stands out from their layer.

    The unit with the fewest zeros always stays. A unit that is pruned never returns,
    whatever `regrow` is (`regrow=False` saves the memory of the dormant weights).
    `k_min` has no effect.

    Args:
      sigmas: standard deviations above the mean, at least 0; may be traced.
      statistic: `"zero_share"` counts exact zeros, for ReLU; `"off_rate"` is one minus
        the on-rate, for other activations: with `on=bb.on.above(tol)` when observing
        it is the share of `|a| <= tol`.

    Returns:
      A rule that needs this share; it takes no density and no pattern.

    Raises:
      TypeError: `sigmas` is no number.
      ValueError: negative `sigmas`, unknown statistic.

    Example:
      >>> apoz().needs, apoz(statistic="off_rate").needs
      (('zero_share',), ('on_rate',))
    """
    remedy = "units more than this many standard deviations above the mean go"
    check_number("sigmas", sigmas, "[0, inf)", remedy)
    if statistic not in ("zero_share", "off_rate"):
        raise ValueError(
            f'expected statistic "zero_share" or "off_rate", got {statistic!r}; the '
            "second one reads what `on` counts as off"
        )
    need = "zero_share" if statistic == "zero_share" else "on_rate"

    def select(seen: Candidates) -> Bool[Array, "*edges"]:
        mask = seen.mask
        for actuator in seen.actuators:
            share = seen.of_units(need, actuator)
            share = share if need == "zero_share" else 1 - share
            keep = _below_bar(seen, actuator, share, sigmas)
            mask &= edges_of(seen, keep, actuator)
        return mask

    return Rule("apoz", select, needs=(need,), free=True, patterned=False)


def _below_bar(
    seen: Candidates, actuator: Actuator, share: Float[Array, "*units"], sigmas: Number
) -> Bool[Array, "*units"]:
    """Units that stay; mean and deviation are those of the units with edges."""
    living = alive(seen, actuator, like=share)
    grid = jnp.round(share / _STEP) * _STEP
    axes = tuple(range(len(seen.kernel.stack_shape), share.ndim))

    def mean(values: Float[Array, "*units"]) -> Float[Array, "..."]:
        count = jnp.sum(living, axes, dtype=jnp.float32, keepdims=True)
        total = jnp.sum(jnp.where(living, values, 0.0), axes, keepdims=True)
        return total / jnp.maximum(count, 1.0)

    middle = mean(grid)
    spread = jnp.sqrt(mean(jnp.square(grid - middle)))
    bar = middle + jnp.asarray(sigmas).astype(jnp.float32) * spread
    bar = jnp.round(bar / _STEP) * _STEP
    least = jnp.min(jnp.where(living, grid, jnp.inf), axes, keepdims=True)
    return living & (grid <= jnp.maximum(bar, least))
