"""How many units every group keeps within a budget of parameters, operations or bytes.

The choices form a list from the smallest model to the whole one, along which no group
gets smaller: shares of units for all groups (`scope="group"`), or units in the order of
their scores (`scope="global"`). So the costs rise, and bisection finds the last choice
within the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np

from bbjax.model.checks import check_values
from bbjax.model.numbers import check_number
from bbjax.model.units import Units
from bbjax.shrinking.unitwise.groups import free_groups
from bbjax.shrinking.unitwise.model_costs import KINDS, Costs

Scope = Literal["group", "global"]
_SHOWN = 8  # reasons in a message


class Given(NamedTuple):
    """What the numbers of units are chosen from.

    Attributes:
      scores: by name of group.
      ranks: the rank of every unit in its group and layer, best first.
      steps: of every group, the multiple that its number of units is rounded up to.
    """

    scores: Mapping[str, np.ndarray]
    ranks: Mapping[str, np.ndarray]
    steps: Mapping[str, int]

    def rounded(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Numbers of units as multiples: at least one unit, at most all."""
        found = {}
        for name, score in self.scores.items():
            count, step = max(int(counts[name]), 1), self.steps[name]
            found[name] = min(-(-count // step) * step, score.shape[-1])
        return found

    def only(self, names: Iterable[str]) -> Given:
        """The same for some groups."""
        names = tuple(names)
        scores = {name: self.scores[name] for name in names}
        return Given(scores, {name: self.ranks[name] for name in names}, self.steps)


def within(
    budget: Any, costs: Any, units: Units, given: Given, scope: Scope
) -> dict[str, int]:
    """The largest numbers of units whose model is within a budget.

    Groups that `bb.shrink` would leave whole keep all their units, so that the model
    has the costs that were counted.

    Args:
      budget: by kind of cost, the share of that of the whole model.
      costs: of the model.
      units: that it has.
      given: scores, ranks and multiples.
      scope: as in `cut`.
    """
    shares, costs = checked(budget), _checked_costs(costs, units)
    everything = costs.at()

    def left(sizes: Mapping[str, int]) -> dict[str, float]:
        found = costs.at(sizes)
        return {kind: found[kind] / (everything[kind] or 1) for kind in shares}

    def fits(sizes: Mapping[str, int]) -> bool:
        found = left(sizes)
        return all(found[kind] <= share for kind, share in shares.items())

    whole = dict(costs.whole)
    while True:
        free = given.only(name for name in given.scores if name not in whole)
        count, choice = _choices(free, scope)
        smallest = free.rounded(choice(0))
        if not fits(smallest):
            raise ValueError(_too_small(shares, left(smallest), units, given, whole))
        low, high = 0, count - 1
        while low < high:
            middle = (low + high + 1) // 2
            if fits(free.rounded(choice(middle))):
                low = middle
            else:
                high = middle - 1
        sizes = free.rounded(choice(low))
        kept = {name: free.ranks[name] < count for name, count in sizes.items()}
        refused = costs.refused(kept)
        if not refused:
            full = {name: score.shape[-1] for name, score in given.scores.items()}
            return full | sizes
        whole |= refused


def checked(budget: Any) -> dict[str, float]:
    """The shares of a budget, by kind of cost.

    Raises:
      TypeError: not by kind of cost, or shares that are no numbers.
      ValueError: no kind, another kind, or a share outside (0, 1].
    """
    if not isinstance(budget, Mapping):
        raise TypeError(
            f"expected a budget by kind of cost, got {budget!r}; pass "
            '{"flops": 0.5} for half of the operations'
        )
    if not budget or set(budget) - set(KINDS):
        raise ValueError(
            f"expected a budget of some of {list(KINDS)}, got {list(budget)}; pass the "
            'share that may be left, as {"flops": 0.5, "params": 0.5}'
        )
    check_values(budget, "shares of a budget")
    remedy = "it is the share of the whole model's that may be left"
    return {
        kind: check_number(f"the budget of {kind}", share, "(0, 1]", remedy)
        for kind, share in budget.items()
    }


def _checked_costs(costs: Any, units: Units) -> Costs:
    if not isinstance(costs, Costs):
        raise TypeError(
            f"expected the costs of the model with a budget, got {type(costs).__name__}"
            "; pass costs=bb.unitwise.costs(fn, units, params, *args)"
        )
    mine, theirs = free_groups(units), costs.groups
    if {n: g.size for n, g in mine.items()} != {n: g.size for n, g in theirs.items()}:
        raise ValueError(
            f"expected costs of the groups {list(mine)[:_SHOWN]}, got those of "
            f"{list(theirs)[:_SHOWN]}; pass units and costs of one model"
        )
    return costs


def _too_small(
    budget: Mapping[str, float],
    left: Mapping[str, float],
    units: Units,
    given: Given,
    whole: Mapping[str, str],
) -> str:
    """What remains of the smallest model, and why."""
    asked = ", ".join(f"{share:.3g} of the {kind}" for kind, share in budget.items())
    remain = ", ".join(f"{share:.3g} of the {kind}" for kind, share in left.items())
    mine = list(free_groups(units))
    why = {name: "no scores were given" for name in mine if name not in given.scores}
    why |= whole
    why |= {group.name: group.fixed for group in units.graph if group.fixed}
    reasons = [f"{name}: {reason}" for name, reason in why.items()]
    more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    large = [f"{n} of {s!r}" for s, n in given.steps.items() if n > 1 and s in mine]
    multiples = f" (multiples: {', '.join(large[:_SHOWN])})" if large else ""
    cannot = f". These cannot shrink: {'; '.join(reasons[:_SHOWN])}{more}"
    return (
        f"expected a budget that the smallest model meets, got {asked}: {remain} "
        f"remain with one unit in every group{multiples}{cannot if reasons else ''}. "
        "Raise the budget, or drop layers (bb.depth)"
    )


# Choices -------------------------------------------------------------------------
def _choices(given: Given, scope: Scope) -> tuple[int, Callable[[int], dict[str, int]]]:
    """How many choices there are, and the numbers of units of each.

    From the fewest units to all: at every share at which a number changes, or with
    every unit of the ranking.
    """
    if scope == "global":
        names, groups = ranking(given.scores), tuple(given.scores)

        def best(index: int) -> dict[str, int]:
            return counted(names[: len(groups) + index], groups)

        return len(names) - len(groups) + 1, best
    sizes = {name: score.shape[-1] for name, score in given.scores.items()}
    half = Fraction(1, 2)
    changes = {
        (n - half) / size for size in {*sizes.values()} for n in range(1, size + 1)
    }
    shares = [Fraction(0), *sorted(changes, key=float)]

    def shared(index: int) -> dict[str, int]:
        return {name: int(shares[index] * size + half) for name, size in sizes.items()}

    return len(shares), shared


def ranking(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """The group of every unit, best first, if all compete; one of every group leads.

    The scores of a group in a scan are means over its layers, rank by rank.
    """
    if not scores:
        return np.array([], str)
    ranked = {
        name: np.sort(score, axis=-1)[..., ::-1].reshape(-1, score.shape[-1]).mean(0)
        for name, score in scores.items()
    }
    names = np.concatenate([[n] * len(s) for n, s in ranked.items()])
    values = np.concatenate([np.r_[np.inf, s[1:]] for s in ranked.values()])
    return names[np.argsort(-values, kind="stable")]


def counted(names: np.ndarray, groups: Iterable[str]) -> dict[str, int]:
    """How often the name of each group occurs."""
    return {group: int((names == group).sum()) for group in groups}
