"""Costs of a function: operations of its products, parameters, bytes of parameters.

dot_general           2 * batch * rows * columns * contracted; so is a ragged one
conv_general_dilated  2 * outputs * window * inputs per group
scan                  length times its body;   cond: the branch with the most
while                 one round: the number of rounds is not in the program
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from bbjax.shrinking.model import Array
from bbjax.tracing import interpreter, jaxprs
from bbjax.tracing.flow.contract import numbers_of
from bbjax.tracing.primitives import CONTRACTIONS


def count(arrays: Iterable[Array]) -> int:
    """Number of entries in all arrays."""
    return sum(math.prod(array.shape) for array in arrays)


def bytes_of(arrays: Iterable[Array]) -> int:
    """Bytes of all arrays."""
    return sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)


def flops(jaxpr: Any) -> int:
    """Floating point operations in products and convolutions of a jaxpr."""
    inner, _ = jaxprs.opened(jaxpr)
    return sum(_of(eqn) for eqn in inner.eqns)


def summed(eqn: Any) -> tuple[int, tuple[int, ...]] | None:
    """What a product sums over; None for other operations.

    Returns:
      The number of an operand, and its axes. Two operations for every term of the sum,
      and for every entry of the result, are the cost of the product.
    """
    name = eqn.primitive.name
    if name == "conv_general_dilated":
        _, *window = eqn.params["dimension_numbers"].rhs_spec
        return 1, tuple(window)
    if name in CONTRACTIONS:
        left, _ = numbers_of(eqn).contract
        return 0, tuple(left)
    return None


def _of(eqn: Any) -> int:
    product = summed(eqn)
    if product is not None:
        operand, axes = product
        shape = eqn.invars[operand].aval.shape
        terms = math.prod(shape[a] for a in axes)
        return 2 * math.prod(eqn.outvars[0].aval.shape) * terms
    call = interpreter.call_of(eqn)
    if call is None:
        return 0
    each = [flops(body.jaxpr) for body in call.bodies]
    if call.kind == "while":
        return each[-1]
    return call.rounds * max(each)
