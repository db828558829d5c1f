"""Prunes, trains and scores in turn: the loop that several drivers share.

    for every round:    pruned = prune(params, pruned)
                        params = train(pruned)
                        mark   = score(params)

It ends after the last round, where nothing is left to prune, or before the first round
whose score is not good enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from bbjax.model.numbers import check_int

P = TypeVar("P")  # what pruning once returns
_MOST = 2**16


class Done(NamedTuple, Generic[P]):
    """One round.

    Attributes:
      number: of the round, from 1.
      pruned: what `prune` returned.
      params: what `train` returned.
      score: of these, as the scorer returned it; None without one.
    """

    number: int
    pruned: P
    params: Any
    score: Any


def rounds(
    params: Any,
    prune: Callable[[Any, P | None], P | None],
    train: Callable[[P], Any],
    *,
    iterations: int,
    score: Callable[[Any], Any] | None = None,
    least: float | None = None,
) -> Iterator[Done[P]]:
    """Prunes, trains and scores in turn, one round at a time.

    Args:
      params: to begin with.
      prune: from parameters and what it returned in the round before (None in the
        first) to what is pruned now; None if there is nothing left to prune.
      train: from that to trained parameters.
      iterations: most rounds, at least 1.
      score: of trained parameters, a number.
      least: lowest score that is good enough; NaN never is.

    Returns:
      An iterator; each round is made when it is asked for. Arguments are checked at
      once.

    Raises:
      TypeError: `iterations` is no int; a score is no number.
      ValueError: `iterations` less than 1; `least` without `score`.

    Example:
      >>> halve = rounds(8, lambda n, _: n // 2, lambda n: n, iterations=2)
      >>> [(done.number, done.params) for done in halve]
      [(1, 4), (2, 2)]
    """
    check_int("iterations", iterations, 1, _MOST, "e.g. 5")
    if least is not None and score is None:
        raise ValueError(f"expected a score for least={least!r}, got none; pass score=")

    def run() -> Iterator[Done[P]]:
        now, pruned = params, None
        for number in range(1, iterations + 1):
            pruned = prune(now, pruned)
            if pruned is None:
                return
            now = train(pruned)
            mark = None if score is None else score(now)
            value = None if score is None else as_float(mark)
            if least is not None and value is not None and not value >= least:
                return  # also where the score is NaN
            yield Done(number, pruned, now, mark)

    return run()


def as_float(value: Any) -> float:
    """What a scorer returned, as a float.

    Raises:
      TypeError: it is no number.
    """
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"expected a number as the score of parameters, got {value!r}; reduce it "
            "to one, as a mean"
        ) from error
