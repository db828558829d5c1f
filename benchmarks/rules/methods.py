"""The methods that are compared: how each comes by its mask.

    train   the mask is refreshed while the net trains, on a cubic ramp
    init    pruned once before training, then trained under the fixed mask
    after   the trained dense net is pruned once, and tested as it is

Every method prunes the same kernels to the same number of edges. `EQUAL` is what others
are compared with: every unit keeps equally many edges, its largest |w|.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

import bbjax as bb
from bbjax import rules
from benchmarks.common.laws import standardized


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
      make: from the number of training steps to the rule.
      when: at which time it prunes.
      actuator: whether units are limited in their incoming or outgoing edges.
      erk: whether the budget is shared out over kernels by their shapes.
      random_start: whether training begins with a random mask of the final density,
        and the optimizer sees masked gradients, as sparse training is published.
      grads: what the rule takes for gradients, of `(loss, params, x, y)`.
      driver: `(fn, params, units, density, x, rounds=, k_min=)` to parameters and
        masks, for a method that prunes in rounds.
    """

    make: Callable[[int], rules.Rule]
    when: Literal["train", "init", "after"] = "train"
    actuator: Literal["in", "out"] = "in"
    erk: bool = False
    random_start: bool = False
    grads: Callable[..., Any] | None = None
    driver: Callable[..., Any] | None = None


def _bb(**options: Any) -> Method:
    return Method(lambda n: rules.budgeted_broadcast(**options))


def _law(make: Callable[[], bb.laws.Law]) -> Method:
    return Method(lambda n: rules.budgeted_broadcast(law=make(), competition=0))


def _out(**options: Any) -> Method:
    return dataclasses.replace(_bb(**options), actuator="out")


def _priced(price: float, **options: Any) -> Method:
    return Method(lambda n: rules.priced(price=price, **options))


def _sparse(make: Callable[[int], rules.Rule], erk: bool = False) -> Method:
    return Method(make, erk=erk, random_start=True)


def _once(make: Callable[..., rules.Rule], **options: Any) -> Method:
    return Method(lambda n: make(**options), "after")


def _gradient(loss: Any, params: Any, *batch: Any) -> Any:
    return jax.grad(loss)(params, *batch)


EQUAL = "equal degrees (magnitude, unit)"
EQUAL_ONCE = "equal degrees (magnitude, unit), once"

METHODS: Mapping[str, Method] = {
    # While training ---------------------------------------------------------------
    EQUAL: Method(lambda n: rules.magnitude()),
    "magnitude, layer": Method(lambda n: rules.magnitude(scope="layer")),
    "magnitude, layer, ERK": Method(lambda n: rules.magnitude(scope="layer"), erk=True),
    "magnitude, global": Method(lambda n: rules.magnitude(scope="global")),
    "BB": _bb(),
    "BB, law alone": _bb(competition=0),
    "BB, law alone, spread 0.2": _bb(spread=0.2, competition=0),
    "BB, law alone, reversed": _bb(spread=-0.1, competition=0),
    "BB, half competition": _bb(competition=0.5),
    "BB, competition alone": _bb(competition=1, spread=0),
    "BB, spread 0.2": _bb(spread=0.2),
    "BB, Wanda's score": _bb(score="wanda"),
    "BB, global": _bb(scope="global"),
    "BB, out": _out(spread=0.2, competition=0.5),
    "BB, out, default": _out(),
    "BB, out, law alone": _out(spread=0.2, competition=0),
    "BB, standardized law": _law(standardized),
    "BB, threshold law": _law(bb.laws.threshold),
    "BB, three-zone law": _law(bb.laws.three_zone),
    "BB, quantile law": _law(bb.laws.quantile),
    "priced at 0": _priced(0),
    "priced at 0.3": _priced(0.3),
    "priced at 1": _priced(1.0),
    "priced at 0, global": _priced(0, scope="global"),
    "magnitude, layer, scaled": Method(
        lambda n: rules.magnitude(scope="layer", score="scaled")
    ),
    "magnitude, global, scaled": Method(
        lambda n: rules.magnitude(scope="global", score="scaled")
    ),
    "BB, scaled": _bb(score="scaled"),
    "BB, global, scaled": _bb(scope="global", score="scaled"),
    "Wanda, refreshed": Method(lambda n: rules.wanda()),
    "activity-only": Method(lambda n: rules.activity_only()),
    "activation top-k": Method(lambda n: rules.activation_topk()),
    "RigL": _sparse(lambda n: rules.rigl(anneal=3 * n // 4)),
    "RigL, ERK": _sparse(lambda n: rules.rigl(anneal=3 * n // 4), erk=True),
    "SRigL": _sparse(lambda n: rules.srigl(anneal=3 * n // 4)),
    "SET, ERK": _sparse(lambda n: rules.set_(), erk=True),
    "random": Method(lambda n: rules.random(), random_start=True),
    # Before -----------------------------------------------------------------------
    "SNIP": Method(lambda n: rules.snip(), "init", grads=_gradient),
    "GraSP": Method(
        lambda n: rules.grasp(), "init", grads=bb.saliency.hessian_gradient
    ),
    "SynFlow": Method(
        lambda n: rules.synflow(), "init", driver=bb.saliency.prune_by_flow
    ),
    # After, without retraining ------------------------------------------------------
    EQUAL_ONCE: _once(rules.magnitude),
    "magnitude, layer, once": _once(rules.magnitude, scope="layer"),
    "Wanda, once": _once(rules.wanda),
    "SparseGPT, once": _once(rules.sparsegpt),
    "BB, once": _once(rules.budgeted_broadcast),
    "BB, Wanda's score, once": _once(rules.budgeted_broadcast, score="wanda"),
    "BB, law alone, Wanda's score, once": _once(
        rules.budgeted_broadcast, competition=0, score="wanda"
    ),
    "BB, law alone, reversed, Wanda's score, once": _once(
        rules.budgeted_broadcast, spread=-0.1, competition=0, score="wanda"
    ),
    "priced at 0, once": _once(rules.priced, price=0),
    "fine-pruning, weights, once": _once(rules.fine_pruning, by="weights"),
    "activation top-k, once": _once(rules.activation_topk),
}

# Run first, on every task: they answer the main question.
MAIN = (
    EQUAL,
    "BB",
    "magnitude, layer",
    "BB, law alone",
    "BB, standardized law",
    "magnitude, layer, scaled",
    "BB, out",
    "RigL, ERK",
    "BB, law alone, reversed",
    "BB, competition alone",
    "BB, half competition",
    "magnitude, global",
)
# What is repeated with other floors and lengths of training.
FACTOR_METHODS = (
    EQUAL,
    "magnitude, layer",
    "BB",
    "BB, law alone",
    "BB, standardized law",
    "magnitude, layer, scaled",
)
