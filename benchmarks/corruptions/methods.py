"""The methods: a rule, and the end from which it counts edges.

`make` builds the rule when it is needed. All keep the same share of the same kernels.
"""

import dataclasses
from collections.abc import Callable

import bbjax as bb
from bbjax.model.units import Actuator
from bbjax.rules import Rule
from benchmarks.common.laws import standardized

DENSE, EQUAL, LAYER = "dense", "equal", "layer"
STANDARDIZED, MIXED, LAW = "standardized_out", "bb_out", "law_out"
EQUAL_OUT, COMPETITION = "equal_out", "competition_out"


@dataclasses.dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
      key: name in the files.
      label: name for readers.
      make: the rule; None is the dense net.
      actuator: the end from which edges are counted.
    """

    key: str
    label: str
    make: Callable[[], Rule] | None = None
    actuator: Actuator = "in"


def _budgeted(**settings: object) -> Callable[[], Rule]:
    return lambda: bb.rules.budgeted_broadcast(**settings)  # type: ignore[arg-type]


def _standardized() -> Rule:
    return bb.rules.budgeted_broadcast(law=standardized(), competition=0)


METHODS = {
    method.key: method
    for method in (
        Method(DENSE, "dense"),
        Method(EQUAL, "equal degrees", bb.rules.magnitude),
        Method(LAYER, "layer magnitude", lambda: bb.rules.magnitude(scope="layer")),
        Method("bb_in", "BB in", _budgeted()),
        Method(STANDARDIZED, "BB out, standardized", _standardized, "out"),
        Method(MIXED, "BB out", _budgeted(spread=0.2, competition=0.5), "out"),
        Method(LAW, "BB out, law alone", _budgeted(spread=0.2, competition=0), "out"),
        Method(EQUAL_OUT, "equal degrees, out", bb.rules.magnitude, "out"),
        Method(
            COMPETITION,
            "competition alone, out",
            _budgeted(spread=0, competition=1),
            "out",
        ),
    )
}
OUT = (STANDARDIZED, MIXED, LAW)  # the methods in question
AGAINST = (EQUAL, LAYER)  # what they have to beat
PARTS = (EQUAL_OUT, COMPETITION)  # they count outgoing edges, without activity
