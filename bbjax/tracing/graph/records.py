"""What the pass over uses of units records, and what it knows of a node."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from bbjax.tracing.graph.zeros import NEVER, Source, Zeros

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


class Contraction(NamedTuple):
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
      acts: parameters in order of their first use beside units, each with the kernels
        that made these units.
      made: by use, the whole factors on the axes of its stack and its output units.
      weights: by use that the result depends on, its kernel.
      leads: whole factors that number the matrices of ragged products. No axis of a
        result has them.
    """

    others: list[Other] = dataclasses.field(default_factory=list)
    sums: list[Contraction] = dataclasses.field(default_factory=list)
    joins: list[Joined] = dataclasses.field(default_factory=list)
    biases: dict[int, int] = dataclasses.field(default_factory=dict)
    acts: dict[int, set[int]] = dataclasses.field(default_factory=dict)
    made: dict[int, Wholes] = dataclasses.field(default_factory=dict)
    weights: dict[int, int] = dataclasses.field(default_factory=dict)
    leads: set[int] = dataclasses.field(default_factory=set)


class NodeFacts(NamedTuple):
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


NOTHING = NodeFacts()
