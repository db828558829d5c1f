"""What a function costs: floating point operations of its products, bytes of weights.

dot_general           2 * batch * rows * columns * contracted
conv_general_dilated  2 * outputs * window * inputs per group
scan                  length times its body;   cond: the dearest branch
while                 one round: nobody knows how many there will be
"""

from __future__ import annotations

import math
from typing import Any

from bbjax.tracing import jaxprs


def flops(jaxpr: Any) -> int:
    """Floating point operations in products and convolutions of a jaxpr."""
    inner, _ = jaxprs.opened(jaxpr)
    return sum(_of(eqn) for eqn in inner.eqns)


def _of(eqn: Any) -> int:
    name = eqn.primitive.name
    if name == "dot_general":
        (left, _), _ = eqn.params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        summed = math.prod(shape[a] for a in left)
        return 2 * math.prod(eqn.outvars[0].aval.shape) * summed
    if name == "conv_general_dilated":
        out, *window = eqn.params["dimension_numbers"].rhs_spec
        shape = eqn.invars[1].aval.shape
        summed = math.prod(shape[a] for a in window)
        return 2 * math.prod(eqn.outvars[0].aval.shape) * summed
    if name == "scan":
        return eqn.params["length"] * flops(jaxprs.body(eqn)[0])
    if name == "cond":
        return max(flops(b) for b in eqn.params["branches"])
    if name == "while":
        return flops(eqn.params["body_jaxpr"])
    if jaxprs.has_body(eqn):
        return flops(jaxprs.body(eqn)[0])
    return 0
