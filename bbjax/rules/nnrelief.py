"""NNrelief: every unit keeps the edges that carry a share `alpha` of its signal.

The size of what edge (i, j) sends to unit j, and of the bias of unit j beside it:

    I_ij = |w_ij| * mean_n |x_i^n|        I_0j = |b_j|        S_j = sum_i I_ij + I_0j

for a matrix product. In a convolution an edge is a whole window K_ij, and its size is a
norm of the map `|K_ij| * |x_i|` over its P output positions
(`bbjax.activity.convolution`); beside it the size of a bias is `|b_j| sqrt(P)`
(Frobenius norms) or `|b_j| P` (l1). The entries of a unit are put in falling order,
equal ones by index and the bias last. The shortest beginning that sums to `alpha * S_j`
is kept; entries of size 0 never are. So the unit changes by no more than the size of
what is cut, in the norm of its score:

    mean_n |z_j^n - z'_j^n| <= (1 - alpha) * S_j          for the same inputs

Reference: Dekhovich, Tax, Sluiter, Bessa, arXiv 2109.10795. (Their code drops the
smallest entry even at alpha = 1, and all that equal the first one to go.)
"""

from __future__ import annotations

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from bbjax.arrays import sharding
from bbjax.arrays.types import Number
from bbjax.model.numbers import check_number
from bbjax.rules.base import Candidates, Choice, Rule
from bbjax.rules.parts.shares import keep_share

ConvScore = Literal["fro_of_mean", "mean_of_fro", "l1"]


def nnrelief(*, alpha: Number = 0.95, conv: ConvScore = "fro_of_mean") -> Rule:
    """Every unit keeps the share `alpha` of its signal; the density is an outcome.

    One-shot (`bb.prune`): edges of a convolution are measured one by one, which
    training with running means does not do, and a bias that goes stays masked. There is
    no floor: a unit without signal keeps nothing, and one whose bias carries its signal
    may keep the bias alone. `bb.relieve` runs the whole method.

    Args:
      alpha: kept share of each unit's signal, in (0, 1]; higher is milder, and 1 keeps
        all that is not 0. May be traced.
      conv: size of an edge of a convolution: `"fro_of_mean"` (authors' code for VGG and
        ResNet), `"mean_of_fro"` (their paper) or `"l1"` (their code for LeNet). They
        are equal for matrix products.

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
    remedy = "it is the share of each unit's signal that is kept, e.g. 0.95"
    check_number("alpha", alpha, "(0, 1]", remedy)
    if conv not in get_args(ConvScore):
        raise ValueError(
            f"expected conv in {get_args(ConvScore)}, got {conv!r}; it is how the size "
            "of what an edge of a convolution contributes is measured"
        )

    def select(seen: Candidates) -> Choice:
        if seen.actuators != ("in",):
            raise ValueError(
                f"expected actuator 'in' for {seen.kernel.path!r}, got "
                f"{' and '.join(seen.actuators)}: nnrelief keeps a share of what "
                "enters a unit; select with actuator='in'"
            )
        edges, bias = sizes(seen, conv)
        kept = keep_share(seen.kernel, edges, bias, alpha)
        return Choice(sharding.match(kept.edges, seen.mask), bias=kept.bias)

    needs = (f"inputs.{conv}", "outputs.positions")
    return Rule(
        "nnrelief", select, needs=needs, free=True, one_shot=True, patterned=False
    )


def sizes(
    seen: Candidates, conv: ConvScore
) -> tuple[Float[Array, "*edges"], Float[Array, "*outputs"] | None]:
    """Sizes of the edges, 0 where one is gone, and of the biases of output units."""
    edges = jnp.where(seen.mask, seen.statistics[f"inputs.{conv}"], 0.0)
    if seen.bias is None:
        return edges, None
    positions = seen.statistics["outputs.positions"]
    times = positions if conv == "l1" else jnp.sqrt(positions)
    return edges, jnp.abs(seen.bias.astype(jnp.float32)) * times
