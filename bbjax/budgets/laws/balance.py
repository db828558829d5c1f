"""The selectivity-audience balance: degrees linear in the log-odds of being off.

    log((1 - a) / a) = beta k,    so    degree = c + log((1 - a) / a) / beta

The paper gives no value of `beta`, no rule to choose one, and no degree for units that
are never on. Here the slope is a share of the mean degree per nat of log-odds
(`spread`), so that nearly equal activity gives nearly equal degrees at any width of a
layer. Degrees stay within a band around the mean degree, and a unit that is never on
has the degree of a unit of mean log-odds. With `beta` the law is the paper's formula.

Reference: the degree controller of arXiv 2510.01263.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Real

from bbjax.arrays.types import Number
from bbjax.budgets.laws.base import (
    Law,
    Profile,
    alive_share,
    check_clip,
    grid_rate,
)
from bbjax.model.numbers import are_numbers, check_number

SPREAD = 0.1


def log_odds(
    beta: Number | None = None,
    *,
    spread: Real[ArrayLike, "*stack"] | None = None,
    limit: float = 2.0,
    dead: float = 1e-3,
    floor: float = 0.1,
    clip: float = 1e-2,
) -> Law:
    """The paper's controller: degrees are linear in the log-odds L = log((1 - a) / a).

    Without `beta` the slope is a share of the mean degree, per nat of log-odds:

        degree_i = c + spread * mean_degree * clamp(L_i - mean(L), -limit, limit)

    The mean is over the living units of a slice. A dead unit (on-rate of at most
    `dead`) has the degree `c`, that of a unit of mean log-odds; from there to four
    times that on-rate the second term rises to its full size. No unit gets less than
    `floor * mean_degree`, rounded down (where both sides of a kernel are budgeted, only
    `k_min` holds). With the defaults, a unit that is on 10 % of the time gets 22 % of
    the mean degree more than one that is on half of the time, and on-rates of .49 and
    .51 give degrees that differ by less than 1 % of it.

    With `beta`, degree_i = c + L_i / beta, the paper's formula: no band, no dead units
    and no floor but `k_min`.

    Args:
        beta: slope in log-odds per edge, a number > 0 or a traced scalar; larger is
            flatter.
        spread: share of the mean degree that a nat of log-odds adds, a finite number or
            one per slice (the leading shape), possibly traced; 0.1 unless `beta` is
            given. 0 gives equal degrees, a negative number reverses the balance.
        limit: half width of the band, in nats, above 0.
        dead: on-rate up to which a unit counts as dead, below 0.5; below 0, none does.
            The running means of `bb.transform` resolve about `1 - ema` over the
            entries of an update.
        floor: least degree as a share of the mean degree, in [0, 0.9].
        clip: on-rates are clipped to [clip, 1 - clip], in [1e-6, 0.5), before
            log-odds are taken: they are infinite at 0 and 1.

    Returns:
        A law that combines by "shift".

    Raises:
        ValueError: if both `beta` and `spread` are given, or a concrete value is
            outside its range.

    Example:
        >>> import jax.numpy as jnp
        >>> rates = jnp.array([0.0, 0.1, 0.5, 0.5, 0.9])  # the first unit is dead
        >>> log_odds().profile(rates, jnp.array(100.0)).round().tolist()
        [0.0, 20.0, 0.0, 0.0, -20.0]
        >>> log_odds(beta=0.5).profile(rates[2:], jnp.array(100.0)).round().tolist()
        [0.0, 0.0, -4.0]

    References:
        arXiv 2510.01263, the degree controller. No source says how to choose `beta`.
    """
    check_clip(clip)
    if beta is not None:
        if spread is not None:
            raise ValueError(
                f"expected beta or spread, got both (beta={beta!r}, "
                f"spread={spread!r}); beta is the slope in log-odds per edge, spread "
                "in shares of the mean degree per nat of log-odds"
            )
        check_number("beta", beta, "(0, inf)", "larger is flatter; None: spread=0.1")
        return Law("log_odds", _by_beta(beta, clip), "shift")
    spread = SPREAD if spread is None else spread
    _check_spread(spread)
    check_number("limit", limit, "(0, inf)", "it is a number of nats, e.g. 2.0")
    profile = _by_spread(spread, limit, clip, dead)
    return Law("log_odds", profile, "shift", dead=dead, floor=floor)


def _check_spread(spread: Real[ArrayLike, "*stack"]) -> None:
    if isinstance(spread, jax.core.Tracer):
        return
    if not are_numbers(spread) or not np.isfinite(np.asarray(spread, np.float64)).all():
        raise ValueError(
            f"spread: expected finite numbers, got {spread!r}; it is a share of the "
            "mean degree per nat of log-odds, e.g. 0.1"
        )


def _log_odds(rate: Float[Array, "*shape"], clip: float) -> Float[Array, "*shape"]:
    a = jnp.clip(rate, clip, 1 - clip)
    return jnp.log((1 - a) / a)


def _by_beta(beta: Number, clip: float) -> Profile:
    def profile(
        on_rate: Float[ArrayLike, "*stack units"], mean_degree: Float[Array, "*#stack"]
    ) -> Float[Array, "*stack units"]:
        del mean_degree
        odds = _log_odds(grid_rate(on_rate), clip)
        return odds / jnp.asarray(beta).astype(jnp.float32)

    return profile


def _by_spread(
    spread: Real[ArrayLike, "*stack"], limit: float, clip: float, dead: float
) -> Profile:
    def profile(
        on_rate: Float[ArrayLike, "*stack units"], mean_degree: Float[Array, "*#stack"]
    ) -> Float[Array, "*stack units"]:
        odds, alive = _log_odds(grid_rate(on_rate), clip), alive_share(on_rate, dead)
        slices = odds.shape[:-1]
        if jnp.shape(spread) not in ((), slices):
            raise ValueError(
                f"spread: expected a number or shape {slices}, got shape "
                f"{jnp.shape(spread)}; pass one slope, or one per slice"
            )
        apart = jnp.clip(odds - _mean_over(odds, alive, clip), -limit, limit)
        slope = jnp.asarray(spread).astype(jnp.float32)
        slope = slope * jnp.asarray(mean_degree).astype(jnp.float32)
        return jnp.broadcast_to(slope, slices)[..., None] * (apart * alive)

    return profile


def _mean_over(
    values: Float[Array, "*stack units"],
    weights: Float[Array, "*stack units"],
    clip: float,
) -> Float[Array, "*stack 1"]:
    """The weighted mean over units, independent of the order of the sum.

    The last bits of a sum of floats depend on the order of the units and on the number
    of devices, and could change a degree. So values and weights are summed as integers,
    on a grid as fine as their number allows.
    """
    most = math.log((1 - clip) / clip) + 1
    grid = 2.0 ** min(math.floor(math.log2(2.0**31 / (most * values.shape[-1]))), 20)

    def total(x: Float[Array, "*stack units"]) -> Int[Array, "*stack 1"]:
        whole = jnp.round(x * grid).astype(jnp.int32)
        return jnp.sum(whole, axis=-1, keepdims=True, dtype=jnp.int32)

    weight = jnp.maximum(total(weights), 1).astype(jnp.float32)
    return total(values * weights).astype(jnp.float32) / weight
