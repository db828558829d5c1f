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

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bbjax.model.kernel import Kernel
from bbjax.tracing.axes.extents import Dims
from bbjax.tracing.axes.program import Frame, Program
from bbjax.tracing.flow.contract import Scope, Use
from bbjax.tracing.flow.values import DATA, Value
from bbjax.tracing.flow.walk import Flow, Made, living
from bbjax.tracing.graph import zeros
from bbjax.tracing.graph.zeros import NEVER, Source, Zeros
from bbjax.tracing.primitives import (
    ACROSS,
    CHOOSING,
    ELEMENTWISE,
    FACTORS,
    LINEAR_UNARY,
    REDUCING,
    RESHAPING,
    SHAPING,
    SUMMARIES,
    SUMS,
    ZERO_KEEPING,
)

Wholes = frozenset[int]


class Operand(NamedTuple):
    """A node that some operation takes, as far as it matters there.

    Attributes:
      on: the whole factors on its axes.
      carried: those of them that carry units.
      zeros: where it is zero.
      leaves: parameters that it depends on since the last kernel.
    """

    on: Wholes
    carried: Wholes
    zeros: Zeros
    leaves: frozenset[int]


class Sum(NamedTuple):
    """A product that sums over units.

    Attributes:
      over: the whole factors that it sums over.
      reader: the kernel that multiplies the units; None if both operands are something
        else.
      operands: those that are no kernel.
    """

    over: Wholes
    reader: int | None
    operands: tuple[Operand, ...]


class Joined(NamedTuple):
    """Something that is added to units.

    Attributes:
      units: the whole factors of the units that the term does not carry.
      carried: all whole factors of units beside it.
      term: what is added.
      why: names the operation.
    """

    units: Wholes
    carried: Wholes
    term: Operand
    why: str


class Other(NamedTuple):
    """Another use of units.

    Attributes:
      units: the whole factors whose units are used.
      carried: all whole factors of units that the operation sees; None if it sees
        parameters alone.
      leaves: parameters that it sees.
      why: names the operation.
    """

    units: Wholes
    carried: Wholes | None
    leaves: frozenset[int]
    why: str


@dataclasses.dataclass
class Uses:
    """What the pass records.

    Attributes:
      others: uses of units other than products.
      sums: products.
      joins: what is added to units.
      biases: by use, the parameter that is added to its raw output.
      order: parameters in order of their first use beside units.
      made: by use, the whole factors on the axes of its stack and its output units.
      weights: by use that the result depends on, its kernel.
    """

    others: list[Other] = dataclasses.field(default_factory=list)
    sums: list[Sum] = dataclasses.field(default_factory=list)
    joins: list[Joined] = dataclasses.field(default_factory=list)
    biases: dict[int, int] = dataclasses.field(default_factory=dict)
    order: dict[int, None] = dataclasses.field(default_factory=dict)
    made: dict[int, Wholes] = dataclasses.field(default_factory=dict)
    weights: dict[int, int] = dataclasses.field(default_factory=dict)


class _Info(NamedTuple):
    """What is known of a node.

    Attributes:
      zeros: where it is zero.
      number: the constant that it is everywhere, if known.
      mixed: units of parameters alone that it depends on as a whole.
      carried: whole factors on its axes that carry units.
      origin: the product or the parameter that it is, moved or cast.
      leaves: parameters that it depends on since the last kernel.
      pooled: whether it is a summary of its units over all else.
      running: whether it updates a statistic that the function was given.
    """

    zeros: Zeros = NEVER
    number: float | None = None
    mixed: Wholes = frozenset()
    carried: Wholes = frozenset()
    origin: Source | None = None
    leaves: frozenset[int] = frozenset()
    pooled: bool = False
    running: bool = False


NOTHING = _Info()


