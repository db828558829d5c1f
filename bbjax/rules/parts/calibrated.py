"""The slope of the balance chosen on calibration data, of either sign or 0.

With the Gram matrix G = mean x x^T of a kernel's inputs, pruning changes the outputs by

    error = mean |x (W - W * mask)|^2 = sum over units of d^T G d,   d: what is pruned

Masks are made with every slope of `SPREADS`, and each stack slice takes the slope of
the least error, the flattest one among equal errors. So on the calibration data no
slice is worse than with slope 0, and the sign that is chosen shows whether rare or busy
units need more edges.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped

from bbjax.arrays import sharding
from bbjax.arrays.types import Number
from bbjax.budgets.laws import log_odds
from bbjax.model.kernel import Kernel
from bbjax.rules.base import (
    Candidates,
    Choice,
    Fitted,
    Select,
    Static,
    as_choice,
    put_together,
    taken_apart,
)
from bbjax.rules.parts.competition import Blend
from bbjax.rules.parts.hysteresis import Score
from bbjax.rules.parts.matrices import matrices, refuse_windows
from bbjax.rules.parts.selection import select_by_law

# Shares of the mean degree per nat. The flattest comes first: of equal errors the first
# slope is taken.
SPREADS = (0.0, 0.05, -0.05, 0.1, -0.1, 0.2, -0.2, 0.4, -0.4)


def select_calibrated(score: Score, competition: Number) -> Select:
    """Selection whose slope is the best one on the calibration data, slice by slice.

    Args:
      score: as for `select_by_law`.
      competition: likewise.

    Returns:
      A `select` function whose choice has the slopes in `fitted`.
    """
    share = Blend(log_odds(), competition).share  # checked, and a float if known

    def select(seen: Candidates) -> Choice:
        refuse_windows(
            seen.kernel, "to calibrate the spread", "name a number, e.g. 0.1"
        )
        arrays, static = taken_apart(seen)
        if isinstance(share, jax.core.Tracer):
            return _best(arrays, share, score, static)
        return _compiled(arrays, share, score, static)

    return select


class _Kept(NamedTuple):
    """The best of the slopes that were tried, for every stack slice."""

    error: Float[Array, "*stack"]
    spread: Float[Array, "*stack"]
    mask: Bool[Array, "*edges"]


def _best(
    arrays: dict[str, Any],
    share: Number,
    score: Score,
    static: Static,
) -> Choice:
    """The choice for one kernel, from the fields of its candidates."""
    seen = put_together(arrays, static)

    def attempt(
        best: _Kept, slope: Float[Array, ""]
    ) -> tuple[_Kept, Float[Array, "*stack"]]:
        select = select_by_law(log_odds(spread=slope), score, competition=share)
        mask = as_choice(select(seen)).mask
        error = output_error(seen, mask)
        better = error < best.error
        new = _Kept(
            jnp.where(better, error, best.error),
            jnp.where(better, slope, best.spread),
            jnp.where(_over_edges(seen.kernel, better), mask, best.mask),
        )
        return new, error

    worst = jnp.full(seen.kernel.stack_shape, jnp.inf, jnp.float32)
    start = _Kept(worst, jnp.zeros_like(worst), jnp.zeros_like(seen.mask))
    best, errors = lax.scan(attempt, start, jnp.asarray(SPREADS, jnp.float32))
    return Choice(best.mask, fitted=Fitted(best.spread, best.error, errors[0]))


# Compiled once for every kernel: eager code would compile the loop at every call.
_compiled = jax.jit(_best, static_argnums=(1, 2, 3))


def _over_edges(
    kernel: Kernel, per_slice: Shaped[Array, "*stack"]
) -> Shaped[Array, "..."]:
    """An array per stack slice, with axes of size 1 for those of the edges."""
    shape = [
        n if role == "stack" else 1
        for n, role in zip(kernel.edge_shape, kernel.edge_roles, strict=True)
    ]
    return jnp.reshape(per_slice, shape)


def output_error(
    seen: Candidates, mask: Bool[Array, "*edges"]
) -> Float[Array, "*stack"]:
    """Mean square change of the outputs by pruning: float32, `kernel.stack_shape`.

    Args:
      seen: the kernel, with the Gram matrix of its inputs. Weights that are not finite
        count as 0.
      mask: kept edges, per edge.
    """
    kernel = seen.kernel
    weights = kernel.sum_spatial(seen.weights.astype(jnp.float32))
    weights = jnp.where(jnp.isfinite(weights), weights, 0.0)
    lost = matrices(kernel, jnp.where(mask, 0.0, weights))
    slices, n, _ = lost.shape
    gram = sharding.whole(seen.statistics["inputs.gram"])
    gram = jnp.reshape(gram, (slices, n, n))
    with jax.default_matmul_precision("highest"):
        moved = gram @ lost
    return jnp.reshape(jnp.sum(lost * moved, axis=(1, 2)), kernel.stack_shape)
