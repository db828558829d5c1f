"""Gradients that saliency rules want instead of those of the loss, and their driver.

    snip       g = d loss / d w                        `jax.grad` itself
    grasp      H g, the Hessian times the gradient     `hessian_gradient`
    synflow    dR / d|w|, R = sum of the outputs of the net with |w|, inputs of 1
                                                       `synaptic_flow`

Each is a tree like the parameters, for `bb.prune(..., grads=...)`. H g is one
derivative of the gradient along itself: forward over reverse, at the cost of about two
gradients and without H. SynFlow prunes in rounds, e of E, to the density

    density ** (e / E),   every flow measured on what the round before has left

which `prune_by_flow` runs. References: Wang et al., arXiv 2002.07376; Tanaka et al.,
arXiv 2006.05467; Pearlmutter, 1994 (H g).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bbjax.budgets.allocation import Together
from bbjax.model.leaves import leaves_by_path
from bbjax.model.numbers import check_int
from bbjax.model.units import Units
from bbjax.oneshot.prune import Masks, prune
from bbjax.rules.synflow import synflow


def hessian_gradient(
    loss_fn: Callable[..., jax.Array], params: Any, *args: Any, gradient: Any = None
) -> Any:
    """The Hessian of a loss times its gradient, for `bb.rules.grasp`.

    Args:
      loss_fn: of `(params, *args)`, a scalar; twice differentiable where it matters.
      params: tree of parameters; leaves that are not of floats are held constant.
      args: what follows `params`, e.g. a batch.
      gradient: the tree that H is multiplied with, like `params`, where it is not the
        gradient on these `args`. For many batches pass the mean gradient of all of them
        with each, and average the products.

    Returns:
      H g, a tree like `params`; None in the place of leaves that are not of floats.

    Raises:
      TypeError: no leaf of floats, or a loss that is not a scalar (from JAX).

    Example:
      >>> def loss(params):
      ...     return jnp.sum(jnp.array([1.0, 3.0]) * jnp.square(params["w"]))
      >>> hessian_gradient(loss, {"w": jnp.array([1.0, 1.0])})  # H = diag(2, 6)
      {'w': Array([ 4., 36.], dtype=float32)}
    """
    floats, put = _floats(params)
    slope = jax.grad(lambda leaves: loss_fn(put(leaves), *args))
    along = slope(floats) if gradient is None else _floats(gradient)[0]
    return put(jax.jvp(slope, (floats,), (along,))[1], others=False)


def synaptic_flow(
    fn: Callable[..., Any], params: Any, *inputs: Any, scale: float = 1.0
) -> Any:
    """The flow through every weight, for `bb.rules.synflow`; no data are read.

    All parameters of floats enter as |p|, biases and norms included. The theory is that
    of nets that are linear in |p| layer by layer: ReLU and its like, pooling, residual
    sums. So let `fn` return logits rather than a loss or a softmax (whose outputs sum
    to 1 whatever the weights are), and let BatchNorm use its running statistics, as in
    evaluation; LayerNorm and attention weights, which undo any scale, lie outside it.

    The flow is a product over layers. Of deep or wide nets it can leave the range of
    float32: then pass a `scale` such as 1e-20, for the way there and the way back.
    Without biases all scores are multiplied by its square, and their order stays;
    biases weigh more beside smaller inputs.

    Args:
      fn: of `(params, *inputs)`; all leaves of floats that it returns are summed.
      params: tree of parameters; leaves that are not of floats are passed as they are.
      inputs: arrays or `jax.ShapeDtypeStruct`s; those of floats are replaced by ones of
        their shape and dtype. One sample is enough.
      scale: what the inputs are instead of 1, above 0; R is multiplied by it as well.

    Returns:
      dR/d|p|, a tree like `params`; None in the place of leaves that are not of floats.

    Raises:
      ValueError: a flow that is not finite (not under jit, where its values are not
        known).

    Example:
      >>> def fn(params, x):
      ...     return x @ params["w"]
      >>> synaptic_flow(fn, {"w": jnp.array([[1.0], [-2.0]])}, jnp.zeros((1, 2)))
      {'w': Array([[1.], [1.]], dtype=float32)}
    """
    flow = _flow(fn, params, inputs, scale)
    _check_finite(flow, scale)
    return flow


def prune_by_flow(
    fn: Callable[..., Any],
    params: Any,
    units: Units,
    density: Any,
    *inputs: Any,
    rounds: int = 100,
    k_min: int = 1,
    scale: float = 1.0,
) -> tuple[Any, Masks]:
    """Prunes by synaptic flow, in rounds: SynFlow.

    Edges of all selected kernels compete. Masks of later rounds lie in those of earlier
    ones, and the last keeps the very number of edges that `bb.prune` keeps. The flow is
    compiled once for all rounds.

    Args:
      fn: as for `synaptic_flow`; it may be another function than the one that was
        traced, of the same parameters.
      params: its parameters.
      units: as for `bb.prune`; select the output layer as well, and not only the hidden
        ones, to prune what the paper prunes.
      density: final share of the edges of all selected kernels together, in (0, 1];
        also a mapping from path patterns, `bb.erk(...)`, `bb.owl(...)`, or what
        `bb.sensitivity` allocates.
      inputs: as for `synaptic_flow`.
      rounds: number of rounds, at least 1; the paper takes 100.
      k_min: least number of edges of a unit; 0 gives the published rule.
      scale: as for `synaptic_flow`.

    Returns:
      Parameters and masks, as `bb.prune`.

    Raises:
      TypeError: as `bb.prune`; rounds are no int, a density that is a schedule.
      ValueError: as `bb.prune` and `synaptic_flow`.

    Example:
      >>> import bbjax as bb
      >>> def fn(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.array([[1.0, -3.0]]), "down": jnp.array([[2.0], [-1.0]])}
      >>> x = jnp.ones((1, 1))
      >>> units = bb.trace(fn, params, x).select("up|down")
      >>> pruned, _ = prune_by_flow(fn, params, units, 0.5, x, rounds=10, k_min=0)
      >>> pruned["up"].tolist(), pruned["down"].tolist()
      ([[0.0, -3.0]], [[0.0], [-1.0]])
    """
    check_int("rounds", rounds, 1, 2**20, "it is how often the flow is measured")
    _, put = _floats(params)
    flow_of = jax.jit(lambda leaves: _flow(fn, put(leaves), inputs, scale))
    rule, masks = synflow(), None
    for e in range(1, rounds + 1):
        flow = flow_of(_floats(params)[0])
        _check_finite(flow, scale)
        share = density if e == rounds else _powered(density, e / rounds)
        params, masks = prune(
            params, units, rule, share, grads=flow, masks=masks, k_min=k_min
        )
    assert masks is not None
    return params, masks


def _powered(density: Any, power: float) -> Any:
    """A density, or the densities of a mapping, to a power."""
    if isinstance(density, Mapping):
        return {pattern: _powered(one, power) for pattern, one in density.items()}
    if isinstance(density, Together):
        whole = _powered(density.density, power)
        return dataclasses.replace(density, density=whole)
    if callable(density):
        raise TypeError(
            f"expected a density as a number, got the schedule {density!r}; "
            "prune_by_flow takes the rounds to it by itself"
        )
    return density**power


# Trees ---------------------------------------------------------------------------
def _floats(tree: Any) -> tuple[list[Any], Callable[..., Any]]:
    """The leaves of floats, and the function that puts others in their places."""
    leaves, structure = jax.tree_util.tree_flatten(tree)
    at = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]

    def put(floats: list[Any], others: bool = True) -> Any:
        full = list(leaves) if others else [None] * len(leaves)
        for i, leaf in zip(at, floats, strict=True):
            full[i] = leaf
        return jax.tree_util.tree_unflatten(structure, full)

    return [leaves[i] for i in at], put


def _is_float(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return isinstance(leaf, float)
    return jnp.issubdtype(dtype, jnp.floating)


def _flow(fn: Callable[..., Any], params: Any, inputs: Any, scale: Any) -> Any:
    floats, put = _floats(params)
    plain, fill = _floats(inputs)
    ones = fill([jnp.full(x.shape, scale, x.dtype) for x in map(_shaped, plain)])

    def total(leaves: list[Any]) -> jax.Array:
        out, _ = _floats(fn(put(leaves), *ones))
        sums = [jnp.sum(o.astype(jnp.float32)) for o in out]
        return sum(sums, jnp.float32(0)) * scale

    return put(jax.grad(total)([jnp.abs(leaf) for leaf in floats]), others=False)


def _shaped(x: Any) -> Any:
    return x if hasattr(x, "shape") else jnp.asarray(x)


def _check_finite(flow: Any, scale: Any) -> None:
    for path, leaf in leaves_by_path(flow)[0]:
        if isinstance(leaf, jax.core.Tracer):
            continue
        if not jnp.isfinite(leaf).all():
            raise ValueError(
                f"expected a finite flow, got overflow at {path!r} with scale="
                f"{scale!r}; pass a smaller scale, e.g. scale={scale * 1e-10:g}"
            )
