"""The methods that the domains compare, by name.

All prune the same kernels to the same number of edges and refresh at the same steps.
Those that limit incoming edges scale kept weights alike. RigL begins with a random mask
of the final density, scales nothing, and its optimizer sees masked gradients, as
published.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

from bbjax import rules


@dataclasses.dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
      make: from the number of training steps to its rule.
      actuator: whether units are limited in their incoming or outgoing edges.
      random_start: whether training begins under a random mask.
      regrow: whether pruned edges may return; None is what the domain's paper does.
    """

    make: Callable[[int], rules.Rule]
    actuator: Literal["in", "out"] = "in"
    random_start: bool = False
    regrow: bool | None = None


def _bb(actuator: Literal["in", "out"] = "in", **options: float) -> Method:
    return Method(lambda n: rules.budgeted_broadcast(**options), actuator)


FAN_IN, FAN_OUT = "BB, fan-in", "BB, fan-out"
EQUAL, LAYER = "magnitude, unit", "magnitude, layer"
ACTIVITY, RIGL, TOPK = "activity-only", "RigL", "activation top-k"
STEEP = "BB, fan-in, spread 0.5"
ALL = (FAN_IN, EQUAL, LAYER, RIGL, ACTIVITY, TOPK, FAN_OUT, STEEP)
EQUAL_OUT = "magnitude, unit, fan-out"

METHODS: Mapping[str, Method] = {
    # The paper's law by itself; its published sign.
    FAN_IN: _bb(competition=0),
    FAN_OUT: _bb("out", competition=0),
    # As steep as activity alone where a unit is on half of the time.
    STEEP: _bb(competition=0, spread=0.5),
    EQUAL: Method(lambda n: rules.magnitude()),
    EQUAL_OUT: Method(lambda n: rules.magnitude(), "out"),
    LAYER: Method(lambda n: rules.magnitude(scope="layer")),
    ACTIVITY: Method(lambda n: rules.activity_only()),
    TOPK: Method(lambda n: rules.activation_topk()),
    RIGL: Method(
        lambda n: rules.rigl(anneal=3 * n // 4), random_start=True, regrow=True
    ),
}


def method(name: str) -> Method:
    """A method by name; "..., regrowth" is one whose edges may return."""
    base, comma, word = name.rpartition(", ")
    if comma and word == "regrowth":
        return dataclasses.replace(METHODS[base], regrow=True)
    return METHODS[name]
