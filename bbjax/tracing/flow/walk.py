"""Follows a jaxpr through its nested calls and records how values flow.

Every array of every scope gets a node number; numbers grow in program order, so they
are a topological order of the data flow. A *scope* is one occurrence of a jaxpr,
addressed by the equations that lead to it: `((3, 0), (5, 1))` is body 1 of equation 5
in body 0 of equation 3. Calls copy values in and out under new numbers; what a call
means for units is decided by its kind:

    jit, closed_call, remat   units pass in and out
    scan                      units end at its border; stacked parameters lose an axis
    cond                      units end at its border
    custom_jvp                its operations are followed, uses inside can be measured
    custom_vjp, while, ...    opaque: followed, but uses inside can not be measured
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.tracing import interpreter, jaxprs
from bbjax.tracing.flow import contract
from bbjax.tracing.flow.contract import Scope
from bbjax.tracing.flow.transfer import forget, transfer
from bbjax.tracing.flow.values import DATA, Value, plain
from bbjax.tracing.interpreter import Body, NestedCall
from bbjax.tracing.primitives import CONTRACTIONS, REMAT

How = Literal["given", "copy", "step", "product", "slice", "held", "border"]


class Made(NamedTuple):
    """How a node came about.

    Attributes:
      how: `"given"` from outside, the `"copy"` of its source in another scope, by a
        `"step"` without a body or a `"product"`; inside a scan or a branch, the
        `"slice"` of a stacked source or a source `"held"` fixed; else at a `"border"`
        that units do not cross.
      sources: the nodes it was made from, in order.
      eqn: the equation; None if none made it.
      at: which output of the equation it is.
      literal: the constant it is, where it is written in place.
    """

    how: How
    sources: tuple[int, ...] = ()
    eqn: Any = None
    at: int = 0
    literal: Any = None


@dataclasses.dataclass
class Flow:
    """What `walk` records.

    Attributes:
      values: what is known of each node.
      places: scope and variable of each node.
      made: how each node was made.
      readers: nodes computed from each node.
      uses: every kernel use, in program order.
      use_nodes: node of each use's output.
      operand_of: kernel uses that read a node as their activation.
      carries: for each carry of a scan, the node at the start of its body, and the one
        at the end that is carried to the next start.
      watched: nodes that control other operations, with the name of that operation.
      untappable: nodes that cannot be measured where they are.
      problems: reason by parameter, for those whose product cannot be measured.
      doubts: the same, for those that may be kernels elsewhere.
      origins: for each node, the one whose array it holds: itself, unless it was
        copied into or out of a call.
    """

    values: list[Value] = dataclasses.field(default_factory=list)
    places: list[tuple[Scope, Any]] = dataclasses.field(default_factory=list)
    made: list[Made] = dataclasses.field(default_factory=list)
    readers: list[list[int]] = dataclasses.field(default_factory=list)
    uses: list[contract.Use] = dataclasses.field(default_factory=list)
    use_nodes: list[int] = dataclasses.field(default_factory=list)
    operand_of: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    carries: dict[int, int] = dataclasses.field(default_factory=dict)
    watched: dict[int, str] = dataclasses.field(default_factory=dict)
    untappable: set[int] = dataclasses.field(default_factory=set)
    problems: dict[int, str] = dataclasses.field(default_factory=dict)
    doubts: dict[int, str] = dataclasses.field(default_factory=dict)
    origins: list[int] = dataclasses.field(default_factory=list)
    outputs: tuple[int, ...] = ()

    @functools.cached_property
    def copies(self) -> dict[tuple[int, Scope], Any]:
        """By origin and scope, a variable that holds the array of the origin."""
        found: dict[tuple[int, Scope], Any] = {}
        for origin, (scope, var) in zip(self.origins, self.places, strict=True):
            if var is not None:
                found.setdefault((origin, scope), var)
        return found


def walk(closed: Any, inputs: Sequence[Value]) -> Flow:
    """Follows a closed jaxpr whose operands are `inputs`."""
    flow = Flow()
    follow = _FlowPass(flow)
    jaxpr, consts = jaxprs.opened(closed)
    nodes = [follow.node(v, (), None, Made("given")) for v in inputs]
    flow.outputs = tuple(follow.body(jaxpr, consts, nodes, ()))
    return flow


@dataclasses.dataclass
class _FlowPass(interpreter.Interpreter[int, Scope]):
    flow: Flow
    opaque: tuple[str, ...] = ()
    scans: tuple[Scope, ...] = ()  # bodies of the enclosing scans, outermost first

    def node(self, value: Value, scope: Scope, var: Any, made: Made) -> int:
        number = len(self.flow.values)
        self.flow.values.append(value)
        self.flow.places.append((scope, var))
        self.flow.made.append(made)
        self.flow.readers.append([])
        same = made.how in ("copy", "held") and len(made.sources) == 1
        origin = self.flow.origins[made.sources[0]] if same else number
        self.flow.origins.append(origin)
        for source in made.sources:
            self.flow.readers[source].append(number)
        if var is None or self.opaque:
            self.flow.untappable.add(number)
        return number

    def constant(self, value: Any, var: Any, at: Scope) -> int:
        """A constant; one that is not given may be any."""
        if value is None:
            return self.node(plain(var.aval.shape), at, var, Made("given"))
        made = Made("given", literal=value if var is None else None)
        return self.node(_constant(value), at, var, made)

    def given(self, var: Any, arg: int, at: Scope) -> int:
        """A variable of a body: a copy of its operand."""
        return self.node(self.flow.values[arg], at, var, Made("copy", (arg,)))

    def step(self, eqn: Any, index: int, ins: Sequence[int], at: Scope) -> list[int]:
        """An operation without a body."""
        name = eqn.primitive.name
        values = [self.flow.values[i] for i in ins]
        if name in CONTRACTIONS:
            return [self.contraction(eqn, ins, values, at)]
        outs = transfer(eqn, values)
        if not eqn.outvars and not name.startswith("debug"):
            self.flow.watched.update(dict.fromkeys(ins, name))
        return [
            self.node(v, at, var, Made("step", tuple(ins), eqn, i))
            for i, (v, var) in enumerate(zip(outs, eqn.outvars, strict=True))
        ]

    # Calls -----------------------------------------------------------------------
    def call(
        self, call: NestedCall, eqn: Any, index: int, ins: Sequence[int], at: Scope
    ) -> list[int]:
        """Follows the bodies of a call, by its kind."""
        if call.kind == "inline":
            return self.inline(call, eqn, index, ins, at)
        if eqn.primitive.name == "custom_jvp_call":
            return self.custom_jvp(call, eqn, index, ins, at)
        if call.kind not in ("scan", "cond"):
            return self.opaque_call(call, eqn, index, ins, at)
        if call.kind == "cond":
            self.flow.watched[ins[0]] = "cond"
        results = []
        args: list[int] = []
        for body in call.bodies:
            inner = (*at, (index, body.number))
            args = args or self.enter(call, body, eqn, ins, inner)
            outer = self.scans
            if call.kind == "scan":
                self.scans = (*outer, inner)
            results.append(self.body(body.jaxpr, body.consts, args, inner))
            self.scans = outer
            for before, after in body.feeds:
                self.flow.carries[args[before]] = results[-1][after]
        return self.leave(eqn, at, results, keep=False)

    def enter(
        self, call: NestedCall, body: Body, eqn: Any, ins: Sequence[int], inner: Scope
    ) -> list[int]:
        """What a body is given: operands whose units end at its border."""
        args = []
        for operand, way in body.entries:
            node = ins[operand]
            value, how = self.flow.values[node].released(), _HOW[way]
            if call.kind == "while":
                how = "border"
            if way == "sliced":
                value = _slice_of(value, inner)
            elif way == "carried":
                value = self.carried(value, call.kind)
            args.append(self.node(value, inner, None, Made(how, (node,), eqn)))
        return args

    def leave(
        self, eqn: Any, scope: Scope, results: Sequence[Sequence[int]], keep: bool
    ) -> list[int]:
        """Nodes outside a call for the results of its bodies."""
        outs = []
        for i, var in enumerate(eqn.outvars):
            sources = tuple(r[i] for r in results)
            value = self.flow.values[sources[0]]
            shape = tuple(getattr(var.aval, "shape", ()))
            made = Made("copy", sources, eqn, i)
            if not keep or value.shape != shape or len(sources) > 1:
                known = [self.flow.values[s] for s in sources]
                value = forget(eqn.primitive.name, known, shape)
                made = made._replace(how="border")
            outs.append(self.node(value, scope, var, made))
        return outs

    def inline(self, call, eqn, index, ins, at) -> list[int]:
        """`jit` and `remat`: units pass in and out."""
        (body,) = call.bodies
        inner = self.body(body.jaxpr, body.consts, ins, (*at, (index, 0)))
        outs = self.leave(eqn, at, [inner], keep=True)
        _name_nonlinearity(self.flow, ins, outs, eqn)
        return outs

    def custom_jvp(self, call, eqn, index, ins, at) -> list[int]:
        """A function with its own derivative: measured beside it, if need be."""
        first, uses = len(self.flow.values), len(self.flow.uses)
        outs = self.inline(call, eqn, index, ins, at)
        if len(self.flow.uses) == uses:  # nothing to measure: one elementwise step
            self.flow.untappable.update(range(first, outs[0]))
        return outs

    def opaque_call(self, call, eqn, index, ins, at) -> list[int]:
        """A body that cannot be measured: its uses become problems, by name."""
        name = _call_name(eqn)
        outer, self.opaque = self.opaque, (*self.opaque, name)
        *_, body = call.bodies  # of a loop, what it does in each round
        followable = len(call.bodies) == 1 and len(body.jaxpr.invars) == len(ins)
        inner = (*at, (index, body.number))
        if followable:
            args = self.let_in(call, eqn, ins, at)
            results = self.body(body.jaxpr, body.consts, args, inner)
            shapes = [self.flow.values[i].shape for i in results]
            followable = shapes == [tuple(v.aval.shape) for v in eqn.outvars]
        elif call.kind == "while":
            args = self.enter(call, body, eqn, ins, inner)
            self.body(body.jaxpr, body.consts, args, inner)
        else:
            self.swallow(ins, name)
        self.opaque = outer
        if followable:
            return self.leave(eqn, at, [results], keep=True)
        values = [self.flow.values[i] for i in ins]
        made = Made("border", tuple(ins), eqn)
        return [
            self.node(forget(name, values, v.aval.shape), at, v, made)
            for v in eqn.outvars
        ]

    def let_in(
        self, call: NestedCall, eqn: Any, ins: Sequence[int], at: Scope
    ) -> list[int]:
        """Operands of a body, without their units unless it has its own derivative."""
        if call.kind == "custom":
            return list(ins)
        return [
            self.node(self.flow.values[i], at, None, Made("border", (i,), eqn))
            for i in ins
        ]

    def carried(self, value: Value, name: str) -> Value:
        """A carry: from the second iteration on, something that the body computed."""
        if value.weight is not None and not any(value.const) and len(value.shape) > 1:
            reason = f"is the carry of a {name}, whose body may change it"
            self.flow.problems.setdefault(value.weight, reason)
        return plain(value.shape, value.deps | {DATA})

    def swallow(self, ins: Sequence[int], name: str) -> None:
        """Parameters that enter a body that cannot be read."""
        for i in ins:
            value = self.flow.values[i]
            if value.weight is not None and len(value.shape) > 1 and not value.deps:
                self.flow.problems.setdefault(value.weight, f"inside {name}")

    def contraction(self, eqn, ins, values, scope) -> int:
        """A product: a kernel use, or a mixture of activations."""
        groups = self.flow.origins[ins[2]] if len(ins) > 2 else -1
        number = len(self.flow.uses)
        found = contract.classify(eqn, values, self.scans, number, groups)
        for weight, reason in found.problems:
            self.flow.problems.setdefault(weight, reason)
        for weight, reason in found.doubts:
            self.flow.doubts.setdefault(weight, reason)
        use, made = found.use, Made("product", tuple(ins), eqn)
        if use is not None and self.opaque:
            reason = f"used inside {self.opaque[-1]}, whose body cannot be measured"
            self.flow.problems[use.weight] = reason
            use = None
        if use is None:
            self.rotated(values)
            value = found.value
            if found.use is not None:
                value = plain(value.shape, frozenset({DATA}))
            return self.node(value, scope, eqn.outvars[0], made)
        fixed = values[use.operand].constant
        atom = eqn.invars[use.operand]
        use = dataclasses.replace(use, scope=scope, atom=atom, fixed=fixed)
        node = self.node(found.value, scope, eqn.outvars[0], made)
        self.flow.uses.append(use)
        self.flow.use_nodes.append(node)
        self.flow.operand_of.setdefault(ins[use.operand], []).append(node)
        return node

    def rotated(self, values: Sequence[Value]) -> None:
        """Refuses parameters that meet a constant matrix before they meet data."""
        uses = self.flow.uses
        for value, other in (values[:2], values[1::-1]):
            fixed = [u for u in value.deps if u != DATA and uses[u].fixed]
            moving = DATA in other.deps and not other.constant
            moving |= any(u != DATA and not uses[u].fixed for u in other.deps)
            if moving and len(fixed) == len(value.deps) == 1:
                why = "is multiplied by a constant before it meets data"
                self.flow.problems.setdefault(uses[fixed[0]].weight, why)


# How a node comes about that a body is given.
_HOW: dict[interpreter.Way, How] = {
    "same": "copy",
    "held": "held",
    "carried": "border",
    "sliced": "slice",
}


def _constant(const: Any) -> Value:
    """A constant; one with a shape may be data that the function closed over."""
    shape = np.shape(const)
    if shape:
        return plain(shape, frozenset({DATA}), constant=True)
    return plain(shape, number=_number(const))


def _number(const: Any) -> float | None:
    """The value of a scalar constant, if it is a real number that is known."""
    if isinstance(const, jax.core.Tracer):
        return None
    kind = getattr(const, "dtype", None) or np.asarray(const).dtype
    real = jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
    return float(const) if real or kind == np.bool_ else None


def _slice_of(value: Value, scan: Scope) -> Value:
    """One iteration's slice of a stacked operand."""
    scanned = value.scanned
    lead = value.axes[0]
    weight = value.weight
    if weight is not None and len(lead) == 1 and lead[0].source is not None:
        scanned = (*scanned, (scan, lead[0]))
    elif weight is not None and lead[0].size != 1:
        return plain(value.shape[1:], value.deps, lost=frozenset({(weight, "scan")}))
    return value.replace(axes=value.axes[1:], const=value.const[1:], scanned=scanned)


