"""The slope of the balance chosen on calibration data: both signs, and none, compete.

With the Gram matrix G = mean x x^T of a kernel's inputs, pruning changes the outputs by

    error = mean |x (W - W * mask)|^2 = sum over units of d^T G d,   d: what is pruned

Masks are made with every slope of `SPREADS`, and each stack slice takes the slope of
the least error, the flattest one among equal errors. So on the calibration data no
slice is worse than with equal claims (slope 0), and the sign that is chosen says
whether rare or busy units need more edges than their share.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from bbjax import placement
from bbjax.kernel import Kernel
from bbjax.laws import log_odds
from bbjax.rules.base import Candidates, Choice, Fitted, Select
from bbjax.rules.selection import select_by_law
from bbjax.rules.stay import Score

# Shares of the mean degree per nat, the flattest first: it wins where errors are equal.
SPREADS = (0.0, 0.05, -0.05, 0.1, -0.1, 0.2, -0.2, 0.4, -0.4)


def select_calibrated(score: Score, competition: ArrayLike) -> Select:
    """Selection whose slope is the best one on the calibration data, slice by slice.

    Args:
      score: as for `select_by_law`.
      competition: likewise.

    Returns:
      A `select` function whose choice says in `fitted` what was chosen.
    """

    def masked(seen: Candidates, spread: jax.Array) -> jax.Array:
        law = log_odds(spread=spread)
        mask = select_by_law(law, score, competition=competition)(seen)
        assert isinstance(mask, jax.Array)
        return mask

    def select(seen: Candidates) -> Choice:
        _check_kernel(seen.kernel)
        slopes = jnp.asarray(SPREADS, jnp.float32)
        errors = lax.map(lambda slope: output_error(seen, masked(seen, slope)), slopes)
        best = jnp.argmin(errors, axis=0)
        least = jnp.take_along_axis(errors, best[None], axis=0)[0]
        fitted = Fitted(slopes[best], least, errors[0])
        return Choice(masked(seen, fitted.spread), fitted=fitted)

    return select


def output_error(seen: Candidates, mask: jax.Array) -> jax.Array:
    """Mean square change of the outputs by pruning: float32, `kernel.stack_shape`.

    Args:
      seen: the kernel, with the Gram matrix of its inputs.
      mask: kept edges, per edge.
    """
    kernel = seen.kernel
    weights = kernel.sum_spatial(seen.weights.astype(jnp.float32))
    lost = placement.whole(jnp.where(mask, 0.0, weights))
    order = kernel.axes("stack") + kernel.axes("in") + kernel.axes("out")
    sizes = (-1, math.prod(kernel.in_units), math.prod(kernel.out_units))
    lost = jnp.reshape(jnp.transpose(lost, order), sizes)
    gram = placement.whole(seen.statistics["inputs.gram"])
    gram = jnp.reshape(gram, (lost.shape[0], lost.shape[1], lost.shape[1]))
    with jax.default_matmul_precision("highest"):
        moved = gram @ lost
    return jnp.reshape(jnp.sum(lost * moved, axis=(1, 2)), kernel.stack_shape)


def _check_kernel(kernel: Kernel) -> None:
    window = math.prod(kernel.split) // math.prod(kernel.edge_shape)
    if kernel.groups > 1 or window > 1:
        what = f"{kernel.groups} groups" if kernel.groups > 1 else f"{window} positions"
        raise ValueError(
            f"expected a matrix product or a 1x1 convolution to calibrate the spread, "
            f"got {kernel.path!r} with {what} in its window; leave it out, or name a "
            "number, e.g. spread=0.1"
        )
