"""What is recorded while tracks are followed: reads and other uses of units.

    reads   a product contracts all units of a use: which input is which unit
    meets   a parameter with one entry per unit acts on units of a use, one by one
    ties    units of several uses are added, index for index
    leaks   any other use of the units: another value is added to them, an operation
            mixes them, the function returns them
    spoilt  parameters that act in any other way as well

Only operations on which a result of the function depends are recorded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bbjax.model.kernel import Kernel, Layout
from bbjax.tracing.flow.tracks import Info, Zeros
from bbjax.tracing.flow.values import Value
from bbjax.tracing.flow.walk import Flow


class Read(NamedTuple):
    """A use that contracts all units of another one.

    Attributes:
      reader: the use that reads.
      use: the use whose units are read.
      layout: how the inputs of the reader index them.
      zeros: when what is read is 0; see `bbjax.tracing.flow.zeros`.
      beside: uses whose units are the same inputs, in the same layout.
    """

    reader: int
    use: int
    layout: Layout
    zeros: Zeros
    beside: frozenset[int]


class Meet(NamedTuple):
    """A parameter that acts on the units of a use, one entry each.

    Attributes:
      leaf: the parameter.
      uses: every use on whose units it acts there, entry by entry.
      use: one of them.
      layout: how its entries run through `stack + units` of that use.
      bias: whether it is added to the raw output of the kernel.
    """

    leaf: int
    uses: frozenset[int]
    use: int
    layout: Layout
    bias: bool


@dataclasses.dataclass
class Seen:
    """All that is recorded.

    Attributes:
      live: for each node, whether a result of the function depends on it.
      kernels: the kernel of each use that has one.
      shapes: shape of each parameter.
      reads: see above.
      meets: see above, in program order.
      ties: see above.
      leaks: reason by use, the first one found.
      spoilt: reason by parameter, likewise.
      changed: uses whose product does not have the weights themselves as operand.
    """

    live: Sequence[bool]
    kernels: dict[int, Kernel]
    shapes: Sequence[tuple[int, ...]]
    reads: list[Read] = dataclasses.field(default_factory=list)
    meets: list[Meet] = dataclasses.field(default_factory=list)
    ties: list[frozenset[int]] = dataclasses.field(default_factory=list)
    leaks: dict[int, str] = dataclasses.field(default_factory=dict)
    spoilt: dict[int, str] = dataclasses.field(default_factory=dict)
    changed: set[int] = dataclasses.field(default_factory=set)

    def leak(self, node: int, uses: Iterable[int], why: str) -> None:
        """Records a use of units of `uses` that is not followed."""
        if self.live[node]:
            for use in uses:
                self.leaks.setdefault(use, why)

    def spoil(self, node: int, leaves: Iterable[int], why: str) -> None:
        """Records a use of parameters that is not followed."""
        if self.live[node]:
            for leaf in leaves:
                self.spoilt.setdefault(leaf, why)


class TrackStep(NamedTuple):
    """One operation: its operands, what is known of them, and where to record."""

    node: int
    name: str
    eqn: Any
    shape: tuple[int, ...]
    values: Sequence[Value]
    infos: Sequence[Info]
    seen: Seen

    def leak(self, uses: Iterable[int], why: str) -> None:
        """Records that this operation uses units in a way that is not followed."""
        self.seen.leak(self.node, uses, why)

    def spoil(self, leaves: Iterable[int], why: str) -> None:
        """The same for parameters."""
        self.seen.spoil(self.node, leaves, why)


def living(flow: Flow) -> list[bool]:
    """For each node, whether a result of the function depends on it."""
    live = [False] * len(flow.values)
    for node in (*flow.outputs, *flow.escapes, *flow.watched):
        live[node] = True
    for node in range(len(live) - 1, -1, -1):
        if live[node]:
            for source in flow.made[node].sources:
                live[source] = True
    return live
