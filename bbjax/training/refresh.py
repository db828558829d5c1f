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
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bbjax.arrays import bits, sharding
from bbjax.model.units import Kernel
from bbjax.rules.base import Candidates
from bbjax.training.alike import once_per_form
from bbjax.training.state import pack, unpack


class Held(NamedTuple):
    """What a refresh may change of one kernel.

    Attributes:
      mask: kept edges, as bits.
      churn: share of the edges that flipped.
      dormant: values of pruned weights, `kernel.shape`; None without regrowth.
      scale: rescaling of the kept weights of each output unit, `stack + units`; None
        without rescaling.
      arrivals: edges that come back, as bits; None without regrowth.
    """

    mask: jax.Array
    churn: jax.Array
    dormant: jax.Array | None
    scale: jax.Array | None
    arrivals: jax.Array | None


class RefreshInput(NamedTuple):
    """One kernel before its mask is chosen.

    Attributes:
      candidates: what the rule chooses from.
      held: what is held of it, less the dormant values, which the latent weights have.
      finite: whether weights and gradients are finite, bool scalar.
    """

    candidates: Candidates
    held: Held
    finite: jax.Array


class Settled(NamedTuple):
    """The mask after a refresh, and the scale that goes with it.

    Attributes:
      mask: kept edges, as bits.
      scale: as in `Held`.
    """

    mask: jax.Array
    scale: jax.Array | None


def prepare(candidates: Candidates, held: Held) -> RefreshInput:
    """Replaces the weights as they are by latent ones.

    Args:
      candidates: with the parameter array, 0 where pruned, as weights.
      held: what is held of the kernel.
    """
    kernel, mask, weights = candidates.kernel, candidates.mask, candidates.weights
    finite = _finite(weights, candidates.grads)
    latent = _latent(kernel, mask, weights, held.dormant, held.scale)
    seen = dataclasses.replace(candidates, weights=latent)
    return RefreshInput(seen, held._replace(dormant=None), finite)


def settle(given: RefreshInput, chosen: jax.Array) -> Settled:
    """The mask that a rule chose; the old one where the kernel is not finite.

    Args:
      given: what it was chosen from.
      chosen: kept edges, per edge.
    """
    kernel, old = given.candidates.kernel, given.candidates.mask
    keep = sharding.match(chosen, old)  # rules need not care about shardings
    keep = jnp.where(given.finite, keep, old)
    packed = pack(kernel, keep, given.held.mask)
    if given.held.scale is None:
        return Settled(packed, None)
    scale = jnp.where(given.finite, scale_of(kernel, keep), given.held.scale)
    return Settled(packed, scale)


def finish(given: RefreshInput, settled: Settled, dtype: Any) -> Held:
    """What is held after a refresh.

    Args:
      given: the kernel before it.
      settled: the mask that was chosen.
      dtype: of the dormant weights; None stores none.
    """
    kernel, old = given.candidates.kernel, given.held
    new = settled.mask
    dormant = None
    if dtype is not None:
        keep = unpack(kernel, new, given.candidates.weights)
        dormant = _dormant(given, keep, settled.scale, dtype)
    return Held(
        mask=new,
        churn=share_of(kernel, new ^ old.mask),
        dormant=dormant,
        scale=None if settled.scale is None else sharding.whole(settled.scale),
        arrivals=None if old.arrivals is None else new & ~old.mask,
    )


def share_of(kernel: Kernel, packed: jax.Array) -> jax.Array:
    """Share of the edges of a kernel whose bits are set: float32 scalar."""
    # Counts of a slice are exact in int32, those of a whole stack may not be.
    counts = bits.count(packed, kernel.axes("group", "in", "out"))
    return jnp.sum(counts.astype(jnp.float32)) / float(math.prod(kernel.edge_shape))


@once_per_form
def stray_share(kernel: Kernel, weights: jax.Array, packed: jax.Array) -> jax.Array:
    """Share of the edges that are pruned and whose weight is not 0: float32 scalar.

    Args:
      kernel: the kernel.
      weights: of the parameter.
      packed: kept edges, as bits.
    """
    acts = pack(kernel, kernel.edge_mask(weights != 0), packed)
    return share_of(kernel, sharding.match(acts, packed) & ~packed)


def _dormant(
    given: RefreshInput, keep: jax.Array, scale: jax.Array | None, dtype: Any
) -> jax.Array:
    """Value of each weight that is pruned or comes back now, else 0: `kernel.shape`."""
    kernel, old = given.candidates.kernel, given.candidates.mask
    values = given.candidates.weights
    if scale is not None:
        comes_back = kernel.over_spatial(keep & ~old)
        values = jnp.where(comes_back, _scaled(values, _factor(kernel, scale)), values)
    stays = kernel.over_spatial(keep & old)
    pruned = jnp.where(stays, jnp.zeros_like(values), values)
    return stored(kernel.weights(pruned), dtype)


def scale_of(kernel: Kernel, mask: jax.Array) -> jax.Array:
    """Variance-preserving factor of each output unit: float32, `stack + units`."""
    kept = kernel.gather(mask.astype(jnp.int32), "outputs").astype(jnp.float32)
    return jnp.where(kept > 0, jnp.sqrt(kernel.fan("in") / jnp.maximum(kept, 1.0)), 1.0)


def _factor(kernel: Kernel, scale: jax.Array) -> jax.Array:
    """A factor of each output unit, broadcastable to the edge view of the weights."""
    return kernel.over_spatial(kernel.spread(scale, "outputs"))


def _scaled(edges: jax.Array, factor: jax.Array) -> jax.Array:
    return (edges.astype(jnp.float32) * factor).astype(edges.dtype)


@once_per_form
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


@jax.jit
def _finite(weights: jax.Array, grads: jax.Array | None) -> jax.Array:
    # Dormant weights are finite, for only finite ones are stored. A maximum is cheaper
    # than a conjunction, and passes NaN on.
    peaks = [jnp.max(jnp.abs(x)) for x in (weights, grads) if x is not None]
    return jnp.all(jnp.isfinite(jnp.stack([p.astype(jnp.float32) for p in peaks])))


@once_per_form
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
