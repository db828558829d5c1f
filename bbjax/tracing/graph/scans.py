"""Scans over stacked parameters: which groups of units a layer has for itself.

A scan gives all layers one shape. Units that only arrays inside of it carry can be
others in every layer; what layers hand on, like a residual stream, is the same in all.
"""

from __future__ import annotations

from collections.abc import Sequence

from bbjax.tracing.axes.extents import Dims
from bbjax.tracing.axes.program import Frame, Program


def scans_of_groups(program: Program) -> dict[int, Dims]:
    """The scans over parameters that every array of a group is inside of."""
    found: dict[int, Dims] = {}

    def visit(frame: Frame) -> None:
        for var, dims in frame.dims.items():
            if var in frame.leaves:
                continue
            for whole in {w for d in dims for w in program.extents.wholes(d)}:
                before = found.get(whole, frame.scans)
                found[whole] = _prefix(program, before, frame.scans)
        for body in frame.bodies.values():
            visit(body)

    visit(program.top)
    for leaf, dims in enumerate(program.leaves):
        for whole in {w for d in dims for w in program.extents.wholes(d)}:
            scans = found.get(whole, ())
            while len(stack_axes(program, leaf, scans)) < len(scans):
                scans = scans[:-1]  # a parameter that several layers share
            found[whole] = scans
    return found


def common_prefix(program: Program, several: Sequence[Dims]) -> Dims:
    """The scans that several lists begin with alike."""
    found = several[0]
    for other in several[1:]:
        found = _prefix(program, found, other)
    return found


def _prefix(program: Program, one: Dims, two: Dims) -> Dims:
    """The scans that two lists begin with alike."""
    count = 0
    for a, b in zip(one, two, strict=False):
        if program.extents.factors(a) != program.extents.factors(b):
            break
        count += 1
    return one[:count]


def stack_axes(program: Program, leaf: int, scans: Dims) -> tuple[int, ...]:
    """The axes of a parameter that some scans run over, as far as they do."""
    factors = program.extents.factors
    leads = [factors(d) for d in program.leaves[leaf]]
    return tuple(leads.index(factors(s)) for s in scans if factors(s) in leads)
