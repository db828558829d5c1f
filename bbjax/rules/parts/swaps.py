"""Swaps of edges after any rule, so that outputs stay close: better masks.

Units are columns `w` of a kernel and do not meet. With the Gram matrix `G = mean x x^T`
of the inputs, `e` the pruned weights of a unit (0 where it keeps its weight) and `c = G
e`, the mean square change of its output by pruning is `e^T G e`. A swap prunes a kept
edge `q` and keeps a pruned edge `p`: `e` becomes `e + w_q u_q - w_p u_p`, with `u` the
unit vectors. As G is symmetric, the error then changes by

    a_q + b_p - 2 w_q w_p G_qp     a_q = w_q^2 G_qq + 2 w_q c_q     the cost of q alone
                                   b_p = w_p^2 G_pp - 2 w_p c_p     the gain of p alone

A unit makes the best swap, the one of least change, as long as it lowers the error by
more than `LEAST` of what the error was at first. Equal changes go to the lowest `q`,
then to the lowest `p`. `c` becomes `c + w_q G_q - w_p G_p`. Degrees of units stay.

All pairs are many. So a round takes a shortlist: of the kept and of the pruned edges,
those of least `a` and `b`. Its pairs are evaluated exactly, and the best one is
swapped, as long as there is one on the list, but not more often than it has edges. The
next round computes `c` anew and takes another list. A unit is done once a list has no
such pair.

The idea to improve masks by swaps, with Gram matrices, is that of Zimmer, Roux, Wagner,
Hendrych, Pokutta, "SparseSwaps", arXiv 2512.10922. The formulas follow from the error,
as above; the shortlists are this library's own.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Shaped

LEAST = 2.0**-20  # of a unit's first error: what is less is rounding of float32
_BATCH = 2**22  # pairs that are evaluated at once: 16 MiB in float32


class Swapped(NamedTuple):
    """Kernels after the swaps, as matrices; errors are sums over units.

    Attributes:
      mask: kept edges; each unit has as many as before.
      before: mean square change of the outputs by the first masks.
      after: and by these.
      total: mean square of the outputs without pruning.
    """

    mask: Bool[Array, " slices in out"]
    before: Float[Array, " slices"]
    after: Float[Array, " slices"]
    total: Float[Array, " slices"]


@functools.partial(jax.jit, static_argnames=("shortlist", "m"))
def swap(
    weights: Shaped[Array, " slices in out"],
    gram: Float[Array, " slices in in"],
    mask: Bool[Array, " slices in out"],
    rounds: Int[ArrayLike, ""],
    *,
    shortlist: int | None,
    m: int | None = None,
) -> Swapped:
    """Swaps edges of all slices of a kernel, one slice after the other.

    Args:
      weights: before pruning, any float dtype.
      gram: mean of x x^T, float32.
      mask: the kept ones.
      rounds: the most that a unit takes.
      shortlist: edges on each side of a list; None for all of them.
      m: swaps stay within groups of so many neighbouring inputs, a divisor of their
        number. Such pairs are few, and all are evaluated.

    Example:
      >>> done = swap(
      ...     jnp.array([[[2.0], [3.0], [-3.0]]]),
      ...     jnp.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.9], [0.0, 0.9, 1.0]]]),
      ...     jnp.array([[[False], [True], [False]]]),
      ...     9,
      ...     shortlist=None,
      ... )
      >>> done.mask[0, :, 0].tolist()
      [True, False, False]
      >>> round(float(done.before[0]), 3), round(float(done.after[0]), 3)
      (13.0, 1.8)
    """
    n = weights.shape[1]
    if m is not None or (shortlist is not None and 2 * shortlist >= n):
        shortlist = None
    pairs = n * (m or n) if shortlist is None else 4 * shortlist**2

    def one(arrays: tuple[Array, ...]) -> Swapped:
        true, matrix, keep = arrays
        true = true.astype(jnp.float32)
        search = _Search(matrix, shortlist, m or n)
        before = search.error(jnp.where(keep, 0.0, true).T)
        at_once = max(1, min(keep.shape[1], _BATCH // max(pairs, 1)))
        new = lax.map(
            lambda unit: search.unit(unit[0], unit[1], unit[2], rounds),
            (true.T, keep.T, before),
            batch_size=at_once,
        )
        after = search.error(jnp.where(new, 0.0, true.T))
        better = after < before  # False where it is NaN
        first = jnp.sum(before)
        return Swapped(
            jnp.where(better, new.T, keep),
            first,  # sums may be rounded differently
            jnp.minimum(jnp.sum(jnp.where(better, after, before)), first),
            jnp.sum(search.error(true.T)),
        )

    with jax.default_matmul_precision("highest"):
        return lax.map(one, (weights, gram.astype(jnp.float32), mask))


class _Part(NamedTuple):
    """The edges of a unit that may be swapped, `n` of them, in groups.

    Attributes:
      weights: their weights.
      gram: entries of the Gram matrix.
      blocks: its blocks on the diagonal, one for each group.
    """

    weights: Float[Array, " n"]
    gram: Float[Array, "n n"]
    blocks: Float[Array, "groups m m"]

    def swapped(
        self,
        pull: Float[Array, " n"],
        kept: Bool[Array, " n"],
        real: Bool[Array, " n"],
        least: Float[Array, ""],
    ) -> Bool[Array, " n"]:
        """What is kept after all swaps that lower the error.

        Args:
          pull: `c`, the Gram matrix times the pruned weights of the unit.
          kept: what is kept now.
          real: the others are no edges.
          least: by how much a swap has to lower the error.
        """
        w, diagonal = self.weights, jnp.diagonal(self.gram)

        def unfinished(state: _State) -> Bool[Array, ""]:
            return state.more & (state.swaps < len(w))

        def one(state: _State) -> _State:
            pull, kept, swaps, _ = state
            cost, gain = _alone(w, diagonal, pull)
            cost = jnp.where(kept & real, cost, jnp.inf)
            gain = jnp.where(kept | ~real, jnp.inf, gain)
            change, q, p = self.best(cost, gain)
            better = change < -least
            moved = pull + w[q] * self.gram[q] - w[p] * self.gram[p]
            place = jnp.arange(len(w))
            turned = kept ^ ((place == q) | (place == p))
            return _State(
                jnp.where(better, moved, pull),
                jnp.where(better, turned, kept),
                swaps + 1,
                better,
            )

        start = _State(pull, kept, jnp.int32(0), jnp.array(True))
        return lax.while_loop(unfinished, one, start).kept

    def best(
        self, cost: Float[Array, " n"], gain: Float[Array, " n"]
    ) -> tuple[Float[Array, ""], Int[Array, ""], Int[Array, ""]]:
        """The least change of the error by a swap, and the edges that it swaps."""
        shape = self.blocks.shape[:2]
        w, gain = jnp.reshape(self.weights, shape), jnp.reshape(gain, shape)
        # A minimum over the last axis is fast; that of pairs with their places is not.
        both = 2.0 * w[:, :, None] * w[:, None, :] * self.blocks
        change = cost + jnp.reshape(jnp.min(gain[:, None] - both, axis=-1), -1)
        q = jnp.argmin(change)
        group, place = q // shape[1], q % shape[1]
        row = 2.0 * self.weights[q] * w[group] * self.blocks[group, place]
        p = group * shape[1] + jnp.argmin(gain[group] - row)
        return change[q], q, p


class _State(NamedTuple):
    """A unit on its way.

    Attributes:
      pull: the Gram matrix times the pruned weights.
      kept: what is kept.
      swaps: how many were tried.
      more: whether the last one was made.
    """

    pull: Float[Array, " n"]
    kept: Bool[Array, " n"]
    swaps: Int[Array, ""]
    more: Bool[Array, ""]


class _Search(NamedTuple):
    """How the units of one kernel look for swaps."""

    gram: Float[Array, "n n"]
    shortlist: int | None
    m: int  # inputs in a group; all of them where there are no groups

    def error(self, change: Float[Array, "out n"]) -> Float[Array, " out"]:
        """Mean square change of the output of each unit."""
        return jnp.sum(change * (change @ self.gram), axis=1)

    def unit(
        self,
        weights: Float[Array, " n"],
        keep: Bool[Array, " n"],
        error: Float[Array, ""],
        rounds: Int[ArrayLike, ""],
    ) -> Bool[Array, " n"]:
        """What a unit keeps after its swaps."""
        least = LEAST * error

        def one(state: tuple[Array, ...]) -> tuple[Array, ...]:
            kept, taken, _ = state
            pull = self.gram @ jnp.where(kept, 0.0, weights)
            if self.shortlist is None:
                new = self._among_all(weights, pull, kept, least)
            else:
                new = self._among_few(weights, pull, kept, least, self.shortlist)
            return new, taken + 1, jnp.any(new != kept)

        def unfinished(state: tuple[Array, ...]) -> Bool[Array, ""]:
            return state[2] & (state[1] < rounds)

        start: tuple[Array, ...] = (keep, jnp.int32(0), jnp.array(True))
        return lax.while_loop(unfinished, one, start)[0]

    def _among_all(
        self,
        weights: Float[Array, " n"],
        pull: Float[Array, " n"],
        kept: Bool[Array, " n"],
        least: Float[Array, ""],
    ) -> Bool[Array, " n"]:
        n, m = len(weights), self.m
        groups = jnp.arange(n).reshape(n // m, m)
        blocks = self.gram[groups[:, :, None], groups[:, None, :]]
        part = _Part(weights, self.gram, blocks)
        return part.swapped(pull, kept, jnp.ones(n, bool), least)

    def _among_few(
        self,
        weights: Float[Array, " n"],
        pull: Float[Array, " n"],
        kept: Bool[Array, " n"],
        least: Float[Array, ""],
        size: int,
    ) -> Bool[Array, " n"]:
        n = len(weights)
        cost, gain = _alone(weights, jnp.diagonal(self.gram), pull)
        sides = (jnp.where(kept, cost, jnp.inf), jnp.where(kept, jnp.inf, gain))
        lists = []
        for side in sides:
            value, place = lax.top_k(-side, size)
            lists.append(jnp.where(value > -jnp.inf, place, n))
        at = jnp.sort(jnp.concatenate(lists))  # as equal changes go by index
        real = at < n
        here = jnp.where(real, at, 0)
        gram = self.gram[here[:, None], here[None]]
        part = _Part(weights[here], gram, gram[None])
        new = part.swapped(pull[here], kept[here], real, least)
        return kept.at[at].set(new, mode="drop")


def _alone(
    weights: Float[Array, " n"], diagonal: Float[Array, " n"], pull: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """What the error changes by if an edge goes, and if it comes back."""
    square, cross = weights * weights * diagonal, 2.0 * weights * pull
    return square + cross, square - cross
