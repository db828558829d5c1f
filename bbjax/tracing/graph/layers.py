"""Scans over layers: the parameters that they slice, and what layers hand on.

A scan over layers slices parameters along an axis with one entry for each layer. Its
carry holds what a layer hands on to the next one: most often the residual stream, and
sometimes more beside it (losses of routers, masks, caches).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from bbjax.model.groups import Stack
from bbjax.tracing import interpreter, jaxprs
from bbjax.tracing.axes.extents import Dim
from bbjax.tracing.axes.program import Frame, Program
from bbjax.tracing.flow.contract import Scope
from bbjax.tracing.interpreter import Body, NestedCall
from bbjax.tracing.primitives import CONTRACTIONS

_SEEN = ("inline", "custom", "scan", "cond")  # calls that a tap can be inside of


class LayerScan(NamedTuple):
    """A scan over layers.

    Attributes:
      stack: number of its stack, among those of the program.
      scope: of its body.
      scans: the scopes of the bodies of all scans around, its own last.
      body: of the scan.
      measurable: whether values in it can be measured: it is in no opaque call.
    """

    stack: int
    scope: Scope
    scans: tuple[Scope, ...]
    body: Body
    measurable: bool


class Carried(NamedTuple):
    """What one layer hands on to the next.

    Attributes:
      number: among the carried values of the scan.
      before: the variable of the body that holds it before the layer.
      after: the result of the body that holds it after the layer.
    """

    number: int
    before: Any
    after: Any

    def __str__(self) -> str:
        aval = self.before.aval
        return f"{self.number}: {aval.dtype} of shape {tuple(aval.shape)}"


def stacks(program: Program, paths: Sequence[str]) -> tuple[Stack, ...]:
    """The layers of every scan over parameters, in the order of the scans."""
    shapes = [tuple(map(program.extents.size, dims)) for dims in program.leaves]
    found = []
    for lead in _leads(program):
        mine = _members(program, lead)
        found.append(
            Stack(
                program.extents.size(lead),
                tuple((paths[leaf], axis) for leaf, axis in mine),
                tuple(shapes[leaf] for leaf, _ in mine),
            )
        )
    return tuple(found)


def layer_scans(program: Program) -> tuple[LayerScan, ...]:
    """Every scan over layers, in program order; a stack may be used in several."""
    number = {lead: n for n, lead in enumerate(_leads(program))}
    return tuple(
        LayerScan(number[lead], *where)
        for lead, where in _visited(program, program.top, (), (), True)
    )


def _leads(program: Program) -> list[Dim]:
    """The factors of the axes that scans run over, once each."""
    found = _visited(program, program.top, (), (), True)
    return list(dict.fromkeys(lead for lead, _ in found))


def _visited(
    program: Program, frame: Frame, scope: Scope, scans: tuple[Scope, ...], seen: bool
) -> Iterator[tuple[Dim, tuple[Scope, tuple[Scope, ...], Body, bool]]]:
    """The scans over parameters in a frame: what they run over, and where they are."""
    for index, eqn in enumerate(frame.jaxpr.eqns):
        call = interpreter.call_of(eqn)
        for body in () if call is None else call.bodies:
            inside = frame.bodies.get((index, body.number))
            if inside is None:  # an opaque call
                continue
            assert call is not None
            here = (*scope, (index, body.number))
            around = (*scans, here) if call.kind == "scan" else scans
            measurable = seen and call.kind in _SEEN
            lead = _lead(program, frame, eqn, body) if call.kind == "scan" else None
            if lead is not None:
                yield lead, (here, around, body, measurable)
            yield from _visited(program, inside, here, around, measurable)


def _lead(program: Program, frame: Frame, eqn: Any, body: Body) -> Dim | None:
    """The factors of the axis of parameters that a scan runs over; None if of none.

    Parameters may be computed with before, as when they are masked or cast.
    """
    for operand, way in body.entries:
        atom = eqn.invars[operand]
        if way != "sliced" or jaxprs.is_literal(atom):
            continue
        if atom in frame.leaves or atom in frame.weights:
            lead = program.extents.factors(frame.dims[atom][0])
            if lead and _members(program, lead):
                return lead
    return None


def _members(program: Program, lead: Dim) -> list[tuple[int, int]]:
    """The axes of parameters that a scan runs over: `(number, axis)`."""
    factors = program.extents.factors
    return [
        (leaf, axis)
        for leaf, dims in enumerate(program.leaves)
        for axis, dim in enumerate(dims)
        if factors(dim) == lead
    ]


# What layers hand on ----------------------------------------------------------------
def carried(body: Body) -> tuple[list[Carried], list[Carried]]:
    """The activities that a layer is given, changes, and hands on.

    Returns:
      The carried values of a float type, with a last axis of more than one entry, that
      the layer does not hand on as they are. And those of them that reach a product
      with something that is not carried, as a kernel: what a layer only adds to, as the
      losses of routers, does not.
    """
    held = sum(way == "held" for _, way in body.entries)
    ways = [way for _, way in body.entries]
    numbers = [i - held if way == "carried" else None for i, way in enumerate(ways)]
    none = frozenset[int]()
    inputs = [_Known(none if n is None else frozenset({n}), n) for n in numbers]
    reads = _Reads(set())
    outs = reads.body(body.jaxpr, body.consts, inputs, None)
    found = []
    for number in range(ways.count("carried")):
        var, out = body.jaxpr.invars[held + number], body.jaxpr.outvars[number]
        is_float = jnp.issubdtype(var.aval.dtype, jnp.floating)
        if is_float and var.aval.shape[-1:] > (1,) and outs[number].same != number:
            found.append(Carried(number, var, out))
    return found, [one for one in found if one.number in reads.multiplied]


class _Known(NamedTuple):
    """What is known of a value in a layer.

    Attributes:
      of: the carried values that it is computed from.
      same: the one that it is, unchanged; None if it is none.
    """

    of: frozenset[int]
    same: int | None


@dataclasses.dataclass
class _Reads(interpreter.Interpreter[_Known, None]):
    """Which carried values reach a product with something that is none."""

    multiplied: set[int]

    def constant(self, value: Any, var: Any, at: None) -> _Known:
        """A constant is computed from nothing."""
        return _Known(frozenset(), None)

    def step(
        self, eqn: Any, index: int, ins: Sequence[_Known], at: None
    ) -> list[_Known]:
        """A result is computed from what its operands are computed from."""
        every = frozenset().union(*(known.of for known in ins))
        if eqn.primitive.name in CONTRACTIONS and not all(k.of for k in ins[:2]):
            self.multiplied |= every
        return [_Known(every, None) for _ in eqn.outvars]

    def call(
        self, call: NestedCall, eqn: Any, index: int, ins: Sequence[_Known], at: None
    ) -> list[_Known]:
        """Values pass calls as they are; those of loops and branches are followed."""
        every = _Known(frozenset().union(*(known.of for known in ins)), None)
        if call.kind == "opaque":
            return [every for _ in eqn.outvars]
        for body in call.bodies:  # what loops carry may be computed from all operands
            args = [every if way == "carried" else ins[i] for i, way in body.entries]
            outs = self.body(body.jaxpr, body.consts, args, None)
        return outs if call.kind in ("inline", "custom") else [every] * len(eqn.outvars)
