"""RigL: the weakest edges are dropped, and grow where the dense gradient is largest.

    drop   a share f of the kept edges of a slice, smallest |w|
    grow   as many again, largest |dL/dw| over all edges of the slice, weight 0
    f(step) = drop / 2 * (1 + cos(pi * min(step, anneal) / anneal))

The number of edges is the budget at every refresh (`bbjax.rules.parts.regrowth`). The
gradient is the dense one, with pruned weights. Edges that have just been dropped may
grow again, as published, and then keep their weights. Differences from the published
code: a refresh does not replace the gradient step; ties go to the lowest index, not by
noise; the number of dropped edges is rounded down, as there, but no unit is left with
fewer than `k_min` edges. Reference: Evci et al., arXiv 1911.11134.
"""

from __future__ import annotations

from jaxtyping import Array, Bool

from bbjax.arrays.types import Number
from bbjax.rules.base import Candidates, Rule
from bbjax.rules.parts.regrowth import (
    check_drop,
    drop_and_grow,
    drop_share,
    gradient,
)


def rigl(*, drop: Number = 0.3, anneal: Number | None = None) -> Rule:
    """Drops the weakest edges, grows those of the largest dense gradient.

    `bb.wrap` has the dense gradients, and resets the optimizer's moments of weights
    that grow, as published. In a chain pass `tx.update(..., grads=grads)`, and see
    `bb.reset_moments`. An edge of a convolution is a whole window and grows by the sum
    of its |gradients|. With `regrow=False` nothing grows, and the largest |w| of a
    slice stay. A unit's `k_min` largest weights are not dropped; `k_min=0` is the
    published rule.

    Published runs start from a random topology with densities by shape, and refresh
    during the first three quarters of the training, as below. Without `masks` the first
    refresh takes the largest |w| of the dense net and then drops and grows.

        density = bb.erk(0.1)
        params, masks = bb.prune(params, units, bb.rules.random(), density=density)
        rule = bb.rules.rigl(anneal=7500)
        tx = bb.wrap(optimizer, units, rule, density=density, masks=masks, stop=7500)

    Args:
      drop: share of the kept edges that a refresh drops, in [0, 1] (may be traced).
      anneal: number of updates until the share has fallen to 0, at least 1 (may be
        traced); None keeps it constant.

    Returns:
      A rule that needs dense gradients; weights come back as 0.

    Raises:
      TypeError: an argument is no number.
      ValueError: an argument is out of range.

    Example:
      >>> rigl(anneal=1000).needs, rigl().revive
      (('grads',), 'zero')
    """
    check_drop(drop, anneal)

    def select(seen: Candidates) -> Bool[Array, "*edges"]:
        share = drop_share(drop, anneal, seen.step)
        return drop_and_grow(seen, share, gradient(seen))

    return Rule("rigl", select, needs=("grads",), revive="zero", favours=False)
