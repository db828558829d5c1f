"""Budgeted Broadcast: every unit gets a traffic budget, on-rate times degree.

The stationary point of maximal coding entropy under a total traffic is the
selectivity-audience balance `log((1 - a) / a) = beta k`; the controller solved for the
degree is

    k = clip(d0 + (1 / beta) log((1 - a) / a), k_min, fan)

with `d0` such that the kept edges are exactly the budget. Each unit keeps its `k`
best edges, over its full row, so that a pruned edge returns once it is among them.

The paper gives no slope, no degree for units that are never on, and no way to find
`d0`. Here the slope is a share of the mean degree per nat of log-odds (`spread`), and a
unit that is never on has the degree of a unit of mean log-odds (`bb.laws.log_odds`). By
default three quarters of the edges that a unit wins in the whole layer are added to its
degree (`competition`), and `d0` spends the rest of the budget. With `competition=0` the
law alone sets the degrees.

Reference: Meirovitch, Yang, Lichtman, Shavit, arXiv 2510.01263.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import ArrayLike, Real

from bbjax.arrays.types import Number
from bbjax.budgets import laws
from bbjax.budgets.laws.base import check_law
from bbjax.rules.base import Rule
from bbjax.rules.parts.calibrated import select_calibrated
from bbjax.rules.parts.hysteresis import Score
from bbjax.rules.parts.pools import Scope, check_scope
from bbjax.rules.parts.scores import Name, score_called
from bbjax.rules.parts.selection import select_by_law, select_over_all

COMPETITION = 0.75


def budgeted_broadcast(
    *,
    spread: Real[ArrayLike, "*stack"] | Literal["calibrated"] | None = None,
    beta: Number | None = None,
    law: laws.Law | None = None,
    competition: Number | None = None,
    scope: Scope = "layer",
    score: Name = "magnitude",
) -> Rule:
    """Busy units keep few edges, quiet units many.

    Args:
      spread: share of the mean degree that a nat of log-odds adds to a unit's degree,
        0.1 by default; may be traced. 0 leaves activity out, a negative number reverses
        the balance. `"calibrated"`, for `bb.prune`: the slope of least output error on
        the calibration data, chosen for every kernel and stack slice (`bb.spreads`).
      beta: slope of the balance in log-odds per edge instead, above 0: the paper's
        formula without changes. May be traced.
      law: another law than `log_odds`, e.g. `bb.laws.threshold()`.
      competition: share of the edges that a unit wins among all edges of the layer,
        which is added to its degree, in [0, 1]; may be traced. 0.75 by default, 0 with
        `beta` or `law`; laws that combine by "scale" allow 0 only. Under actuator "out"
        the degrees of a kernel that reads raw inputs come from competition alone,
        unless it is 0.
      scope: `"layer"`: every stack slice of a kernel has its own budget; `"global"`:
        all kernels compete for one budget, by `score`, before the units of each do;
        budgets then move at every refresh, and `hysteresis` holds edges, not degrees.
      score: what an edge is worth: `"magnitude"`, |w|; `"wanda"`, |w| times the root
        mean square of its input; `"scaled"`, |w| times the square root of that where
        inputs are raw, |w| elsewhere; `"ria"`, that of `bb.rules.ria()`. See
        `bbjax.rules.parts.scores`.

    Returns:
      A rule that needs the on-rate of the budgeted units, and what the score reads.

    Raises:
      ValueError: more than one of `spread`, `beta` and `law`, a number out of range,
        competition with a law that combines by "scale", an unknown scope or score.

    Example:
      >>> budgeted_broadcast().needs
      ('on_rate',)
      >>> budgeted_broadcast(score="wanda").needs
      ('on_rate', 'inputs.mean_square')
    """
    if sum(given is not None for given in (beta, spread, law)) > 1:
        named = None if law is None else law.name
        raise ValueError(
            f"expected one of beta, spread and law, got beta={beta!r}, "
            f"spread={spread!r} and law={named!r}; a law has a slope of its own: "
            "bb.laws.log_odds(spread=...)"
        )
    if competition is None:
        competition = COMPETITION if law is None and beta is None else 0.0
    check_scope(scope)
    slope = _number(spread)
    law = laws.log_odds(beta, spread=slope) if law is None else law
    check_law(law, "log_odds")
    of, needs = score_called(score)
    details = [] if law.name == "log_odds" else [law.name]
    details += [] if score == "magnitude" else [score]
    details += [] if scope == "layer" else [scope]
    details += [] if slope is spread else ["calibrated"]
    name = "budgeted_broadcast" + (f"[{', '.join(details)}]" if details else "")
    needs = ("on_rate", *needs)
    if slope is not spread:
        return _calibrated(name, of, needs, competition, scope)
    select = select_by_law(law, of, competition=competition)
    if scope == "global":
        return Rule(name, select_over_all(select, of), needs=needs, joint=True)
    return Rule(name, select, needs=needs)


def _number(
    spread: Real[ArrayLike, "*stack"] | str | None,
) -> Real[ArrayLike, "*stack"] | None:
    """The slope, None where it is the default or calibrated."""
    if isinstance(spread, str):
        if spread != "calibrated":
            raise ValueError(
                f'expected a number or "calibrated" for spread, got {spread!r}; it is '
                "a share of the mean degree per nat of log-odds, e.g. 0.1"
            )
        return None
    return spread


def _calibrated(
    name: str,
    of: Score,
    needs: tuple[str, ...],
    competition: Number,
    scope: Scope,
) -> Rule:
    if scope != "layer":
        raise ValueError(
            f'expected scope "layer" with spread="calibrated", got {scope!r}: the '
            "slope is chosen kernel by kernel; name a number, e.g. spread=0.1"
        )
    select = select_calibrated(of, competition)
    needs = (*needs, "inputs.gram")
    return Rule(name, select, needs, one_shot=True, fits=True)
