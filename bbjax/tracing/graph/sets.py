"""Sets of units that can be removed one by one, by masks.

The output units of a kernel are numbered by the whole factors on its axes: a kernel
`(in, heads, size)` makes units (head, entry), and so does every kernel whose outputs
are added to them or multiplied with them. A set of units is such a combination of whole
factors. Its units can be removed if

    every product that sums over them is with a kernel that has a row for each of them,
    or with another value, and a unit that is removed is 0 there
    nothing is added to them that stays when they are removed
    they have no other use
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from bbjax.model.groups import Place, UnitSet
from bbjax.model.kernel import Kernel, Side
from bbjax.tracing.axes.extents import Dim, Dims
from bbjax.tracing.axes.program import Program
from bbjax.tracing.graph import zeros
from bbjax.tracing.graph.scans import common_prefix, scans_of_groups
from bbjax.tracing.graph.uses import Operand, Sum, Uses, Wholes
from bbjax.tracing.graph.zeros import NEVER, Zeros

NO_READER = "no kernel reads them"
NOT_FOLLOWED = "not every unit is followed through the function"


def sets(
    program: Program, found: Uses, paths: Sequence[str], kernels: Mapping[int, Kernel]
) -> tuple[UnitSet, ...]:
    """The sets of units that kernels make, in order of the kernels.

    Args:
      program: the function, with the axes of all its arrays.
      found: what becomes of units.
      paths: path of each parameter.
      kernels: by parameter, in order of first use.
    """
    this = _Sets(program, found, paths, kernels)
    return tuple(this.set_of(key) for key in this.keys)


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
        own = [s for s in made if any(p.path == kernel.path for p in s.makers)]
        count = math.prod(kernel.per_unit_shape("outputs"))
        placed = sum(
            int(np.sum(p.units >= 0))
            for s in own
            for p in s.makers
            if p.path == kernel.path
        )
        why = next((s.why_not for s in own if s.why_not), "")
        if not why and placed < count:
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
    factors, major = list(extents.factors(dims[at])), []
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
    def __init__(
        self,
        program: Program,
        found: Uses,
        paths: Sequence[str],
        kernels: Mapping[int, Kernel],
    ):
        self.program, self.found = program, found
        self.paths, self.kernels = paths, kernels
        self.scans = scans_of_groups(program)
        leads = {lead for scans in self.scans.values() for lead in scans}
        self.leads = frozenset(w for d in leads for w in program.extents.wholes(d))
        self.outputs = dict(self.entries("outputs"))
        self.inputs = dict(self.entries("inputs"))
        self.others = {  # parameters that are no kernels, in order of use
            leaf: _Entries(program, program.leaves[leaf])
            for leaf in dict.fromkeys([*found.order, *range(len(paths))])
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

    # Sets ------------------------------------------------------------------------
    def set_of(self, key: Wholes) -> UnitSet:
        """The set of units of some whole factors."""
        wholes = self.digits(key)
        size = self.program.extents.size(tuple(wholes))
        makers = tuple(self.maker(leaf, wholes) for leaf in self.keys[key])
        companions = dict(self.companions(key, wholes))
        read, why = self.readers(key, wholes, size)
        known = {*self.keys[key], *companions, *read}
        readers = tuple(
            Place(self.paths[leaf], units, self.zero_if(key, sums, companions))
            for leaf, (units, sums) in read.items()
        )
        why = self.other(key, known) or self.joined(key, known) or why
        apart = True
        for product in self.over(key):
            if product.reader is not None:
                continue
            if any(key <= o.carried for o in product.operands):
                apart = False
                if not any(self.zero(key, o, known) for o in product.operands):
                    why = why or "a product of two values sums over them"
            elif any(o.leaves & known for o in product.operands):
                why = why or "a parameter with entries for them acts on other values"
        for leaf in companions:
            if self.others[leaf].twice(key):
                why = why or f"{self.paths[leaf]!r} has them on two axes"
        if not why and apart and not readers:
            why = NO_READER
        places = tuple(companions.values())
        return UnitSet(size, makers, places, readers, why, apart)

    def maker(self, leaf: int, wholes: Sequence[int]) -> Place:
        """The units in a kernel that makes them."""
        entries = self.outputs[leaf]
        others = entries.wholes - self.leads
        return Place(self.paths[leaf], entries.numbers(wholes, others))

    def digits(self, key: Wholes) -> list[int]:
        """Whole factors that number the units: of the layers, then their own."""
        scans = common_prefix(self.program, [self.scans.get(w, ()) for w in key])
        layers = [w for lead in scans for w in self.program.extents.wholes(lead)]
        first = self.outputs[self.keys[key][0]]
        own = [w for w in self.program.extents.wholes(first.dim) if w in key]
        return [*dict.fromkeys(layers), *own]

    def companions(self, key: Wholes, wholes: list[int]) -> Iterator[tuple[int, Place]]:
        """Parameters with entries for the units, in order of use."""
        for leaf, entries in self.others.items():
            if set(wholes) <= entries.wholes:
                shape = map(self.program.extents.size, self.program.leaves[leaf])
                units = entries.numbers(wholes)
                yield leaf, Place(self.paths[leaf], units, shape=tuple(shape))

    def over(self, key: Wholes) -> Iterable[Sum]:
        """Products that sum over the units."""
        return (product for product in self.found.sums if product.over & key)

    def readers(
        self, key: Wholes, wholes: list[int], size: int
    ) -> tuple[dict[int, tuple[np.ndarray, list[Sum]]], str]:
        """Kernels that have a row for each unit, and why some reader has not."""
        found: dict[int, tuple[np.ndarray, list[Sum]]] = {}
        reasons: dict[int, str] = {}
        for product in self.over(key):
            leaf = product.reader
            if leaf is None:
                continue
            operand, name = product.operands[0], self.paths[leaf]
            units = self.rows(leaf, wholes)
            complete = units is not None and len(np.unique(units[units >= 0])) == size
            if key <= operand.on and not complete:
                reasons[leaf] = f"{name!r} has no row for each of them"
            elif complete and not key <= operand.carried:
                reasons[leaf] = f"{name!r} reads other values with the same weights"
            elif units is not None and complete:
                rivals = [
                    other
                    for other in self.keys
                    if other != key and other & key and other <= operand.carried
                ]
                if rivals:
                    reasons[leaf] = f"{name!r} reads them with others, arranged apart"
                found.setdefault(leaf, (units, []))[1].append(product)
        for leaf in reasons:
            found.pop(leaf, None)
        return found, next(iter(reasons.values()), "")

    def rows(self, leaf: int, wholes: list[int]) -> np.ndarray | None:
        """The unit of every input of a kernel; None if it has no rows for them."""
        entries = self.inputs.get(leaf)
        if entries is None or not set(wholes) <= entries.wholes:
            return None
        return entries.numbers(wholes)

    def other(self, key: Wholes, known: set[int]) -> str:
        """The first other use of the units, or of what is removed along with them."""
        for use in self.found.others:
            seen = use.carried is None or key <= use.carried or use.leaves & known
            if use.units & key and seen:
                return use.why
        return ""

    def joined(self, key: Wholes, known: set[int]) -> str:
        """Why something that is added to the units stays when they are removed."""
        for join in self.found.joins:
            if not (join.units & key and key <= join.carried):
                continue
            if not self.zero(key, join.term, known):
                return join.why
        return ""

    # Zeros -----------------------------------------------------------------------
    def zero(self, key: Wholes, operand: Operand, known: Iterable[int]) -> bool:
        """Whether an operand is 0 for a unit that is removed."""
        return all(self.named(key, operand.zeros, known))

    def named(
        self, key: Wholes, known: Zeros, leaves: Iterable[int]
    ) -> list[tuple[str, ...]]:
        """The parameters in sets of sources, of makers of the units and of `leaves`."""
        found = set()
        for sources in known:
            names = {n for kind, n in sources if kind == "w" and n in leaves}
            for kind, n in sources:
                if kind == "u" and self.found.weights.get(n) in self.keys[key]:
                    names.add(self.found.weights[n])
            found.add(tuple(self.paths[n] for n in sorted(names)))
        return sorted(found)

    def zero_if(
        self, key: Wholes, sums: Sequence[Sum], companions: Iterable[int]
    ) -> tuple[tuple[str, ...], ...]:
        """Where a reader reads 0: in all its products."""
        known = zeros.every([product.operands[0].zeros for product in sums])
        return tuple(self.named(key, known, companions)) if known != NEVER else ((),)
