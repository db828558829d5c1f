"""TRIM: more edges for the units whose outputs pruning has changed most.

With `w` the weights of an output unit, `w'` the kept ones and `G` the mean of x x^T
over the inputs, the unit's cosine between its output before and after pruning is

    cos_j = w'^T G w / sqrt(w^T G w * w'^T G w')

All units start with the same sparsity `s_j = 1 - density`. A round prunes by the score,
measures the cosines, and moves the sparsities by a rate `r`,

    q_j = (cos_j - min cos) / (max cos - min cos + 1e-6)
    s_j <- clip(s_j + 2 r (q_j - mean q), 0, .95),   then s_j <- s_j + shift

with the shift that makes their mean what it was. Rounds with one rate begin with equal
sparsities. The best sparsities of all rounds are kept, by the cosine of all outputs of
the slice together (as published) or by the mean of `cos_j`. Rates of .01, .02, .04,
.08, .12 and .16 are tried in this order, as long as each is better than the one before.
If none is better than equal sparsities, so are -.01, -.02 and -.04. So on the
calibration data no slice has a lower cosine than with equal degrees.

Degrees are `c + fan * (1 - s_j)`, rounded, with the `c` that meets the budget to the
edge. The published code rounds the number of pruned edges of each unit down.

A unit whose output is 0 before and after counts with a cosine of 1, one whose output is
0 on one side only with 0.

Reference: Beck, Rudman, Eickhoff, "TRIM: Achieving Extreme Sparsity with Targeted
Row-wise Iterative Metric-driven Pruning", arXiv 2505.16743, and its authors' code.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from bbjax.arrays import sharding
from bbjax.budgets.laws import Law
from bbjax.model.numbers import INT32, check_int
from bbjax.rules.base import (
    Candidates,
    Rule,
    Static,
    as_choice,
    put_together,
    taken_apart,
)
from bbjax.rules.parts.hysteresis import Score
from bbjax.rules.parts.matrices import matrices, refuse_outgoing, refuse_windows
from bbjax.rules.parts.scores import Name, score_called
from bbjax.rules.parts.selection import select_by_law

Measure = Literal["layer", "units"]
# Rates are tried in order; the second row if nothing of the first is an improvement.
RATES = (0.01, 0.02, 0.04, 0.08, 0.12, 0.16), (-0.01, -0.02, -0.04)
_MOST = 0.95  # sparsity of a unit


def trim(
    score: Name = "wanda", *, measure: Measure = "layer", rounds: int = 10
) -> Rule:
    """Unequal degrees that raise the cosine between outputs and pruned ones (one-shot).

    A kernel with n inputs and m units costs up to `9 * rounds` selections and products
    of `2 n^2 m` operations, and memory for about `6 n m` floats, all times the number
    of stack slices. Two CPU cores take about a second for a 576 x 1536 kernel.

    Args:
      score: which edges a unit keeps, as for `bb.rules.magnitude`: `"wanda"`,
        `"magnitude"`, `"scaled"` or `"ria"`.
      measure: what has to be better: `"layer"`, the cosine of all outputs of a stack
        slice together, where large outputs count more (the published default), or
        `"units"`, the mean of the units' cosines. By the mean, units of large outputs
        may lose most of their edges; in a language model this did much harm.
      rounds: with each rate, at least 1; 10 are published.

    Returns:
      A rule for matrix products and 1x1 convolutions, actuator "in", that needs the
      Gram matrix of the inputs, and what the score reads.

    Raises:
      TypeError: `rounds` is no int.
      ValueError: an unknown score or measure, rounds out of range; when it chooses, a
        kernel that is no matrix, a selection that counts outgoing edges.

    Example:
      >>> import bbjax as bb
      >>> def fn(params, x):
      ...     return x @ params["w"]
      >>> params = {"w": jnp.ones((4, 2)).at[1:, 0].set(0.1)}
      >>> x = jnp.eye(4)
      >>> units, rule = bb.trace(fn, params, x).select("w"), trim()
      >>> stats = bb.calibrate(fn, units, params, [(x,)], needs=rule.needs)
      >>> _, masks = bb.prune(params, units, rule, density=0.5, stats=stats)
      >>> masks["w"].sum(0).tolist()
      [1, 3]
    """
    of, needs = score_called(score)
    if measure not in get_args(Measure):
        names = " or ".join(f'"{name}"' for name in get_args(Measure))
        raise ValueError(
            f"expected measure {names}, got {measure!r}; the first is published"
        )
    remedy = "it is how often sparsities are moved with each rate, e.g. 10"
    rounds = check_int("rounds", rounds, 1, INT32, remedy)

    def select(seen: Candidates) -> Bool[Array, "*edges"]:
        refuse_outgoing(seen, "trim compares what output units compute")
        refuse_windows(seen.kernel, "for rule 'trim'", "choose bb.rules.wanda()")
        arrays, static = taken_apart(seen)
        return _compiled(arrays, of, measure, rounds, static)

    name = "trim" if score == "wanda" else f"trim[{score}]"
    return Rule(name, select, needs=(*needs, "inputs.gram"), one_shot=True)


def _chosen(
    arrays: dict[str, Any], score: Score, measure: Measure, rounds: int, static: Static
) -> Bool[Array, "*edges"]:
    """The mask of one kernel, from the fields of its candidates."""
    seen = put_together(arrays, static)
    search = _Search.of(seen, score(seen), measure, rounds)
    equal = search.at(search.equal)
    state = _Best(equal.measured, search.equal)
    for rates in RATES:
        state = search.try_all(jnp.asarray(rates, jnp.float32), equal, state)
    return search.mask(state.sparsity)


# Compiled once for every kernel of a shape: eager code would compile its loops anew.
_compiled = jax.jit(_chosen, static_argnums=(1, 2, 3, 4))


class _Best(NamedTuple):
    """The best sparsities so far, for every stack slice."""

    measured: Float[Array, "*stack"]
    sparsity: Float[Array, "*stack units"]

    def or_better(self, other: _Best) -> _Best:
        """The other one where it is better."""
        better = other.measured > self.measured
        return _Best(
            jnp.where(better, other.measured, self.measured),
            jnp.where(better[..., None], other.sparsity, self.sparsity),
        )


class _Outcome(NamedTuple):
    """What pruning does to outputs."""

    cosines: Float[Array, "*stack units"]
    measured: Float[Array, "*stack"]


class _Tries(NamedTuple):
    """Rates that are tried one after the other.

    Attributes:
      number: of the next rate.
      going: slices for which the last rate was better than the one before.
      last: what it measured.
      best: of all rates.
    """

    number: Any
    going: Bool[Array, "*stack"]
    last: Float[Array, "*stack"]
    best: _Best


class _Search(NamedTuple):
    """How sparsities of one kernel are found.

    Attributes:
      seen: the kernel.
      scores: of its edges.
      weights: as matrices.
      gram: Gram matrices of the slices.
      pull: the Gram matrices times the weights.
      square: mean square of the output of each unit without pruning.
      equal: equal sparsities.
      measure: see `trim`, like `rounds`.
      rounds: likewise.
    """

    seen: Candidates
    scores: Float[Array, "*edges"]
    weights: Float[Array, " slices in out"]
    gram: Float[Array, " slices in in"]
    pull: Float[Array, " slices in out"]
    square: Float[Array, " slices out"]
    equal: Float[Array, "*stack units"]
    measure: Measure
    rounds: int

    @classmethod
    def of(
        cls,
        seen: Candidates,
        scores: Float[Array, "*edges"],
        measure: Measure,
        rounds: int,
    ) -> _Search:
        kernel = seen.kernel
        weights = kernel.sum_spatial(seen.weights.astype(jnp.float32))
        weights = matrices(kernel, jnp.where(jnp.isfinite(weights), weights, 0.0))
        slices, n, units = weights.shape
        gram = sharding.whole(seen.statistics["inputs.gram"])
        gram = jnp.reshape(gram, (slices, n, n))
        with jax.default_matmul_precision("highest"):
            pull = gram @ weights
        share = 1.0 - seen.budget.astype(jnp.float32) / kernel.edge_count
        equal = jnp.broadcast_to(share[..., None], (*kernel.stack_shape, units))
        square = jnp.sum(weights * pull, axis=1)
        return cls(seen, scores, weights, gram, pull, square, equal, measure, rounds)

    def mask(self, sparsity: Float[Array, "*stack units"]) -> Bool[Array, "*edges"]:
        """The best edges of every unit, with sparsities up to what the budget fixes."""
        seen = self.seen
        # Degrees are counted per group under a pattern.
        m = seen.kernel.fan("in") if seen.pattern is None else seen.pattern.m
        profile = m * (self.equal - sparsity)
        law = Law("trim", lambda *_: profile, "shift", reads_activity=False)
        return as_choice(select_by_law(law, lambda _: self.scores)(seen)).mask

    def at(self, sparsity: Float[Array, "*stack units"]) -> _Outcome:
        """What pruning with these sparsities does."""
        kept = matrices(self.seen.kernel, self.mask(sparsity))
        kept = jnp.where(kept, self.weights, 0.0)
        with jax.default_matmul_precision("highest"):
            own = jnp.sum(kept * (self.gram @ kept), axis=1)
        cross = jnp.sum(kept * self.pull, axis=1)
        stack = self.seen.kernel.stack_shape
        cosines = jnp.reshape(_cosine(cross, self.square, own), self.equal.shape)
        if self.measure == "units":
            return _Outcome(cosines, jnp.mean(cosines, axis=-1))
        sums = (jnp.sum(each, axis=-1) for each in (cross, self.square, own))
        return _Outcome(cosines, jnp.reshape(_cosine(*sums), stack))

    def with_rate(self, rate: Float[Array, ""], equal: _Outcome) -> _Best:
        """The best sparsities of all rounds with a rate, equal ones included."""

        def one(
            state: tuple[Array, Array, _Best], _: None
        ) -> tuple[tuple[Array, Array, _Best], None]:
            sparsity, cosines, best = state
            sparsity = self.moved(sparsity, cosines, rate)
            outcome = self.at(sparsity)
            best = best.or_better(_Best(outcome.measured, sparsity))
            return (sparsity, outcome.cosines, best), None

        start = (self.equal, equal.cosines, _Best(equal.measured, self.equal))
        return lax.scan(one, start, length=self.rounds)[0][2]

    def moved(
        self,
        sparsity: Float[Array, "*stack units"],
        cosines: Float[Array, "*stack units"],
        rate: Float[Array, ""],
    ) -> Float[Array, "*stack units"]:
        """Sparsities after a step: higher where outputs changed less."""
        low, high = (f(cosines, axis=-1, keepdims=True) for f in (jnp.min, jnp.max))
        q = (cosines - low) / (high - low + 1e-6)
        step = 2.0 * rate * (q - jnp.mean(q, axis=-1, keepdims=True))
        new = jnp.clip(sparsity + step, 0.0, _MOST)
        return new - jnp.mean(new, axis=-1, keepdims=True) + self.equal

    def try_all(
        self, rates: Float[Array, " rates"], equal: _Outcome, best: _Best
    ) -> _Best:
        """Tries rates in order, in slices in which nothing is better than equal ones.

        Each slice stops after the first rate that is no better than the one before.
        """

        def unfinished(state: _Tries) -> Bool[Array, ""]:
            return (state.number < len(rates)) & jnp.any(state.going)

        def one(state: _Tries) -> _Tries:
            found = self.with_rate(rates[state.number], equal)
            better = state.best.or_better(found)
            keep = state.going
            best = _Best(
                jnp.where(keep, better.measured, state.best.measured),
                jnp.where(keep[..., None], better.sparsity, state.best.sparsity),
            )
            going = keep & (found.measured > state.last)
            return _Tries(state.number + 1, going, found.measured, best)

        none = jnp.full_like(best.measured, -jnp.inf)
        going = best.measured <= equal.measured
        return lax.while_loop(
            unfinished, one, _Tries(jnp.int32(0), going, none, best)
        ).best


def _cosine(
    cross: Float[Array, "*shape"],
    first: Float[Array, "*shape"],
    second: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """A cosine from a product and two squares; 1 where both squares are 0."""
    size = jnp.sqrt(jnp.maximum(first, 0.0)) * jnp.sqrt(jnp.maximum(second, 0.0))
    both = (first <= 0) & (second <= 0)
    whole = jnp.where(both, 1.0, 0.0)
    return jnp.where(
        size > 0, jnp.clip(cross / jnp.where(size > 0, size, 1.0), -1, 1), whole
    )
