"""Scores of edges: which edges a unit keeps, once their number is known.

    magnitude    |w|
    wanda        |w| * rms(x)
    scaled       |w| * sqrt(rms(x))           where inputs are raw, |w| elsewhere
    ria          (|w| / its input's sum of |w| + |w| / its output's) * sqrt(rms(x))

with rms(x) the root mean square of the edge's input. Any score goes with any law. Raw
inputs are those that are no other kernel's output units: the data determine their
sizes, and training those of hidden units. In a convolution |w| is summed over the
window, and the positions of a channel are samples. References: magnitude, Han et al.,
arXiv 1506.02626; Wanda, Sun et al., arXiv 2306.11695; RIA, Zhang et al., ICLR 2024;
scaled is this library's own.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from bbjax.arrays.types import Number
from bbjax.model.units import Side
from bbjax.rules.base import Candidates
from bbjax.rules.parts.hysteresis import Score

Name = Literal["magnitude", "wanda", "scaled", "ria"]


class Scored(NamedTuple):
    """A score and the statistics that it reads.

    Attributes:
      of: from candidates to a float score per edge, higher is kept.
      needs: statistics it reads, as `Rule.needs`.
    """

    of: Score
    needs: tuple[str, ...] = ()


magnitude: Score = operator.attrgetter("magnitude")


def by_input(exponent: Number) -> Score:
    """The score |w| times a power of the root mean square of the edge's input.

    Args:
      exponent: the power, at least 0.

    Example:
      >>> callable(by_input(0.5))
      True
    """

    def score(seen: Candidates) -> Float[Array, "*edges"]:
        return seen.magnitude * _input_size(seen, exponent)

    return score


def relative_importance(exponent: Number) -> Score:
    """The share of |w| in its two units, times a power of the input's size.

    The shares are those of the sum over the edges of the input unit and over those of
    the output unit, both as the kernel is, pruned weights at their latent values. A
    weight that is not finite counts as 0 in the sums.

    Args:
      exponent: of the root mean square of the input, at least 0; may be traced.

    Example:
      >>> callable(relative_importance(0.5))
      True
    """

    def score(seen: Candidates) -> Float[Array, "*edges"]:
        size, kernel = seen.magnitude, seen.kernel
        counted = jnp.where(jnp.isfinite(size), size, 0.0)

        def share(side: Side) -> Float[Array, "*edges"]:
            total = kernel.spread(kernel.gather(counted, side), side)
            return size / jnp.where(total > 0, total, 1.0)  # 0 where all weights are

        return (share("inputs") + share("outputs")) * _input_size(seen, exponent)

    return score


def _input_size(seen: Candidates, exponent: Number) -> Float[Array, "..."]:
    """A power of the root mean square of the inputs, on the edge view."""
    square = seen.statistics["inputs.mean_square"]
    if isinstance(exponent, int | float) and exponent == 1:
        size = jnp.sqrt(square)
    else:
        size = square ** (jnp.asarray(exponent, square.dtype) / 2)
    return seen.kernel.spread(size, "inputs")


_root = by_input(0.5)


def _scaled(seen: Candidates) -> Float[Array, "*edges"]:
    return seen.magnitude if seen.kernel.reads else _root(seen)


SCORES: Mapping[str, Scored] = {
    "magnitude": Scored(magnitude),
    "wanda": Scored(by_input(1), ("inputs.mean_square",)),
    "scaled": Scored(_scaled, ("inputs.mean_square",)),
    "ria": Scored(relative_importance(0.5), ("inputs.mean_square",)),
}


def score_called(name: Any) -> Scored:
    """The score of a name.

    Raises:
      ValueError: an unknown name.

    Example:
      >>> score_called("wanda").needs
      ('inputs.mean_square',)
    """
    if not isinstance(name, str) or name not in SCORES:
        names = " or ".join(f'"{known}"' for known in SCORES)
        raise ValueError(
            f"expected score {names}, got {name!r}; it is what an edge is worth"
        )
    return SCORES[name]
