"""The groups of a followed function: which axes of parameters carry the same units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bbjax.model.groups import Graph, Group, Member, Role
from bbjax.model.kernel import Kernel
from bbjax.tracing.axes.extents import Dims
from bbjax.tracing.axes.program import Program
from bbjax.tracing.graph.scans import stack_axes

UNUSED = "no product runs over them"


def graph(
    program: Program,
    paths: Sequence[str],
    kernels: Sequence[Kernel],
    scans: Mapping[int, Dims],
) -> tuple[Graph, dict[int, int]]:
    """The groups of a followed function.

    Args:
      program: from `bbjax.tracing.axes.program.follow`.
      paths: path of each parameter.
      kernels: of the same function, in order of first use.
      scans: from `bbjax.tracing.graph.scans.scans_of_groups`.

    Returns:
      The graph, and the number of its group for every whole factor. Mere positions,
      like those in the window of a convolution, are no group.
    """
    extents = program.extents
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
    used = {w for dim in program.used for w in extents.wholes(dim)}
    order = {k.path: n for n, k in enumerate(kernels)}
    for mine in members.values():  # first come kernels, in order of first use
        mine.sort(key=lambda m: (order.get(m.path, len(order)), m.path, m.axis))
    wholes = sorted(
        (
            w
            for w, mine in members.items()
            if used & {w} or any(m.role != "beside" for m in mine)
        ),
        key=lambda w: _first(members[w], order),
    )
    groups = []
    for whole in wholes:
        fixed = extents.why_fixed(whole)
        if not fixed and whole not in used:
            fixed = UNUSED
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
