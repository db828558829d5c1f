"""What is compared: a rule, for which kernels it is, and what comes before and after.

Units are the gated units, so a law sets the degrees of `gate` and `up` alone; other
kernels have equal degrees, by the score that the law has. Names of methods:

    BB            budgeted_broadcast() with Wanda's score, three quarters competition
    half blend    the same with half of the competition
    law alone     the same without competition
    reversed      the law alone, with the sign turned: busy units keep more
    calibrated    the law alone, its slope (of either sign) from the calibration data
    competition   three quarters competition, activity ignored

What counts as on, of a unit `silu(gate) * up`:

    gate > 0      the gate lets something through
    unit > 0      the product is positive: `bb.on.positive`
    above rms     |product| is above the layer's root mean square
    top quarter   |product| is above the 3/4 quantile of the layer
    soft          x**2 / (x**2 + rms**2): graded

What may be added to a rule:

    , OWL         layers with more outliers keep more edges: `bb.owl`
    , in order    layer by layer, each measured behind pruned ones
    + swaps       better masks of the same degrees: `bb.refine`
    + ADMM        new values of kept weights: `bb.reconstruct`
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import bbjax as bb
from benchmarks.language.model import FFN, PROJECTIONS

SCOPES = {"ffn": FFN, "all": PROJECTIONS}
GATED = ("gate", "up")
DENSE = "dense"
GATE = "gate > 0"
NEEDS = ("on_rate", "inputs.mean_square")
GRAM = "inputs.gram"


def soft(x: jax.Array) -> jax.Array:
    """A graded count of `|x|` above the root mean square of all of `x`."""
    square = jnp.square(x.astype(jnp.float32))
    rms = jnp.mean(square)
    return jnp.where(square > 0, square / jnp.where(square > 0, square + rms, 1), 0)


def top_quarter(x: jax.Array) -> jax.Array:
    """On where `|x|` is in the top quarter of its layer; the limit is of a sample."""
    size = jnp.abs(x)
    return size > jnp.quantile(jnp.ravel(size)[::17], 0.75)


# What a value has to be. The gate is no value of a unit: the model itself measures it.
ON: dict[str, Callable[[jax.Array], jax.Array]] = {
    "unit > 0": bb.on.positive,
    "above rms": bb.on.above(1.0, "rms"),
    "top quarter": top_quarter,
    "soft": soft,
}


class Method(NamedTuple):
    """Rules for the kernels of a model, and what is added to them.

    Attributes:
      rule: for all kernels, or only for `gate` and `up` where others have another rule.
      rest: the rule of the others.
      on: `GATE` or a name in `ON`, where on-rates are read.
      owl: whether layers share one budget by their outliers.
      in_order: whether each layer is measured behind pruned ones.
      swaps: whether masks are refined.
      update: whether kept weights get new values.
    """

    rule: Callable[[], Any]
    rest: Callable[[], Any] | None = None
    on: str = "unit > 0"
    owl: bool = False
    in_order: bool = False
    swaps: bool = False
    update: bool = False

    @property
    def measured_on(self) -> str:
        """What is measured as on; rates of gates take its place afterwards."""
        return "unit > 0" if self.on == GATE else self.on

    @property
    def reads_data(self) -> bool:
        """Whether calibration data make a difference."""
        added = self.owl or self.swaps or self.update
        return added or any(rule.reads_activity for _, rule in self.parts("all"))

    @property
    def needs(self) -> tuple[str, ...]:
        """The statistics to measure."""
        rules = [rule for _, rule in self.parts("all")]
        wanted = {name for rule in rules for name in rule.needs}
        if self.swaps or self.update:
            wanted.add(GRAM)
        if not wanted and not self.owl:
            return ()
        more = sorted(wanted - set(NEEDS) - {"outputs.on_rate", "inputs.on_rate"})
        return (*NEEDS, *more)

    @property
    def by_density(self) -> bool:
        """Whether units or layers have degrees of their own, which N:M has not."""
        return (
            self.owl or self.rest is not None or self.parts("all")[0][1].name == "trim"
        )

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
    plain = {
        "magnitude": Method(rules.magnitude),
        "Wanda": Method(rules.wanda),
        "RIA": Method(rules.ria),
        "TRIM": Method(rules.trim),
        "SparseGPT": Method(rules.sparsegpt),
        "competition": Method(_bb(spread=0.0), rules.wanda),
    }
    for on in (GATE, *ON):
        plain[f"activity only, {on}"] = Method(rules.activity_only, rules.magnitude, on)
        plain[f"BB, {on}"] = Method(_bb(), rules.wanda, on)
        plain[f"half blend, {on}"] = Method(_bb(competition=0.5), rules.wanda, on)
        plain[f"law alone, {on}"] = Method(_bb(competition=0.0), rules.wanda, on)
        fitted = _bb(spread="calibrated", competition=0.0)
        plain[f"calibrated, {on}"] = Method(fitted, rules.wanda, on)
        turned = _bb(spread=-0.1, competition=0.0)
        plain[f"reversed, {on}"] = Method(turned, rules.wanda, on)
    made = dict(plain)
    for name, method in plain.items():
        made |= _with_additions(name, method)
    return made


def _with_additions(name: str, method: Method) -> Iterator[tuple[str, Method]]:
    if name == "SparseGPT":  # it has an update of its own
        yield f"{name}, in order", method._replace(in_order=True)
        return
    if name in ("magnitude", "Wanda", "RIA"):
        yield f"{name}, OWL", method._replace(owl=True)
        yield f"{name} + swaps", method._replace(swaps=True)
        both = method._replace(swaps=True, update=True)
        yield f"{name} + swaps + ADMM", both
        yield f"{name}, in order + swaps + ADMM", both._replace(in_order=True)
    yield f"{name} + ADMM", method._replace(update=True)
    if method.reads_data:
        yield f"{name}, in order", method._replace(in_order=True)
    yield f"{name}, in order + ADMM", method._replace(in_order=True, update=True)


METHODS = _methods()
