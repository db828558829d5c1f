"""Nodes that are computed in the same way from the same nodes, as one.

A program may apply one nonlinearity several times to the same value, as every block of
a diffusion model does to the embedding of time:

    t -> silu -> kernel of block 1         t -> silu -> kernel of block 1
    t -> silu -> kernel of block 2                   -> kernel of block 2

On the left no node but `t` is on every path, on the right the nonlinearity is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

from bbjax.tracing.flow.walk import Flow, Made


def distinct(flow: Flow) -> Flow:
    """The same flow in which the first of equal nodes has the readers of all."""
    first: dict[Hashable, int] = {}
    same: list[int] = []
    for node, made in enumerate(flow.made):
        key = _key(made, same)
        same.append(node if key is None else first.setdefault(key, node))
    if len(set(same)) == len(same):
        return flow
    readers: list[list[int]] = [[] for _ in same]
    for node, found in enumerate(flow.readers):
        mine = readers[same[node]]
        mine += [same[r] for r in found if same[r] not in mine]
    operand_of: dict[int, list[int]] = {}
    for node, uses in flow.operand_of.items():
        operand_of.setdefault(same[node], []).extend(uses)
    return dataclasses.replace(
        flow,
        readers=readers,
        operand_of=operand_of,
        carries={start: same[end] for start, end in flow.carries.items()},
        outputs=tuple(same[n] for n in flow.outputs),
    )


def _key(made: Made, same: list[int]) -> Hashable | None:
    """What a node is computed from; None if another one is never taken for equal."""
    sources = tuple(same[s] for s in made.sources)
    if made.how == "given" and made.literal is not None:
        return _literal(made.literal)
    if made.how == "copy" and len(sources) == 1:
        return ("copy", sources, made.eqn is None)
    if made.how != "step":
        return None
    params = tuple((k, _hashable(v)) for k, v in made.eqn.params.items())
    return (made.eqn.primitive.name, params, sources, made.at)


def _hashable(value: object) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value


def _literal(value: object) -> Hashable | None:
    if getattr(value, "shape", ()) != ():
        return None
    return ("literal", str(getattr(value, "dtype", type(value))), repr(value))
