"""Laws: on-rates to real-valued degrees, up to the one number a budget fixes.

A unit that is rarely on may keep many edges, a busy one few. A law says how many
relative to each other, as a `profile`, and how the free number `c` enters:

    shift:  degree_i = c + profile_i        (c is the paper's d0)
    scale:  degree_i = c * profile_i        (c is the paper's tau)

`bbjax.degrees` finds the `c` that spends the budget, and rounds. The default,
`log_odds`, is the selectivity-audience balance log((1 - a) / a) = beta * k. Some laws
say degrees by themselves as well (`edges`); `bb.rules.unbudgeted` takes them as they
are, and the density is an outcome.

Shapes: on-rates are (..., units). The units of the last axis share one budget, the
leading axes are independent slices; mean degrees have the leading shape or none.

Reference: Meirovitch et al., Budgeted Broadcast, arXiv 2510.01263.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from bbjax.topk import kth_largest

Combine = Literal["shift", "scale"]
Profile = Callable[[jax.Array, jax.Array], jax.Array]
Edges = Callable[[jax.Array, ArrayLike], jax.Array]

# Steps of the on-rate that a law tells apart. Coarse enough that `log` and `/`, which
# are off by an ulp or two on some backends, cannot turn two neighbours around.
_GRID = 2.0**20
_LEAST_SPREAD = 0.1
_LEAST_CLIP = 1e-6


@dataclass(frozen=True)
class Law:
    """A law: relative degrees, and how the budget's free number enters.

    Attributes:
        name: what reports and errors call it.
        profile: `(on_rate, mean_degree) -> profile`. On-rates are (..., units) in
            [0, 1]; mean degrees, in edges, have the leading shape or are a scalar;
            the profile is float32 of the shape of the on-rates and, for "scale",
            positive.
        combine: "shift" (degree = c + profile) or "scale" (degree = c * profile).
        reads_activity: whether a rule lets on-rates matter, be it only for ties.
        edges: `(on_rate, fan) -> degrees` without a budget, float32 of the shape of
            the on-rates, not yet rounded or held within [k_min, fan]; None for laws
            that say degrees up to a budget only.

    Raises:
        ValueError: if `combine` is neither of the two.

    Example:
        >>> import jax.numpy as jnp
        >>> def profile(on_rate, mean_degree):
        ...     return jnp.where(on_rate > 0.5, 1.0, 2.0)
        >>> halves = Law("halves", profile, "scale")
        >>> halves.profile(jnp.array([0.1, 0.9]), jnp.array(3.0)).tolist()
        [2.0, 1.0]
    """

    name: str
    profile: Profile = field(repr=False)
    combine: Combine
    reads_activity: bool = True
    edges: Edges | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Checks the one field with a closed set of values."""
        if self.combine not in get_args(Combine):
            raise ValueError(
                f"Law {self.name!r}: expected combine 'shift' or 'scale', got "
                f"{self.combine!r}; use 'shift' if the budget moves all degrees by the "
                "same number, 'scale' if by the same factor"
            )


def clean_rate(on_rate: ArrayLike) -> jax.Array:
    """On-rates as float32 in [0, 1]; NaN, a unit never observed, becomes 0.5.

    Args:
        on_rate: any float dtype and shape.

    Returns:
        float32 of the same shape.

    Example:
        >>> import jax.numpy as jnp
        >>> clean_rate(jnp.array([float("nan"), 2.0])).tolist()
        [0.5, 1.0]
    """
    rate = jnp.asarray(on_rate).astype(jnp.float32)
    return jnp.clip(jnp.where(jnp.isnan(rate), 0.5, rate), 0.0, 1.0)


def _grid_rate(on_rate: ArrayLike) -> jax.Array:
    return jnp.round(clean_rate(on_rate) * _GRID) / _GRID


def _check_positive(name: str, value: ArrayLike | None, remedy: str) -> None:
    if value is None or isinstance(value, jax.core.Tracer):
        return
    number = np.asarray(value, np.float64)
    if number.ndim or not (np.isfinite(number) and number > 0):
        raise ValueError(
            f"{name}: expected one finite number > 0, got {value!r}; {remedy}"
        )


