"""Degrees: how many edges each unit keeps, so that a budget is met exactly.

A law gives real degrees up to one number, `c + profile` or `c * profile`. Here `c` is
the largest float at which the floored degrees still fit the budget,

    degree_i(c) = floor(clip(real_i(c), min(k_min, cap_i), cap_i))
    c = max{c : sum_i degree_i(c) <= budget},   budget = round(density * fan * units)

found by bisection on the ordered bits of c. What is left over goes, one edge each, to
the units that take one at the next float, those with the largest fractional parts:
lower on-rates first, then lower indices. All sums are of integers, so they are exact,
and with a law that falls with the on-rate no busier unit ever gets more edges.

Shapes: on-rates, profiles, caps and degrees (..., units); budgets the leading shape.
Reference: d0 of the degree controller, arXiv 2510.01263, which leaves it open.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, Real

from bbjax.budgets import laws
from bbjax.budgets.exact import check_density, exact_budget, mean_degree
from bbjax.model.numbers import check_int

__all__ = ["degrees", "exact_budget", "solve"]

_MAX_EDGES = 2**31 - 1  # counts are int32
_BIG = float(2**31 - 128)  # the largest float32 that is also an int32
_INF_KEY = 0x7F800000  # the ordered key of +inf


def _total(counts: Int[Array, "*stack units"]) -> Int[Array, "*stack"]:
    return jnp.sum(counts, axis=-1, dtype=jnp.int32)


def _int32(value: Int[ArrayLike, "*shape"]) -> Int[Array, "*shape"]:
    return jnp.asarray(value).astype(jnp.int32)


class _Search(NamedTuple):
    """Per slice, two levels and the counts at them; the lower fits the budget.

    The counts at both ends are carried, never computed again: compiled twice, the
    same float expression may be rounded differently.
    """

    stage: Int[Array, ""]
    low: Int[Array, "*stack"]
    high: Int[Array, "*stack"]
    at_low: Int[Array, "*stack units"]
    at_high: Int[Array, "*stack units"]


_STAGES = 4


def _search(
    counts: Callable[[Int[Array, "*stack"]], Int[Array, "*stack units"]],
    budget: Int[Array, "*stack"],
    start: _Search,
    rate: Float[Array, "*stack units"],
) -> Int[Array, "*stack units"]:
    """The counts within the budget after four bisections, in one loop.

    Each takes up the two adjacent counts that the one before has found:

        0   counts(level)                                    for an int level
        1   n edges more where there is room                 for a number n
        2   the rest, where the bits of the rate are below   for a key
        3   the rest, where the index is below               for an index

    Floats are coarse where profiles or degrees are huge: one step may then be worth
    many edges to a unit. So stage 1 shares them evenly, until one edge each is left.
    """
    key = lax.bitcast_convert_type(jnp.abs(rate), jnp.int32)  # -0.0 is 0.0
    index = lax.broadcasted_iota(jnp.int32, rate.shape, rate.ndim - 1)
    index = index + jnp.zeros_like(key)  # and its sharding

    def at(s: _Search, level: Int[Array, "*stack"]) -> Int[Array, "*stack units"]:
        wide, rank = level[..., None], jnp.where(s.stage == 2, key, index)
        evenly = jnp.minimum(s.at_high, s.at_low + (wide - s.low[..., None]))
        below = jnp.where(rank < wide, s.at_high, s.at_low)
        later = jnp.where(s.stage == 1, evenly, below)
        return jnp.where(s.stage == 0, counts(level), later)

    def step(s: _Search) -> _Search:
        mid = (s.low & s.high) + ((s.low ^ s.high) >> 1)  # the mean, without overflow
        at_mid = at(s, mid)
        fits = _total(at_mid) <= budget
        low, high = jnp.where(fits, mid, s.low), jnp.where(fits, s.high, mid)
        fits = fits[..., None]
        at_low = jnp.where(fits, at_mid, s.at_low)
        at_high = jnp.where(fits, s.at_high, at_mid)
        done = jnp.all(low + 1 >= high)
        room = jnp.max(at_high - at_low, axis=-1)
        last = jnp.where(s.stage == 1, jnp.int32(_INF_KEY), jnp.int32(rate.shape[-1]))
        high = jnp.where(done, jnp.where(s.stage == 0, room, last), high)
        low = jnp.where(done, jnp.zeros_like(low), low)
        return _Search(s.stage + done.astype(jnp.int32), low, high, at_low, at_high)

    return lax.while_loop(lambda s: s.stage < _STAGES, step, start).at_low


def _from_key(key: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The float32 whose place in the order of all floats is `key`."""
    bits = jnp.where(key < 0, key ^ 0x7FFFFFFF, key)
    return lax.bitcast_convert_type(bits, jnp.float32)


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

    def counts(key: Int[Array, "*stack"]) -> Int[Array, "*stack units"]:
        c = _from_key(key)[..., None]
        real = c + profile if combine == "shift" else c * profile
        whole = jnp.floor(jnp.clip(real, 0, _BIG)).astype(jnp.int32)
        full = real >= cap.astype(jnp.float32)
        return jnp.where(full, cap, jnp.clip(whole, floor, cap))

    bottom = ~_INF_KEY if combine == "shift" else 0  # -inf (all at k_min), or 0
    start = _Search(
        stage=jnp.zeros((), jnp.int32),
        low=jnp.full_like(budget, bottom),
        high=jnp.full_like(budget, _INF_KEY),
        at_low=floor,
        at_high=cap,
    )
    return _search(counts, budget, start, rate)


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
    if not isinstance(law, laws.Law):
        raise TypeError(
            f"law: expected a Law, got {law!r}; call its factory, e.g. laws.log_odds()"
        )
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
