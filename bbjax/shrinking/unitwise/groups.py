"""The groups that can shrink, by name."""

from __future__ import annotations

from bbjax.model.groups import Group
from bbjax.model.units import Units


def free_groups(units: Units) -> dict[str, Group]:
    """The groups that can shrink, by name.

    Example:
      >>> import bbjax as bb, jax, jax.numpy as jnp
      >>> def net(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
      >>> list(free_groups(bb.trace(net, params, jnp.ones((5, 3)))))
      ['up[1]']
    """
    if not isinstance(units, Units):
        raise TypeError(
            f"expected units as bb.trace makes them, got {type(units).__name__}; they "
            "come first, before parameters, statistics or scores"
        )
    return {group.name: group for group in units.graph if not group.fixed}
