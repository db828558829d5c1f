"""What is compared: a rule, for which kernels it is, and what counts as on.

Units are the gated units, so a law sets the degrees of `gate` and `up` alone; other
kernels have equal degrees, by the score that the law has. Names of methods:

    BB            budgeted_broadcast() with Wanda's score, three quarters competition
    law alone     the same without competition
    reversed      the law alone, with the sign turned: busy units keep more
    competition   the same competition, activity ignored

What counts as on, of a unit `silu(gate) * up`:

    gate > 0      the gate lets something through
    unit > 0      the product is positive: `bb.on.positive`
    above rms     |product| is above the layer's root mean square
    soft          x**2 / (x**2 + rms**2): the same, graded
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import bbjax as bb
from benchmarks.language.model import FFN, PROJECTIONS

SCOPES = {"ffn": FFN, "all": PROJECTIONS}
GATED = ("gate", "up")
DENSE = "dense"
GATE = "gate > 0"


def soft(x: jax.Array) -> jax.Array:
    """A graded count of `|x|` above the root mean square of all of `x`."""
    square = jnp.square(x.astype(jnp.float32))
    rms = jnp.mean(square)
    return jnp.where(square > 0, square / jnp.where(square > 0, square + rms, 1), 0)


# What a value has to be; the gate is measured by the model itself.
ON: dict[str, Callable[[jax.Array], jax.Array] | None] = {
    GATE: None,
    "unit > 0": bb.on.positive,
    "above rms": bb.on.above(1.0, "rms"),
    "soft": soft,
}


class Method(NamedTuple):
    """Rules for the kernels of a model.

    Attributes:
      rule: for all kernels, or only for `gate` and `up` where others have another rule.
      rest: the rule of the others.
      on: a name in `ON`, where on-rates are read.
    """

    rule: Callable[[], Any]
    rest: Callable[[], Any] | None = None
    on: str = "unit > 0"

    @property
    def reads_data(self) -> bool:
        """Whether calibration data make a difference."""
        return any(rule.reads_activity for _, rule in self.parts("all"))

    def parts(self, scope: str) -> list[tuple[tuple[str, ...], Any]]:
        """Names of kernels, and the rule that prunes them."""
        names = SCOPES[scope]
        if self.rest is None:
            return [(names, self.rule())]
        others = tuple(name for name in names if name not in GATED)
        return [(GATED, self.rule()), (others, self.rest())]


def _bb(**settings: Any) -> Callable[[], Any]:
    return lambda: bb.rules.budgeted_broadcast(score="wanda", **settings)


def _methods() -> dict[str, Method]:
    rules = bb.rules
    made = {
        "magnitude": Method(rules.magnitude),
        "Wanda": Method(rules.wanda),
        "SparseGPT": Method(rules.sparsegpt),
        "competition": Method(_bb(spread=0.0), rules.wanda),
    }
    for on in ON:
        made[f"activity only, {on}"] = Method(rules.activity_only, rules.magnitude, on)
        made[f"BB, {on}"] = Method(_bb(), rules.wanda, on)
        made[f"law alone, {on}"] = Method(_bb(competition=0.0), rules.wanda, on)
        turned = _bb(spread=-0.1, competition=0.0)
        made[f"reversed, {on}"] = Method(turned, rules.wanda, on)
    return made


METHODS = _methods()