def _check_zones(low: float, high: float, **shares: float) -> None:
    for name, share in shares.items():
        if not 0 < share <= 1:
            raise ValueError(
                f"{name}: expected a density in (0, 1], got {share!r}; it is the kept "
                "fraction of the edges of such a unit"
            )
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"low, high: expected 0 <= low <= high <= 1, got {low!r} and {high!r}; "
            "they are the ends of the middle zone"
        )


def _check_clip(clip: float) -> None:
    if not _LEAST_CLIP <= clip < 0.5:
        raise ValueError(
            f"clip: expected a number in [{_LEAST_CLIP}, 0.5), got {clip!r}; it is the "
            "on-rate below which all units count as equally rare, e.g. 1e-2"
        )


def _spread(log_odds_: jax.Array) -> jax.Array:
    # The last bits of a sum depend on the order of its terms, hence on the order of
    # the units and the number of devices: rounded off, they decide no unit's edges.
    return jnp.maximum(
        jnp.round(jnp.std(log_odds_, axis=-1) * 1024) / 1024, _LEAST_SPREAD
    )


def log_odds(beta: ArrayLike | None = None, *, clip: float = 1e-2) -> Law:
    """The paper's controller: degree = c + log((1 - a) / a) / beta.

    With `beta=None` the slope follows from the spread of the units of each slice:

        1 / beta = mean_degree / max(std_i(log((1 - a_i) / a_i)), 0.1)

    that is, before degrees are clipped and rounded, their standard deviation equals
    their mean, whatever the width of the layer or the unit of the activity. The floor
    of 0.1 keeps the sampling noise of nearly equal on-rates from being blown up into
    degrees: equal units get equal degrees. (The standard deviation is the population's,
    rounded to 1/1024; on-rates are told apart in steps of 2**-20.)

    Args:
        beta: slope in log-odds per edge, a number > 0 or a traced scalar; None for
            the rule above.
        clip: on-rates are clipped to [clip, 1 - clip], in [1e-6, 0.5): a dead unit
            has infinite log-odds, and a few nearly dead ones would set the spread and
            take the budget of all the others.

    Returns:
        A law that combines by "shift".

    Raises:
        ValueError: if `beta` is concrete and not a finite number > 0, or `clip` is
            outside its range.

    Example:
        >>> import jax.numpy as jnp
        >>> law = log_odds(beta=0.5)
        >>> law.profile(jnp.array([0.5, 1.0]), jnp.array(8.0)).round().tolist()
        [0.0, -9.0]

    References:
        arXiv 2510.01263, the degree controller. No source says how to choose `beta`.
    """
    _check_positive("beta", beta, "larger is flatter; None fits it to the on-rates")
    _check_clip(clip)

    def profile(on_rate: jax.Array, mean_degree: jax.Array) -> jax.Array:
        a = jnp.clip(_grid_rate(on_rate), clip, 1 - clip)
        odds = jnp.log((1 - a) / a)
        if beta is not None:
            return odds / jnp.asarray(beta).astype(jnp.float32)
        mean = jnp.asarray(mean_degree).astype(jnp.float32)
        per_slice = jnp.broadcast_to(mean, odds.shape[:-1]) / _spread(odds)
        return odds * per_slice[..., None]

    return Law("log_odds", profile, "shift")


