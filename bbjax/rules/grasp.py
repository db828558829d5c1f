"""GraSP: keep the edges that preserve the gradient flow through the net.

    score = w * (H g),   g = d loss / d w,   H = d^2 loss / d w^2

Removing a weight changes |g|^2 by -2 w (H g) to first order. So the sign matters: edges
of a large positive score go last, and edges of a negative score, which slow training,
go first. `grads` is H g, from `bb.saliency.hessian_gradient`. In a convolution scores
are summed over the window. Reference: Wang, Zhang, Grosse, arXiv 2002.07376. (Their
loss divides the logits by a temperature of 200; your loss can do the same. Their code
removes one edge fewer than asked for.)
"""

from __future__ import annotations

import jax.numpy as jnp

from bbjax.rules.base import Rule
from bbjax.rules.parts.pools import Scope, by_saliency


def grasp(*, scope: Scope = "global") -> Rule:
    """Keeps the largest w * (H g), over all kernels; one-shot.

    Each unit first keeps its `k_min` best edges; `k_min=0` is the published rule. An
    edge whose score is NaN ranks below all others. Not for refreshes while training,
    where gradients are not H g.

    Args:
      scope: `"global"`: the edges of all budgeted kernels, slices of a stack included,
        compete for one budget; `"layer"`: those of each stack slice for its own.

    Returns:
      A rule that needs the product H g as its gradients.

    Raises:
      ValueError: unknown scope.

    Example:
      >>> import bbjax as bb
      >>> def loss(params, x):
      ...     return jnp.mean(jnp.square(x @ params["w"]))
      >>> params, x = {"w": jnp.array([[-1.0], [2.0]])}, jnp.array([[3.0, 1.0]])
      >>> units = bb.trace(loss, params, x).select("w")
      >>> product = bb.saliency.hessian_gradient(loss, params, x)
      >>> bb.prune(params, units, grasp(), density=0.5, grads=product)[0]["w"].tolist()
      [[-1.0], [0.0]]
    """
    return by_saliency("grasp", jnp.positive, scope, one_shot=True)
