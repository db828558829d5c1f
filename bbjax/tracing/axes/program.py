"""One pass over a jaxpr that ties the axes of all its arrays.

Every occurrence of a jaxpr is a `Frame`: the dims of its variables, and the frames of
the bodies that its equations call. A function that is called twice has two frames, for
its axes may be different units each time:

    jit, remat, custom derivatives     operands and results are the caller's own
    scan                               stacked operands lose an axis, carries are tied
    cond, while                        branches, and one round to the next, are tied
    anything else with a body          not looked into: its operands are fixed

Axes of arguments and results are fixed: the caller knows their sizes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bbjax.tracing import jaxprs
from bbjax.tracing.axes import moves, products
from bbjax.tracing.axes.extents import Dim, Dims, Extents
from bbjax.tracing.primitives import BLENDING, INLINE, SHAPING

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
    tags = [i if i < leaves else None for i in range(len(dims))]
    follower = _AxisPass(extents)
    top = Frame(jaxpr, consts)
    outs = follower.body(top, dims, tags)
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
    return Program(extents, top, tuple(dims[:leaves]), follower.used, follower.drawn)


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
class _AxisPass:
    extents: Extents
    used: list[Dim] = dataclasses.field(default_factory=list)
    drawn: list[Dim] = dataclasses.field(default_factory=list)

    def body(
        self, frame: Frame, args: Sequence[Dims], tags: Sequence[int | None]
    ) -> list[Dims]:
        """Follows the equations of a frame; returns the dims of its results."""
        jaxpr = frame.jaxpr
        consts = [*frame.consts, *[None] * len(jaxpr.constvars)]
        for var, const in zip(jaxpr.constvars, consts, strict=False):
            shape = var.aval.shape if const is None else np.shape(const)
            frame.dims[var] = self.extents.shape(shape, CONSTANT)
        for var, dims, tag in zip(jaxpr.invars, args, tags, strict=True):
            frame.dims[var] = dims
            if tag is not None:
                frame.leaves[var] = frame.blends[var] = tag
                frame.weights.add(var)
        for index, eqn in enumerate(jaxpr.eqns):
            ins = [self.read(frame, a) for a in eqn.invars]
            for dims, var in zip(ins, eqn.invars, strict=True):
                shape = tuple(getattr(var.aval, "shape", ()))
                assert tuple(map(self.extents.size, dims)) == shape, (eqn, dims)
            outs = self.equation(frame, eqn, ins, index)
            frame.dims.update(zip(eqn.outvars, outs, strict=True))
        return [self.read(frame, a) for a in jaxpr.outvars]

    def read(self, frame: Frame, atom: Any) -> Dims:
        """Dims of an operand."""
        if jaxprs.is_literal(atom):
            return self.extents.shape(np.shape(atom.val), CONSTANT)
        return frame.dims[atom]

    def equation(
        self, frame: Frame, eqn: Any, ins: Sequence[Dims], index: int
    ) -> list[Dims]:
        """Dims of the results of one equation."""
        name = eqn.primitive.name
        if name in INLINE:
            return self.inline(frame, eqn, ins, index)
        if name == "scan":
            return self.scan(frame, eqn, ins, index)
        if name == "cond":
            return self.cond(frame, eqn, ins, index)
        if name == "while":
            return self.loop(frame, eqn, ins, index)
        if name == "reduce_sum" and eqn.invars[0] in frame.weights:
            return [self.total(frame, eqn, ins[0])]
        noted = len(self.extents.noted)
        shapes = [tuple(getattr(v.aval, "shape", ())) for v in eqn.outvars]
        step = moves.AxisStep(
            self.extents, name, eqn.params, list(ins), shapes, self.used, self.drawn
        )
        found = products.followed(step) or moves.followed(step)
        frame.mixed.update(dict.fromkeys(eqn.outvars, self.extents.noted[noted:]))
        self.tag(frame, eqn, name)
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
    def enter(
        self,
        frame: Frame,
        key: tuple[int, int],
        body: tuple[Any, Sequence[Any]],
        args: Sequence[Dims],
        tags: Sequence[int | None],
        lead: Dim | None = None,
        weights: Sequence[bool] = (),
    ) -> list[Dims]:
        """Follows a body in a frame of its own."""
        inner = Frame(body[0], tuple(body[1]), scans=frame.scans)
        inner.weights.update(itertools.compress(body[0].invars, weights))
        if lead is not None:
            inner.scans = (*inner.scans, lead)
        frame.bodies[key] = inner
        return self.body(inner, args, tags)

    def tags(self, frame: Frame, atoms: Sequence[Any]) -> list[int | None]:
        """Parameters among operands."""
        return [None if jaxprs.is_literal(a) else frame.leaves.get(a) for a in atoms]

    def inline(self, frame, eqn, ins, index) -> list[Dims]:
        """A call whose operands and results are the caller's own."""
        body = jaxprs.body(eqn)
        if len(body[0].invars) != len(ins):
            return self.closed(frame, eqn, ins)
        tags = self.tags(frame, eqn.invars)
        alone = [not jaxprs.is_literal(a) and a in frame.weights for a in eqn.invars]
        outs = self.enter(frame, (index, 0), body, ins, tags, weights=alone)
        inner = frame.bodies[index, 0]
        for var, result in zip(eqn.outvars, body[0].outvars, strict=True):
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
        return outs

    def scan(self, frame, eqn, ins, index) -> list[Dims]:
        """A scan: stacked operands lose an axis, carries are tied."""
        held, carried = jaxprs.scan_counts(eqn)
        fixed = held + carried
        for lead in (dims[0] for dims in ins[fixed:]):
            self.extents.fix(lead, "a scan runs over them")
        args = [*ins[:fixed], *(dims[1:] for dims in ins[fixed:])]
        tags = self.tags(frame, eqn.invars)
        none: list[int | None] = [None] * carried
        tags = [*tags[:held], *none, *tags[fixed:]]
        lead = None
        for dims, tag in zip(ins[fixed:], tags[fixed:], strict=True):
            if tag is not None and lead is None:
                lead = dims[0]
            elif tag is not None and lead is not None:
                self.extents.tie(lead, dims[0])
        outs = self.enter(frame, (index, 0), jaxprs.body(eqn), args, tags, lead)
        for before, after in zip(ins[held:fixed], outs[:carried], strict=True):
            self.extents.tie_each(before, after)
        length = eqn.params["length"]
        return [
            *outs[:carried],
            *(
                (self.extents.new(length, "a scan runs over them"), *dims)
                for dims in outs[carried:]
            ),
        ]

    def cond(self, frame, eqn, ins, index) -> list[Dims]:
        """A choice between branches; the first operand is the choice."""
        tags = self.tags(frame, eqn.invars[1:])
        results = [
            self.enter(frame, (index, i), jaxprs.opened(branch), ins[1:], tags)
            for i, branch in enumerate(eqn.params["branches"])
        ]
        for other in results[1:]:
            for one, two in zip(results[0], other, strict=True):
                self.extents.tie_each(one, two)
        return results[0]

    def loop(self, frame, eqn, ins, index) -> list[Dims]:
        """A while loop."""
        params = eqn.params
        skip, held = params["cond_nconsts"], params["body_nconsts"]
        state = ins[skip + held :]
        tags = self.tags(frame, eqn.invars)
        none: list[int | None] = [None] * len(state)
        self.enter(
            frame,
            (index, 0),
            jaxprs.opened(params["cond_jaxpr"]),
            [*ins[:skip], *state],
            [*tags[:skip], *none],
        )
        outs = self.enter(
            frame,
            (index, 1),
            jaxprs.opened(params["body_jaxpr"]),
            [*ins[skip : skip + held], *state],
            [*tags[skip : skip + held], *none],
        )
        for before, after in zip(state, outs, strict=True):
            self.extents.tie_each(before, after)
        return list(state)

    def closed(self, frame, eqn, ins) -> list[Dims]:
        """A call that is not looked into."""
        why = f"they enter {eqn.primitive.name}"
        every = [(dim, why) for dims in ins for dim in dims]
        for dim, _ in every:
            self.extents.fix(dim, why)
        frame.mixed.update(dict.fromkeys(eqn.outvars, every))
        return [self.extents.shape(v.aval.shape, why) for v in eqn.outvars]
