"""Sets of units that can be removed one by one, by masks.

The output units of a kernel are numbered by the whole factors on its axes: a kernel
`(in, heads, size)` makes units (head, entry), and so does every kernel whose outputs
are added to them or multiplied with them. A set of units is such a combination of whole
factors. Experts of a ragged product have their units in common: their rows are one
array, so a unit is removed in all experts or in none. Units can be removed if

    every product that sums over them is with a kernel that has a row for each of them,
    or with another value, and a unit that is removed is 0 there
    nothing is added to them that stays when they are removed
    they have no other use
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from bbjax.model.groups import Place, UnitSet
from bbjax.model.kernel import Kernel, Side
from bbjax.tracing.axes.extents import Dim, Dims
from bbjax.tracing.axes.program import Program
from bbjax.tracing.graph import zeros
from bbjax.tracing.graph.records import Contraction, Operand, Uses, Wholes
from bbjax.tracing.graph.scans import common_prefix
from bbjax.tracing.graph.zeros import NEVER, Zeros

NO_READER = "no kernel reads them"
NOT_FOLLOWED = "not every unit is followed through the function"


def sets(
    program: Program,
    found: Uses,
    paths: Sequence[str],
    kernels: Mapping[int, Kernel],
    scans: Mapping[int, Dims],
) -> tuple[UnitSet, ...]:
    """The sets of units that kernels make, in order of the kernels.

    Args:
      program: the function, with the axes of all its arrays.
      found: what becomes of units.
      paths: path of each parameter.
      kernels: by parameter, in order of first use.
      scans: from `bbjax.tracing.graph.scans.scans_of_groups`.
    """
    every = _Sets(program, found, paths, kernels, scans)
    return tuple(_Set(every, key).finished() for key in every.keys)


def with_graph(
    kernels: Mapping[int, Kernel],
    made: Sequence[UnitSet],
    found: Uses,
    program: Program,
    paths: Sequence[str],
) -> Iterator[Kernel]:
    """The kernels, with what follows from the sets of units.

    Args:
      kernels: by parameter, in order of first use.
      made: the sets of units.
      found: what becomes of units.
      program: the function, with the axes of all its arrays.
      paths: path of each parameter.
    """
    for leaf, kernel in kernels.items():
        pairs = [(s, p) for s in made for p in s.makers if p.path == kernel.path]
        own = [s for s, _ in pairs]
        placed = sum(int(np.sum(p.units >= 0)) for _, p in pairs)
        why = next((s.why_not for s in own if s.why_not), "")
        if not why and placed < math.prod(kernel.per_unit_shape("outputs")):
            why = NOT_FOLLOWED
        yield dataclasses.replace(
            kernel,
            bias=_bias(leaf, kernel, found, program, paths),
            companions=tuple(dict.fromkeys(c.path for s in own for c in s.companions)),
            stream=tuple(
                dict.fromkeys(
                    p.path for s in own for p in s.makers if p.path != kernel.path
                )
            ),
            closed=not why,
            why_not=why,
        )


def _bias(
    leaf: int,
    kernel: Kernel,
    found: Uses,
    program: Program,
    paths: Sequence[str],
) -> str:
    """The parameter added to the raw output of all uses, in the units' order."""
    weights = found.weights
    uses = [use for use, weight in weights.items() if weight == leaf]
    biases = {found.biases.get(use) for use in uses}
    (bias,) = biases if len(biases) == 1 else (None,)
    if bias is None:
        return ""
    others = {weights[u] for u, b in found.biases.items() if b == bias and u in weights}
    dims = view(program, kernel, leaf, "outputs")
    if others != {leaf} or dims is None:
        return ""
    factors = program.extents.factors
    own = [f for dim in dims for f in factors(dim)]
    its = [f for dim in program.leaves[bias] for f in factors(dim)]
    return paths[bias] if own == its else ""


def view(program: Program, kernel: Kernel, leaf: int, side: Side) -> Dims | None:
    """Dims of an array with one entry per unit of a side; None if there are none."""
    dims = program.leaves[leaf]
    extents = program.extents
    own = kernel.fan_out if side == "outputs" else kernel.fan_in
    found = [dims[a] for a in kernel.stack]
    if "group" not in kernel.roles:
        return (*found, *(dims[a] for a in own))
    at = kernel.roles.index("group")
    factors = list(extents.factors(dims[at]))
    major: list[int] = []
    while factors and extents.size(tuple(major)) < kernel.groups:
        major.append(factors.pop(0))
    if extents.size(tuple(major)) != kernel.groups:
        return None
    rest = (tuple(factors) if a == at else dims[a] for a in own)
    return (*found, tuple(major), *rest)


