"""Where an array is zero, given which units and parameters are.

A unit without incoming edges still has its bias, and the value of its nonlinearity at
0. Here is found when it is 0: for each array *sets of sources* (`zeros`), such that the
array is 0 where one source of each set is 0.

    relu(h + b)            {h} {b}          both have to be 0
    silu(g) * h            {g, h}           either
    sigmoid(g) * h         {h}              sigmoid(0) is not 0
    (h - mean) * scale     {scale}          whatever the mean
    sigmoid(h)             {}               no source in the set: nothing is known

Sums are what nets have many of, and they only add sets (conjunctive normal form).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bbjax.tracing.flow.tracks import NEVER, Info, Source, Zeros
from bbjax.tracing.primitives import ZERO_PRESERVING

ALWAYS: Zeros = frozenset()
MOST = 256  # sets that are kept of an array: more make products of long sums


def of(source: Source) -> Zeros:
    """Zero where a source is."""
    return frozenset({frozenset({source})})


def both(first: Zeros, second: Zeros) -> Zeros:
    """Zero where two terms are."""
    return _least(first | second)


def either(first: Zeros, second: Zeros) -> Zeros:
    """Zero where one of two factors is."""
    if len(first) * len(second) > MOST:
        return min(first, second, key=len)
    return _least(frozenset(a | b for a in first for b in second))


def without(zeros: Zeros, lost: Iterable[Source]) -> Zeros:
    """What is still known when it is not known which of `lost` are 0."""
    gone = frozenset(lost)
    return _least(frozenset(z - gone for z in zeros)) if gone else zeros


def implied(zeros: Zeros, source: Source) -> bool:
    """Whether it is enough that one source is 0."""
    return all(source in z for z in zeros)


def _least(zeros: Zeros) -> Zeros:
    """Without the sets that another one is part of."""
    if frozenset() in zeros:
        return NEVER
    single = {s for z in zeros if len(z) == 1 for s in z}
    return frozenset(z for z in zeros if len(z) == 1 or not z & single)


def elementwise(name: str, params: Any, ins: Sequence[Info]) -> Zeros:
    """Where the result of an elementwise operation is zero."""
    known = [i.zeros for i in ins]
    if name in ("mul", "and"):
        return either(known[0], known[1])
    if name == "div":
        return known[0]
    if name in ("add", "sub", "add_any"):
        return both(known[0], known[1])
    if name in ("max", "min"):
        return _bounded(name, ins)
    if name == "clamp":
        low, high = ins[0].number, ins[2].number
        inside = low is not None and high is not None and low <= 0 <= high
        return known[1] if inside else NEVER
    if name == "select_n":
        zeros = known[1]
        for case in known[2:]:
            zeros = both(zeros, case)
        return zeros
    if name == "integer_pow" and params["y"] <= 0:
        return NEVER
    return known[0] if len(ins) == 1 and name in ZERO_PRESERVING else NEVER


def _bounded(name: str, ins: Sequence[Info]) -> Zeros:
    """`max(x, c)` with c <= 0 and `min(x, c)` with c >= 0 leave 0 at 0."""
    sign = 1 if name == "min" else -1
    for x, bound in (ins, ins[::-1]):
        if bound.number is not None and sign * bound.number >= 0:
            return x.zeros
    return both(ins[0].zeros, ins[1].zeros)
