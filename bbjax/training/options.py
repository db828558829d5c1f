"""The settings of the transform, in one record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from bbjax.budgets.allocation import Density
from bbjax.rules.base import Rule
from bbjax.rules.patterns import Pattern


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of `bb.transform`, where each is explained, with its defaults.

    Attributes:
      rule: chooses the edges.
      density: kept share of the edges; None where it is an outcome of the rule, and
        before `arguments.check` where it was not given.
      every: updates between refreshes.
      start: first update that may refresh; None never refreshes.
      stop: update from which on masks stay.
      regrow: whether pruned weights may return.
      rescale: whether kept weights are scaled to preserve variance.
      k_min: least number of edges of a unit.
      ema: decay of the running means of activity.
      dormant_dtype: dtype of the stored values of pruned weights.
      pattern: groups that edges are kept in.
      masks: edges to begin with, by path.
      hysteresis: share by which a change must be better than what is kept.
    """

    rule: Rule
    density: Density = None
    every: int = 100
    start: int | None = 100
    stop: int | None = None
    regrow: bool = True
    rescale: bool | None = None
    k_min: int = 1
    ema: float | jax.Array = 0.99
    dormant_dtype: Any = None
    pattern: Pattern | None = None
    masks: Mapping[str, Any] | None = None
    hysteresis: float | jax.Array = 0.0

    @property
    def dormant(self) -> bool:
        """Whether the values of pruned weights are stored."""
        return self.regrow and self.rule.revive == "dormant"