def _call_name(eqn: Any) -> str:
    """Primitive of a call with the name of the user's function, where it has one."""
    name = eqn.params.get("name")
    if name is None:
        body = eqn.params.get("body_jaxpr")  # a loop has the name of its body
        for value in [body, *eqn.params.values()]:
            if jaxprs.is_jaxpr(value):
                info = getattr(jaxprs.opened(value)[0], "debug_info", None)
                name = getattr(info, "func_name", None)
                break
    kind = eqn.primitive.name
    return f"{kind} {name!r}" if isinstance(name, str) and name else kind


def _name_nonlinearity(
    flow: Flow, ins: Sequence[int], outs: Sequence[int], eqn: Any
) -> None:
    """A nonlinearity is named after the call that it is in (`relu`, not `max`)."""
    if eqn.primitive.name in REMAT or len(outs) != 1:
        return
    value = flow.values[outs[0]]
    entered = {o for i in ins for o in flow.values[i].owners}
    bends = max((flow.values[i].bends for i in ins), default=0)
    if not value.owners or not value.owners <= entered or value.bends <= bends:
        return
    if value.nonlinearity:
        name = _call_name(eqn).split("'")
        public = len(name) > 1 and not name[1].startswith("_")
        label = name[1] if public else value.nonlinearity
        flow.values[outs[0]] = value.replace(nonlinearity=label)


def living(flow: Flow) -> list[bool]:
    """For each node, whether a result of the function depends on it."""
    live = [False] * len(flow.values)
    for node in (*flow.outputs, *flow.carries.values(), *flow.watched):
        live[node] = True
    for node in range(len(live) - 1, -1, -1):
        if live[node]:
            for source in flow.made[node].sources:
                live[source] = True
    return live