def follow(program: Program, flow: Flow, kernels: Mapping[int, Kernel]) -> Uses:
    """Records what becomes of the units of every kernel.

    Args:
      program: the function, with the axes of all its arrays.
      flow: what `walk` recorded of the same function.
      kernels: by parameter.
    """
    fed: dict[int, Wholes] = {}
    while True:
        this = _UsePass(program, flow, kernels, fed)
        for node, made in enumerate(flow.made):
            this.infos.append(this.info(node, made))
        again = {
            before: this.carried(after)
            for before, after in flow.carries.items()
            if not this.carried(after) <= this.carried(before)
        }
        if not again:
            break
        fed = fed | again  # what the body carries to its next step
    for node in flow.outputs:
        if not this.infos[node].running and not this.settled(node):
            this.use(node, this.on(node), (node,), "the function returns them")
    for node, name in flow.watched.items():
        this.use(node, this.on(node), (node,), f"{name} depends on them")
    return this.seen


class _UsePass:
    """The pass: `infos` grows by one per node."""

    def __init__(
        self,
        program: Program,
        flow: Flow,
        kernels: Mapping[int, Kernel],
        fed: Mapping[int, Wholes],
    ):
        self.program, self.flow, self.fed = program, flow, fed
        self.live = living(flow)
        self.infos: list[_Info] = []
        self.frames = dict(_frames((), program.top))
        self.by_node = dict(zip(flow.use_nodes, flow.uses, strict=True))
        self.leaves = [self.wholes(dims) for dims in program.leaves]
        self.seen = Uses()
        for node, use in self.by_node.items():
            if use.weight in kernels:
                own = (*kernels[use.weight].stack, *kernels[use.weight].fan_out)
                dims = [program.leaves[use.weight][axis] for axis in own]
                self.seen.made[use.number] = self.wholes(dims)
                if self.live[node]:
                    self.seen.weights[use.number] = use.weight
        self._on: dict[int, Wholes] = {}

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
    def info(self, node: int, made: Made) -> _Info:
        """What is known of a node, by how it was made."""
        value = self.flow.values[node]
        if made.how == "given":
            if value.weight is not None:
                source = ("w", value.weight)
                own = frozenset({value.weight})
                return _Info(zeros.of(source), origin=source, leaves=own)
            always = zeros.ALWAYS if value.number == 0 else NEVER
            return _Info(always, value.number)
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

    def step(self, node: int, made: Made) -> _Info:
        """What is special about the operation that made a node."""
        if made.how in ("copy", "held", "slice") and len(made.sources) == 1:
            source = made.sources[0]
            if made.how == "slice" and not self.settled(source):
                lead = self.wholes(self.dims(source)[:1])
                self.use(node, lead, (source,), "a scan runs over them")
            return self.infos[source]
        if made.how in ("copy", "border"):
            return self.border(node, made)
        step = _Step(self, node, made)
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

    def border(self, node: int, made: Made) -> _Info:
        """The result of a scan or a branch, or what is carried into a body."""
        name = made.eqn.primitive.name if made.eqn is not None else ""
        if name.startswith("while"):
            for source in made.sources:
                self.use(node, self.on(source), (source,), f"they enter {name}")
        result = self.flow.places[node][1] is not None
        if name not in ("scan", "cond") or not result:
            return NOTHING
        return _Info(zeros.every([self.infos[s].zeros for s in made.sources]))


def _frames(scope: Scope, frame: Frame) -> Iterable[tuple[Scope, Frame]]:
    yield scope, frame
    for key, body in frame.bodies.items():
        yield from _frames((*scope, key), body)


