"""Where an array is zero, given which units and parameters are.

A *source* is the output units of a kernel use, `("u", use)`, or the entries of a
parameter, `("w", leaf)`. A unit without incoming edges still has its bias, and the
value of its nonlinearity at 0. Here is found when it is 0: for each array *sets of
sources* (`Zeros`), such that the array is 0 where one source of each set is 0.

    relu(h + b)            {h} {b}          both have to be 0
    silu(g) * h            {g, h}           either
    sigmoid(g) * h         {h}              sigmoid(0) is not 0
    (h - mean) * scale     {scale}          whatever the mean
    sigmoid(h)             {}               no source in the set: nothing is known

Sums are what nets have many of, and they only add sets (conjunctive normal form).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from bbjax.tracing.primitives import zero_if

Source = tuple[str, int]
Zeros = frozenset[frozenset[Source]]

ALWAYS: Zeros = frozenset()
NEVER: Zeros = frozenset({frozenset[Source]()})
MOST = 256  # sets that are kept of an array: more make products of long sums


def of(source: Source) -> Zeros:
    """Zero where a source is."""
    return frozenset({frozenset({source})})


def both(first: Zeros, second: Zeros) -> Zeros:
    """Zero where two terms are."""
    return _least(first | second)


def every(terms: Sequence[Zeros]) -> Zeros:
    """Zero where all of some terms are."""
    found = terms[0]
    for term in terms[1:]:
        found = both(found, term)
    return found


def either(first: Zeros, second: Zeros) -> Zeros:
    """Zero where one of two factors is."""
    if len(first) * len(second) > MOST:
        return min(first, second, key=len)
    return _least(frozenset(a | b for a in first for b in second))


def without(zeros: Zeros, lost: Iterable[Source]) -> Zeros:
    """What is still known when it is not known which of `lost` are 0."""
    gone = frozenset(lost)
    return _least(frozenset(z - gone for z in zeros)) if gone else zeros


def _least(zeros: Zeros) -> Zeros:
    """Without the sets that another one is part of."""
    if frozenset() in zeros:
        return NEVER
    single = {s for z in zeros if len(z) == 1 for s in z}
    return frozenset(z for z in zeros if len(z) == 1 or not z & single)


def elementwise(
    name: str, params: Any, zeros: Sequence[Zeros], numbers: Sequence[float | None]
) -> Zeros:
    """Where the result of an elementwise operation is zero.

    Args:
      name: of the primitive.
      params: of the equation.
      zeros: where each operand is.
      numbers: the constant that each operand is, if known.
    """
    rule = zero_if(name, params, numbers)
    if rule is None:
        return NEVER
    return every([_any_of([zeros[i] for i in group]) for group in rule])


def _any_of(factors: Sequence[Zeros]) -> Zeros:
    """Zero where one of some factors is."""
    return functools.reduce(either, factors)
