"""One refresh of one kernel: from weights, averages and a budget to the new mask.

Pure arrays, no schedule and no Optax. In the code's names, per kernel:

    latent  = where(mask, weights / scale, dormant)     weights without mask and scale
    keep    = rule(latent, ...)                         exactly the budget
    dormant = where(keep & mask, 0, latent)             of pruned and returning weights
    ratio   = scale(keep) / scale                       variance-preserving rescale

`scale(keep) = sqrt(fan_in / kept fan_in)` per output unit where rescaling is on, else
1; it is folded into the weights, never into biases, and dormant weights are kept
without it. The state holds the `scale` that the weights have: 1 before the first
refresh.
A kernel with a weight that is not finite keeps its mask and its dormant weights.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bbjax.arrays import sharding
from bbjax.model.units import Kernel
from bbjax.rules.base import Candidates


class Refreshed(NamedTuple):
    """Result of a refresh.

    Attributes:
      mask: kept edges, per edge.
      dormant: value of every weight that is pruned or comes back now, `kernel.shape`;
        None without regrowth.
      scale: rescaling of the kept weights of each output unit, `stack + units`; None
        without rescaling.
    """

    mask: jax.Array
    dormant: jax.Array | None
    scale: jax.Array | None


class RefreshInput(NamedTuple):
    """One kernel before its mask is chosen.

    Attributes:
      candidates: what the rule chooses from.
      scale: rescaling of the weights so far, `stack + units`, or None.
      finite: whether weights and gradients are finite, bool scalar.
    """

    candidates: Candidates
    scale: jax.Array | None
    finite: jax.Array


def prepare(
    candidates: Candidates, dormant: jax.Array | None, scale: jax.Array | None
) -> RefreshInput:
    """Replaces the weights as they are by latent ones.

    Args:
      candidates: with the parameter array, 0 where pruned, as weights.
      dormant: values of pruned weights, `kernel.shape`, or None.
      scale: rescaling of the weights so far, `stack + units`; None without rescaling.
    """
    kernel, mask, weights = candidates.kernel, candidates.mask, candidates.weights
    finite = _finite(weights, candidates.grads)
    latent = _latent(kernel, mask, weights, dormant, scale)
    return RefreshInput(dataclasses.replace(candidates, weights=latent), scale, finite)


def finish(given: RefreshInput, keep: jax.Array, dtype: Any) -> Refreshed:
    """What follows from the mask that a rule chose.

    Args:
      given: what it was chosen from.
      keep: the mask, per edge.
      dtype: of the dormant weights; None stores none.
    """
    kernel, old = given.candidates.kernel, given.candidates.mask
    latent = given.candidates.weights
    keep = sharding.match(keep, old)  # rules need not care about shardings
    keep = jnp.where(given.finite, keep, old)
    values, dormant, scale = latent, None, None
    if given.scale is not None:
        scale = jnp.where(given.finite, scale_of(kernel, keep), given.scale)
        comes_back = kernel.over_spatial(keep & ~old)
        values = jnp.where(comes_back, _scaled(latent, _factor(kernel, scale)), latent)
    if dtype is not None:
        stays = kernel.over_spatial(keep & old)
        pruned = jnp.where(stays, jnp.zeros_like(values), values)
        dormant = stored(kernel.weights(pruned), dtype)
    return Refreshed(keep, dormant, scale)


def scale_of(kernel: Kernel, mask: jax.Array) -> jax.Array:
    """Variance-preserving factor of each output unit: float32, `stack + units`."""
    kept = kernel.gather(mask.astype(jnp.int32), "outputs").astype(jnp.float32)
    return jnp.where(kept > 0, jnp.sqrt(kernel.fan("in") / jnp.maximum(kept, 1.0)), 1.0)


def _factor(kernel: Kernel, scale: jax.Array) -> jax.Array:
    """A factor of each output unit, broadcastable to the edge view of the weights."""
    return kernel.over_spatial(kernel.spread(scale, "outputs"))


def _scaled(edges: jax.Array, factor: jax.Array) -> jax.Array:
    return (edges.astype(jnp.float32) * factor).astype(edges.dtype)


def _latent(
    kernel: Kernel,
    mask: jax.Array,
    weights: jax.Array,
    dormant: jax.Array | None,
    scale: jax.Array | None,
) -> jax.Array:
    """What each weight would be unmasked and unscaled, in the edge view."""
    edges = kernel.edges(weights)
    if scale is not None:
        edges = _scaled(edges, _factor(kernel, 1.0 / scale))
    if dormant is None:  # pruned weights are 0 as they come
        return edges
    pruned = kernel.edges(dormant).astype(edges.dtype)
    return jnp.where(kernel.over_spatial(mask), edges, pruned)


def stored(values: jax.Array, dtype: Any) -> jax.Array:
    """Values in the dtype of dormant weights, finite also where that is narrower."""
    most = jnp.finfo(dtype).max
    if most < jnp.finfo(values.dtype).max:
        values = jnp.clip(values, -float(most), float(most))
    return values.astype(dtype)


def _finite(weights: jax.Array, grads: jax.Array | None) -> jax.Array:
    # Dormant weights are finite, for only finite ones are stored. A maximum is cheaper
    # than a conjunction, and passes NaN on.
    peaks = [jnp.max(jnp.abs(x)) for x in (weights, grads) if x is not None]
    return jnp.all(jnp.isfinite(jnp.stack([p.astype(jnp.float32) for p in peaks])))


def apply_mask(
    kernel: Kernel,
    u: jax.Array,
    p: jax.Array,
    *,
    keep: jax.Array,
    arrivals: jax.Array | None,
    dormant: jax.Array | None,
    due: jax.Array | None,
    ratio: jax.Array | None,
) -> jax.Array:
    """The update of one kernel after which its pruned weights are 0.

    Args:
      kernel: the kernel.
      u: update that the optimizer wants, `kernel.shape`.
      p: weights before the update, `kernel.shape`.
      keep: mask after the refresh, per edge.
      arrivals: edges that come back in this update, per edge, or None if none can.
      dormant: their values, `kernel.shape`, or None if they come back as 0.
      due: whether this update refreshes; None if edges never come back.
      ratio: factor on kept weights, `stack + out_units`, or None.

    Returns:
      `u'` of `kernel.shape` such that `p + u'` is sparse, in the wider dtype of both.
    """
    dtype = jnp.promote_types(u.dtype, p.dtype)
    u, p = kernel.edges(u.astype(dtype)), kernel.edges(p.astype(dtype))
    if ratio is not None:
        factor = _factor(kernel, ratio)
        u = jnp.where(factor == 1, u, _scaled(p + u, factor) - p)
    if arrivals is not None:
        value = jnp.zeros((), dtype)
        if dormant is not None and due is not None:
            # A scalar chooses whether the array is read at all: plain steps skip it.
            value = jnp.where(due, kernel.edges(dormant).astype(dtype), value)
        u = jnp.where(kernel.over_spatial(arrivals), value - p, u)
    return kernel.weights(jnp.where(kernel.over_spatial(keep), u, -p))
