"""SNIP: keep the edges whose removal would change the loss most, to first order.

    score = |w * g|,   g = d loss / d w on a batch

is the size of d loss / d c for a gate c on the weight. The gradient is first averaged
over the batch, or over many batches. The rule was made for pruning at initialisation;
while training the score is the first-order Taylor saliency. In a convolution scores are
summed over the window. Reference: Lee, Ajanthan, Torr, arXiv 1810.02340. (In their code
biases compete as well; they start at 0 and go first.)
"""

from __future__ import annotations

import jax.numpy as jnp

from bbjax.rules.base import Rule
from bbjax.rules.parts.pools import Scope, by_saliency


def snip(*, scope: Scope = "global") -> Rule:
    """Keeps the largest |w * g|, over all kernels.

    Each unit first keeps its `k_min` best edges; `k_min=0` is the published rule. An
    edge whose score is NaN ranks below all others.

    Args:
      scope: `"global"`: the edges of all budgeted kernels, slices of a stack included,
        compete for one budget; `"layer"`: those of each stack slice for its own.

    Returns:
      A rule that needs dense gradients.

    Raises:
      ValueError: unknown scope.

    Example:
      >>> import jax
      >>> import bbjax as bb
      >>> def loss(params, x):
      ...     return jnp.mean(x @ params["w"])
      >>> params, x = {"w": jnp.array([[1.0], [2.0]])}, jnp.array([[3.0, 1.0]])
      >>> units, grads = (
      ...     bb.trace(loss, params, x).select("w"),
      ...     jax.grad(loss)(params, x),
      ... )
      >>> bb.prune(params, units, snip(), density=0.5, grads=grads)[0]["w"].tolist()
      [[1.0], [0.0]]
    """
    return by_saliency("snip", jnp.abs, scope)
