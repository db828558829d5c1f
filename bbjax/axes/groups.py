"""Groups: the axes of parameters that carry the same units, as frozen data.

`units.graph` of a trace. A group is one set of units: the kernels that make them, the
kernels that read them, and the parameters with an entry for each (biases, norms,
running statistics). Where its size is fixed, the group says why.

    group  units  made by        beside     read by        can shrink
    0      64     up[1]          bias[0]    down[0]        yes
    1      10     down[1]                                  no: the function returns them

An axis is written `path[axis]`. One axis may carry several groups (heads and their
dimensions, parts of a concatenation), and one group may be on two axes of a kernel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from bbjax.axes.program import Program
from bbjax.axes.scans import scans_of_groups, stack_axes
from bbjax.kernel import Kernel

Role = Literal["makes", "reads", "beside"]
UNHEARD = "no product runs over them"


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
      units: which unit each entry of the axis is of, -1 for none: an axis may carry
        several groups, and a unit has several entries where it is seen at several
        positions.
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
    """

    size: int
    members: tuple[Member, ...]
    fixed: str = ""
    layers: tuple[int, ...] = ()

    def having(self, role: Role) -> tuple[Member, ...]:
        """Members of a role."""
        return tuple(m for m in self.members if m.role == role)

    @property
    def name(self) -> str:
        """A member to call the group by: the first that makes the units."""
        lead = (*self.having("makes"), *self.having("reads"), *self.members)
        return str(lead[0])


@dataclasses.dataclass(frozen=True)
class Graph:
    """The groups of a function, in order of the kernels that make them.

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

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> Group:
        return self.groups[number]

    def of(self, path: str) -> tuple[Group, ...]:
        """The groups that a parameter has an axis of."""
        return tuple(g for g in self.groups if any(m.path == path for m in g.members))

    def __str__(self) -> str:
        head = ("group", "units", "made by", "beside", "read by", "can shrink")
        rows: list[Sequence[str]] = [head]
        for number, group in enumerate(self.groups):
            names = [
                ", ".join(map(str, group.having(role)))
                for role in ("makes", "beside", "reads")
            ]
            can = f"no: {group.fixed}" if group.fixed else "yes"
            units = " x ".join(map(str, (*group.layers, group.size)))
            rows.append((str(number), units, *names, can))
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        rows.insert(1, ["-" * width for width in widths])
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


def graph(
    program: Program, paths: Sequence[str], kernels: Sequence[Kernel]
) -> tuple[Graph, dict[int, int]]:
    """The groups of a followed function.

    Args:
      program: from `bbjax.axes.program.follow`.
      paths: path of each parameter.
      kernels: of the same function, in order of first use.

    Returns:
      The graph, and the number of its group for every whole factor. Mere positions,
      like those in the window of a convolution, are no group.
    """
    extents, scans = program.extents, scans_of_groups(program)
    by_path = {k.path: k for k in kernels}
    members: dict[int, list[Member]] = {}
    for leaf, (path, dims) in enumerate(zip(paths, program.leaves, strict=True)):
        shape = tuple(map(extents.size, dims))
        for axis, dim in enumerate(dims):
            role = _role(by_path.get(path), axis)
            for whole in extents.wholes(dim):
                stack = stack_axes(program, leaf, scans.get(whole, ()))
                own = extents.positions(dim, whole)
                member = Member(path, axis, role, shape, stack, own)
                members.setdefault(whole, []).append(member)
    heard = {w for dim in program.heard for w in extents.wholes(dim)}
    order = {k.path: n for n, k in enumerate(kernels)}
    for mine in members.values():  # first come kernels, in order of first use
        mine.sort(key=lambda m: (order.get(m.path, len(order)), m.path, m.axis))
    wholes = sorted(
        (
            w
            for w, mine in members.items()
            if heard & {w} or any(m.role != "beside" for m in mine)
        ),
        key=lambda w: _first(members[w], order),
    )
    groups = []
    for whole in wholes:
        fixed = extents.why_fixed(whole)
        if not fixed and whole not in heard:
            fixed = UNHEARD
        layers = tuple(map(extents.size, scans.get(whole, ())))
        size = extents.size((whole,))
        groups.append(Group(size, tuple(members[whole]), fixed, layers))
    return Graph(tuple(groups)), {w: n for n, w in enumerate(wholes)}


def _role(kernel: Kernel | None, axis: int) -> Role:
    if kernel is None:
        return "beside"
    if axis in kernel.fan_out:
        return "makes"
    return "reads" if axis in kernel.fan_in else "beside"


def _first(members: Sequence[Member], order: dict[str, int]) -> tuple[bool, int]:
    """Where a group is listed: by the first kernel that makes it, else at the end."""
    made = [order[m.path] for m in members if m.role == "makes"]
    used = [order[m.path] for m in members if m.path in order]
    return not made, min(made or used or [len(order)])
