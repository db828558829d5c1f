"""NNrelief: every unit keeps the edges that carry a share `alpha` of its signal.

The size of what edge (i, j) sends to unit j, and of the bias of unit j beside it:

    I_ij = |w_ij| * mean_n |x_i^n|        I_0j = |b_j|        S_j = sum_i I_ij + I_0j

for a matrix product; for a convolution, where an edge is a whole window K_ij, a norm of
the map `|K_ij| * |x_i|` over its P output positions (`bbjax.activity.convolution`),
beside which a bias is worth `|b_j| sqrt(P)` (Frobenius norms) or `|b_j| P` (l1). With
the entries of a unit in falling order, equal ones by index and the bias last, the
shortest beginning that sums to `alpha * S_j` is kept, and entries of size 0 never are.
What is cut then changes the unit by no more than it was worth, in the norm of its
score:

    mean_n |z_j^n - z'_j^n| <= (1 - alpha) * S_j          for the same inputs

Reference: Dekhovich, Tax, Sluiter, Bessa, arXiv 2109.10795. (Their code drops the
smallest entry even at alpha = 1, and all that equal the first one to go.)
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from bbjax.arrays import sharding
from bbjax.rules.base import Candidates, Choice, Rule
from bbjax.rules.parts.shares import keep_share

ConvScore = Literal["fro_of_mean", "mean_of_fro", "l1"]


def nnrelief(
    *, alpha: Real[ArrayLike, ""] = 0.95, conv: ConvScore = "fro_of_mean"
) -> Rule:
    """Every unit keeps the share `alpha` of its signal; the density is an outcome.

    One-shot (`bb.prune`): what the edges of a convolution are worth is measured edge by
    edge, which no running mean of a training run holds, and a bias that loses stays
    masked. There is no floor: a unit without signal keeps nothing, and one whose bias
    carries its signal may keep the bias alone. `bb.relieve` runs the whole method.

    Args:
      alpha: kept share of each unit's signal, in (0, 1]; higher is milder, and 1 keeps
        all that is not 0. May be traced.
      conv: size of an edge of a convolution: `"fro_of_mean"` (authors' code for VGG and
        ResNet), `"mean_of_fro"` (their paper) or `"l1"` (their code for LeNet). They
        are one and the same for matrix products.

    Returns:
      A rule for actuator "in" that chooses masks and which biases stay.

    Raises:
      ValueError: alpha out of range, an unknown size; when it chooses, a kernel whose
        selection counts outgoing edges.

    Example:
      >>> import bbjax as bb
      >>> def fn(params, x):
      ...     return x @ params["w"] + params["b"]
      >>> params = {
      ...     "w": jnp.array([[1.0, -1.0], [5.0, 5.0], [2.0, 0.5]]),
      ...     "b": jnp.array([1.0, -4.0]),
      ... }
      >>> x = jnp.array([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])
      >>> units, rule = bb.trace(fn, params, x).select("w"), nnrelief(alpha=0.75)
      >>> stats = bb.calibrate(fn, units, params, [(x,)], needs=rule.needs)
      >>> bb.prune(params, units, rule, stats=stats)[0]
      {'b': Array([ 0., -4.], dtype=float32), 'w': Array([[ 1., -1.],
             [ 0.,  0.],
             [ 2.,  0.]], dtype=float32)}
    """
    _check_alpha(alpha)
    if conv not in get_args(ConvScore):
        raise ValueError(
            f"expected conv in {get_args(ConvScore)}, got {conv!r}; it is how the size "
            "of what an edge of a convolution contributes is measured"
        )

    def select(seen: Candidates) -> Choice:
        if seen.actuators != ("in",):
            raise ValueError(
                f"expected actuator 'in' for {seen.kernel.path!r}, got "
                f"{' and '.join(seen.actuators)}: nnrelief shares out what enters a "
                "unit; select with actuator='in'"
            )
        edges, bias = sizes(seen, conv)
        kept = keep_share(seen.kernel, edges, bias, alpha)
        return Choice(sharding.match(kept.edges, seen.mask), bias=kept.bias)

    needs = (f"inputs.{conv}", "outputs.positions")
    return Rule(
        "nnrelief", select, needs=needs, free=True, one_shot=True, patterned=False
    )


def _check_alpha(alpha: Real[ArrayLike, ""]) -> None:
    if isinstance(alpha, jax.core.Tracer):
        return
    share = np.asarray(alpha, np.float64)
    if share.ndim or not 0 < share <= 1:
        raise ValueError(
            f"expected alpha in (0, 1], got {alpha!r}; it is the share of each unit's "
            "signal that is kept, e.g. 0.95"
        )


def sizes(
    seen: Candidates, conv: ConvScore
) -> tuple[Float[Array, "*edges"], Float[Array, "*outputs"] | None]:
    """What each edge is worth, 0 where it is gone, and the bias of each output unit."""
    edges = jnp.where(seen.mask, seen.statistics[f"inputs.{conv}"], 0.0)
    if seen.bias is None:
        return edges, None
    positions = seen.statistics["outputs.positions"]
    times = positions if conv == "l1" else jnp.sqrt(positions)
    return edges, jnp.abs(seen.bias.astype(jnp.float32)) * times
