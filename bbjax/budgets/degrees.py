"""Degrees: how many edges each unit keeps, so that a budget is met exactly.

A law gives real degrees up to one number, `c + profile` or `c * profile`. Here `c` is
the largest float at which the floored degrees still fit the budget,

    degree_i(c) = floor(clip(real_i(c), min(k_min, cap_i), cap_i))
    c = max{c : sum_i degree_i(c) <= budget},   budget = round(density * fan * units)

found by bisection over all floats (`bbjax.arrays.bracket`). The edges that are left
over go, one each, to units whose degree would grow at the next larger c; of these,
units of lower on-rate come first, then lower indices. All sums are of integers, so they
are exact. With a law that falls with the on-rate no busier unit gets more edges.

Shapes: on-rates, profiles, caps and degrees (..., units); budgets the leading shape.
Reference: d0 of the degree controller, arXiv 2510.01263, which does not say how to find
it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from bbjax.arrays.bracket import Bracket, bisect
from bbjax.arrays.keys import from_key, key, top_key
from bbjax.budgets import laws
from bbjax.budgets.exact import check_density, exact_budget, mean_degree
from bbjax.budgets.laws.base import check_law
from bbjax.model.numbers import check_int

__all__ = ["degrees", "exact_budget", "solve"]

_MAX_EDGES = 2**31 - 1  # counts are int32
_BIG = float(2**31 - 128)  # the largest float32 that is also an int32
_INF = top_key(jnp.float32)


def _total(counts: Int[Array, "*stack units"]) -> Int[Array, "*stack"]:
    return jnp.sum(counts, axis=-1, dtype=jnp.int32)


def _int32(value: Int[ArrayLike, "*shape"]) -> Int[Array, "*shape"]:
    return jnp.asarray(value).astype(jnp.int32)


Degrees = Bracket[Int[Array, "*stack units"]]
Rise = Callable[[Array, Array, Array], Array]  # of degrees at both ends and a level


def _spend(
    counts: Callable[[Int[Array, "*stack"]], Int[Array, "*stack units"]],
    budget: Int[Array, "*stack"],
    floats: Degrees,
    order: Int[Array, "*stack units"],
) -> Int[Array, "*stack units"]:
    """The degrees within the budget, after four searches.

    The first one finds two adjacent floats: the degrees fit the budget at the lower one
    only. Floats are coarse where profiles or degrees are huge, and one step may be
    worth many edges to a unit. So the second search adds the same number of edges to
    all units that have room, until one edge each is left. The other two give that edge
    to the units that are the first in order, and of equal ones to the first.
    """
    index = lax.broadcasted_iota(jnp.int32, order.shape, order.ndim - 1)
    index = index + jnp.zeros_like(floats.at_low)  # and its sharding
    none = jnp.zeros_like(budget)

    def fits(degrees: Int[Array, "*stack units"]) -> Bool[Array, "*stack"]:
        return _total(degrees) <= budget

    def search(found: Degrees, rise: Rise, end: Int[ArrayLike, "*#stack"]) -> Degrees:
        low, high = found.at_low, found.at_high
        start = Bracket(none, low, none + end, high)
        return bisect(lambda level: rise(low, high, level[..., None]), fits, start)

    def below(rank: Int[Array, "*stack units"]) -> Rise:
        return lambda low, high, level: jnp.where(rank < level, high, low)

    found = bisect(counts, fits, floats)
    room = jnp.max(found.at_high - found.at_low, axis=-1)
    found = search(found, lambda low, high, n: jnp.minimum(high, low + n), room)
    found = search(found, below(order), _INF)
    return search(found, below(index), order.shape[-1]).at_low


def _in_order(on_rate: Float[ArrayLike, "*shape"]) -> Int[Array, "*shape"]:
    """On-rates in [0, 1] as integers of the same order; NaN counts as 0.5.

    Comparisons of floats, and so `clip`, take those below the smallest normal one for 0
    on some backends: the units that are on least often would lose their order.
    """
    keys = key(jnp.asarray(on_rate).astype(jnp.float32))
    half, one = (int(np.float32(x).view(np.int32)) for x in (0.5, 1.0))
    return jnp.clip(jnp.where(keys < -_INF, half, keys), 0, one)


@partial(jax.jit, static_argnames="combine")
def solve(
    profile: Float[Array, "*stack units"],
    combine: laws.Combine,
    budget: Int[ArrayLike, "*#stack"],
    cap: Int[ArrayLike, "..."],
    k_min: Int[ArrayLike, "..."],
    on_rate: Float[ArrayLike, "*stack units"],
) -> Int[Array, "*stack units"]:
    """Degrees that add up to a budget: the module's formula, without its checks.

    Args:
        profile: (..., units), of a law. NaN counts as 0; "scale" needs positive values
            and lifts others to the smallest normal float.
        combine: "shift" or "scale", of the same law.
        budget: int, the leading shape or a scalar; clipped to what `k_min` and `cap`
            allow.
        cap: upper bound of the degrees, an int or (..., units) ints >= 0; it wins over
            `k_min`. Its sum over units must stay below 2**31.
        k_min: lower bound of the degrees, int >= 0: a scalar, the leading shape, or
            (..., units).
        on_rate: (..., units), to break ties; NaN counts as 0.5.

    Returns:
        int32 (..., units), which sums to the clipped budget over the last axis.

    Example:
        >>> rate = jnp.array([0.1, 0.5, 0.9])
        >>> solve(jnp.array([3.0, 0.0, -3.0]), "shift", 9, 5, 1, rate).tolist()
        [5, 3, 1]
    """
    rate = laws.clean_rate(on_rate)
    profile = jnp.nan_to_num(jnp.asarray(profile).astype(jnp.float32))
    zero = jnp.zeros_like(rate, jnp.int32)  # lends its sharding to what is added to it
    cap = zero + jnp.broadcast_to(_int32(cap), rate.shape)
    least = _int32(k_min)
    if least.ndim < rate.ndim:
        least = jnp.broadcast_to(least, rate.shape[:-1])[..., None]
    floor = jnp.minimum(least, cap)
    budget = _total(zero) + jnp.broadcast_to(_int32(budget), rate.shape[:-1])
    budget = jnp.clip(budget, _total(floor), _total(cap))
    if combine == "scale":
        profile = jnp.maximum(profile, jnp.finfo(jnp.float32).tiny)

    def counts(level: Int[Array, "*stack"]) -> Int[Array, "*stack units"]:
        c = from_key(level, jnp.float32)[..., None]
        real = c + profile if combine == "shift" else c * profile
        whole = jnp.floor(jnp.clip(real, 0, _BIG)).astype(jnp.int32)
        full = real >= cap.astype(jnp.float32)
        return jnp.where(full, cap, jnp.clip(whole, floor, cap))

    bottom = -_INF if combine == "shift" else 0  # c = -inf (all at k_min), or 0
    none = jnp.zeros_like(budget)
    floats = Bracket(none + bottom, floor, none + _INF, cap)
    return _spend(counts, budget, floats, _in_order(on_rate) + zero)


def _check_rate(on_rate: Float[Array, "*stack units"]) -> None:
    if not jnp.issubdtype(on_rate.dtype, jnp.floating):
        raise TypeError(
            f"on_rate: expected floats, got {on_rate.dtype}; pass the share of inputs "
            "on which each unit is on, not a count or a mask"
        )
    if on_rate.ndim == 0 or on_rate.shape[-1] == 0:
        raise ValueError(
            f"on_rate: expected shape (..., units) with at least one unit, got "
            f"{on_rate.shape}; the last axis lists the units that share a budget"
        )
    if isinstance(on_rate, jax.core.Tracer):
        return
    values = np.asarray(on_rate, np.float32)
    bad = values[(values < 0) | (values > 1)]
    if bad.size:
        raise ValueError(
            f"on_rate: expected values in [0, 1], got {bad[0]} ({bad.size} such "
            "values); divide counts by the number of inputs"
        )


def degrees(
    on_rate: Float[ArrayLike, "*stack units"],
    fan: int,
    density: Real[ArrayLike, "*#stack"],
    *,
    law: laws.Law | None = None,
    k_min: int = 1,
) -> Int[Array, "*stack units"]:
    """How many edges each unit keeps.

    In every slice the degrees add up to exactly `round(density * (fan * units))`, or
    to `k_min * units` if that is more. With the default law no living unit that is on
    more often gets more edges, and a dead one gets what a unit of mean log-odds gets.
    Works under jit, vmap and scan.

    Args:
        on_rate: (..., units) floats in [0, 1], the share of inputs on which a unit is
            on; NaN (never observed) counts as 0.5.
        fan: int >= 1, the edges of an unpruned unit; fan * units < 2**31.
        density: kept fraction in (0, 1]: a number, an array or a tracer, scalar or one
            per slice. See `exact_budget` for how it is rounded.
        law: from `bbjax.budgets.laws`; None is `log_odds()`.
        k_min: int in [0, fan], the least degree.

    Returns:
        int32 (..., units) in [k_min, fan].

    Raises:
        TypeError: if `on_rate` is not of floats, `fan` or `k_min` not an int, or `law`
            not a `Law`.
        ValueError: if a concrete value is outside its range. Traced values are not
            checked but clipped to their range.

    Example:
        >>> rate = jnp.array([0.05, 0.2, 0.5, 0.9])
        >>> degrees(rate, fan=100, density=0.3).tolist()
        [36, 32, 28, 24]
        >>> degrees(rate, fan=100, density=0.3, law=laws.uniform()).tolist()
        [30, 30, 30, 30]
    """
    rate = jnp.asarray(on_rate)
    _check_rate(rate)
    check_density(density, rate.shape[:-1])
    fan = check_int("fan", fan, 1, _MAX_EDGES, "it counts the edges of a full unit")
    k_min = check_int("k_min", k_min, 0, fan, "no unit can keep more edges than fan")
    units = rate.shape[-1]
    if fan * units > _MAX_EDGES:
        raise ValueError(
            f"on_rate: expected fan * units <= 2**31 - 1, got {fan} * {units}; split "
            "the units into slices along a leading axis"
        )
    law = laws.log_odds() if law is None else law
    check_law(law, "log_odds")
    budget = jnp.broadcast_to(exact_budget(density, fan * units), rate.shape[:-1])
    mean = mean_degree(budget, units)
    profile = law.profile(rate, mean)
    if profile.shape != rate.shape:
        raise ValueError(
            f"law {law.name!r}: expected a profile of shape {rate.shape}, got "
            f"{profile.shape}; return one number per unit"
        )
    least = law.least(mean, k_min)
    return solve(profile, law.combine, budget, fan, least, rate)
