"""Finds every sum over units, and what each unit adds to it for every input.

One pass over the equations of a program, in order, finds what is known of every array
(`constants`). Every product that sums over a group of units gives a `Sum`: which units
add 0 to it, even after further training, and which add a constant that the bias of the
reading kernel could hold. A scan over stacked parameters is read layer by layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bbjax.shrinking import constants
from bbjax.shrinking.constants import NOTHING, Known, Parameter, Tag, UnitValues
from bbjax.tracing import interpreter, jaxprs
from bbjax.tracing.axes.extents import Dims
from bbjax.tracing.axes.program import Frame, Program
from bbjax.tracing.interpreter import Body, NestedCall
from bbjax.tracing.primitives import (
    CONTRACTIONS,
    ELEMENTWISE,
    IDENTITY,
    JOINING,
    PICKING,
    SHAPING,
)

Layer = tuple[int, ...]
_ROUNDS = 8


class Sum(NamedTuple):
    """A product that sums over a group of units.

    Attributes:
      group: the group.
      layer: iteration of each enclosing scan over stacked parameters.
      scans: the axes of these scans.
      pruned: units that add 0, and that training cannot change.
      constant: the values of the units; None if nothing is known of them.
      leaf: the kernel that multiplies the units, if the other operand is one.
      why_not: why its bias cannot hold a constant; empty if it can.
      product: number of the product.
      bias: the parameter that is added to the product, or to its sum with others, if
        there is one. It is added to nothing else but other products of the kernel.
    """

    group: int
    layer: Layer
    scans: Dims
    pruned: np.ndarray
    constant: UnitValues | None
    leaf: int | None
    why_not: str
    product: int
    bias: int | None = None


def read(program: Program, parameters: Sequence[Parameter]) -> list[Sum]:
    """All sums over units.

    Args:
      program: from `bbjax.tracing.axes.program.follow`.
      parameters: all of them, with their masks.
    """
    reading = _Reading(program)
    args = [Known(parameter=p, tag=("leaf", i)) for i, p in enumerate(parameters)]
    args += [NOTHING] * (len(program.top.jaxpr.invars) - len(args))
    top = program.top
    results = reading.body(top.jaxpr, top.consts, args, Occurrence(top, ()))
    reading.use("a result", results)
    return [found._replace(bias=reading.bias(found)) for found in reading.sums]


class Occurrence(NamedTuple):
    """An occurrence of a jaxpr, in one layer of each scan over parameters."""

    frame: Frame
    layer: Layer


@dataclasses.dataclass
class _Reading(interpreter.Interpreter[Known, Occurrence]):
    program: Program
    sums: list[Sum] = dataclasses.field(default_factory=list)
    trials: int = 0  # above 0 while a scan is read to find what its carry is
    uses: dict[Tag, list[tuple[str, Tag | None]]] = dataclasses.field(
        default_factory=dict
    )
    kernels: list[int | None] = dataclasses.field(default_factory=list)

    # Tags ------------------------------------------------------------------------
    def use(self, name: str, knowns: Sequence[Known]) -> None:
        """Notes the use of tagged arrays, with the tag of the other operand."""
        tags = [known.tag for known in knowns]
        for i, tag in enumerate(tags):
            if tag is not None and not self.trials:
                other = tags[1 - i] if len(tags) == 2 else None
                self.uses.setdefault(tag, []).append((name, other))

    def bias(self, found: Sum) -> int | None:
        """The parameter that is added to a product and has no other use."""
        uses = self.uses.get(("sum", found.product), [])
        if len(uses) != 1 or uses[0][0] not in ("add", "add_any"):
            return None
        leaf = uses[0][1]
        if leaf is None or leaf[0] != "leaf":
            return None
        for name, other in self.uses[leaf]:
            if name not in ("add", "add_any") or other is None or other[0] != "sum":
                return None
            if self.kernels[other[1]] != found.leaf:
                return None
        return leaf[1]

    def carried_tag(self, eqn: Any, ins: Sequence[Known]) -> Tag | None:
        """The tag of a result that is its operand, moved, broadcast or cast.

        The sum of a product with something else, as a residual stream, has the tag of
        the product: its bias may be added later.
        """
        name, known = eqn.primitive.name, ins[0]
        if name in ("add", "add_any"):
            one, two = (k.tag for k in ins)
            only = one if two is None else two
            lone = None in (one, two) and only is not None and only[0] == "sum"
            return only if lone else None
        if known.tag is None or name not in SHAPING or name == "stop_gradient":
            return None
        if name == "broadcast_in_dim" and known.tag[0] == "sum":
            return None
        kinds = [v.aval.dtype for v in (eqn.invars[0], eqn.outvars[0])]
        cast = name == "convert_element_type"
        if cast and not all(jnp.issubdtype(k, jnp.floating) for k in kinds):
            return None
        return known.tag

    def constant(self, value: Any, var: Any, at: Occurrence) -> Known:
        """What is known of a constant."""
        return NOTHING if value is None else constants.constant(value)

    def step(
        self, eqn: Any, index: int, ins: Sequence[Known], at: Occurrence
    ) -> list[Known]:
        """What is known of the results of an operation."""
        name, frame = eqn.primitive.name, at.frame
        tag = self.carried_tag(eqn, ins) if ins else None
        if tag is None:
            self.use(name, ins)
        if name in CONTRACTIONS:
            return [self.product(frame, eqn, ins, at.layer)]
        if name in IDENTITY:
            return list(ins)
        dims = [self.dims(frame, a) for a in eqn.invars]
        if name == "reduce_sum" and eqn.invars[0] in frame.weights:
            self.total(frame, eqn, ins[0], at.layer)
        if name not in JOINING and not any(k.is_known for k in ins):
            return [dataclasses.replace(NOTHING, tag=tag) for _ in eqn.outvars]
        made = constants.derived(eqn, ins)
        if made is not None:
            return [Known(parameter=parameter, tag=tag) for parameter in made]
        ins = self.by_group(ins, dims)
        outs = [self.plain(frame, eqn, ins, var) for var in eqn.outvars]
        return [dataclasses.replace(k, tag=tag) for k in outs] if tag else outs

    def dims(self, frame: Frame, atom: Any) -> Dims:
        """Dims of an operand; a number has none."""
        if jaxprs.is_literal(atom):
            return self.program.extents.shape(np.shape(atom.val))
        return frame.dims[atom]

    def by_group(self, ins: Sequence[Known], dims: Sequence[Dims]) -> list[Known]:
        """What is known of several arrays, by group."""
        extents = self.program.extents
        return [
            constants.by_group(extents, *pair) for pair in zip(ins, dims, strict=True)
        ]

    def plain(self, frame, eqn, ins: list[Known], var) -> Known:
        """The result of an equation without a body."""
        name = eqn.primitive.name
        extents = self.program.extents
        once = extents.single_axes(frame.dims[var])
        groups = {group: extents.size((group,)) for group in once}
        if name in ELEMENTWISE:
            return constants.elementwise(eqn, ins, groups)
        if name == "gather":
            made = constants.picked(eqn, ins[0])
        elif name in PICKING:
            made = ins[0]
        elif name in JOINING:
            made = constants.joined(extents, frame, eqn, ins, groups)
        elif name in constants.COUNTED:
            made = constants.times(ins[0], constants.COUNTED[name](eqn))
        else:
            return NOTHING
        return constants.only(made, groups, name == "broadcast_in_dim")

    def total(self, frame, eqn, known: Known, layer) -> None:
        """Notes the sums of a sum of weights."""
        if self.trials:
            return
        extents, dims = self.program.extents, frame.dims[eqn.invars[0]]
        for axis in eqn.params["axes"]:
            for group in extents.wholes(dims[axis]):
                entries = constants.on_axis(extents, known, dims, axis, group)
                pruned = np.zeros(extents.size((group,)), bool)
                if entries is not None:
                    pruned |= entries.pruned
                why = "a sum of weights has no bias"
                self.sums.append(
                    Sum(group, layer, frame.scans, pruned, None, None, why, -1)
                )

    # Products --------------------------------------------------------------------
    def product(self, frame, eqn, ins, layer) -> Known:
        """Notes the sums of a product; returns where its result is 0."""
        dims = [self.dims(frame, a) for a in eqn.invars]
        extents = self.program.extents
        summed = set()
        for left, right in constants.contracted(eqn):
            both = {*extents.wholes(dims[0][left])} & {*extents.wholes(dims[1][right])}
            for group in sorted(both):
                self.sum(frame, eqn, ins, dims, (left, right), group, layer)
            summed |= both
        found: dict[int, UnitValues] = {}
        single = extents.single_axes(frame.dims[eqn.outvars[0]])
        for side, known in enumerate(ins):
            for group, axis in extents.single_axes(dims[side]).items():
                entries = constants.on_axis(extents, known, dims[side], axis, group)
                if entries is None or group in summed or group not in single:
                    continue
                no = np.zeros_like(entries.value)
                zero = UnitValues(no, entries.zero, entries.pruned)
                found[group] = constants.either(found.get(group), zero)
        tag = ("sum", len(self.kernels))
        self.kernels.append(self.kernel_of(frame, eqn, ins)[1])
        return Known({g: e for g, e in found.items() if e.known.any()}, tag=tag)

    def kernel_of(self, frame, eqn, ins) -> tuple[int | None, int | None]:
        """Which operand of a product is a kernel, and its number."""
        kinds = [known.parameter for known in ins]
        sides = [s for s in (1, 0) if kinds[s] and kinds[s].value is not None]
        side = sides[0] if sides else None
        if side is None or jaxprs.is_literal(eqn.invars[side]):
            return None, None
        return side, frame.leaves.get(eqn.invars[side])

    def sum(self, frame, eqn, ins, dims, axes, group, layer) -> None:
        """Notes one sum."""
        if self.trials:
            return
        extents = self.program.extents
        sides = [
            constants.on_axis(extents, ins[s], dims[s], axes[s], group) for s in (0, 1)
        ]
        pruned = np.zeros(extents.size((group,)), bool)
        for entries in sides:
            if entries is not None:
                pruned |= entries.pruned
        kernel, leaf = self.kernel_of(frame, eqn, ins)
        constant, why_not = None, "both operands change with the input"
        if kernel is not None:
            constant, why_not = sides[1 - kernel], constants.why_no_bias(eqn)
        number = len(self.kernels)
        self.sums.append(
            Sum(group, layer, frame.scans, pruned, constant, leaf, why_not, number)
        )

    # Calls -----------------------------------------------------------------------
    def call(
        self,
        call: NestedCall,
        eqn: Any,
        index: int,
        ins: Sequence[Known],
        at: Occurrence,
    ) -> list[Known]:
        """What is known of the results of a call."""
        if call.kind == "opaque":
            self.use(eqn.primitive.name, ins)
            return [NOTHING] * len(eqn.outvars)
        if call.kind in ("inline", "custom"):
            return self.follow(call.bodies[0], ins, index, at)
        if call.kind == "cond":
            return self.cond(call, ins, index, at)
        ins = [self.without_sum(call.kind, known) for known in ins]
        for body in call.bodies:
            carried = [ins[i] for i, way in body.entries if way == "carried"]
            self.use(call.kind, carried)
        if call.kind == "scan":
            return self.scan(call, eqn, ins, index, at)
        for body in call.bodies:
            self.use("while", self.follow(body, ins, index, at))
        return [NOTHING] * len(eqn.outvars)

    def follow(
        self,
        body: Body,
        ins: Sequence[Known],
        index: int,
        at: Occurrence,
        carry: Sequence[Known] | None = None,
        step: int | None = None,
    ) -> list[Known]:
        """What is known of the results of one body, in one of its rounds.

        Args:
          body: it.
          ins: operands of the call.
          index: of the equation.
          at: where the equation is.
          carry: what is known of what it carries; nothing, if not given.
          step: round of a scan over parameters; None if all are read at once.
        """
        args, state = [], iter(carry or ())
        for operand, way in body.entries:
            known = ins[operand]
            if way == "carried":
                known = next(state, NOTHING)
            elif way == "sliced":
                known = constants.layer_of(known, step)
            args.append(known)
        frame = at.frame.bodies[index, body.number]
        layer = at.layer if step is None else (*at.layer, step)
        return self.body(frame.jaxpr, frame.consts, args, Occurrence(frame, layer))

    def scan(self, call, eqn, ins, index, at) -> list[Known]:
        """A scan: over parameters, one round after the other; else all at once."""
        (body,) = call.bodies
        first = [ins[i] for i, way in body.entries if way == "carried"]
        carry = [dataclasses.replace(known, tag=None) for known in first]
        order: Sequence[int | None] = range(call.rounds)
        if eqn.params["reverse"]:
            order = order[::-1]
        if len(at.frame.bodies[index, 0].scans) == len(at.frame.scans):
            carry, order = self.carry(body, ins, index, at, carry), [None]
        for step in order:
            outs = self.follow(body, ins, index, at, carry, step)
            self.use("scan", outs)
            carry = [dataclasses.replace(known, tag=None) for known in outs]
            carry = carry[: call.stacked]
        return [*carry, *[NOTHING] * (len(eqn.outvars) - call.stacked)]

    def without_sum(self, name: str, known: Known) -> Known:
        """An operand without the tag of a product: its uses cannot be counted there."""
        if known.tag is None or known.tag[0] != "sum":
            return known
        self.use(name, [known])
        return dataclasses.replace(known, tag=None)

    def carry(self, body, ins, index, at, carry) -> list[Known]:
        """What is known of a carry at every step."""
        inner = at.frame.bodies[index, 0]
        carried = [inner.jaxpr.invars[variable] for variable, _ in body.feeds]
        carry = self.by_group(carry, [inner.dims[var] for var in carried])
        self.trials += 1
        for _ in range(_ROUNDS):
            after = self.follow(body, ins, index, at, carry)[: len(carry)]
            joined = [constants.join(a, b) for a, b in zip(carry, after, strict=True)]
            if all(_same(a, b) for a, b in zip(carry, joined, strict=True)):
                break
            carry = joined
        else:
            carry = [NOTHING] * len(carry)
        self.trials -= 1
        return carry

    def cond(self, call, ins, index, at) -> list[Known]:
        """One of several branches."""
        results = []
        for body in call.bodies:
            outs = self.follow(body, ins, index, at)
            self.use("cond", outs)
            branch = at.frame.bodies[index, body.number]
            dims = [self.dims(branch, a) for a in branch.jaxpr.outvars]
            results.append(self.by_group(outs, dims))
        found = results[0]
        for other in results[1:]:
            found = [constants.join(a, b) for a, b in zip(found, other, strict=True)]
        return found


def _same(one: Known, two: Known) -> bool:
    if (one.number is None) != (two.number is None) or one.number != two.number:
        return False
    return one.by.keys() == two.by.keys() and all(
        np.array_equal(a, b, equal_nan=True)
        for group, e in one.by.items()
        for a, b in zip(e[1:], two.by[group][1:], strict=True)
    )
