"""Optimal brain surgery: kept weights of a unit compensate for those that go.

H is the Gram matrix of the inputs. Pruning weight j of a unit raises the squared error
of its output least if the weights after it are updated as well. With `U^T U = H^-1`, U
upper triangular, a sweep takes the inputs in order, and for each one that a unit loses

    error = w_j / U_jj        w_later -= error * U_j,later        loss += error**2

so that `w_j**2 / U_jj**2` is the cost of the edge when the sweep reaches it. At every
block the inputs ahead of the sweep are ranked by it; under a pattern, those of a group
of m when it is reached. Of these, a unit keeps the best that it still has to keep. So
its number of edges is exact, and the costs determine how many each block loses.

Shapes: weights `(in, out)`, one column per unit; Gram matrix `(in, in)`. Kept weights
are updated within a block at once, and behind it when the block is done.
Reference: Hassibi and Stork, 1993; order and blocks: Frantar and Alistarh, "SparseGPT",
arXiv 2301.00774.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from bbjax.arrays.topk import top_k_mask
from bbjax.arrays.types import Number

# Ranks in place of a cost: below every weight, but above inputs behind the sweep (NaN).
_UNSEEN, _GONE = -1.0, -2.0


class Operated(NamedTuple):
    """The units of a kernel after pruning.

    Attributes:
      weights: new values of the kept weights, float32 `(in, out)`; the others are 0.
      mask: the kept ones, bool `(in, out)`.
      sound: whether the Gram matrix could be factored, bool scalar; if not, the largest
        weights are kept as they were.
    """

    weights: Float[Array, "in out"]
    mask: Bool[Array, "in out"]
    sound: Bool[Array, ""]


@functools.partial(jax.jit, static_argnames=("block", "m"))
def operate(
    weights: Float[Array, "in out"],
    gram: Float[Array, "in in"],
    keep: Int[Array, " out"],
    alive: Bool[Array, "in out"],
    damp: Number,
    *,
    block: int,
    m: int | None = None,
) -> Operated:
    """Prunes the units of one kernel, and updates the weights that they keep.

    Args:
      weights: float `(in, out)`; entries that are not finite count as 0.
      gram: mean of x x^T, float32 `(in, in)`. Inputs that are always 0 are unseen:
        their edges go first, and those that have to stay keep their values.
      keep: edges that each unit keeps, or keeps of each group: int32 `(out,)`.
      alive: edges that are left to choose from, bool `(in, out)`.
      damp: added to the diagonal of `gram`, as a share of its mean over seen inputs.
      block: number of inputs after which the weights behind them are updated.
      m: size of a group of neighbouring inputs, a divisor of their number, or None.

    Returns:
      `Operated`; each unit keeps exactly `keep`, as far as they are alive.

    Example:
      >>> gram = jnp.array([[2.0, 1.0], [1.0, 2.0]])
      >>> done = operate(
      ...     jnp.array([[1.0], [3.0]]),
      ...     gram,
      ...     jnp.array([1]),
      ...     jnp.ones((2, 1), bool),
      ...     0.0,
      ...     block=2,
      ... )
      >>> done.weights.tolist()
      [[0.0], [3.5]]
    """
    n, units = weights.shape
    block = min(block, n)
    block = block if m is None else max(block // m, 1) * m
    weights = weights.astype(jnp.float32)
    weights = jnp.where(jnp.isfinite(weights), weights, 0.0)
    with jax.default_matmul_precision("highest"):
        upper, unseen, sound = _factor(gram.astype(jnp.float32), damp)
        rank = jnp.where(alive, jnp.where(unseen, _UNSEEN, 0.0)[:, None], _GONE)
        more = -n % block
        pad = ((0, more), (0, 0))
        sweep = _Sweep(
            jax.scipy.linalg.block_diag(upper, jnp.eye(more)) if more else upper,
            jnp.pad(rank, pad, constant_values=jnp.nan),
            block,
            m,
        )
        mask = jnp.zeros((n + more, units), bool)
        state = _State(jnp.pad(weights, pad), mask, keep.astype(jnp.int32))
        state = lax.fori_loop(0, (n + more) // block, sweep.block_of, state)
    mask = state.mask[:n] & alive
    return Operated(jnp.where(mask, state.weights[:n], 0.0), mask, sound)


@jax.jit
def cost(
    weights: Float[Array, "in out"],
    gram: Float[Array, "in in"],
    damp: Number,
) -> Float[Array, "in out"]:
    """The cost of each edge at the given weights, `w**2 / U_ii**2`.

    Args:
      weights: as for `operate`, like the other arguments.
      gram: likewise.
      damp: likewise.

    Returns:
      float32 `(in, out)`; -1 for edges of inputs that are always 0. |w| squared where
      the Gram matrix cannot be factored.

    Example:
      >>> gram = jnp.array([[2.0, 0.0], [0.0, 1.0]])
      >>> cost(jnp.array([[1.0], [2.0]]), gram, 0.0).tolist()
      [[1.333...], [2.666...]]
    """
    weights = weights.astype(jnp.float32)
    weights = jnp.where(jnp.isfinite(weights), weights, 0.0)
    with jax.default_matmul_precision("highest"):
        upper, unseen, _ = _factor(gram.astype(jnp.float32), damp)
    loss = jnp.square(weights / jnp.diagonal(upper)[:, None])
    return jnp.where(unseen[:, None], _UNSEEN, loss)


def _factor(
    gram: Float[Array, "in in"], damp: Number
) -> tuple[Float[Array, "in in"], Bool[Array, " in"], Bool[Array, ""]]:
    """U with `U^T U` the inverse of the damped matrix; unseen inputs; is it sound.

    With the order of the inputs reversed, the Cholesky factor of the matrix itself is
    the inverse of U, so that only a triangle is inverted.
    """
    size = jnp.diagonal(gram)
    unseen = ~(size > 0)
    seen = jnp.sum(~unseen, dtype=jnp.float32)
    mean = jnp.sum(jnp.where(unseen, 0.0, size)) / jnp.maximum(seen, 1.0)
    mean = jnp.where(mean > 0, mean, 1.0)
    damp = jnp.asarray(damp).astype(jnp.float32)
    added = jnp.where(unseen, 1.0, 0.0) + damp
    low = jnp.linalg.cholesky((gram / mean + jnp.diag(added))[::-1, ::-1])
    eye = jnp.eye(len(size))
    upper = jax.scipy.linalg.solve_triangular(low[::-1, ::-1], eye)
    sound = jnp.all(jnp.isfinite(upper))
    return jnp.where(sound, jnp.triu(upper), eye), unseen, sound


class _State(NamedTuple):
    weights: Float[Array, "in out"]
    mask: Bool[Array, "in out"]  # kept so far
    # Edges that each unit still has to keep, or keeps of each group.
    left: Int[Array, " out"]


class _Sweep(NamedTuple):
    """One pass over the inputs, block by block."""

    upper: Float[Array, "in in"]
    rank: Float[Array, "in out"]  # 0, or a rank in place of the cost
    block: int
    m: int | None

    def cost(
        self,
        weights: Float[Array, "rows out"],
        rank: Float[Array, "rows out"],
        pivot: Float[Array, " rows"],
    ) -> Float[Array, "rows out"]:
        return jnp.where(rank == 0, jnp.square(weights / pivot[:, None]), rank)

    def block_of(self, number: Int[Array, ""], state: _State) -> _State:
        """Prunes in a block, then updates the weights behind it."""
        at, n = number * self.block, len(self.upper)
        mask, left = state.mask, state.left
        if self.m is None:
            best = self._ahead(at, state)
            here = lax.dynamic_slice_in_dim(best, at, self.block)
            mask = lax.dynamic_update_slice_in_dim(mask, here, at, 0)
            left = left - jnp.sum(here, axis=0, dtype=jnp.int32)
        new, mask, errors = self._columns(at, state.weights, mask, left)
        behind = (jnp.arange(n) >= at + self.block)[None]
        rows = lax.dynamic_slice_in_dim(self.upper, at, self.block)
        weights = state.weights - jnp.where(behind, rows, 0.0).T @ errors
        weights = lax.dynamic_update_slice_in_dim(weights, new, at, 0)
        return _State(weights, mask, left)

    def _ahead(self, at: Int[Array, ""], state: _State) -> Bool[Array, "in out"]:
        """The best edges ahead of the sweep, as many as are left to keep."""
        cost = self.cost(state.weights, self.rank, jnp.diagonal(self.upper))
        ahead = (jnp.arange(len(cost)) >= at)[:, None]
        return top_k_mask(jnp.where(ahead, cost, jnp.nan), state.left, axis=0)

    def _columns(
        self,
        at: Int[Array, ""],
        weights: Float[Array, "in out"],
        mask: Bool[Array, "in out"],
        left: Int[Array, " out"],
    ) -> tuple[
        Float[Array, "block out"], Bool[Array, "in out"], Float[Array, "block out"]
    ]:
        """The inputs of a block, one by one: its weights, the mask, the errors."""
        size = self.block
        upper = lax.dynamic_slice(self.upper, (at, at), (size, size))
        rank = lax.dynamic_slice_in_dim(self.rank, at, size)
        weights = lax.dynamic_slice_in_dim(weights, at, size)
        kept = lax.dynamic_slice_in_dim(mask, at, size)

        def group(
            j: Int[Array, ""],
            weights: Float[Array, "block out"],
            kept: Bool[Array, "block out"],
        ) -> Bool[Array, "block out"]:
            parts = (weights, rank, jnp.diagonal(upper))
            cut = (lax.dynamic_slice_in_dim(part, j, self.m or 1) for part in parts)
            best = top_k_mask(self.cost(*cut), left, axis=0)
            return lax.dynamic_update_slice_in_dim(kept, best, j, 0)

        def one(j: Int[Array, ""], carry: tuple[Array, ...]) -> tuple[Array, ...]:
            weights, kept, errors = carry
            if self.m is not None:
                kept = lax.cond(
                    j % self.m == 0, group, lambda j, w, kept: kept, j, weights, kept
                )
            row = upper[j]
            error = jnp.where(kept[j], 0.0, weights[j] / row[j])
            weights = weights - row[:, None] * error[None]
            return weights, kept, errors.at[j].set(error)

        start = (weights, kept, jnp.zeros_like(weights))
        weights, kept, errors = lax.fori_loop(0, size, one, start)
        return weights, lax.dynamic_update_slice_in_dim(mask, kept, at, 0), errors