# Operations ----------------------------------------------------------------------
class _Step:
    """One operation without a body."""

    def __init__(self, this: _UsePass, node: int, made: Made):
        self.this, self.node, self.made = this, node, made
        self.eqn, self.name = made.eqn, made.eqn.primitive.name
        self.infos = [this.infos[s] for s in made.sources]
        self.values: list[Value] = [this.flow.values[s] for s in made.sources]
        self.operands = [this.operand(s) for s in made.sources]
        self.live = this.live[node]
        self.carried = frozenset[int]().union(*(o.carried for o in self.operands))

    def elementwise(self) -> _Info:
        """The result of an elementwise operation."""
        known = [info.zeros for info in self.infos]
        numbers = [info.number for info in self.infos]
        zero = zeros.elementwise(self.name, self.eqn.params, known, numbers)
        linear = self.name in LINEAR_UNARY and self.name != "neg"
        found = _Info(
            zero,
            numbers[0] if linear else None,
            origin=self.infos[0].origin if self.name in SHAPING else None,
        )
        self.bias()
        holders = [i for i, o in enumerate(self.operands) if o.carried]
        if not holders:
            return found
        self.pairs()
        terms = self.terms()
        running = self.running(holders, terms)
        if not running:
            self.join(dict.fromkeys(terms, self.carried))
        for info, operand in zip(self.infos, self.operands, strict=True):
            if not operand.carried:
                for leaf in sorted(info.leaves):
                    self.this.seen.order.setdefault(leaf)
        pooled = all(self.infos[i].pooled for i in holders)
        return found._replace(pooled=pooled, running=running)

    def terms(self) -> list[int]:
        """Operands that add something of their own."""
        if self.name in FACTORS:
            return []
        return list(range(1 if self.name == "select_n" else 0, len(self.infos)))

    def pairs(self) -> None:
        """Records units that lie on two axes."""
        seen: set[int] = set()
        for dim in self.this.dims(self.node):
            wholes = self.this.wholes([dim])
            why = f"{self.name} pairs them with each other"
            twice = seen & wholes & self.carried
            self.this.use(self.node, twice, self.made.sources, why)
            seen |= wholes

    def join(self, terms: Mapping[int, Wholes]) -> None:
        """Records terms that are not those units, parameters or constants."""
        for i, units in terms.items():
            term, source = self.operands[i], self.made.sources[i]
            missing = units - term.carried
            if not missing or not self.live or self.this.settled(source):
                continue
            if not self.varies_with(i, self.carried):
                why = f"{self.name} joins them with another value"
                self.this.seen.joins.append(Joined(missing, self.carried, term, why))

    def varies_with(self, i: int, units: Wholes) -> bool:
        """Whether a term is data that has one number for each unit."""
        value, dims = self.values[i], self.this.dims(self.node)
        if value.deps != {DATA} or len(value.const) != len(dims):
            return False
        fixed = [
            const
            for const, dim in zip(value.const, dims, strict=True)
            if not self.this.wholes([dim]) & units
        ]
        return bool(fixed) and all(fixed)

    def running(self, holders: Sequence[int], terms: Sequence[int]) -> bool:
        """Whether this updates a statistic, one number per unit, that was given.

        `0.9 * given + 0.1 * mean` of a batch norm: one operand sums units up over all
        else, the other is data or a parameter of that very shape.
        """
        infos = [self.infos[i] for i in holders]
        if all(info.running for info in infos):
            return True
        if any(info.running for info in infos):
            why = f"{self.name} joins them with a statistic of theirs"
            self.this.use(self.node, self.carried, self.made.sources, why)
            return False
        if not all(info.pooled for info in infos):
            return False
        dims = self.this.dims(self.node)
        shape = [self.this.program.extents.size(dim) for dim in dims]
        alone = all(
            n == 1 or self.this.wholes([dim]) <= self.carried
            for n, dim in zip(shape, dims, strict=True)
        )
        if not alone or max(shape, default=1) == 1:
            return False
        return any(self.given(i) for i in terms if i not in holders)

    def given(self, i: int) -> bool:
        """Whether a term is data, or a parameter that is scaled down."""
        info, value = self.infos[i], self.values[i]
        scaled = info.origin is None and info.number is None and info.zeros != NEVER
        return value.deps == {DATA} or (not value.deps and scaled)

    def bias(self) -> None:
        """Records a bare parameter that is added to the raw output of a kernel."""
        if self.name not in SUMS or not self.live or len(self.infos) != 2:
            return
        for one, two in (self.infos, self.infos[::-1]):
            if one.origin is not None and two.origin is not None:
                (kind, use), (other, leaf) = one.origin, two.origin
                if (kind, other) == ("u", "w"):
                    self.this.seen.biases[use] = leaf

    # Products --------------------------------------------------------------------
    def product(self, use: Use | None) -> _Info:
        """The result of a product; records the sum over units."""
        if not any(value.deps for value in self.values):
            return NOTHING
        over = self.over()
        through = NEVER
        for side, info in enumerate(self.infos[:2]):
            known = info.zeros
            if use is not None and side != use.operand:
                known = _replaced(known, ("w", use.weight), ("u", use.number))
            keep = ("u", use.number) if use is not None else None
            lost = {s for z in known for s in z if s != keep and self.of(s) & over}
            through = zeros.either(through, zeros.without(known, lost))
            if info.running:
                why = "a running statistic of theirs is multiplied"
                sources = (self.made.sources[side],)
                self.this.use(self.node, self.operands[side].on, sources, why)
        if self.live:
            reader = None if use is None else use.weight
            sides = [i for i in (0, 1) if use is None or i == use.operand]
            operands = tuple(self.operands[i] for i in sides)
            self.this.seen.sums.append(Sum(over, reader, operands))
        self.pairs()
        if use is None:
            return _Info(through)
        made = self.this.seen.made.get(use.number, frozenset())
        return _Info(through, carried=made, origin=("u", use.number))

    def over(self) -> Wholes:
        """Whole factors that the product sums over."""
        left, right = (self.this.dims(s) for s in self.made.sources[:2])
        numbers = self.eqn.params.get("dimension_numbers")
        if self.name == "dot_general":
            return self.this.wholes(left[a] for a in numbers[0][0] if left)
        if self.name == "conv_general_dilated":
            return self.this.wholes(right[a] for a in numbers.rhs_spec[1:2] if right)
        return self.this.wholes((*left, *right))

    def of(self, source: Source) -> Wholes:
        """The whole factors that the entries of a source lie on."""
        kind, number = source
        if kind == "w":
            return self.this.leaves[number]
        return self.this.seen.made.get(number, frozenset())

    # Moves -----------------------------------------------------------------------
    def moved(self) -> _Info:
        """The result of an operation that moves, reduces or picks entries."""
        if not self.infos:
            return NOTHING
        if self.name in ACROSS or self.name == "optimization_barrier":
            first = self.infos[self.made.at]
        else:
            first = self.infos[0]
        if self.name in ("concatenate", "stack"):
            self.joined(range(len(self.infos)))
        elif self.name in ("pad", "dynamic_update_slice"):
            self.joined((0, 1) if self.name != "pad" else (0,))
        elif self.name.startswith("scatter"):
            self.joined((0, 2))
        return _Info(
            self.moved_zeros(first.zeros),
            first.number if self.name in RESHAPING | {"slice"} else None,
            origin=first.origin if self.name in SHAPING else None,
            pooled=first.pooled or self.name in SUMMARIES,
            running=first.running,
        )

    def joined(self, operands: Sequence[int]) -> None:
        """Records what is put beside units, at other positions of theirs."""
        units = frozenset[int]().union(*(self.operands[i].carried for i in operands))
        units &= self.this.on(self.node)
        self.join({i: units & self.operands[i].on for i in operands})
        if self.name == "pad":
            self.join({1: self.padded(units)})

    def padded(self, units: Wholes) -> Wholes:
        """Units that get entries at other positions from padding."""
        config = self.eqn.params["padding_config"]
        dims = self.this.dims(self.made.sources[0])
        hit = [
            self.this.wholes([d])
            for c, d in zip(config, dims, strict=False)
            if tuple(c) != (0, 0, 0)
        ]
        return units if any(not wholes & units for wholes in hit) else frozenset()

    def moved_zeros(self, known: Zeros) -> Zeros:
        """Where the result is zero."""
        if self.name == "pad":
            return zeros.both(known, self.infos[1].zeros)
        if self.name in ("concatenate", "stack"):
            return zeros.every([info.zeros for info in self.infos])
        if self.name not in ZERO_KEEPING | CHOOSING:
            return NEVER
        if self.name not in REDUCING | ACROSS:
            return known
        dims = self.this.dims(self.made.sources[0])
        axes = self.eqn.params.get("axes", ())
        over = self.this.wholes(dims[a] for a in axes if isinstance(a, int) and dims)
        return zeros.without(known, {s for z in known for s in z if self.of(s) & over})


def _replaced(known: Zeros, old: Source, new: Source) -> Zeros:
    """Sets of sources with another name for one of them."""
    return frozenset(frozenset(new if s == old else s for s in z) for z in known)
