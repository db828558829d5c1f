"""Shrinks and trains in turn, as long as the score is high enough.

    masks = choose(params, units)      units to remove, by any rule
    small = shrink(fn, params, masks)
    params = train(small)              fine-tunes the smaller model
    score(params) < least              the round before was the last one

Removing a tenth of the units three times, with training between, does less harm than
removing a third at once. Reference: the loop is the usual one of structured pruning (Li
et al., Pruning Filters for Efficient ConvNets, 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp

from bbjax.model.checks import Masks
from bbjax.model.leaves import Leaves
from bbjax.model.units import Units
from bbjax.oneshot.rounds import rounds
from bbjax.shrinking.api import shrink
from bbjax.shrinking.result import Shrunk


class ShrinkRound(NamedTuple):
    """The model after a round.

    Attributes:
      number: of the round, from 1.
      params: after training.
      small: the result of `bb.shrink`; its `params` are those before training.
      score: of `params`; None without a function for it.
    """

    number: int
    params: Any
    small: Shrunk
    score: float | None


def shrink_rounds(
    fn: Callable[..., Any],
    params: Any,
    choose: Callable[[Any, Units], Masks],
    train: Callable[[Shrunk], Any],
    *example_args: Any,
    iterations: int,
    score: Callable[[Any], float] | None = None,
    least: float | None = None,
) -> Iterator[ShrinkRound]:
    """Shrinks and trains in turn, one round at a time; stop when it is small enough.

    Args:
      fn: as for `bb.shrink`.
      params: trained parameters.
      choose: from parameters and their trace to masks, e.g. with `bb.unitwise.cut`.
      train: from the smaller model to trained parameters of its shapes. `bb.hold` keeps
        what is pruned (`small.masks`) at 0.
      *example_args: as for `bb.shrink`.
      iterations: the largest number of rounds, at least 1.
      score: of trained parameters, e.g. accuracy on a held-out split.
      least: lowest score that is good enough. The first round with a lower score, or
        with NaN, ends the iteration and is not returned.

    Returns:
      An iterator that makes one `ShrinkRound` at a time. It ends early if nothing gets
      smaller.

    Raises:
      TypeError: `iterations` is no int; a score is no number.
      ValueError: `iterations` below 1; `least` without `score`; `train` returned
        something else than parameters of the smaller model's shapes.

    Example:
      >>> import bbjax as bb, jax, jax.numpy as jnp
      >>> def net(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.ones((3, 16)), "down": jnp.ones((16, 2))}
      >>> def choose(params, units):
      ...     scores = bb.unitwise.group_magnitude(units, params)
      ...     return bb.unitwise.cut(units, scores, density=0.5)
      >>> rounds = bb.shrink_rounds(
      ...     net,
      ...     params,
      ...     choose,
      ...     lambda small: small.params,
      ...     jnp.ones((4, 3)),
      ...     iterations=3,
      ...     score=lambda params: params["up"].shape[1],
      ...     least=4,
      ... )
      >>> [(r.number, r.small.widths["up"], r.score) for r in rounds]
      [(1, (16, 8), 8), (2, (8, 4), 4)]
    """

    def once(params: Any, before: Shrunk | None) -> Shrunk | None:
        last = shrink(fn, params, {}, *example_args) if before is None else before
        small = shrink(fn, params, choose(params, last.units), *example_args)
        return small if small.cuts else None

    def trained(small: Shrunk) -> Any:
        return _checked(train(small), small)

    made = rounds(
        params, once, trained, iterations=iterations, score=score, least=least
    )
    return (
        ShrinkRound(done.number, done.params, done.pruned, done.score) for done in made
    )


def _checked(trained: Any, small: Shrunk) -> Any:
    """Trained parameters, if they have the shapes of the smaller model."""
    shapes, expected = (
        {path: jnp.shape(leaf) for path, leaf in Leaves.of(tree).named().items()}
        for tree in (trained, small.params)
    )
    wrong = [path for path in expected if shapes.get(path) != expected[path]]
    if wrong:
        raise ValueError(
            f"expected train to return parameters of the smaller model, with "
            f"{wrong[0]!r} of shape {expected[wrong[0]]}, got "
            f"{shapes.get(wrong[0], 'none there')}; start from small.params, and "
            "return the trained parameters alone"
        )
    return trained
