"""Single operations in the pass over uses of units: what they record and make known.

There are two kinds of operands of elementwise operations. A *factor* (of a product, a
mask, a gate) scales units and adds nothing. A *term* (of a sum, a maximum, a choice)
adds something. Beside units it has to be units of the same index (a residual stream), a
parameter, a constant, or data with one number for each unit (a running mean). Any other
term is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bbjax.tracing.flow.contract import Use, numbers_of
from bbjax.tracing.flow.values import DATA, Value
from bbjax.tracing.flow.walk import Made
from bbjax.tracing.graph import zeros
from bbjax.tracing.graph.records import NOTHING, Contraction, Joined, NodeFacts, Wholes
from bbjax.tracing.graph.zeros import NEVER, Source, Zeros
from bbjax.tracing.primitives import (
    ACROSS,
    CHOOSING,
    FACTORS,
    LINEAR_UNARY,
    REDUCING,
    RESHAPING,
    SHAPING,
    SUMMARIES,
    SUMS,
    ZERO_KEEPING,
)

if TYPE_CHECKING:
    from bbjax.tracing.graph.uses import UsePass


class UseStep:
    """One operation without a body."""

    def __init__(self, uses: UsePass, node: int, made: Made):
        self.uses, self.node, self.made = uses, node, made
        self.eqn, self.name = made.eqn, made.eqn.primitive.name
        self.infos = [uses.infos[s] for s in made.sources]
        self.values: list[Value] = [uses.flow.values[s] for s in made.sources]
        self.operands = [uses.operand(s) for s in made.sources]
        self.live = uses.live[node]
        self.carried = frozenset[int]().union(*(o.carried for o in self.operands))

    def elementwise(self) -> NodeFacts:
        """The result of an elementwise operation."""
        numbers = [info.number for info in self.infos]
        zero = zeros.elementwise(
            self.name, self.eqn.params, [info.zeros for info in self.infos], numbers
        )
        linear = self.name in LINEAR_UNARY and self.name != "neg"
        found = NodeFacts(
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
        deps = frozenset[int]().union(*(self.values[i].deps for i in holders))
        known = self.uses.seen.weights
        weights = {known[use] for use in deps if use in known}
        for i, info in enumerate(self.infos):
            for leaf in sorted(info.leaves) if i not in holders else ():
                self.uses.seen.acts.setdefault(leaf, set()).update(weights)
        pooled = all(self.infos[i].pooled for i in holders)
        return found._replace(pooled=pooled, running=running)

    def terms(self) -> list[int]:
        """Operands that add something of their own."""
        if self.name in FACTORS:
            return []
        return list(range(1 if self.name == "select_n" else 0, len(self.infos)))

    def pairs(self) -> None:
        """Records units that lie on two axes."""
        seen: Wholes = frozenset()
        why = f"{self.name} pairs them with each other"
        for dim in self.uses.dims(self.node):
            wholes = self.uses.wholes([dim])
            twice = seen & wholes & self.carried
            self.uses.use(self.node, twice, self.made.sources, why)
            seen |= wholes

    def join(self, terms: Mapping[int, Wholes]) -> None:
        """Records terms that are not those units, parameters or constants."""
        for i, units in terms.items():
            term, source = self.operands[i], self.made.sources[i]
            missing = units - term.carried
            if not missing or not self.live or self.uses.settled(source):
                continue
            if not self.varies_with(i, self.carried):
                why = f"{self.name} joins them with another value"
                self.uses.seen.joins.append(Joined(missing, self.carried, term, why))

    def varies_with(self, i: int, units: Wholes) -> bool:
        """Whether a term is data that has one number for each unit."""
        value, dims = self.values[i], self.uses.dims(self.node)
        if value.deps != {DATA} or len(value.const) != len(dims):
            return False
        fixed = [
            const
            for const, dim in zip(value.const, dims, strict=True)
            if not self.uses.wholes([dim]) & units
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
            self.uses.use(self.node, self.carried, self.made.sources, why)
            return False
        if not all(info.pooled for info in infos):
            return False
        dims = self.uses.dims(self.node)
        shape = [self.uses.program.extents.size(dim) for dim in dims]
        alone = all(
            n == 1 or self.uses.wholes([dim]) <= self.carried
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
                    self.uses.seen.biases[use] = leaf

    # Products --------------------------------------------------------------------
    def product(self, use: Use | None) -> NodeFacts:
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
                self.uses.use(self.node, self.operands[side].on, sources, why)
        if self.live:
            reader = None if use is None else use.weight
            sides = [i for i in (0, 1) if use is None or i == use.operand]
            operands = tuple(self.operands[i] for i in sides)
            self.uses.seen.sums.append(Contraction(over, reader, operands))
        self.pairs()
        if use is None:
            return NodeFacts(through)
        matrices = self.uses.dims(self.made.sources[1])
        stack = numbers_of(self.eqn).stack
        self.uses.seen.leads |= self.uses.wholes(matrices[a] for a in stack)
        made = self.uses.seen.made.get(use.number, frozenset())
        return NodeFacts(through, carried=made, origin=("u", use.number))

    def over(self) -> Wholes:
        """Whole factors that the product sums over."""
        right = self.uses.dims(self.made.sources[1])
        contracted = numbers_of(self.eqn).contract[1]
        return self.uses.wholes(right[a] for a in contracted if right)

    def of(self, source: Source) -> Wholes:
        """The whole factors that the entries of a source lie on."""
        kind, number = source
        if kind == "w":
            return self.uses.leaves[number]
        return self.uses.seen.made.get(number, frozenset())

    # Moves -----------------------------------------------------------------------
    def moved(self) -> NodeFacts:
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
        return NodeFacts(
            self.moved_zeros(first.zeros),
            first.number if self.name in RESHAPING | {"slice"} else None,
            origin=first.origin if self.name in SHAPING else None,
            pooled=first.pooled or self.name in SUMMARIES,
            running=first.running,
        )

    def joined(self, operands: Sequence[int]) -> None:
        """Records what is put beside units, at other positions of theirs."""
        units = frozenset[int]().union(*(self.operands[i].carried for i in operands))
        units &= self.uses.on(self.node)
        self.join({i: units & self.operands[i].on for i in operands})
        if self.name == "pad":
            self.join({1: self.padded(units)})

    def padded(self, units: Wholes) -> Wholes:
        """Units that get entries at other positions from padding."""
        config = self.eqn.params["padding_config"]
        dims = self.uses.dims(self.made.sources[0])
        hit = [
            self.uses.wholes([d])
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
        dims = self.uses.dims(self.made.sources[0])
        axes = self.eqn.params.get("axes", ())
        over = self.uses.wholes(dims[a] for a in axes if isinstance(a, int) and dims)
        return zeros.without(known, {s for z in known for s in z if self.of(s) & over})


def _replaced(known: Zeros, old: Source, new: Source) -> Zeros:
    """Sets of sources with another name for one of them."""
    return frozenset(frozenset(new if s == old else s for s in z) for z in known)
