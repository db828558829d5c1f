"""Scalars that describe a pruning state, computed inside or outside jit.

`metrics` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bbjax.model.units import Actuator, Kernel
from bbjax.rules.base import side_of
from bbjax.training.state import (
    PruneState,
    budgeted,
    find,
    leading,
    mapped,
    names,
    read_mean,
    unpack,
)

DEAD = 1e-3
SATURATED = 1e-2  # where the default law clips on-rates


def metrics(opt_state: Any) -> dict[str, jax.Array]:
    """Scalars that describe the pruning state.

    Per budgeted kernel (and per actuator where there are two), and overall:

        density_asked, density_got              share of the edges
        degree_mean, degree_min, degree_max     edges of a unit
        dead_units                              units without edges, or on-rate <= 0.001
        traffic                                 sum of on-rate times degree
        coding_entropy                          mean entropy of a unit's state, in bits
        churn                                   share of the edges that the last refresh
                                                flipped
        pruned_nonzero                          share of the edges that were pruned and
                                                yet not 0 in the parameters
        balance_slope, balance_r2               line of log((1 - a) / a) on the degree

    `pruned_nonzero` is 0 where `bb.transform` is the last link of the chain. Whatever
    changes its updates (an optimizer, `optax.scale`, a partition that freezes) leaves
    pruned weights that are not 0. An update counts them in the `params` that it gets,
    at every refresh and right after it. Outside jit it also warns.

    The line is fitted over units off their bounds (`k_min < k < fan`, on-rate between
    0.01 and 0.99). For one slice under the log-odds law its slope is `beta`. Reference:
    arXiv 2510.01263, section 5.1.

    Args:
      opt_state: optimizer state with `bb.transform` or `bb.wrap` at any depth.

    Returns:
      float32 scalars by `"<path>/<name>"` (`"<path>:<actuator>/<name>"` for a kernel
      with both actuators) and `"overall/<name>"`. Before activity was observed on-rates
      are 0.5. A line that cannot be fitted has slope and R2 NaN. Of a state with
      leading axes (`jax.vmap(tx.init)`), arrays of these axes.

    Raises:
      ValueError: no pruning state inside, or several with other leading axes.

    Example:
      >>> import bbjax as bb
      >>> kernel = Kernel("w", (2, 3), fan_in=(0,), fan_out=(1,))
      >>> tx = bb.transform(bb.Units((kernel,)).select("w"))
      >>> float(bb.metrics(tx.init({"w": jnp.ones((2, 3))}))["overall/density_got"])
      1.0
    """
    states = find(opt_state)
    axes = list(dict.fromkeys(leading(state) for state in states))
    if len(axes) > 1:
        raise ValueError(
            f"expected pruning states of the same leading axes, got {axes}; measure "
            "each of them by itself"
        )
    return _mapped(states)


@jax.jit  # outside jit, too: small operations one by one compile for seconds
def _mapped(states: tuple[PruneState, ...]) -> dict[str, jax.Array]:
    found: dict[str, jax.Array] = mapped(states[0], _all)(states)
    return found


def _all(states: tuple[PruneState, ...]) -> dict[str, jax.Array]:
    result: dict[str, jax.Array] = {}
    parts = []
    for state, kernel, actuators in budgeted(states):
        for actuator, name in names(kernel, actuators).items():
            part = _measure(state, kernel, actuator)
            parts.append(part)
            result |= {f"{name}/{k}": v for k, v in summary(part).items()}
    if not parts:  # masks of parameters that no budget counts
        return {}
    whole = {k: jnp.concatenate([p[k] for p in parts]) for k in parts[0]}
    return result | {f"overall/{k}": v for k, v in summary(whole).items()}


def _measure(
    state: PruneState, kernel: Kernel, actuator: Actuator
) -> dict[str, jax.Array]:
    """Flat arrays of one side of a kernel; sizes in arrays of one entry."""
    side = side_of(actuator)
    mask = unpack(kernel, state.bb_masks[kernel.path]).astype(jnp.int32)
    degree = kernel.gather(mask, side).astype(jnp.float32).ravel()
    rate = read_mean(state.bb_means[kernel.path], f"{side}.on_rate").ravel()
    low, high = state.bb_k_min.astype(jnp.float32), kernel.fan(actuator)
    edges = jnp.full((1,), float(mask.size), jnp.float32)
    return {
        "degree": degree,
        "rate": rate,
        "free": off_bounds(degree, rate, low, high),
        "edges": edges,
        "asked": edges * state.bb_density[kernel.path],
        "flipped": edges * state.bb_churn[kernel.path],
        "stray": edges * state.bb_stray[kernel.path],
    }


def off_bounds(degree: Any, rate: Any, low: Any, high: int) -> Any:
    """Which units sit on no bound, neither of degree nor of on-rate."""
    inside = (degree > low) & (degree < high)
    return inside & (rate > SATURATED) & (rate < 1 - SATURATED)


def summary(part: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The scalars of a set of units.

    Args:
      part: float32, `degree` and `rate` (units,), bool `free` (units,) from
        `off_bounds`, and `edges`, `asked`, `flipped` and `stray` (kernels,) in edges.
    """
    degree, rate = part["degree"], part["rate"]
    edges = jnp.sum(part["edges"])
    slope, r2 = _line(degree, log_odds(rate), part["free"].astype(jnp.float32))
    dead = (degree == 0) | (rate <= DEAD)
    return {
        "density_asked": jnp.sum(part["asked"]) / edges,
        "density_got": jnp.sum(degree) / edges,
        "degree_mean": jnp.mean(degree),
        "degree_min": jnp.min(degree),
        "degree_max": jnp.max(degree),
        "dead_units": jnp.sum(dead, dtype=jnp.float32),
        "traffic": jnp.sum(degree * rate),
        "coding_entropy": jnp.mean(_entropy(rate)),
        "churn": jnp.sum(part["flipped"]) / edges,
        "pruned_nonzero": jnp.sum(part["stray"]) / edges,
        "balance_slope": slope,
        "balance_r2": r2,
    }


def log_odds(rate: Any) -> jax.Array:
    """log((1 - a) / a), on-rates held within [0.001, 0.999]."""
    a = jnp.clip(rate, DEAD, 1 - DEAD)
    return jnp.log((1 - a) / a)


def _entropy(rate: jax.Array) -> jax.Array:
    a = jnp.clip(rate, 1e-7, 1 - 1e-7)
    return -(a * jnp.log2(a) + (1 - a) * jnp.log2(1 - a))


def _line(x: jax.Array, y: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weighted least squares of y on x: slope and R2; NaN without spread."""
    total = jnp.maximum(jnp.sum(w), 1.0)
    dx = (x - jnp.sum(w * x) / total) * w
    dy = (y - jnp.sum(w * y) / total) * w
    xx, yy, xy = jnp.sum(dx * dx), jnp.sum(dy * dy), jnp.sum(dx * dy)
    fits = (jnp.sum(w) >= 3) & _differ(x, w) & _differ(y, w) & (xx > 0) & (yy > 0)
    slope = jnp.where(fits, xy / jnp.where(fits, xx, 1.0), jnp.nan)
    return slope, jnp.where(fits, xy * xy / jnp.where(fits, xx * yy, 1.0), jnp.nan)


def _differ(x: jax.Array, w: jax.Array) -> jax.Array:
    """Whether there are two values; a sum of squares is not 0 where its mean rounds."""
    least, most = jnp.where(w > 0, x, jnp.inf), jnp.where(w > 0, x, -jnp.inf)
    return jnp.max(most) > jnp.min(least)
