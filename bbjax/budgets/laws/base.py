"""The class of laws, and how laws read on-rates.

Reference: Meirovitch et al., Budgeted Broadcast, arXiv 2510.01263.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from bbjax.arrays.types import Number
from bbjax.model.numbers import check_number

Combine = Literal["shift", "scale"]
Profile = Callable[
    [Float[Array, "*stack units"], Float[Array, "*#stack"]],
    Float[Array, "*stack units"],
]
Edges = Callable[[Float[Array, "*stack units"], Number], Float[Array, "*stack units"]]

# On-rates are rounded to this grid. It is so coarse that `log` and `/`, which are off
# by an ulp or two on some backends, cannot change the order of two on-rates.
GRID = 2.0**20
_LEAST_CLIP = 1e-6


@dataclass(frozen=True)
class Law:
    """A law: relative degrees, and how the free number of the budget enters.

    Attributes:
        name: for reports and errors.
        profile: `(on_rate, mean_degree) -> profile`. On-rates are (..., units) in
            [0, 1]; mean degrees, in edges, have the leading shape or are a scalar;
            the profile is float32 of the shape of the on-rates and, for "scale",
            positive.
        combine: "shift" (degree = c + profile) or "scale" (degree = c * profile).
        reads_activity: whether on-rates matter, for degrees or for ties.
        edges: `(on_rate, fan) -> degrees` without a budget, float32 of the shape of
            the on-rates, not yet rounded or held within [k_min, fan]; None for laws
            whose degrees depend on a budget.
        dead: on-rate up to which a unit counts as dead, below 0.5; below 0, none does.
        floor: least degree under a budget, as a share of the mean degree, in [0, 0.9],
            beside the `k_min` of the caller.

    Raises:
        ValueError: if `combine` is neither of the two, or a number is out of range.

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
    dead: float = -1.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        """Checks what is not a function."""
        if self.combine not in get_args(Combine):
            raise ValueError(
                f"Law {self.name!r}: expected combine 'shift' or 'scale', got "
                f"{self.combine!r}; use 'shift' if the budget moves all degrees by the "
                "same number, 'scale' if by the same factor"
            )
        remedy = "it is an on-rate, e.g. 1e-3; a negative one calls no unit dead"
        check_number("dead", self.dead, "(-inf, 0.5)", remedy)
        # At most .9: the mean is a float32 and may be rounded up, and floors must fit.
        remedy = "it is a share of the mean degree"
        check_number("floor", self.floor, "[0, 0.9]", remedy)

    def alive(self, on_rate: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        """How much of a unit's profile counts: 0 up to `dead`, all from 4 `dead` on.

        In between it rises linearly, so that the noise of a running mean does not
        switch it on and off.

        Args:
            on_rate: any shape; NaN counts as 0.5.

        Returns:
            float32 of the same shape, in [0, 1].

        Example:
            >>> import jax.numpy as jnp
            >>> law = Law("mine", lambda rate, mean: rate, "shift", dead=0.125)
            >>> law.alive(jnp.array([0.1, 0.3125, 0.5])).tolist()
            [0.0, 0.5, 1.0]
        """
        return alive_share(on_rate, self.dead)

    def least(
        self, mean_degree: Float[ArrayLike, "*stack"], k_min: Int[ArrayLike, "*#stack"]
    ) -> Int[Array, "*stack"]:
        """The least degree of a unit: `k_min`, or the floor if that is more.

        Args:
            mean_degree: of the units of a slice, in edges, any shape.
            k_min: least degree that the caller asks for.

        Returns:
            int32 of the shape of the mean degrees.

        Example:
            >>> import jax.numpy as jnp
            >>> law = Law("mine", lambda rate, mean: rate, "shift", floor=0.1)
            >>> law.least(jnp.array([8.0, 55.0]), 1).tolist()
            [1, 5]
        """
        share = jnp.asarray(mean_degree).astype(jnp.float32) * self.floor
        return jnp.maximum(jnp.floor(share).astype(jnp.int32), jnp.int32(k_min))


def check_law(law: object, example: str) -> None:
    """Raises an error if something is no law.

    Raises:
        TypeError: if so.
    """
    if not isinstance(law, Law):
        raise TypeError(
            f"law: expected one of bb.laws, got {law!r}; call its factory, e.g. "
            f"bb.laws.{example}()"
        )


def clean_rate(on_rate: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
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


def grid_rate(on_rate: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """On-rates, rounded to the grid of those that laws distinguish."""
    return jnp.round(clean_rate(on_rate) * GRID) / GRID


def alive_share(
    on_rate: Float[ArrayLike, "*shape"], dead: float
) -> Float[Array, "*shape"]:
    """As `Law.alive`, for the on-rate up to which a unit counts as dead."""
    rate, least = grid_rate(on_rate), round(dead * GRID) / GRID
    if least <= 0:
        return jnp.where(rate > dead, 1.0, 0.0)
    return jnp.clip((rate - least) / (3 * least), 0.0, 1.0)


def check_clip(clip: float) -> None:
    """Raises an error if a clip of on-rates is outside its range."""
    remedy = "it is the on-rate below which all units count as equally rare, e.g. 1e-2"
    check_number("clip", clip, f"[{_LEAST_CLIP}, 0.5)", remedy)
