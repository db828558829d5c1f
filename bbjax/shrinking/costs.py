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


def _of(eqn: Any) -> int:
    name = eqn.primitive.name
    if name in CONTRACTIONS and name != "conv_general_dilated":
        left, _ = numbers_of(eqn).contract
        shape = eqn.invars[0].aval.shape
        summed = math.prod(shape[a] for a in left)
        return 2 * math.prod(eqn.outvars[0].aval.shape) * summed
    if name == "conv_general_dilated":
        out, *window = eqn.params["dimension_numbers"].rhs_spec
        shape = eqn.invars[1].aval.shape
        summed = math.prod(shape[a] for a in window)
        return 2 * math.prod(eqn.outvars[0].aval.shape) * summed
    call = interpreter.call_of(eqn)
    if call is None:
        return 0
    each = [flops(body.jaxpr) for body in call.bodies]
    if call.kind == "while":
        return each[-1]
    return call.rounds * max(each)
