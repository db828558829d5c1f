"""How units are used: one pass over the nodes of a walked function.

`bbjax.tracing.flow` knows on which kernels a node depends, `bbjax.tracing.axes` which
units lie on its axes. Together they tell which units a node *carries*: those on its
axes that a kernel it depends on has made. Recorded is what becomes of them:

    a product sums over them     a kernel reads them, or two activations meet
    something is added to them   from elsewhere, that is no parameter or constant
    anything else                an operation mixes them, the function returns them

An operation that is not followed is recorded as another use. That errs on the safe
side: a unit that could be removed stays, and no unit is removed that is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bbjax.model.kernel import Kernel
from bbjax.tracing.axes.extents import Dims
from bbjax.tracing.axes.program import Frame, Program
from bbjax.tracing.flow.contract import Scope
from bbjax.tracing.flow.walk import Flow, Made, living
from bbjax.tracing.graph import zeros
from bbjax.tracing.graph.records import NOTHING, NodeFacts, Operand, Other, Uses, Wholes
from bbjax.tracing.graph.steps import UseStep
from bbjax.tracing.graph.zeros import NEVER
from bbjax.tracing.primitives import ELEMENTWISE


def follow(program: Program, flow: Flow, kernels: Mapping[int, Kernel]) -> Uses:
    """Records what becomes of the units of every kernel.

    Args:
      program: the function, with the axes of all its arrays.
      flow: what `walk` recorded of the same function.
      kernels: by parameter.
    """
    this = UsePass(program, flow, kernels)
    while again := this.run():
        this.fed |= again
    for node in flow.outputs:
        if not this.infos[node].running and not this.settled(node):
            this.use(node, this.on(node), (node,), "the function returns them")
    for node, name in flow.watched.items():
        this.use(node, this.on(node), (node,), f"{name} depends on them")
    return this.seen


class UsePass:
    """The pass: `infos` grows by one per node.

    `fed` has, by the start of a scan's body, what the end of it carries to its next
    step.
    """

    def __init__(self, program: Program, flow: Flow, kernels: Mapping[int, Kernel]):
        self.program, self.flow = program, flow
        self.live = living(flow)
        self.fed: dict[int, Wholes] = {}
        self.frames = dict(_frames((), program.top))
        self.by_node = dict(zip(flow.use_nodes, flow.uses, strict=True))
        self.leaves = [self.wholes(dims) for dims in program.leaves]
        self._on: dict[int, Wholes] = {}
        self._made: dict[int, Wholes] = {}
        self._weights: dict[int, int] = {}
        for node, use in self.by_node.items():
            if use.weight in kernels:
                own = (*kernels[use.weight].stack, *kernels[use.weight].fan_out)
                dims = [program.leaves[use.weight][axis] for axis in own]
                self._made[use.number] = self.wholes(dims)
                if self.live[node]:
                    self._weights[use.number] = use.weight

    def run(self) -> dict[int, Wholes]:
        """One pass over all nodes; returns what is still missing in `fed`."""
        self.seen = Uses(made=self._made, weights=self._weights)
        self.infos: list[NodeFacts] = []
        for node, made in enumerate(self.flow.made):
            self.infos.append(self.info(node, made))
        return {
            before: self.carried(after)
            for before, after in self.flow.carries.items()
            if not self.carried(after) <= self.carried(before)
        }

    # Axes ------------------------------------------------------------------------
    def wholes(self, dims: Iterable[Any]) -> Wholes:
        """The whole factors of some dims."""
        return frozenset(w for dim in dims for w in self.program.extents.wholes(dim))

    def dims(self, node: int) -> Dims:
        """Dims of a node; none where they are not known."""
        scope, var = self.flow.places[node]
        frame = self.frames.get(scope)
        if var is not None and frame is not None and var in frame.dims:
            return frame.dims[var]
        made = self.flow.made[node]
        if made.how == "slice":
            return self.dims(made.sources[0])[1:]
        if made.how in ("held", "border", "copy") and len(made.sources) == 1:
            return self.dims(made.sources[0])
        return ()

    def on(self, node: int) -> Wholes:
        """The whole factors on the axes of a node."""
        if node not in self._on:
            self._on[node] = self.wholes(self.dims(node))
        return self._on[node]

    def carried(self, node: int) -> Wholes:
        """Those of them that carry units."""
        return self.infos[node].carried

    def operand(self, node: int) -> Operand:
        """A node as an operand."""
        info = self.infos[node]
        return Operand(self.on(node), self.carried(node), info.zeros, info.leaves)

    def settled(self, node: int) -> bool:
        """Whether a node depends on parameters and constants alone."""
        value = self.flow.values[node]
        return value.constant or not value.deps

    def use(self, node: int, units: Wholes, seen: Sequence[int], why: str) -> None:
        """Records another use of units by an operation that sees some nodes."""
        if self.live[node] and units:
            carried = frozenset[int]().union(*map(self.carried, seen))
            leaves = frozenset[int]().union(*(self.infos[n].leaves for n in seen))
            self.seen.others.append(Other(units, carried, leaves, why))

    # Nodes -----------------------------------------------------------------------
    def info(self, node: int, made: Made) -> NodeFacts:
        """What is known of a node, by how it was made."""
        value = self.flow.values[node]
        if made.how == "given":
            if value.weight is not None:
                source = ("w", value.weight)
                own = frozenset({value.weight})
                return NodeFacts(zeros.of(source), origin=source, leaves=own)
            always = zeros.ALWAYS if value.number == 0 else NEVER
            return NodeFacts(always, value.number)
        found = self.step(node, made)
        infos = [self.infos[s] for s in made.sources]
        carried = frozenset[int]().union(*(i.carried for i in infos), found.carried)
        carried |= self.fed.get(node, frozenset())
        known = found.leaves.union(*(i.leaves for i in infos))
        return found._replace(
            mixed=self.mixed(node, made),
            carried=carried & self.on(node),
            leaves=frozenset() if node in self.by_node else known,
        )

    def step(self, node: int, made: Made) -> NodeFacts:
        """What is special about the operation that made a node."""
        if made.how in ("copy", "held", "slice") and len(made.sources) == 1:
            source = made.sources[0]
            if made.how == "slice" and not self.settled(source):
                lead = self.wholes(self.dims(source)[:1])
                self.use(node, lead, (source,), "a scan runs over them")
            return self.infos[source]
        if made.how in ("copy", "border"):
            return self.border(node, made)
        step = UseStep(self, node, made)
        if made.how == "product":
            return step.product(self.by_node.get(node))
        if step.name in ELEMENTWISE and len(made.eqn.outvars) == 1:
            return step.elementwise()
        return step.moved()

    def mixed(self, node: int, made: Made) -> Wholes:
        """Units of parameters that a node depends on as a whole; records other uses."""
        mixed = frozenset[int]().union(*(self.infos[s].mixed for s in made.sources))
        scope, var = self.flow.places[node]
        frame = self.frames.get(scope)
        fixed = frame.mixed.get(var, []) if frame is not None else []
        if not all(map(self.settled, made.sources)):
            for dim, why in fixed:
                self.use(node, self.wholes([dim]), made.sources, why)
            if self.live[node] and mixed:
                if any(map(self.carried, made.sources)) or made.how == "product":
                    why = "weights that act on them depend on all of them"
                    self.seen.others.append(Other(mixed, None, frozenset(), why))
            return frozenset()
        return mixed | self.wholes(dim for dim, _ in fixed)

    def border(self, node: int, made: Made) -> NodeFacts:
        """The result of a scan or a branch, or what is carried into a body."""
        name = made.eqn.primitive.name if made.eqn is not None else ""
        if name.startswith("while"):
            for source in made.sources:
                self.use(node, self.on(source), (source,), f"they enter {name}")
        result = self.flow.places[node][1] is not None
        if name not in ("scan", "cond") or not result:
            return NOTHING
        return NodeFacts(zeros.every([self.infos[s].zeros for s in made.sources]))


def _frames(scope: Scope, frame: Frame) -> Iterable[tuple[Scope, Frame]]:
    yield scope, frame
    for key, body in frame.bodies.items():
        yield from _frames((*scope, key), body)
