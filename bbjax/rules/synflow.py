"""SynFlow: keep the edges on the strongest paths from input to output.

    score = |w| * dR/d|w|,   R = sum of the outputs of the net with weights |w|

The score is the sum over all paths through the edge of the product of their weights. It
needs no data, and no layer loses all edges as long as few edges go at a time. So one
round at the final density is not the published method: `bb.saliency.prune_by_flow` runs
its rounds. `grads` is dR/d|w|, from `bb.saliency.synaptic_flow`. In a convolution
scores are summed over the window. Reference: Tanaka, Kunin, Yamins, Ganguli, arXiv
2006.05467.
"""

from __future__ import annotations

import jax.numpy as jnp

from bbjax.rules.base import Rule
from bbjax.rules.parts.pools import Scope, by_saliency


def synflow(*, scope: Scope = "global") -> Rule:
    """Keeps the largest |w| * dR/d|w|, over all kernels; one-shot.

    Each unit first keeps its `k_min` best edges; `k_min=0` is the published rule. An
    edge whose score is NaN ranks below all others. Not for refreshes while training,
    where gradients are not those of the flow.

    Args:
      scope: `"global"`: the edges of all budgeted kernels, slices of a stack included,
        compete for one budget; `"layer"`: those of each stack slice for its own.

    Returns:
      A rule that needs dR/d|w| as its gradients.

    Raises:
      ValueError: unknown scope.

    Example:
      >>> import jax
      >>> import bbjax as bb
      >>> def fn(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.array([[1.0, -3.0]]), "down": jnp.array([[2.0], [-1.0]])}
      >>> x = jnp.ones((1, 1))
      >>> units = bb.trace(fn, params, x).select("up")
      >>> flow = bb.saliency.synaptic_flow(fn, params, x)
      >>> rule = synflow()
      >>> bb.prune(params, units, rule, density=0.5, grads=flow, k_min=0)[0]["up"]
      Array([[ 0., -3.]], dtype=float32)
    """
    return by_saliency("synflow", jnp.abs, scope, one_shot=True)
