"""`bb.adopt`: carries masks and means of a state over to a transform of other settings.

What an update refuses to continue (`bbjax.training.continuation`) is taken over here on
request. Kernels are matched by path:

    in both              mask, means, dormant weights, scale and figures of the old
    only in the new      as `init` makes them: dense, nothing observed
    only in the old      dropped
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bbjax.model.leaves import leaves_by_path
from bbjax.model.units import Kernel
from bbjax.training.refresh import stored
from bbjax.training.state import (
    PruneState,
    all_kept,
    find,
    full_mask,
    is_pruning,
    pack,
    without_wrappers,
)

Held = dict[str, tuple[PruneState, Kernel]]  # old state and kernel, by path


def adopt(state: Any, tx: Any, params: Any) -> Any:
    """Takes a state over to a transform of other settings.

    `update` continues a state by itself where only the density, the schedule, `regrow`,
    `dormant_dtype`, `k_min`, `ema`, `pattern` or `hysteresis` is another. For other
    kernels, actuators, another rule or `rescale`, it raises an error; then begin with
    the state that this function returns. It also serves where the tree of the state may
    not change at the first update (inside `jax.lax.scan` or `optax.MultiSteps`), as a
    new `regrow` or `dormant_dtype` changes it.

    - Kernels in both keep their masks and dormant weights, and the means of activity of
      each side whose statistics are all there; another side starts without any.
    - New kernels start dense.
    - Kernels that `tx` does not have are no longer masked. Their pruned weights are 0
      in `params` and train from there; their dormant values are lost.
    - Weights stay as they are. With `rescale` switched on, they are scaled at the next
      refresh; with `rescale` switched off, they keep their factor.
    - Everything else (count of updates, moments, hyperparameters in the state) stays.

    Args:
      state: of an optimizer with `bb.transform`, `bb.wrap` or `bb.hold` at any depth.
      tx: the same optimizer with the new transform in the same place.
      params: parameters, as for `tx.init`.

    Returns:
      A state of `tx`.

    Raises:
      ValueError: the states differ in more than what prunes; a kernel has another
        shape; `tx` begins with masks (`masks=`, `bb.hold`) that are not those of the
        state, or is initialized inside `jax.jit`, where they cannot be compared.

    Example:
      >>> import optax
      >>> import bbjax as bb
      >>> def loss(params, x):
      ...     return jnp.mean((jax.nn.relu(x @ params["up"]) @ params["down"]) ** 2)
      >>> params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2))}
      >>> units = bb.trace(loss, params, jnp.ones((5, 4)))
      >>> def optimizer(units, rule):
      ...     tx = bb.transform(units, rule, density=0.5)
      ...     return optax.chain(optax.adam(0.1), tx)
      >>> state = optimizer(units, bb.rules.magnitude()).init(params)
      >>> more = units.select("up") + units.select("down", "out")
      >>> tx = optimizer(more, bb.rules.random())
      >>> list(bb.masks(bb.adopt(state, tx, params)))
      ['up', 'down']
    """
    find(state)  # raises an error if there is none
    fresh = tx.init(params)
    nodes, _ = leaves_by_path(state, is_pruning)
    old = [(path, without_wrappers(x) if is_pruning(x) else x) for path, x in nodes]
    new, structure = leaves_by_path(fresh, is_pruning)
    _check_rest(old, new)
    held = {
        kernel.path: (part, kernel)
        for _, part in old
        if is_pruning(part)
        for kernel, _ in part.bb_plan.kernels
    }
    both = zip(old, new, strict=True)
    carried = [_carried(b, a, held) if is_pruning(a) else b for (_, b), (_, a) in both]
    return jax.tree_util.tree_unflatten(structure, carried)


def _check_rest(old: list[tuple[str, Any]], new: list[tuple[str, Any]]) -> None:
    """Refuses states that differ in what does not prune."""
    before, after = (
        {path: "pruning" if is_pruning(x) else jnp.shape(x) for path, x in nodes}
        for nodes in (old, new)
    )
    odd = [p for p in before | after if before.get(p) != after.get(p)]
    if odd or list(before) != list(after):
        shown = [
            f"{path!r}: {before.get(path, 'none')} -> {after.get(path, 'none')}"
            for path in odd[:4]
        ]
        raise ValueError(
            "expected the state of the same optimizer around the pruning transform, "
            f"got one that differs (shapes, state -> tx): {'; '.join(shown) or 'order'}"
            "; pass the state that tx.init or tx.update returned (train_state.opt_state"
            "), and build the rest of tx as it was"
        )


def _carried(old: PruneState, new: PruneState, held: Held) -> PruneState:
    """A fresh pruning state with what is known of its kernels."""
    masks, means, dormant = dict(new.bb_masks), dict(new.bb_means), dict(new.bb_dormant)
    churn, density, scale = dict(new.bb_churn), dict(new.bb_density), dict(new.bb_scale)
    stray = dict(new.bb_stray)
    for kernel, _ in new.bb_plan.kernels:
        path = kernel.path
        if path not in held:
            continue
        part, known = held[path]
        _check_shape(known, kernel)
        masks[path] = _mask(part, known, kernel, masks[path])
        churn[path], density[path] = part.bb_churn[path], part.bb_density[path]
        stray[path] = part.bb_stray[path]
        if path in dormant and path in part.bb_dormant:
            values, dtype = part.bb_dormant[path], dormant[path].dtype
            dormant[path] = values if values.dtype == dtype else stored(values, dtype)
        if _alike(known, kernel):
            means[path] = _means(part.bb_means[path], means[path])
            if path in scale:
                scale[path] = part.bb_scale.get(path, scale[path])
    return new._replace(
        bb_count=old.bb_count,
        bb_masks=masks,
        bb_means=means,
        bb_dormant=dormant,
        bb_churn=churn,
        bb_stray=stray,
        bb_density=density,
        bb_scale=scale,
    )


def _alike(old: Kernel, new: Kernel) -> bool:
    """Whether the axes of two kernels mean the same."""
    return (old.split, old.roles) == (new.split, new.roles)


def _check_shape(old: Kernel, new: Kernel) -> None:
    if old.shape != new.shape:
        raise ValueError(
            f"expected {new.path!r} of shape {old.shape}, as in the state, got "
            f"{new.shape}: its mask is of other weights; pass the state to bb.shrink "
            "if that made the model smaller, else begin with tx.init(params)"
        )


def _mask(part: PruneState, known: Kernel, kernel: Kernel, first: Any) -> Any:
    """The old mask as bits of the new kernel, compared with one that was given."""
    packed = part.bb_masks[kernel.path]
    if not _alike(known, kernel):
        mask = kernel.edge_mask(full_mask(known, packed))
        packed = pack(kernel, mask, first)
    if _same(kernel, first, all_kept(kernel, None)) or _same(kernel, first, packed):
        return packed
    raise ValueError(
        f"expected masks= that are those of the state, got others of {kernel.path!r}; "
        "pass bb.masks(state) as masks, or begin with tx.init(params)"
    )


def _same(kernel: Kernel, first: Any, second: Any) -> bool:
    if any(isinstance(mask, jax.core.Tracer) for mask in (first, second)):
        raise ValueError(
            f"expected masks of {kernel.path!r} with values, got traced ones, which "
            "cannot be compared; call bb.adopt outside of jax.jit"
        )
    return bool(jnp.array_equal(first, second))


def _means(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The old means of each side whose statistics are all known."""
    lacking = {name.split(".")[0] for name in new if name not in old}
    return {
        name: mean if name.split(".")[0] in lacking else old[name]
        for name, mean in new.items()
    }
