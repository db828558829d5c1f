"""The groups that can shrink, and sums of arrays over what belongs to a unit."""

from __future__ import annotations

import numpy as np

from bbjax.model.groups import Group, Member
from bbjax.model.units import Units


def free_groups(units: Units) -> dict[str, Group]:
    """The groups that can shrink, by name; a repeated name gets a number.

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
    found: dict[str, Group] = {}
    for group in units.graph:
        if not group.fixed:
            name, number = group.name, 1
            while name in found:
                number += 1
                name = f"{group.name}#{number}"
            found[name] = group
    return found


def of_units(group: Group, member: Member, array: np.ndarray) -> np.ndarray:
    """Sums of a parameter's entries for each unit, `layers + (units,)`."""
    lead = (*member.stack, member.axis)
    moved = np.moveaxis(array, lead, range(len(lead)))
    flat = moved.reshape(*moved.shape[: len(lead)], -1).sum(axis=-1)
    found = np.zeros((*flat.shape[:-1], group.size))
    mine = member.units >= 0
    np.add.at(
        np.moveaxis(found, -1, 0), member.units[mine], np.moveaxis(flat, -1, 0)[mine]
    )
    return found
