"""One pass over a jaxpr that ties the axes of all its arrays.

Every occurrence of a jaxpr is a `Frame`: the dims of its variables, and the frames of
the bodies that its equations call. A function that is called twice has two frames, for
its axes may be different units each time. Branches are tied to each other, and each
round of a loop to the next. What an opaque call takes is fixed.

Axes of arguments and results are fixed: the caller knows their sizes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bbjax.tracing import interpreter, jaxprs
from bbjax.tracing.axes import operations, products
from bbjax.tracing.axes.extents import Dim, Dims, Extents
from bbjax.tracing.interpreter import Body, NestedCall
from bbjax.tracing.primitives import BLENDING, SHAPING

ARGUMENT = "an argument of the function has this size"
CONSTANT = "a constant of the function has this size"
RETURNED = "the function returns them"


def argument(path: str) -> str:
    """Why axes of an argument cannot change."""
    return f"{ARGUMENT}: {path}"


@dataclasses.dataclass
class Frame:
    """One occurrence of a jaxpr.

    Attributes:
      jaxpr: it.
      consts: its constants.
      dims: of its variables.
      leaves: the parameter that a variable holds, whole or one layer of it, whatever
        its shape.
      blends: the parameter that a variable has the shape of and is made from, entry
        by entry, as a running mean is.
      weights: variables that are computed from parameters and constants alone.
      totals: sums of such variables, by the number of their terms: the dims that they
        ran over.
      scans: the lead axis of each enclosing scan that runs over parameters.
      mixed: by result of an equation, the dims whose entries it picks, counts or
        mixes, with the reason.
      bodies: of its equations, by number of the equation and of the body.
    """

    jaxpr: Any
    consts: tuple[Any, ...]
    dims: dict[Any, Dims] = dataclasses.field(default_factory=dict)
    leaves: dict[Any, int] = dataclasses.field(default_factory=dict)
    blends: dict[Any, int] = dataclasses.field(default_factory=dict)
    weights: set[Any] = dataclasses.field(default_factory=set)
    totals: dict[Any, Dims] = dataclasses.field(default_factory=dict)
    scans: Dims = ()
    mixed: dict[Any, list[tuple[Dim, str]]] = dataclasses.field(default_factory=dict)
    bodies: dict[tuple[int, int], Frame] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Program:
    """A jaxpr with the dims of all its arrays.

    Attributes:
      extents: what the dims are made of.
      top: the outermost frame.
      leaves: dims of each parameter.
      used: dims that some product or sum runs over.
      drawn: dims that random numbers are drawn for.
    """

    extents: Extents
    top: Frame
    leaves: tuple[Dims, ...]
    used: list[Dim]
    drawn: list[Dim]


def follow(
    closed: Any,
    paths: Sequence[str],
    results: Sequence[str] = (),
    others: Sequence[str] = (),
) -> Program:
    """Ties the axes of all arrays of a closed jaxpr.

    Args:
      closed: its operands are the parameters, then other arguments.
      paths: of the parameters.
      results: paths of the results. One that is made from a parameter entry by entry
        and has its name is its next value, as of a running mean: it goes with its
        units.
      others: paths of the other arguments, for the reasons.
    """
    leaves = len(paths)
    extents = Extents()
    jaxpr, consts = jaxprs.opened(closed)
    whys = [*[""] * leaves, *map(argument, others)]
    whys += [ARGUMENT] * (len(jaxpr.invars) - len(whys))
    dims = [
        extents.shape(v.aval.shape, why)
        for v, why in zip(jaxpr.invars, whys, strict=True)
    ]
    axes = _AxisPass(extents)
    top = Frame(jaxpr, consts)
    for number, var in enumerate(jaxpr.invars[:leaves]):
        top.leaves[var] = top.blends[var] = number
        top.weights.add(var)
    outs = axes.body(jaxpr, consts, dims, top)
    _fix_squares(extents, top)
    names = [path.rsplit("/", 1)[-1] for path in paths]
    for i, (out, atom) in enumerate(zip(outs, jaxpr.outvars, strict=True)):
        leaf = None if jaxprs.is_literal(atom) else top.blends.get(atom)
        name = results[i].rsplit("/", 1)[-1] if i < len(results) else None
        if leaf is not None and names[leaf] == name:
            extents.tie_each(out, dims[leaf])
        else:
            for dim in out:
                extents.fix(dim, RETURNED)
    return Program(extents, top, tuple(dims[:leaves]), axes.used, axes.drawn)


def _fix_squares(extents: Extents, frame: Frame) -> None:
    """Fixes units that an axis has in pairs with themselves."""
    for dim in {d for dims in frame.dims.values() for d in dims if len(d) > 1}:
        each = [set(extents.wholes((f,))) for f in extents.factors(dim)]
        for i, one in enumerate(each):
            for two in each[:i]:
                for whole in one & two:
                    extents.fix((whole,), "one axis has them in pairs with themselves")
    for body in frame.bodies.values():
        _fix_squares(extents, body)


def _is_mean(extents: Extents, frame: Frame, eqn: Any) -> bool:
    """Whether a sum is divided by the number of its terms."""
    if eqn.primitive.name not in ("div", "mul") or not jaxprs.is_literal(eqn.invars[1]):
        return False
    count = math.prod(map(extents.size, frame.totals[eqn.invars[0]]))
    by = np.asarray(eqn.invars[1].val)
    mean = by == count if eqn.primitive.name == "div" else np.isclose(by * count, 1)
    return bool(np.all(mean))


@dataclasses.dataclass
class _AxisPass(interpreter.Interpreter[Dims, Frame]):
    extents: Extents
    used: list[Dim] = dataclasses.field(default_factory=list)
    drawn: list[Dim] = dataclasses.field(default_factory=list)

    def constant(self, value: Any, var: Any, at: Frame) -> Dims:
        """Dims of a constant."""
        shape = var.aval.shape if value is None else np.shape(value)
        found = self.extents.shape(shape, CONSTANT)
        if var is not None:
            at.dims[var] = found
        return found

    def given(self, var: Any, arg: Dims, at: Frame) -> Dims:
        """Dims of a variable that is given an operand: the operand's."""
        at.dims[var] = arg
        return arg

    def made(self, var: Any, result: Dims, at: Frame) -> None:
        """Records the dims of a result."""
        at.dims[var] = result

    def step(self, eqn: Any, index: int, ins: Sequence[Dims], at: Frame) -> list[Dims]:
        """Dims of the results of an operation."""
        name = eqn.primitive.name
        for dims, var in zip(ins, eqn.invars, strict=True):
            shape = tuple(getattr(var.aval, "shape", ()))
            assert tuple(map(self.extents.size, dims)) == shape, (eqn, dims)
        if name == "reduce_sum" and eqn.invars[0] in at.weights:
            return [self.total(at, eqn, ins[0])]
        noted = len(self.extents.noted)
        shapes = [tuple(getattr(v.aval, "shape", ())) for v in eqn.outvars]
        step = operations.AxisStep(
            self.extents, eqn, list(ins), shapes, self.used, self.drawn
        )
        found = products.followed(step) or operations.followed(step)
        at.mixed.update(dict.fromkeys(eqn.outvars, self.extents.noted[noted:]))
        self.tag(at, eqn, name)
        return found

    def total(self, frame: Frame, eqn: Any, dims: Dims) -> Dims:
        """A sum of weights, as in a norm: weights that are 0 add nothing to it."""
        summed = tuple(dims[a] for a in eqn.params["axes"])
        self.used += summed
        frame.weights.add(eqn.outvars[0])
        frame.totals[eqn.outvars[0]] = summed
        why = f"{eqn.primitive.name} runs over its units"
        frame.mixed[eqn.outvars[0]] = [(dim, why) for dim in summed]
        return tuple(d for i, d in enumerate(dims) if i not in eqn.params["axes"])

    def tag(self, frame: Frame, eqn: Any, name: str) -> None:
        """A parameter that is only moved or cast is still itself."""
        atoms = [a for a in eqn.invars if not jaxprs.is_literal(a)]
        if atoms and frame.weights.issuperset(atoms):
            frame.weights.update(eqn.outvars)
        if atoms and atoms[0] in frame.totals and name in SHAPING:
            frame.totals[eqn.outvars[0]] = frame.totals[atoms[0]]
        if atoms and atoms[0] in frame.totals and _is_mean(self.extents, frame, eqn):
            for dim in frame.totals[atoms[0]]:
                self.extents.fix(dim, "a mean of weights runs over its units")
        if name in SHAPING and atoms[:1] and atoms[0] in frame.leaves:
            frame.leaves[eqn.outvars[0]] = frame.leaves[atoms[0]]
        if name in BLENDING:
            shape = eqn.outvars[0].aval.shape
            same = {frame.blends.get(a) for a in atoms if a.aval.shape == shape}
            found = [leaf for leaf in same if leaf is not None]
            if len(found) == 1:
                frame.blends[eqn.outvars[0]] = found[0]

    # Calls -----------------------------------------------------------------------
    def call(
        self, call: NestedCall, eqn: Any, index: int, ins: Sequence[Dims], at: Frame
    ) -> list[Dims]:
        """Follows every body in a frame of its own, and ties what meets."""
        if call.kind == "opaque":
            return self.closed(at, eqn, ins)
        results = []
        for body in call.bodies:
            inner = self.frame(body, eqn, ins, at)
            at.bodies[index, body.number] = inner
            args = [ins[i][1 if way == "sliced" else 0 :] for i, way in body.entries]
            outs = self.body(inner.jaxpr, inner.consts, args, inner)
            for before, after in body.feeds:
                self.extents.tie_each(args[before], outs[after])
            results.append(outs)
        if call.kind in ("inline", "custom"):
            self.hand_out(at, inner, eqn.outvars)
        if call.kind == "cond":
            for other in results[1:]:
                for one, two in zip(results[0], other, strict=True):
                    self.extents.tie_each(one, two)
        why = "a scan runs over them"
        return [
            dims if i < call.stacked else (self.extents.new(call.rounds, why), *dims)
            for i, dims in enumerate(results[-1])
        ]

    def frame(self, body: Body, eqn: Any, ins: Sequence[Dims], at: Frame) -> Frame:
        """The frame of a body, which knows the parameters that it is given."""
        inner = Frame(body.jaxpr, body.consts, scans=at.scans)
        lead = None
        for var, (operand, way) in zip(body.jaxpr.invars, body.entries, strict=True):
            atom = eqn.invars[operand]
            tag = None if jaxprs.is_literal(atom) else at.leaves.get(atom)
            if way == "sliced":
                self.extents.fix(ins[operand][0], "a scan runs over them")
            if way == "same" and not jaxprs.is_literal(atom) and atom in at.weights:
                inner.weights.add(var)
            if tag is None or way == "carried":
                continue
            inner.leaves[var] = inner.blends[var] = tag
            inner.weights.add(var)
            if way != "sliced":
                continue
            if lead is None:
                lead = ins[operand][0]
                inner.scans = (*at.scans, lead)
            self.extents.tie(lead, ins[operand][0])
        return inner

    def hand_out(self, frame: Frame, inner: Frame, results: Sequence[Any]) -> None:
        """What is known of the results of a body whose results are the caller's own."""
        for var, result in zip(results, inner.jaxpr.outvars, strict=True):
            if jaxprs.is_literal(result):
                continue
            if result in inner.weights:
                frame.weights.add(var)
            pairs: list[tuple[dict[Any, Any], dict[Any, Any]]] = [
                (frame.leaves, inner.leaves),
                (frame.blends, inner.blends),
                (frame.totals, inner.totals),
            ]
            for own, its in pairs:
                if result in its:
                    own[var] = its[result]

    def closed(self, frame, eqn, ins) -> list[Dims]:
        """A call that is not looked into."""
        why = f"they enter {eqn.primitive.name}"
        every = [(dim, why) for dims in ins for dim in dims]
        for dim, _ in every:
            self.extents.fix(dim, why)
        frame.mixed.update(dict.fromkeys(eqn.outvars, every))
        return [self.extents.shape(v.aval.shape, why) for v in eqn.outvars]
