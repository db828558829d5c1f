"""Controls: laws without the balance, or without activity."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from bbjax.budgets.laws.base import Law, grid_rate


def uniform() -> Law:
    """Equal degrees: activity is ignored.

    Returns:
        A law that combines by "shift", with a profile of 0.

    Example:
        >>> import jax.numpy as jnp
        >>> uniform().profile(jnp.array([0.1, 0.9]), jnp.array(8.0)).tolist()
        [0.0, 0.0]
    """

    def profile(
        on_rate: Float[ArrayLike, "*stack units"], mean_degree: Float[Array, "*#stack"]
    ) -> Float[Array, "*stack units"]:
        del mean_degree
        return jnp.zeros(jnp.shape(on_rate), jnp.float32)

    return Law("uniform", profile, "shift", reads_activity=False)


def linear() -> Law:
    """Degrees from activity alone: degree = c * (1 - a).

    The control for the idea of traffic: the degree itself has no price. The profile is
    at least 1e-6: a unit that is always on, whose share would be 0, still takes the
    edges that are left once every other unit is full.

    Returns:
        A law that combines by "scale".

    Example:
        >>> import jax.numpy as jnp
        >>> linear().profile(jnp.array([0.25, 0.5]), jnp.array(8.0)).tolist()
        [0.75, 0.5]
    """

    def profile(
        on_rate: Float[ArrayLike, "*stack units"], mean_degree: Float[Array, "*#stack"]
    ) -> Float[Array, "*stack units"]:
        del mean_degree
        return jnp.maximum(1 - grid_rate(on_rate), 1e-6)

    return Law("linear", profile, "scale")
