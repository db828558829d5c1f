"""How the rows of a ragged product were put in order: from tokens to sorted rows.

    tokens -> reshape -> gather (or scatter) -> scale, cast -> rows

A mask of tokens becomes a mask of rows by the same moves. They are followed back from
the operand of the product, within the scope that sorts the rows, through whole calls.
The rows of further products with the same groups are in the same order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bbjax.tracing import interpreter
from bbjax.tracing.flow.contract import Use
from bbjax.tracing.flow.walk import Flow, Scope
from bbjax.tracing.primitives import ELEMENTWISE, IDENTITY, LINEAR_UNARY, RESHAPING

_SORTING = {"gather": 0, "scatter": 2}  # by operand that is moved
_MOVING = {**dict.fromkeys(RESHAPING | IDENTITY | LINEAR_UNARY, 0), **_SORTING}


class RowMove(NamedTuple):
    """One operation on the way from tokens to rows.

    Attributes:
      before: the array that is moved.
      eqn: the operation; None if entries stay where they are.
      operand: which operand of it is moved.
      at: which result of it holds the moved entries.
    """

    before: Any
    eqn: Any
    operand: int
    at: int


class Order(NamedTuple):
    """How rows were put in order.

    Attributes:
      scope: where they are.
      rows: the array of rows.
      axes: its axes along which rows differ, the rows themselves last.
      moves: from tokens to rows, in program order.
      why_not: why a mask of tokens cannot follow; empty if it can.
    """

    scope: Scope
    rows: Any
    axes: tuple[int, ...]
    moves: tuple[RowMove, ...] = ()
    why_not: str = ""


def order_of(flow: Flow, use: Use) -> Order:
    """How the rows of a use were put in order."""
    ragged = use.ragged
    assert ragged is not None
    node = _given_to(flow, flow.made[flow.use_nodes[use.number]].sources[use.operand])
    scope, var = flow.places[node]
    mark = ("g", ragged.groups)
    if any(part.source == mark for part in flow.values[node].axes[ragged.axis]):
        return next(order_of(flow, u) for u in flow.uses if _first(u, ragged.groups))
    found = Order(scope, var, (*ragged.prefix, ragged.axis))
    moves = _moves(flow, node, scope)
    if any(_sorts(move.eqn) for move in moves):
        return found._replace(moves=moves)
    if not moves and flow.made[node].how == "copy" and scope == ():
        return found  # an argument: its rows are given in this order
    return found._replace(why_not="the operations that sort them are not followed")


def _given_to(flow: Flow, node: int) -> int:
    """The array that a node is, in the outermost scope that was given to its calls."""
    made = flow.made[node]
    while made.how == "copy" and made.eqn is None:
        (source,) = made.sources
        if flow.places[source][1] is None:
            break
        node, made = source, flow.made[source]
    return node


def _first(use: Use, groups: int) -> bool:
    return use.ragged is not None and use.ragged.groups == groups


def _moves(flow: Flow, node: int, scope: Scope) -> tuple[RowMove, ...]:
    """Moves that end in a node, from as far back as they are known."""
    made = flow.made[node]
    options: list[tuple[int | None, Any, int | None]] = []
    if made.how == "step":
        options = [(made.sources[i], made.eqn, i) for i in _operands(flow, node)]
    elif made.how == "copy" and made.eqn is not None:
        source = _entered(flow, made.sources[0], scope)
        options = [(source, made.eqn, _place(flow, source, made.eqn))]
    found: tuple[RowMove, ...] = ()
    for source, eqn, operand in options:
        if source is None or operand is None or not flow.values[source].deps:
            continue
        same = made.how == "step" and eqn.primitive.name not in _MOVING
        var = flow.places[source][1]
        move = RowMove(var, None if same else eqn, operand, made.at)
        moves = (*_moves(flow, source, scope), move)
        if not found or any(_sorts(m.eqn) for m in moves):
            found = moves
    return found


def _operands(flow: Flow, node: int) -> list[int]:
    """Operands whose entries an operation moves, or leaves where they are."""
    made = flow.made[node]
    name = made.eqn.primitive.name
    values = [flow.values[s] for s in made.sources]
    if name == "scatter" and values[0].number != 0:
        return []
    if name in _MOVING:
        return [_MOVING[name]]
    shape = flow.values[node].shape
    return [
        i
        for i, v in enumerate(values)
        if name in ELEMENTWISE and v.shape == shape and v.deps
    ]


def _entered(flow: Flow, node: int, scope: Scope) -> int | None:
    """The operand of a call that a result of its body was moved from."""
    while flow.places[node][0] != scope:
        made = flow.made[node]
        if made.how == "copy":
            node = made.sources[0]
        elif made.how == "step" and made.eqn.primitive.name in _MOVING:
            operands = _operands(flow, node)
            if not operands:
                return None
            node = made.sources[operands[0]]
        else:
            return None
    return node


def _place(flow: Flow, node: int | None, eqn: Any) -> int | None:
    """Which operand of an equation a node is."""
    if node is None:
        return None
    var = flow.places[node][1]
    places = (i for i, a in enumerate(eqn.invars) if a is var)
    return next(places, None)


def _sorts(eqn: Any) -> bool:
    """Whether an operation, or one in its body, can change the order of rows."""
    if eqn is None:
        return False
    if eqn.primitive.name in _SORTING:
        return True
    call = interpreter.call_of(eqn)
    bodies = () if call is None else call.bodies
    return any(_sorts(inner) for body in bodies for inner in body.jaxpr.eqns)
