"""SparseGPT: prune the edges whose loss the rest of the unit can best compensate.

    cost of edge (i, j) = w_ij**2 / U_ii**2,   U^T U = (H + damp mean(diag H))^-1

with H the mean of x x^T over the inputs. The cost is the squared error that the loss of
the edge adds to the output of unit j once its later weights have been updated
(`bbjax.rules.parts.brain_surgeon`). Every unit keeps the same number of edges, or as
many as a law gives it. Under an N:M pattern the edges of a group are chosen when the
sweep reaches it, by the weights of that moment. Kept weights change, so the rule is for
one shot.

Reference: Frantar and Alistarh, arXiv 2301.00774. N:M choices are theirs. Their
unstructured choice is one threshold for the edges of all units in a block of inputs: it
takes the same share of every block, different numbers from units, and one edge more
than asked for. Here numbers are exact per unit, and blocks lose as many edges as is
cheapest.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from bbjax.arrays import sharding
from bbjax.arrays.types import Number
from bbjax.budgets import laws
from bbjax.budgets.laws.base import check_law
from bbjax.model.kernel import Kernel
from bbjax.model.numbers import check_int, check_number
from bbjax.model.warn import warn
from bbjax.rules.base import Candidates, Choice, Rule
from bbjax.rules.parts.brain_surgeon import cost, operate
from bbjax.rules.parts.competition import Blend
from bbjax.rules.parts.matrices import (
    matrices,
    per_edge,
    refuse_outgoing,
    refuse_windows,
)
from bbjax.rules.parts.selection import degrees_for, ranked


def sparsegpt(
    *,
    law: laws.Law | None = None,
    competition: Number = 0.0,
    damp: Number = 0.01,
    block: int = 128,
) -> Rule:
    """Prunes by output error, with an update of the kept weights (one-shot).

    Args:
      law: degrees of the units from their on-rates, e.g. `bb.laws.log_odds()` for
        Budgeted Broadcast in one shot; None keeps the same number for every unit.
      competition: share of the degrees that comes from competition inside the layer, by
        the cost at the weights as they are, in [0, 1]; may be traced.
      damp: added to the diagonal of the Gram matrix, as a share of its mean, at least
        0; may be traced.
      block: inputs between two rankings, and between two updates of all weights behind,
        at least 1; under an N:M pattern whole groups.

    Returns:
      A rule for matrix products and 1x1 convolutions, actuator "in", that needs the
      Gram matrix of the inputs (and on-rates, if the law reads them).

    Raises:
      TypeError: `law` is no law, `block` no int.
      ValueError: a number out of range; when it chooses, a kernel that is no matrix, a
        selection that counts outgoing edges.

    Where a Gram matrix cannot be factored (`damp` is too small for few samples), the
    largest weights of that kernel, or stack slice, are kept as they are, and a warning
    names it.

    Example:
      >>> import bbjax as bb
      >>> x = jnp.array([[1.0, 1.0], [1.0, -1.0], [2.0, 2.0]])
      >>> params = {"w": jnp.array([[1.0], [3.0]])}
      >>> def fn(params, x):
      ...     return x @ params["w"]
      >>> units, rule = bb.trace(fn, params, x).select("w"), sparsegpt(damp=0.0)
      >>> stats = bb.calibrate(fn, units, params, [(x,)], needs=rule.needs)
      >>> bb.prune(params, units, rule, density=0.5, stats=stats)[0]["w"].tolist()
      [[0.0], [3.6666...]]
    """
    law = laws.uniform() if law is None else law
    check_law(law, "log_odds")
    remedy = "it is a share of the mean of the Gram matrix's diagonal, e.g. 0.01"
    check_number("damp", damp, "[0, inf)", remedy)
    blend = Blend(law, competition)
    block = check_int("block", block, 1, 2**20, "it is a number of inputs, e.g. 128")

    def select(seen: Candidates) -> Choice:
        _check_kernel(seen)
        kernel, m = seen.kernel, seen.pattern.m if seen.pattern else None
        weights = matrices(kernel, kernel.sum_spatial(seen.weights))
        slices, n, _ = weights.shape
        gram = jnp.reshape(seen.statistics["inputs.gram"], (slices, n, n))
        gram = sharding.whole(gram)
        scores = None
        if blend.competes:
            costs = jax.vmap(lambda *one: cost(*one, damp))(weights, gram)
            scores = ranked(seen, per_edge(kernel, costs))
        keep = jnp.reshape(degrees_for(seen, blend, "in", scores), (slices, -1))
        alive = matrices(kernel, seen.mask)
        done = jax.vmap(lambda *one: operate(*one, damp, block=block, m=m))(
            weights, gram, sharding.whole(keep), alive
        )
        _name_unsound(kernel, done.sound, damp)
        mask = sharding.match(per_edge(kernel, done.mask), seen.mask)
        weights = sharding.match(per_edge(kernel, done.weights), seen.mask)
        return Choice(mask, kernel.over_spatial(weights))

    needs = ("inputs.gram", "on_rate") if law.reads_activity else ("inputs.gram",)
    name = "sparsegpt" if law.name == "uniform" else f"sparsegpt[{law.name}]"
    return Rule(name, select, needs=needs, one_shot=True)


# Checks --------------------------------------------------------------------------
def _check_kernel(seen: Candidates) -> None:
    refuse_outgoing(seen, "sparsegpt compensates the lost inputs of a unit")
    refuse_windows(seen.kernel, "for rule 'sparsegpt'", "choose bb.rules.wanda()")


def _name_unsound(kernel: Kernel, sound: Bool[Array, " slices"], damp: Number) -> None:
    """Names slices whose Gram matrix cannot be factored in a warning."""
    if isinstance(sound, jax.core.Tracer) or np.asarray(sound).all():
        return
    where = np.flatnonzero(~np.asarray(sound)).tolist()
    of = f" in {where} of {len(sound)} stack slices" * bool(kernel.stack)
    warn(
        f"the Gram matrix of the inputs of {kernel.path!r}{of} is not positive "
        f"definite with damp={damp!r}: the largest weights are kept there as they are; "
        "raise damp, e.g. to 0.01, or calibrate on more samples"
    )
