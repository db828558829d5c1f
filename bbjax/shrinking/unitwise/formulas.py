"""Costs of a function as polynomials in the numbers of units of its groups.

The size of every axis is a product and a sum of numbers of units (`Extents`). So is the
cost of a product of two arrays, and the number of entries of a parameter:

    x (5, 3) @ up (3, n)  ->  2 * 5 * 3 * n operations

A scan multiplies the cost of its body, and the costs of two branches have a larger one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from bbjax.shrinking import costs
from bbjax.tracing import interpreter
from bbjax.tracing.axes.extents import Dims, Extents, added, multiplied
from bbjax.tracing.axes.program import Frame

Terms = Mapping[tuple[int, ...], int]


class Formula(NamedTuple):
    """A cost, for any numbers of units.

    It never falls as a number of units rises.

    Attributes:
      terms: a polynomial: the coefficient of every product of numbers of units. A
        number is written as the whole factor that it is the size of.
      branches: `(times, formulas)`: the largest of these, so many times, comes on top.
    """

    terms: Terms
    branches: tuple[tuple[int, tuple[Formula, ...]], ...] = ()

    def at(self, numbers: Mapping[int, int]) -> int:
        """The cost at these numbers of units, by whole factor."""
        found = sum(
            times * math.prod(numbers[factor] for factor in factors)
            for factors, times in self.terms.items()
        )
        for times, some in self.branches:
            found += times * max(formula.at(numbers) for formula in some)
        return found

    def factors(self) -> set[int]:
        """The whole factors that the cost depends on."""
        inside = [f.factors() for _, some in self.branches for f in some]
        return {f for factors in self.terms for f in factors}.union(*inside)

    def times(self, number: int) -> Formula:
        """The same cost so many times."""
        branches = ((number * n, some) for n, some in self.branches)
        scaled = {factors: number * n for factors, n in self.terms.items()}
        return Formula(scaled, tuple(branches))


def total(formulas: Iterable[Formula]) -> Formula:
    """The sum of some costs."""
    formulas = list(formulas)
    branches = tuple(branch for formula in formulas for branch in formula.branches)
    return Formula(added(formula.terms for formula in formulas), branches)


def entries(extents: Extents, dims: Dims) -> Formula:
    """The number of entries of an array."""
    return Formula(_product(extents, dims))


def flops(extents: Extents, frame: Frame) -> Formula:
    """Operations of the products of a frame, as `bbjax.shrinking.costs` counts."""
    found = enumerate(frame.jaxpr.eqns)
    return total(_of(extents, frame, index, eqn) for index, eqn in found)


def _of(extents: Extents, frame: Frame, index: int, eqn: Any) -> Formula:
    product = costs.summed(eqn)
    if product is not None:
        operand, axes = product
        dims = frame.dims[eqn.invars[operand]]
        ran_over = (*frame.dims[eqn.outvars[0]], *(dims[axis] for axis in axes))
        return entries(extents, ran_over).times(2)
    call = interpreter.call_of(eqn)
    if call is None:
        return Formula({})
    each = []
    for body in call.bodies:
        inside = frame.bodies.get((index, body.number))
        if inside is None:  # not looked into: its sizes are fixed
            each.append(Formula({(): costs.flops(body.jaxpr)}))
        else:
            each.append(flops(extents, inside))
    if call.kind == "while":
        return each[-1]
    if len(each) == 1:
        return each[0].times(call.rounds)
    return Formula({}, ((call.rounds, tuple(each)),))


def _product(extents: Extents, dims: Dims) -> Terms:
    found: Terms = {(): 1}
    for dim in dims:
        found = multiplied(found, extents.terms(dim))
    return found
