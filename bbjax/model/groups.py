"""Groups: the axes of parameters that carry the same units, as frozen data.

`bb.trace` returns them as `units.graph`. A group is one set of units. Its members are
axes of the kernels that make the units, of the kernels that read them, and of
parameters with an entry for each unit (biases, norms, running statistics). If the
number of units cannot change, the group has the reason.

    group  units  made by        beside     read by        can shrink
    0      64     up[1]          bias[0]    down[0]        yes
    1      10     down[1]                                  no: the function returns them

An axis is written `path[axis]`. One axis may carry several groups (heads and their
dimensions, parts of a concatenation), and one group may be on two axes of a kernel.

A group is what can shrink: with a dimension of a head, every head loses it. A *set* of
units (`UnitSet`) is what can be removed one by one where arrays keep their sizes: one
unit of a set is one dimension of one head. `bbjax.model.removal` works with sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from bbjax.model.checks import meant
from bbjax.model.text import printable, table

WIDTH = 120  # of the table
SHOWN = 2  # members of a role, if there are many
Role = Literal["makes", "reads", "beside"]


@dataclasses.dataclass(frozen=True)
class Member:
    """An axis of a parameter that carries the units of a group.

    Attributes:
      path: of the parameter.
      axis: its axis.
      role: `"makes"` where a kernel's outputs are the units, `"reads"` where its inputs
        are, else `"beside"`.
      shape: of the parameter.
      stack: axes of the layers of a scan, if each has units of its own.
      units: the unit of each entry of the axis, -1 for entries of other groups. A unit
        has several entries if the axis holds it at several positions.
    """

    path: str
    axis: int
    role: Role
    shape: tuple[int, ...] = ()
    stack: tuple[int, ...] = ()
    units: np.ndarray = dataclasses.field(
        default_factory=lambda: np.arange(0), compare=False, repr=False
    )

    def __str__(self) -> str:
        return f"{self.path}[{self.axis}]"


@dataclasses.dataclass(frozen=True)
class Group:
    """Axes that carry the same units.

    Attributes:
      size: number of units.
      members: the axes.
      fixed: why the number cannot change; empty if it can.
      layers: of a scan, each of which has that many units of its own.
      number: among the groups of a graph that would have the same name, from 1.
    """

    size: int
    members: tuple[Member, ...]
    fixed: str = ""
    layers: tuple[int, ...] = ()
    number: int = 1

    def having(self, role: Role) -> tuple[Member, ...]:
        """Members of a role."""
        return tuple(m for m in self.members if m.role == role)

    @property
    def first(self) -> Member:
        """The first member that makes the units, else that reads them, else of all."""
        return (*self.having("makes"), *self.having("reads"), *self.members)[0]

    @property
    def name(self) -> str:
        """The first member; with a number, if an earlier group of the graph has it."""
        return f"{self.first}#{self.number}" if self.number > 1 else str(self.first)


@dataclasses.dataclass(frozen=True)
class Place:
    """Which entries of a parameter belong to which unit of a set.

    Attributes:
      path: of the parameter.
      units: the unit of every entry, -1 for none, in row-major order: of a kernel that
        makes the units, over `stack + out_units`; of one that reads them, over
        `stack + in_units`; of another parameter, over all its entries.
      zero_if: of a kernel that reads them: sets of parameters of the same set of units.
        A parameter is off for a unit if all edges into the unit, or its entries for the
        unit, are cut. If one parameter of each set is off, the kernel reads 0 for every
        input. A set without parameters: nothing is known to make it 0.
      shape: of the parameter, if it is no kernel.
      acts_on: of a companion: the kernels on whose units it acts. A bias in one branch
        of a residual stream acts on the units of that branch alone.
    """

    path: str
    units: np.ndarray = dataclasses.field(compare=False, repr=False)
    zero_if: tuple[tuple[str, ...], ...] = ((),)
    shape: tuple[int, ...] = ()
    acts_on: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class UnitSet:
    """Units that can be removed one by one, or the reason why they cannot.

    A unit is removed with the edges into it, its entries in the companions and the
    edges out of it. The function then computes what it does with the unit at 0.

    Attributes:
      size: number of units.
      makers: kernels whose output units they are. A unit that several make, as in a
        residual stream, is removed from all of them or from none.
      companions: parameters with entries for them (biases, norms, running statistics).
      readers: kernels that have them as inputs.
      why_not: why they cannot be removed; empty if they can.
      apart: whether kernels alone sum over them. Then without its outgoing edges the
        value of a unit does not matter. If not, as where queries meet keys, two values
        are multiplied, of which one is 0 for a unit that is removed.
    """

    size: int
    makers: tuple[Place, ...] = ()
    companions: tuple[Place, ...] = ()
    readers: tuple[Place, ...] = ()
    why_not: str = ""
    apart: bool = True


@dataclasses.dataclass(frozen=True)
class Stack:
    """Layers that a scan runs over.

    Attributes:
      layers: number of layers.
      members: every axis of a parameter that has one entry for each layer, as
        `(path, axis)`, in the order of the parameters.
      shapes: of these parameters.
    """

    layers: int
    members: tuple[tuple[str, int], ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        """The first member: `layers/up/kernel[0]`."""
        path, axis = self.members[0]
        return f"{path}[{axis}]"


@dataclasses.dataclass(frozen=True)
class Graph:
    """The groups of a function, in order of the kernels that make them.

    No two groups have one name: `qkv[1]`, `qkv[1]#2`. Groups that can shrink are
    counted first.

    Attributes:
      groups: what can shrink, in that order.
      sets: what can be removed one by one, in order of the kernels that make them.
      note: what helps where a group cannot shrink; printed under the table.
      stacks: the layers of every scan over parameters, in the order of the scans.

    Example:
      >>> import bbjax as bb, jax, jax.numpy as jnp
      >>> def net(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
      >>> print(bb.trace(net, params, jnp.ones((5, 3))).graph)
      group  units  made by  beside  read by  can shrink
      -----  -----  -------  ------  -------  ----------...
      0      8      up[1]            down[0]  yes
      1      2      down[1]                   no: the function returns them
      2      3                       up[0]    no: an argument of the function...
    """

    groups: tuple[Group, ...] = ()
    sets: tuple[UnitSet, ...] = ()
    note: str = ""
    stacks: tuple[Stack, ...] = ()

    def __post_init__(self) -> None:
        count: dict[str, int] = {}
        numbered = list(self.groups)
        for i, group in sorted(enumerate(self.groups), key=lambda g: bool(g[1].fixed)):
            name = str(group.first)
            count[name] = count.get(name, 0) + 1
            numbered[i] = dataclasses.replace(group, number=count[name])
        object.__setattr__(self, "groups", tuple(numbered))

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, group: int | str) -> Group:
        """A group by its number in the table, or by its name, e.g. `"up[1]"`.

        Raises:
          IndexError: there are fewer groups.
          KeyError: no group has this name.
        """
        if not isinstance(group, str):
            return self.groups[group]
        found = {each.name: each for each in self.groups}
        if group not in found:
            raise KeyError(
                f"expected the name of a group, got {group!r}{meant(group, found)}; "
                f"they are {list(found)[:8]}"
            )
        return found[group]

    def of(self, path: str) -> tuple[Group, ...]:
        """The groups that a parameter has an axis of."""
        return tuple(g for g in self.groups if any(m.path == path for m in g.members))

    def made_by(self, path: str) -> tuple[tuple[UnitSet, Place], ...]:
        """The sets of units that a kernel makes, with its place in each."""
        return tuple((s, p) for s in self.sets for p in s.makers if p.path == path)

    def read_by(self, path: str) -> tuple[tuple[UnitSet, Place], ...]:
        """The sets of units that a kernel reads, with its place in each."""
        return tuple((s, p) for s in self.sets for p in s.readers if p.path == path)

    def __str__(self) -> str:
        head = ("group", "units", "made by", "beside", "read by", "can shrink")
        rows = [_row(n, group) for n, group in enumerate(self.groups)]
        note = map(printable, self.note.splitlines())
        return "\n".join((table(head, rows, WIDTH), *note))


def on_axes(values: np.ndarray, axes: Sequence[int], rank: int) -> np.ndarray:
    """Values with one axis for each of `axes`, to broadcast to an array of that rank.

    Example:
      >>> on_axes(np.ones((2, 3)), (2, 0), rank=4).shape
      (3, 1, 2, 1)
    """
    others = tuple(axis for axis in range(rank) if axis not in axes)
    return np.expand_dims(np.transpose(values, np.argsort(axes)), others)


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


def _row(number: int, group: Group) -> tuple[str, ...]:
    roles: tuple[Role, ...] = ("makes", "beside", "reads")
    names = [_named(group, group.having(role)) for role in roles]
    units = " x ".join(map(str, (*group.layers, group.size)))
    can = f"no: {group.fixed}" if group.fixed else "yes"
    return (str(number), units, *names, can)


def _named(group: Group, members: Sequence[Member]) -> str:
    """The first members, and how many others there are."""
    names = [group.name if member is group.first else str(member) for member in members]
    more = len(names) - SHOWN
    if more <= 1:
        return ", ".join(names)
    return f"{', '.join(names[:SHOWN])} and {more} more"
