"""All that a run found, for the table, the JSON file and the pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

import bbjax as bb
from bbjax.budgets.exact import exact_budget
from bbjax.demo.methods import Timing
from bbjax.demo.outcome import Outcome
from bbjax.demo.smaller import Size


@dataclasses.dataclass(frozen=True)
class Results:
    """What a run found.

    Attributes:
        main: outcomes at the density asked for, dense first.
        sweep: outcomes at further densities.
        law: outcome of the law without competition, one seed.
        sizes: the dense nets, and those after each round of shrinking.
        times: time per call of `sizes` and of a masked net, as ratios to the dense
            net: quartiles, (nets + 1, 3).
        timing: when pruning happened.
        units: from the trace.
    """

    main: Sequence[Outcome]
    sweep: Sequence[Outcome]
    law: Outcome
    sizes: Sequence[Size]
    times: np.ndarray
    timing: Timing
    units: bb.Units

    @property
    def by_key(self) -> dict[str, Outcome]:
        """Outcomes at the density asked for, by key of the method."""
        return {outcome.method.key: outcome for outcome in self.main}

    @property
    def pruned(self) -> list[Outcome]:
        """Outcomes at the density asked for, without the dense net."""
        return [outcome for outcome in self.main if outcome.metrics]

    def asked(self, path: str) -> np.ndarray:
        """Edges asked for of a kernel, refresh by refresh."""
        steps = self.timing.refreshes()
        densities = self.timing.densities(self.pruned[0].density)[steps]
        return np.asarray(exact_budget(densities, self.units[path].edge_count))

    @property
    def missed(self) -> int:
        """Largest difference between edges asked for and kept, over all refreshes."""
        return max(
            int(np.abs(kept - self.asked(path)[:, None]).max())
            for outcome in self.pruned
            for path, kept in outcome.kept_at.items()
        )
