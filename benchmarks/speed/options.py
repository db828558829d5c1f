"""What is measured, and how often.

A call that is timed pays for its own dispatch, which real training hides on an
accelerator, where the next step is dispatched while this one runs. There a turn is
`burst` calls with one wait at their end; on a CPU it is one call. A pruned program runs
3 + `burst` steps in a round (refresh, after, settle, then the plain ones), so it is
built with `every = 3 + burst` and every round meets exactly one refresh.
"""

import dataclasses
from pathlib import Path

import jax

DENSITY = 0.7
EVERY = (10, 100, 1000)  # amortised over so many steps


def burst() -> int:
    """Calls of a turn."""
    return 1 if jax.default_backend() == "cpu" else 10


def every() -> int:
    """Steps from refresh to refresh, as measured."""
    return 3 + burst()


@dataclasses.dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
      models: names of tasks.
      size: "small" (seconds, says only that all runs), "cpu" or "accelerator".
      rounds: of measuring; `None` stands for what suits the backend.
      no_regrow: measure `regrow=False` as well.
      jaxpruner: a checkout of JaxPruner.
    """

    models: tuple[str, ...]
    size: str
    rounds: int | None = None
    no_regrow: bool = False
    jaxpruner: Path | None = None

    @property
    def small(self) -> bool:
        return self.size == "small"

    def times(self, small: int, cpu: int, accelerator: int) -> int:
        """Rounds: those asked for, or the one that suits the size."""
        usual = {"small": small, "cpu": cpu, "accelerator": accelerator}
        return self.rounds or usual[self.size]