class _Entries:
    """The entries of some dims, row-major, and the unit of each whole factor."""

    def __init__(self, program: Program, dims: Sequence[Dim]):
        self.dim: Dim = sum(dims, ())
        self.extents = program.extents
        self.wholes: Wholes = frozenset(self.extents.wholes(self.dim))

    def at(self, whole: int) -> np.ndarray:
        """The unit of a whole factor that each entry is of; -1 for none."""
        return self.extents.positions(self.dim, whole)

    def twice(self, wholes: Wholes) -> bool:
        """Whether some whole factor lies on two axes."""
        factors = self.extents.factors(self.dim)
        each = [w for f in factors for w in set(self.extents.wholes((f,)))]
        return any(each.count(w) > 1 for w in wholes)

    def patterns(self, wholes: Sequence[int]) -> list[frozenset[int]]:
        """The combinations of whole factors that entries have."""
        if not wholes:
            return []
        rows = np.stack([self.at(w) >= 0 for w in wholes])
        return [
            frozenset(w for w, has in zip(wholes, column, strict=True) if has)
            for column in np.unique(rows, axis=1).T
        ]

    def numbers(
        self, wholes: Sequence[int], without: Wholes = frozenset()
    ) -> np.ndarray:
        """One number for each combination of units of whole factors; -1 for none.

        Entries that have units of others of `without` as well are of none.
        """
        at = np.stack([self.at(w) for w in wholes])
        sizes = [self.extents.size((w,)) for w in wholes]
        found = np.ravel_multi_index(tuple(np.maximum(at, 0)), sizes)
        mine = np.all(at >= 0, axis=0)
        for other in without - set(wholes):
            mine &= self.at(other) < 0
        return np.where(mine, found, -1).astype(np.int32)


class _Sets:
    """The combinations of whole factors that the outputs of kernels have."""

    def __init__(
        self,
        program: Program,
        found: Uses,
        paths: Sequence[str],
        kernels: Mapping[int, Kernel],
        scans: Mapping[int, Dims],
    ):
        self.program, self.found = program, found
        self.paths, self.kernels, self.scans = paths, kernels, scans
        leads = {lead for scans in self.scans.values() for lead in scans}
        layers = {w for d in leads for w in program.extents.wholes(d)}
        self.leads = frozenset(layers | found.leads)
        self.outputs = dict(self.entries("outputs"))
        self.inputs = dict(self.entries("inputs"))
        self.others = {  # parameters that are no kernels, in order of use
            leaf: _Entries(program, program.leaves[leaf])
            for leaf in dict.fromkeys([*found.acts, *range(len(paths))])
            if leaf not in kernels
        }
        self.keys: dict[Wholes, list[int]] = {}
        for leaf, entries in self.outputs.items():
            for key in entries.patterns(sorted(entries.wholes - self.leads)):
                if key:
                    self.keys.setdefault(key, []).append(leaf)

    def entries(self, side: Side) -> Iterator[tuple[int, _Entries]]:
        """The entries of every kernel, by parameter."""
        for leaf, kernel in self.kernels.items():
            dims = view(self.program, kernel, leaf, side)
            if dims is not None:
                yield leaf, _Entries(self.program, dims)

    def digits(self, key: Wholes) -> list[int]:
        """Whole factors that number the units: of the layers, then their own."""
        scans = common_prefix(self.program, [self.scans.get(w, ()) for w in key])
        layers = [w for lead in scans for w in self.program.extents.wholes(lead)]
        first = self.outputs[self.keys[key][0]]
        own = [w for w in self.program.extents.wholes(first.dim) if w in key]
        return [*dict.fromkeys(layers), *own]


