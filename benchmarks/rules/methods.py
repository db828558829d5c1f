"""The methods that are compared: how each comes by its mask.

    train   the mask is refreshed while the net trains, on a cubic ramp
    init    pruned once before training, then trained under the fixed mask
    after   the trained dense net is pruned once, and tested as it is

Every method prunes the same kernels to the same number of edges.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

import bbjax as bb
from bbjax import rules


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
      make: from the number of training steps to the rule.
      when: at which time it prunes.
      erk: whether the budget is shared out over kernels by their shapes.
      random_start: whether training begins with a random mask of the final density,
        and the optimizer sees masked gradients, as sparse training is published.
      grads: what the rule takes for gradients, of `(loss, params, x, y)`.
      driver: `(fn, params, units, density, x)` to parameters and masks, for a method
        that prunes in rounds.
    """

    make: Callable[[int], rules.Rule]
    when: Literal["train", "init", "after"] = "train"
    erk: bool = False
    random_start: bool = False
    grads: Callable[..., Any] | None = None
    driver: Callable[..., Any] | None = None


def _by_flow(fn: Any, params: Any, units: Any, density: Any, x: Any) -> Any:
    # 10 rounds for the paper's 100: they are unrolled into the program.
    return bb.saliency.prune_by_flow(fn, params, units, density, x, rounds=10, k_min=0)


def _sparse(make: Callable[[int], rules.Rule], erk: bool = False) -> Method:
    return Method(make, erk=erk, random_start=True)


def _gradient(loss: Any, params: Any, *batch: Any) -> Any:
    return jax.grad(loss)(params, *batch)


METHODS: Mapping[str, Method] = {
    # While training ---------------------------------------------------------------
    "BB, log-odds law": Method(lambda n: rules.budgeted_broadcast()),
    "BB, threshold law": Method(
        lambda n: rules.budgeted_broadcast(law=bb.laws.threshold())
    ),
    "BB, three-zone law": Method(
        lambda n: rules.budgeted_broadcast(law=bb.laws.three_zone())
    ),
    "BB, quantile law": Method(
        lambda n: rules.budgeted_broadcast(law=bb.laws.quantile())
    ),
    "priced at 1": Method(lambda n: rules.priced(price=1.0)),
    "priced at 0.3": Method(lambda n: rules.priced(price=0.3)),
    "priced at 0": Method(lambda n: rules.priced(price=0)),
    "priced at 1, |w| alone": Method(lambda n: rules.priced(price=1.0, inputs=0)),
    "priced at 1, global": Method(lambda n: rules.priced(price=1.0, scope="global")),
    "priced at 0, global": Method(lambda n: rules.priced(price=0, scope="global")),
    "activity-only": Method(lambda n: rules.activity_only()),
    "magnitude, unit": Method(lambda n: rules.magnitude()),
    "magnitude, layer": Method(lambda n: rules.magnitude(scope="layer")),
    "magnitude, layer, ERK": Method(lambda n: rules.magnitude(scope="layer"), erk=True),
    "magnitude, global": Method(lambda n: rules.magnitude(scope="global")),
    "Wanda, refreshed": Method(lambda n: rules.wanda()),
    "activation top-k": Method(lambda n: rules.activation_topk()),
    "RigL, ERK": _sparse(lambda n: rules.rigl(anneal=3 * n // 4), erk=True),
    "RigL": _sparse(lambda n: rules.rigl(anneal=3 * n // 4)),
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
    "magnitude, unit, once": Method(lambda n: rules.magnitude(), "after"),
    "magnitude, layer, once": Method(lambda n: rules.magnitude(scope="layer"), "after"),
    "BB, once": Method(lambda n: rules.budgeted_broadcast(), "after"),
    "priced at 1, once": Method(lambda n: rules.priced(price=1.0), "after"),
    "Wanda, once": Method(lambda n: rules.wanda(), "after"),
    "SparseGPT, once": Method(lambda n: rules.sparsegpt(), "after"),
    "fine-pruning, weights, once": Method(
        lambda n: rules.fine_pruning(by="weights"), "after"
    ),
    "fine-pruning, units, once": Method(lambda n: rules.fine_pruning(), "after"),
    "activation top-k, once": Method(lambda n: rules.activation_topk(), "after"),
}