def threshold(tau: ArrayLike = 1.0, *, clip: float = 1e-2) -> Law:
    """The local threshold's fixed point: degree = c * tau / a.

    "Prune while the traffic a * k exceeds tau" settles at k = min(fan, tau / a): every
    unit carries the same traffic. Under a budget tau is an outcome, not a choice: `c`
    rescales it until the degrees add up, so any two values of `tau` give the same
    degrees, and `c * tau` is the threshold that would have led there.

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
    _check_positive("tau", tau, "a budget rescales it, so 1.0 will do")
    _check_clip(clip)

    def settled(on_rate: jax.Array, other: ArrayLike) -> jax.Array:
        del other
        rate = jnp.maximum(_grid_rate(on_rate), clip)
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
    tenth, those between nothing. In a run that only prunes (`bb.rules.unbudgeted` with
    `regrow=False`) a unit between keeps what it has, as published. Under a budget the
    three densities are relative ones.

    Args:
        rare: density of rare units, in (0, 1].
        busy: density of busy units, in (0, 1]; 0.4 in the change-detection notebook.
        low: on-rate below which a unit is rare, in [0, 1].
        high: on-rate above which it is busy, in [low, 1].
        middle: density of the others, in (0, 1].

    Returns:
        A law that combines by "scale", and that says degrees: density * fan.

    Raises:
        ValueError: if a number is outside its range.

    Example:
        >>> import jax.numpy as jnp
        >>> three_zone().edges(jnp.array([0.05, 0.5, 0.9]), 100).round().tolist()
        [90.0, 100.0, 30.0]
    """
    _check_zones(low, high, rare=rare, busy=busy, middle=middle)

    def density(on_rate: jax.Array) -> jax.Array:
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
        A law that combines by "scale", and that says degrees: density * fan.

    Raises:
        ValueError: if a number is outside its range.

    Example:
        >>> import jax.numpy as jnp
        >>> rates = jnp.linspace(0.0, 1.0, 11)
        >>> quantile().edges(rates, 100).round()[::2].tolist()
        [90.0, 90.0, 80.0, 60.0, 50.0, 50.0]
    """
    _check_zones(low, high, rare=rare, busy=busy)

    def density(on_rate: jax.Array) -> jax.Array:
        a = _grid_rate(on_rate)
        at_low, at_high = _quantiles(a, low, high)
        apart = at_high - at_low > 1e-6
        share = (a - at_low) / jnp.where(apart, at_high - at_low, 1.0)
        share = jnp.where(apart, jnp.clip(share, 0, 1), 0.0)
        # On a grid, so that the last bits decide no rounding of a degree.
        between = jnp.round((rare + (busy - rare) * share) * _GRID) / _GRID
        ends = jnp.where(share > 0, jnp.float32(busy), jnp.float32(rare))
        return jnp.where((share > 0) & (share < 1), between, ends)

    return _of_density("quantile", density)


def _of_density(name: str, density: Callable[[jax.Array], jax.Array]) -> Law:
    """The law that gives each unit a share of its edges."""

    def profile(on_rate: jax.Array, mean_degree: jax.Array) -> jax.Array:
        del mean_degree
        return density(on_rate)

    def edges(on_rate: jax.Array, fan: ArrayLike) -> jax.Array:
        return density(on_rate) * jnp.asarray(fan).astype(jnp.float32)

    return Law(name, profile, "scale", edges=edges)


def _quantiles(values: jax.Array, *shares: float) -> list[jax.Array]:
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


def uniform() -> Law:
    """Equal degrees: the activity is ignored, except to place a remainder.

    Returns:
        A law that combines by "shift", with a profile of 0.

    Example:
        >>> import jax.numpy as jnp
        >>> uniform().profile(jnp.array([0.1, 0.9]), jnp.array(8.0)).tolist()
        [0.0, 0.0]
    """

    def profile(on_rate: jax.Array, mean_degree: jax.Array) -> jax.Array:
        del mean_degree
        return jnp.zeros(jnp.shape(on_rate), jnp.float32)

    return Law("uniform", profile, "shift", reads_activity=False)


def linear() -> Law:
    """Degrees from activity alone: degree = c * (1 - a).

    The control for the traffic idea, with no price on the degree itself. The profile
    is at least 1e-6, so that an always-on unit, whose share would be 0, still takes
    what is left once every other unit is full.

    Returns:
        A law that combines by "scale".

    Example:
        >>> import jax.numpy as jnp
        >>> linear().profile(jnp.array([0.25, 0.5]), jnp.array(8.0)).tolist()
        [0.75, 0.5]
    """

    def profile(on_rate: jax.Array, mean_degree: jax.Array) -> jax.Array:
        del mean_degree
        return jnp.maximum(1 - _grid_rate(on_rate), 1e-6)

    return Law("linear", profile, "scale")