class _Set:
    """The units of one combination of whole factors."""

    def __init__(self, every: _Sets, key: Wholes):
        self.every, self.key = every, key
        self.paths, self.found = every.paths, every.found
        self.digits = every.digits(key)
        self.size = every.program.extents.size(tuple(self.digits))
        self.makers = {leaf: self.made_by(leaf) for leaf in every.keys[key]}
        self.companions = dict(self.placed())
        self.sums = [product for product in every.found.sums if product.over & key]
        readers = dict.fromkeys(p.reader for p in self.sums if p.reader is not None)
        rows = {leaf: self.rows(leaf) for leaf in readers}
        self.readers = {leaf: at for leaf, at in rows.items() if at is not None}
        self.known = {*self.makers, *self.companions, *self.readers}

    def made_by(self, leaf: int) -> np.ndarray:
        """The unit of every output of a kernel."""
        entries = self.every.outputs[leaf]
        return entries.numbers(self.digits, entries.wholes - self.every.leads)

    def placed(self) -> Iterator[tuple[int, np.ndarray]]:
        """Parameters with entries for the units, and the unit of each entry."""
        for leaf, entries in self.every.others.items():
            if set(self.digits) <= entries.wholes:
                yield leaf, entries.numbers(self.digits)

    def rows(self, leaf: int) -> np.ndarray | None:
        """The unit of every input of a kernel; None if some unit is missing."""
        entries = self.every.inputs.get(leaf)
        if entries is None or not set(self.digits) <= entries.wholes:
            return None
        units = entries.numbers(self.digits)
        return units if len(np.unique(units[units >= 0])) == self.size else None

    def finished(self) -> UnitSet:
        """The set, with the reason why its units cannot be removed, if there is one."""
        own = [p for p in self.sums if p.reader is None and self.meets(p)]
        wrong = {p.reader: why for p in self.sums if (why := self.wrong(p))}
        read = next(iter(wrong.values()), "")
        why = self.other() or self.joined() or read or self.summed()
        readers = {r: at for r, at in self.readers.items() if r not in wrong}
        if not why and not own and not readers:
            why = NO_READER
        program, paths = self.every.program, self.paths
        return UnitSet(
            self.size,
            tuple(Place(paths[m], at) for m, at in self.makers.items()),
            tuple(
                Place(
                    paths[c],
                    at,
                    shape=tuple(map(program.extents.size, program.leaves[c])),
                    acts_on=self.acts_on(c),
                )
                for c, at in self.companions.items()
            ),
            tuple(Place(paths[r], at, self.zero_if(r)) for r, at in readers.items()),
            why,
            apart=not own,
        )

    def acts_on(self, companion: int) -> tuple[str, ...]:
        """The kernels on whose units a companion acts, before others are added."""
        weights = self.found.acts.get(companion, set())
        own = [m for m in self.makers if m in weights] or list(self.makers)
        return tuple(self.paths[m] for m in own)

    # Reasons ---------------------------------------------------------------------
    def other(self) -> str:
        """The first other use of the units, or of what is removed along with them."""
        for use in self.found.others:
            carried = use.carried is None or self.key <= use.carried
            if use.units & self.key and (carried or use.leaves & self.known):
                return use.why
        return ""

    def joined(self) -> str:
        """Why something that is added to the units stays when they are removed."""
        for join in self.found.joins:
            beside = join.units & self.key and self.key <= join.carried
            if beside and not self.zero(join.term):
                return join.why
        return ""

    def wrong(self, product: Contraction) -> str:
        """Why the kernel that reads them cannot be cut along with the units."""
        if product.reader is None:
            return ""
        operand, name = product.operands[0], self.paths[product.reader]
        if product.reader not in self.readers:
            has = self.key <= operand.on
            return f"{name!r} has no row for each of them" if has else ""
        if not self.key <= operand.carried and not self.zero(operand):
            return f"{name!r} reads other values with the same weights"
        for other in self.every.keys:
            if other != self.key and other & self.key and other <= operand.carried:
                return f"{name!r} reads them with others, arranged apart"
        return ""

    def summed(self) -> str:
        """Why a product of two values, or a companion, keeps them."""
        for product in self.sums:
            if product.reader is not None:
                continue
            if self.meets(product):
                if not any(map(self.zero, product.operands)):
                    return "a product of two values sums over them"
            elif any(o.leaves & self.known for o in product.operands):
                return "a parameter with entries for them acts on other values"
        for leaf in self.companions:
            if self.every.others[leaf].twice(self.key):
                return f"{self.paths[leaf]!r} has them on two axes"
        return ""

    def meets(self, product: Contraction) -> bool:
        """Whether a product sums over the units of one of its operands."""
        return any(self.key <= operand.carried for operand in product.operands)

    # Zeros -----------------------------------------------------------------------
    def zero(self, operand: Operand) -> bool:
        """Whether an operand is 0 for a unit that is removed."""
        return all(self.named(operand.zeros, self.known))

    def named(self, known: Zeros, leaves: Collection[int]) -> list[tuple[str, ...]]:
        """The parameters in sets of sources, of makers of the units and of `leaves`."""
        found = set()
        for sources in known:
            names = {n for kind, n in sources if kind == "w" and n in leaves}
            weights = {self.found.weights.get(n) for kind, n in sources if kind == "u"}
            names |= {w for w in weights if w is not None and w in self.makers}
            found.add(tuple(self.paths[n] for n in sorted(names)))
        return sorted(found)

    def zero_if(self, reader: int) -> tuple[tuple[str, ...], ...]:
        """Where a reader reads 0: in all its products."""
        sums = [p.operands[0].zeros for p in self.sums if p.reader == reader]
        known = zeros.every(sums)
        return tuple(self.named(known, self.companions)) if known != NEVER else ((),)
