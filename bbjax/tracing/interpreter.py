"""Calls: what the bodies of an equation are given, and what becomes of their results.

    kind     primitives                bodies             operands         results
    inline   jit, remat                one                as they are      as they are
    custom   own derivatives           one                as they are      as they are
    scan     scan                      one                held, carried,   carried,
                                                          sliced           stacked
    cond     cond                      each branch        held             one of them
    while    while                     condition, body    held, carried    carried
    opaque   anything else             all                not known        not known

Every analysis of a jaxpr is an `Interpreter`: it says what a constant, an operation and
a call make of what it knows. Which operand goes where is known here alone.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from bbjax.tracing import jaxprs
from bbjax.tracing.primitives import CUSTOM, TRANSPARENT

Kind = Literal["inline", "custom", "scan", "cond", "while", "opaque"]
Way = Literal["same", "held", "carried", "sliced"]
T = TypeVar("T")  # what an analysis knows of an array
At = TypeVar("At")  # where it is


class BodyInput(NamedTuple):
    """What a variable of a body is given.

    Attributes:
      operand: of the equation.
      way: the operand is the `"same"` as in the caller; `"held"` fixed over all rounds
        or branches; `"carried"` into the first round; `"sliced"` along its first axis.
    """

    operand: int
    way: Way


class Body(NamedTuple):
    """One body of a call.

    Attributes:
      number: of the body, in the scope of its equation.
      jaxpr: it.
      consts: its constants.
      entries: what each of its variables is given; empty if that is not known.
      feeds: variables and results: the result of a round is given to the next one.
    """

    number: int
    jaxpr: Any
    consts: tuple[Any, ...]
    entries: tuple[BodyInput, ...] = ()
    feeds: tuple[tuple[int, int], ...] = ()


class NestedCall(NamedTuple):
    """An equation with bodies.

    Attributes:
      kind: see above.
      bodies: of the equation.
      stacked: number of the first result that has one entry for each round; all from
        there on have.
      rounds: of a scan.
    """

    kind: Kind
    bodies: tuple[Body, ...]
    stacked: int
    rounds: int = 1


def call_of(eqn: Any) -> NestedCall | None:
    """The call that an equation is; None if it is an operation without a body.

    The function that a scatter or a reduction applies to two numbers is no body.
    """
    name = eqn.primitive.name
    bodies = None if name.startswith("scatter") else jaxprs.bodies(eqn)
    if not bodies:
        return None
    if name == "scan":
        return _scan(eqn, *bodies[0])
    if name == "cond":
        ways: list[Way] = ["held"] * (len(eqn.invars) - 1)
        entries = _entries(ways, 1)
        branches = [Body(i, *body, entries) for i, body in enumerate(bodies)]
        return NestedCall("cond", tuple(branches), len(eqn.outvars))
    if name == "while":
        return _while(eqn)
    kind: Kind = "opaque"
    if len(bodies[0][0].invars) == len(eqn.invars):
        kind = "inline" if name in TRANSPARENT else kind
        kind = "custom" if name in CUSTOM else kind
    if kind == "opaque":
        opaque = [Body(i, *body) for i, body in enumerate(bodies)]
        return NestedCall(kind, tuple(opaque), len(eqn.outvars))
    same: list[Way] = ["same"] * len(eqn.invars)
    entries = _entries(same)
    return NestedCall(kind, (Body(0, *bodies[0], entries),), len(eqn.outvars))


def _entries(ways: Sequence[Way], first: int = 0) -> tuple[BodyInput, ...]:
    return tuple(BodyInput(i, way) for i, way in enumerate(ways, first))


def _scan(eqn: Any, jaxpr: Any, consts: tuple[Any, ...]) -> NestedCall:
    held, carried = jaxprs.scan_counts(eqn)
    sliced = len(eqn.invars) - held - carried
    ways: dict[Way, int] = {"held": held, "carried": carried, "sliced": sliced}
    entries = _entries([way for way, count in ways.items() for _ in range(count)])
    feeds = tuple((held + i, i) for i in range(carried))
    body = Body(0, jaxpr, consts, entries, feeds)
    return NestedCall("scan", (body,), carried, eqn.params["length"])


def _while(eqn: Any) -> NestedCall:
    skip, held = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carried = len(eqn.invars) - skip - held
    fixed: list[Way] = ["held"] * (skip + held)
    state = [BodyInput(i, "carried") for i in range(skip + held, len(eqn.invars))]
    condition = (*_entries(fixed[:skip]), *state)
    entries = (*_entries(fixed[skip:], skip), *state)
    feeds = tuple((held + i, i) for i in range(carried))
    bodies = (
        Body(0, *jaxprs.opened(eqn.params["cond_jaxpr"]), condition),
        Body(1, *jaxprs.opened(eqn.params["body_jaxpr"]), entries, feeds),
    )
    return NestedCall("while", bodies, len(eqn.outvars))


class Interpreter(abc.ABC, Generic[T, At]):
    """An analysis that follows a jaxpr in program order, through its calls."""

    @abc.abstractmethod
    def constant(self, value: Any, var: Any, at: At) -> T:
        """What is known of a constant.

        Args:
          value: it; None where it is not given.
          var: the variable that holds it; None where it is written in place.
          at: where it is.
        """

    @abc.abstractmethod
    def step(self, eqn: Any, index: int, ins: Sequence[T], at: At) -> list[T]:
        """What an operation without a body makes of its operands."""

    @abc.abstractmethod
    def call(
        self, call: NestedCall, eqn: Any, index: int, ins: Sequence[T], at: At
    ) -> list[T]:
        """What a call makes of its operands."""

    def given(self, var: Any, arg: T, at: At) -> T:
        """What is known of a variable that is given an operand."""
        return arg

    def made(self, var: Any, result: T, at: At) -> None:
        """Records what is known of a result."""

    def body(
        self, jaxpr: Any, consts: Sequence[Any], args: Sequence[T], at: At
    ) -> list[T]:
        """Follows the equations of a jaxpr; what is known of its results."""
        missing = [None] * (len(jaxpr.constvars) - len(consts))
        env: dict[Any, T] = {}
        for var, const in zip(jaxpr.constvars, [*consts, *missing], strict=True):
            env[var] = self.constant(const, var, at)
        for var, arg in zip(jaxpr.invars, args, strict=True):
            env[var] = self.given(var, arg, at)

        def read(atom: Any) -> T:
            if jaxprs.is_literal(atom):
                return self.constant(atom.val, None, at)
            return env[atom]

        for index, eqn in enumerate(jaxpr.eqns):
            ins = [read(atom) for atom in eqn.invars]
            call = call_of(eqn)
            if call is None:
                outs = self.step(eqn, index, ins, at)
            else:
                outs = self.call(call, eqn, index, ins, at)
            for var, out in zip(eqn.outvars, outs, strict=True):
                self.made(var, out, at)
                env[var] = out
        return [read(atom) for atom in jaxpr.outvars]
