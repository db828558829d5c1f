"""New values of kept weights after any rule, so that outputs stay close.

With the Gram matrix `G = mean x x^T` of the inputs, `W` the weights before pruning and
`M` the mask, both methods look for the kept weights of least

    tr (W' - W)^T (G + damp diag G) (W' - W),   W' = W' * M

Units are columns of `W` and do not meet. Damping pulls kept weights to their old
values; it is what keeps the result sensible with fewer samples than inputs. Inputs are
scaled to mean square 1 first, so that their sizes do not matter.

    least_squares   exact: a Cholesky factor of size k x k for every unit of degree k;
                    one for all units where they keep the same inputs
    admm            rounds with one inverse for all units; approximate

With `C` the scaled matrix, damped, and `V` the scaled weights, ADMM starts at `Z = V *
M` and repeats, `rho` = 1,

    U += V' - Z      V' = (C + rho I)^-1 (C V + rho (Z - U))      Z = (V' + U) * M

A unit keeps its weights where new ones, in the precision of the kernel, have no smaller
error `d^T G d` (`d` the change of its weights). So no unit is worse than before.

References: Boza, "Fast and Effective Weight Update for Pruned Large Language Models",
arXiv 2401.02938 (ADMM, with these numbers); least squares on a support is folklore.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Shaped

from bbjax.arrays.types import Number

Method = Literal["admm", "least_squares"]
_BATCH = 2**24  # entries of the systems that are solved at once: 64 MiB in float32


class Refitted(NamedTuple):
    """Kernels after the update, as matrices; errors are sums over units.

    Attributes:
      weights: in the precision of the weights before, 0 where pruned.
      before: mean square change of the outputs before the update.
      after: and after it.
      total: mean square of the outputs without pruning.
      sound: whether all systems could be solved.
    """

    weights: Shaped[Array, " slices in out"]
    before: Float[Array, " slices"]
    after: Float[Array, " slices"]
    total: Float[Array, " slices"]
    sound: Bool[Array, " slices"]


@functools.partial(jax.jit, static_argnames=("method", "width", "shared"))
def refit(
    weights: Shaped[Array, " slices in out"],
    start: Shaped[Array, " slices in out"],
    gram: Float[Array, " slices in in"],
    mask: Bool[Array, " slices in out"],
    damp: Number,
    rounds: Int[ArrayLike, ""],
    *,
    method: Method,
    width: int,
    shared: bool = False,
) -> Refitted:
    """Updates the kept weights of all slices of a kernel, one after the other.

    Args:
      weights: before pruning, any float dtype.
      start: pruned ones, to compare with.
      gram: mean of x x^T, float32. Kept weights of inputs that are always 0 stay.
      mask: the kept ones.
      damp: share of each input's mean square that is added to the diagonal.
      rounds: of ADMM.
      method: see the module.
      width: no unit keeps more edges; for least squares.
      shared: whether all units of a slice keep the same inputs; for least squares.

    Example:
      >>> done = refit(
      ...     jnp.array([[[1.0], [3.0]]]),
      ...     jnp.array([[[0.0], [3.0]]]),
      ...     jnp.array([[[2.0, 1.0], [1.0, 2.0]]]),
      ...     jnp.array([[[False], [True]]]),
      ...     0.0,
      ...     0,
      ...     method="least_squares",
      ...     width=1,
      ... )
      >>> [round(float(w), 3) for w in done.weights[0, :, 0]]
      [0.0, 3.5]
      >>> round(float(done.before[0]), 3), round(float(done.after[0]), 3)
      (2.0, 1.5)
    """

    def one(arrays: tuple[Array, ...]) -> Refitted:
        old, begun, gram, keep = arrays
        true = old.astype(jnp.float32)
        scaled = _scaled(gram, damp)
        if method == "admm":
            new = _admm(true * scaled.size, scaled.matrix, keep, rounds)
        else:
            new = _least_squares(true * scaled.size, scaled.matrix, keep, width, shared)
        new = jnp.where(keep, new / scaled.size, 0.0).astype(old.dtype)
        begun = jnp.where(keep, begun, jnp.zeros_like(begun))
        errors = [_errors(gram, w.astype(jnp.float32) - true) for w in (begun, new)]
        better = errors[1] < errors[0]  # False where it is NaN
        before = jnp.sum(errors[0])
        return Refitted(
            jnp.where(better, new, begun),
            before,  # sums may be rounded differently
            jnp.minimum(jnp.sum(jnp.where(better, errors[1], errors[0])), before),
            jnp.sum(_errors(gram, true)),
            jnp.all(jnp.isfinite(new.astype(jnp.float32))),
        )

    with jax.default_matmul_precision("highest"):
        return lax.map(one, (weights, start, gram.astype(jnp.float32), mask))


def flops(
    inputs: int,
    units: int,
    width: int,
    method: Method,
    rounds: int,
    shared: bool = False,
) -> float:
    """Multiplications and additions for one slice, to leading order.

    Example:
      >>> f"{flops(576, 1536, 288, 'admm', 20):.1e}"
      '2.3e+10'
      >>> f"{flops(576, 1536, 288, 'least_squares', 0):.1e}"
      '1.5e+10'
    """
    if method == "admm":
        return 2.0 * inputs**3 + 2.0 * (rounds + 2) * inputs**2 * units
    systems = 1 if shared else units
    return systems * width**3 / 3 + units * (2.0 * width**2 + 4.0 * inputs**2)


class _Scaled(NamedTuple):
    """A damped Gram matrix of inputs of mean square 1, and their sizes before."""

    matrix: Float[Array, "in in"]
    size: Float[Array, "in 1"]


def _scaled(gram: Float[Array, "in in"], damp: Number) -> _Scaled:
    square = jnp.diagonal(gram)
    seen = square > 0
    size = jnp.where(seen, jnp.sqrt(jnp.where(seen, square, 1.0)), 1.0)
    added = jnp.where(seen, 0.0, 1.0) + jnp.asarray(damp).astype(jnp.float32)
    unit = gram / size[None] / size[:, None]
    return _Scaled(unit + jnp.diag(added), size[:, None])


def _errors(
    gram: Float[Array, "in in"], change: Float[Array, "in out"]
) -> Float[Array, " out"]:
    """Mean square change of the output of each unit."""
    return jnp.sum(change * (gram @ change), axis=0)


def _admm(
    weights: Float[Array, "in out"],
    matrix: Float[Array, "in in"],
    keep: Bool[Array, "in out"],
    rounds: Int[ArrayLike, ""],
) -> Float[Array, "in out"]:
    eye = jnp.eye(len(matrix), dtype=jnp.float32)
    factor = jax.scipy.linalg.cho_factor(matrix + eye)
    inverse = jax.scipy.linalg.cho_solve(factor, eye)
    wanted = matrix @ weights

    def kept(free: Array, dual: Array) -> Array:
        return jnp.where(keep, free + dual, 0.0)

    def one(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        free, dual = state
        held = kept(free, dual)
        dual = dual + free - held
        return inverse @ (wanted + held - dual), dual

    start = (weights, jnp.zeros_like(weights))
    return kept(*lax.fori_loop(0, rounds, one, start))


def _least_squares(
    weights: Float[Array, "in out"],
    matrix: Float[Array, "in in"],
    keep: Bool[Array, "in out"],
    width: int,
    shared: bool,
) -> Float[Array, "in out"]:
    """Solves for the change of the kept weights, unit by unit or for all at once."""
    pull = matrix @ jnp.where(keep, 0.0, weights)

    def solved(mine: Array, pull: Array) -> Array:
        """For units that keep the inputs `mine`; `pull` is (in, units)."""
        rows = jnp.argsort(~mine, stable=True)[:width]  # kept ones come first
        real = mine[rows]
        system = jnp.where(real[None] & real[:, None], matrix[rows][:, rows], 0.0)
        system = system + jnp.diag(jnp.where(real, 0.0, 1.0))
        factor = jax.scipy.linalg.cho_factor(system)
        right = jnp.where(real[:, None], pull[rows], 0.0)
        change = jax.scipy.linalg.cho_solve(factor, right)
        return jnp.zeros_like(pull).at[rows].set(change)

    if shared:
        return weights + solved(keep[:, 0], pull)

    def one(unit: tuple[Array, Array]) -> Array:
        return solved(unit[0], unit[1][:, None])[:, 0]

    at_once = max(1, min(keep.shape[1], _BATCH // max(width, 1) ** 2))
    return weights + lax.map(one, (keep.T, pull.T), batch_size=at_once).T
