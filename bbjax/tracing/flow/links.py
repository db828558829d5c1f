"""The unit graph: companions, links, streams, and which kernels are closed.

A kernel is *closed* if its units can be removed and nothing else changes. So every use
of it is read by kernels alone, each reader reads nothing else with the same rows, its
companions act on nothing else, and the kernels to whose units its units are added are
closed, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from bbjax.model.kernel import Companion, Kernel, Layout, Link
from bbjax.tracing.flow.follow import follow
from bbjax.tracing.flow.seen import Meet, Read, Seen
from bbjax.tracing.flow.walk import Flow


def linked(
    flow: Flow,
    kernels: Mapping[int, Kernel],
    paths: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
) -> Iterator[Kernel]:
    """The kernels again, with the unit graph.

    Args:
      flow: what `walk` recorded.
      kernels: by parameter.
      paths: path of each parameter.
      shapes: shape of each parameter.
    """
    owner = {u.number: u.weight for u in flow.uses if u.weight in kernels}
    by_use = {number: kernels[weight] for number, weight in owner.items()}
    seen = follow(flow, by_use, shapes)
    live = {n for n in owner if seen.live[flow.use_nodes[n]]}
    graph = _Graph(seen, kernels, paths, owner, live)
    graph.read()
    for weight, kernel in kernels.items():
        yield graph.fields(weight, kernel)


class _Graph:
    """What follows for kernels, by number of their parameter."""

    def __init__(
        self,
        seen: Seen,
        kernels: Mapping[int, Kernel],
        paths: Sequence[str],
        owner: dict[int, int],
        live: set[int],
    ):
        self.seen, self.kernels, self.paths = seen, kernels, paths
        self.owner, self.live = owner, live
        self.leaks: dict[int, str] = {}
        self.companions: dict[int, dict[int, Layout]] = {w: {} for w in kernels}
        self.links: dict[int, list[Link]] = {w: [] for w in kernels}
        self.streams: dict[int, set[int]] = {w: {w} for w in kernels}

    def read(self) -> None:
        """Draws all conclusions."""
        for use, why in sorted(self.seen.leaks.items()):
            self.leak(self.owner[use], why)
        for use in sorted(self.seen.changed):
            self.leak(self.owner[use], "its weights reach the product changed")
        for weight in self.kernels:
            if weight in self.seen.spoilt:
                self.leak(weight, f"the kernel {self.seen.spoilt[weight]}")
        self.read_companions()
        self.read_streams()
        for weight in self.kernels:
            self.read_links(weight)
        read = {link.path for links in self.links.values() for link in links}
        for weight in self.kernels:
            if self.paths[weight] not in read:
                self.leak(weight, "no kernel reads them")

    def leak(self, weight: int, why: str) -> None:
        """Records why a kernel is not closed."""
        self.leaks.setdefault(weight, why)

    def fields(self, weight: int, kernel: Kernel) -> Kernel:
        """The kernel with its part of the graph."""
        placed = tuple(
            Companion(self.paths[leaf], tuple(self.seen.shapes[leaf]), layout)
            for leaf, layout in self.companions[weight].items()
        )
        stream = [w for w in self.kernels if w in self.streams[weight] - {weight}]
        leak = self.leaks.get(weight, "")
        for other in stream:
            if not leak and other in self.leaks:
                leak = f"they are added to {self.paths[other]!r}: {self.leaks[other]}"
        return dataclasses.replace(
            kernel,
            bias=self.bias(weight),
            companions=tuple(c.path for c in placed),
            placed=placed,
            links=tuple(self.links[weight]),
            closed=not leak,
            why_not=leak,
            stream=tuple(self.paths[other] for other in stream),
        )

    # Companions ------------------------------------------------------------------
    def read_companions(self) -> None:
        """Parameters that act on the units of the same kernels wherever they act."""
        meets: dict[int, list[Meet]] = {}
        for meet in self.seen.meets:
            meets.setdefault(meet.leaf, []).append(meet)
        for leaf, met in meets.items():
            why = self.not_a_companion(leaf, met)
            for meet in met:
                weight = self.owner[meet.use]
                if why:
                    self.leak(weight, f"parameter {self.paths[leaf]!r} {why}")
                else:
                    self.companions[weight][leaf] = meet.layout

    def not_a_companion(self, leaf: int, met: Sequence[Meet]) -> str:
        """Why a parameter cannot be cut along with the units that it acts on."""
        if leaf in self.seen.spoilt:
            return self.seen.spoilt[leaf]
        if leaf in self.kernels:
            return "is a kernel, too"
        if len({frozenset(self.owner[u] for u in m.uses) for m in met}) > 1:
            return "acts on the units of several kernels"
        if len({(self.owner[m.use], m.layout) for m in met}) > len(
            {self.owner[m.use] for m in met}
        ):
            return "acts on the units in different orders"
        return ""

    def bias(self, weight: int) -> str:
        """The companion added to the raw output of all uses, in the units' order."""
        count = math.prod(self.kernels[weight].per_unit_shape("outputs"))
        whole = ((count, 1),) if count > 1 else ()
        uses = {n for n, w in self.owner.items() if w == weight and n in self.live}
        added: dict[int, set[int]] = {}
        for meet in self.seen.meets:
            if meet.bias and meet.use in uses and meet.layout == whole:
                added.setdefault(meet.leaf, set()).add(meet.use)
        for leaf, where in added.items():
            if where == uses and leaf in self.companions[weight]:
                return self.paths[leaf]
        return ""

    # Streams ---------------------------------------------------------------------
    def read_streams(self) -> None:
        """Joins the kernels whose units are added."""
        for tie in self.seen.ties:
            joined = set[int]().union(*(self.streams[self.owner[u]] for u in tie))
            for weight in joined:
                self.streams[weight] = joined

    # Links -----------------------------------------------------------------------
    def read_links(self, reader: int) -> None:
        """Links a kernel to those whose units all its uses read in the same way."""
        uses = [n for n, w in self.owner.items() if w == reader and n in self.live]
        reads: dict[int, list[Read]] = {}
        for read in self.seen.reads:
            if read.reader in uses:
                reads.setdefault(self.owner[read.use], []).append(read)
        linked = {}
        for weight, found in reads.items():
            why = self.not_a_reader(reader, found, set(uses))
            if why:
                self.leak(weight, f"{self.paths[reader]!r} {why}")
            else:
                linked[weight] = found
        for weight, found in linked.items():
            silent = [self.silent(r, set(linked)) for r in found]
            link = Link(
                path=self.paths[weight],
                layout=found[0].layout,
                zero_if=tuple(sorted(set[tuple[str, ...]]().union(*silent))),
            )
            self.links[reader].append(link)

    def not_a_reader(self, reader: int, found: Sequence[Read], uses: set[int]) -> str:
        """Why the rows of a reading kernel cannot be cut along with the units."""
        if {r.reader for r in found} != uses or len({r.layout for r in found}) > 1:
            return "reads other values with the same weights"
        if uses & self.seen.changed:
            return "has weights that reach its product changed"
        return self.seen.spoilt.get(reader, "")

    def silent(self, read: Read, linked: set[int]) -> set[tuple[str, ...]]:
        """Sets of paths; where one of each set is cut, what is read is 0."""
        beside = {self.owner[u] for u in read.beside} & linked
        known = {leaf for w in beside for leaf in self.companions[w]}
        found = set()
        for sources in read.zeros:
            names = {n for kind, n in sources if kind == "w"} & known
            uses = {n for kind, n in sources if kind == "u"} & read.beside
            names |= {self.owner[n] for n in uses} & beside
            found.add(tuple(self.paths[n] for n in sorted(names)))
        return found
