"""Methods that prune while they train: one rule each, the rest equal.

Every method but `dense` meets the same density to the edge. RigL and SET begin with a
random mask of that density, as published, and see masked gradients in the optimizer;
the others begin dense.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optax

import bbjax as bb
from bbjax import rules
from benchmarks.claims.common.net import Params
from benchmarks.common.laws import standardized


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
      label: in tables and pictures.
      make: the rule; None trains dense.
      random_start: whether it begins with a random mask.
      regrow: whether pruned edges may return.
      style: of its marks and lines, told apart in greyscale.
    """

    label: str
    make: Callable[[], rules.Rule] | None
    style: tuple[str, str, Any]
    random_start: bool = False
    regrow: bool = True

    def optimizer(
        self, adam: Any, units: bb.Units, params: Params, seed: Any = 0, **settings: Any
    ) -> tuple[Any, Params]:
        """The transformation, and the weights to begin with.

        Args:
          adam: what optimizes.
          units: selected kernels.
          params: first weights.
          seed: of a random mask to begin with.
          **settings: of `bb.transform`.
        """
        if self.make is None:
            return optax.with_extra_args_support(adam), params
        settings = {"k_min": 0, "regrow": self.regrow} | settings
        if not self.random_start:
            transform = bb.transform(units, self.make(), **settings)
            return optax.chain(adam, transform), params
        first = rules.random(seed=seed)
        density = settings["density"]
        params, masks = bb.prune(params, units, first, density=density, k_min=0)
        return bb.wrap(adam, units, self.make(), masks=masks, **settings), params

    @property
    def needs(self) -> tuple[str, ...] | None:
        """Statistics to observe; None where no activity is needed."""
        rule = None if self.make is None else self.make()
        return None if rule is None or not rule.reads_activity else rule.needs


# Colours of Okabe and Ito.
METHODS = {
    "dense": Method("dense", None, ("#000000", "", (0, (6, 2)))),
    "magnitude": Method(
        "magnitude, per unit", lambda: rules.magnitude(), ("#8a8a8a", "s", "-")
    ),
    "layer": Method(
        "magnitude, per layer",
        lambda: rules.magnitude(scope="layer"),
        ("#cc79a7", "P", (0, (4, 1, 1, 1))),
    ),
    "activity_only": Method(
        "activity-only", lambda: rules.activity_only(), ("#e69f00", "^", "-.")
    ),
    "bb": Method(
        "Budgeted Broadcast",
        lambda: rules.budgeted_broadcast(law=standardized()),
        ("#0072b2", "o", "-"),
    ),
    "bb_no_regrow": Method(
        "BB, no regrowth",
        lambda: rules.budgeted_broadcast(law=standardized()),
        ("#56b4e9", "v", "--"),
        regrow=False,
    ),
    "threshold": Method(
        "BB, threshold law",
        lambda: rules.budgeted_broadcast(law=bb.laws.threshold()),
        ("#009e73", "D", "--"),
    ),
    "random": Method(
        "random", lambda: rules.random(), ("#d55e00", "x", ":"), random_start=True
    ),
    "rigl": Method(
        "RigL", lambda: rules.rigl(), ("#d55e00", "X", ":"), random_start=True
    ),
    "set": Method(
        "SET", lambda: rules.set_(), ("#f0e442", "d", "-"), random_start=True
    ),
}
