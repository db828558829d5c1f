"""The other laws in circulation: the local threshold and the authors' notebooks.

Reference: Meirovitch et al., Budgeted Broadcast, arXiv 2510.01263, and its notebooks.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from bbjax.arrays.topk import kth_largest
from bbjax.arrays.types import Number
from bbjax.budgets.laws.base import (
    GRID,
    Law,
    check_clip,
    clean_rate,
    grid_rate,
)
from bbjax.model.numbers import check_number


def threshold(tau: Number = 1.0, *, clip: float = 1e-2) -> Law:
    """The local threshold's fixed point: degree = c * tau / a.

    "Prune while the traffic a * k exceeds tau" ends at k = min(fan, tau / a): every
    unit carries the same traffic. Under a budget, `c` rescales tau until the degrees
    add up. So any two values of `tau` give the same degrees, those of the threshold
    `c * tau`.

    Args:
        tau: traffic per unit (edges times on-rate), a number > 0 or a traced scalar.
        clip: on-rates below it, in [1e-6, 0.5), count as `clip`.

    Returns:
        A law that combines by "scale".

    Raises:
        ValueError: if `tau` is concrete and not a finite number > 0, or `clip` is
            outside its range.

    Example:
        >>> import jax.numpy as jnp
        >>> threshold(2.0).profile(jnp.array([0.25, 1.0]), jnp.array(8.0)).tolist()
        [8.0, 2.0]
    """
    check_number("tau", tau, "(0, inf)", "a budget rescales it, so 1.0 will do")
    check_clip(clip)

    def settled(
        on_rate: Float[ArrayLike, "*stack units"], other: Real[ArrayLike, "*#stack"]
    ) -> Float[Array, "*stack units"]:
        del other
        rate = jnp.maximum(grid_rate(on_rate), clip)
        return jnp.asarray(tau).astype(jnp.float32) / rate

    return Law("threshold", settled, "scale", edges=settled)


def three_zone(
    *,
    rare: float = 0.9,
    busy: float = 0.3,
    low: float = 0.1,
    high: float = 0.7,
    middle: float = 1.0,
) -> Law:
    """Three kinds of units: rare (a < low), busy (a > high), and those between.

        density = rare if a < low, busy if a > high, else middle

    As in the authors' speech notebook. By default it is not monotone: rare units lose a
    tenth of their edges, those between lose none. In a run that only prunes
    (`bb.rules.unbudgeted` with `regrow=False`) a unit between keeps the edges that it
    has, as published. Under a budget only the ratios of the three densities matter.

    Args:
        rare: density of rare units, in (0, 1].
        busy: density of busy units, in (0, 1]; 0.4 in the change-detection notebook.
        low: on-rate below which a unit is rare, in [0, 1].
        high: on-rate above which it is busy, in [low, 1].
        middle: density of the others, in (0, 1].

    Returns:
        A law that combines by "scale", with degrees without a budget: density * fan.

    Raises:
        ValueError: if a number is outside its range.

    Example:
        >>> import jax.numpy as jnp
        >>> three_zone().edges(jnp.array([0.05, 0.5, 0.9]), 100).round().tolist()
        [90.0, 100.0, 30.0]
    """
    _check_zones(low, high, rare=rare, busy=busy, middle=middle)

    def density(
        on_rate: Float[ArrayLike, "*stack units"],
    ) -> Float[Array, "*stack units"]:
        a = clean_rate(on_rate)
        between = jnp.where(a > high, jnp.float32(busy), jnp.float32(middle))
        return jnp.where(a < low, jnp.float32(rare), between)

    return _of_density("three_zone", density)


def quantile(
    *, rare: float = 0.9, busy: float = 0.5, low: float = 0.3, high: float = 0.7
) -> Law:
    """Densities that fall linearly between two quantiles of the units' on-rates.

        density = rare + (busy - rare) * clip((a - q_low) / (q_high - q_low), 0, 1)

    As in the authors' face notebook (whose activity is the mean |z-score| of a unit, in
    the place of the on-rate). Quantiles are those of the units of each slice, with
    linear interpolation. Where both are the same, all units count as rare.

    Args:
        rare: density up to the lower quantile, in (0, 1].
        busy: density from the upper quantile on, in (0, 1].
        low: share of the units below the lower quantile, in [0, 1].
        high: share of the units below the upper quantile, in [low, 1].

    Returns:
        A law that combines by "scale", with degrees without a budget: density * fan.

    Raises:
        ValueError: if a number is outside its range.

    Example:
        >>> import jax.numpy as jnp
        >>> rates = jnp.linspace(0.0, 1.0, 11)
        >>> quantile().edges(rates, 100).round()[::2].tolist()
        [90.0, 90.0, 80.0, 60.0, 50.0, 50.0]
    """
    _check_zones(low, high, rare=rare, busy=busy)

    def density(
        on_rate: Float[ArrayLike, "*stack units"],
    ) -> Float[Array, "*stack units"]:
        a = grid_rate(on_rate)
        at_low, at_high = _quantiles(a, low, high)
        apart = at_high - at_low > 1e-6
        share = (a - at_low) / jnp.where(apart, at_high - at_low, 1.0)
        share = jnp.where(apart, jnp.clip(share, 0, 1), 0.0)
        # On a grid, so that the last bits decide no rounding of a degree.
        between = jnp.round((rare + (busy - rare) * share) * GRID) / GRID
        ends = jnp.where(share > 0, jnp.float32(busy), jnp.float32(rare))
        return jnp.where((share > 0) & (share < 1), between, ends)

    return _of_density("quantile", density)


def _check_zones(low: float, high: float, **shares: float) -> None:
    for name, share in shares.items():
        remedy = "it is the density of such a unit, the kept share of its edges"
        check_number(name, share, "(0, 1]", remedy)
    remedy = "it is an end of the middle zone"
    check_number("low", low, "[0, 1]", remedy)
    check_number("high", high, "[0, 1]", remedy)
    if low > high:
        raise ValueError(
            f"low, high: expected 0 <= low <= high <= 1, got {low!r} and {high!r}; "
            "they are the ends of the middle zone"
        )


def _of_density(
    name: str,
    density: Callable[[Float[ArrayLike, "*stack units"]], Float[Array, "*stack units"]],
) -> Law:
    """The law that gives each unit a share of its edges."""

    def profile(
        on_rate: Float[ArrayLike, "*stack units"], mean_degree: Float[Array, "*#stack"]
    ) -> Float[Array, "*stack units"]:
        del mean_degree
        return density(on_rate)

    def edges(
        on_rate: Float[ArrayLike, "*stack units"], fan: Number
    ) -> Float[Array, "*stack units"]:
        return density(on_rate) * jnp.asarray(fan).astype(jnp.float32)

    return Law(name, profile, "scale", edges=edges)


def _quantiles(
    values: Float[Array, "*stack units"], *shares: float
) -> list[Float[Array, "*stack 1"]]:
    """Quantiles along the last axis, which is kept and may be sharded."""
    last = values.shape[-1] - 1
    places = [share * last for share in shares]
    ranks = [min(int(p) + more, last) for p in places for more in (0, 1)]
    copies = jnp.broadcast_to(values, (len(ranks), *values.shape))
    from_top = last + 1 - np.reshape(ranks, (-1,) + (1,) * (values.ndim - 1))
    at = kth_largest(copies, from_top, axis=-1)[..., None]
    return [
        at[2 * i] + (place - int(place)) * (at[2 * i + 1] - at[2 * i])
        for i, place in enumerate(places)
    ]
