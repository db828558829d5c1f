"""Controls: laws that leave out the balance, or the activity."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from bbjax.budgets.laws.base import Law, grid_rate


def uniform() -> Law:
    """Equal degrees: the activity is ignored, except to place a remainder.

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

    def profile(
        on_rate: Float[ArrayLike, "*stack units"], mean_degree: Float[Array, "*#stack"]
    ) -> Float[Array, "*stack units"]:
        del mean_degree
        return jnp.maximum(1 - grid_rate(on_rate), 1e-6)

    return Law("linear", profile, "scale")
