"""The state of the transform: masks, averages, dormant weights; and how to read it.

The state is one NamedTuple in the optimizer state, so that checkpoints, sharding,
donation and replication need no code here. Masks are bits, one per edge, packed along
one axis of the kernel's edge view (`Kernel.edge_shape`); they follow the sharding of
the weights. Field names start with `bb_`, so that `optax.tree.get(state, "bb_masks")`
is unambiguous in any chain. What does not change (kernels, actuators, the name of the
rule) is static data without leaves (`bbjax.training.plan`).

A state may have leading axes (seeds, replicas: `jax.vmap(tx.init)`). What reads a state
is then mapped over them, and its results have the same axes first.

A running mean over the updates in which a unit was observed, free of start-up bias:

    m <- decay m + (1 - decay) x,   w <- decay w + (1 - decay),   mean = m / w
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bbjax.arrays import bits, sharding
from bbjax.model.units import Actuator, Kernel, Side
from bbjax.rules.base import side_in, side_of
from bbjax.training.alike import once_per_form
from bbjax.training.plan import Plan

UNOBSERVED = 0.5


class PruneState(NamedTuple):
    """State of `bb.transform`.

    Attributes:
      bb_count: updates seen, int32.
      bb_masks: kept edges of each kernel, as bits in uint8.
      bb_means: running means by kernel and `"side.statistic"`, float32, with the
        weight of the observations under `"side.weight"`.
      bb_dormant: values of pruned weights by kernel; empty without regrowth.
      bb_churn: share of each kernel's edges that the last refresh flipped, float32.
      bb_stray: share of each kernel's edges that were pruned and yet not 0 in the
        parameters when last counted, float32; see `bb.metrics`.
      bb_density: density of each kernel asked for at the last refresh, float32; 1
        before the first, NaN where it is an outcome.
      bb_scale: factor on the kept weights of each output unit by kernel, float32,
        `stack + units`; empty without rescaling.
      bb_k_min: least degree of a unit at the last update, int32.
      bb_plan: what the transform was built for.
    """

    bb_count: jax.Array
    bb_masks: dict[str, jax.Array]
    bb_means: dict[str, dict[str, jax.Array]]
    bb_dormant: dict[str, jax.Array]
    bb_churn: dict[str, jax.Array]
    bb_stray: dict[str, jax.Array]
    bb_density: dict[str, jax.Array]
    bb_scale: dict[str, jax.Array]
    bb_k_min: jax.Array
    bb_plan: Plan


# Masks ---------------------------------------------------------------------------
def packed_axis(kernel: Kernel) -> int:
    """The axis of the edge view along which bits are packed.

    The longest axis that wastes no bits, and not the last one where there is a choice:
    the last axis is what processors vectorise over.
    """
    sizes = kernel.edge_shape
    last = len(sizes) - 1
    return min(
        range(len(sizes)),
        key=lambda a: (-(-sizes[a] // 8) * 8 / sizes[a], a == last, -sizes[a]),
    )


def packed_shape(kernel: Kernel) -> tuple[int, ...]:
    """The shape of a mask as bits."""
    sizes, axis = list(kernel.edge_shape), packed_axis(kernel)
    sizes[axis] = -(-sizes[axis] // 8)
    return tuple(sizes)


def pack(kernel: Kernel, mask: jax.Array, old: jax.Array) -> jax.Array:
    """A mask per edge as bits, sharded as the old ones."""
    return bits.pack(sharding.match(mask, old), packed_axis(kernel))


@once_per_form
def unpack(
    kernel: Kernel, packed: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Bits as a mask per edge, sharded as the weights where these are given.

    On explicit meshes the two differ where a shard is no multiple of 8 edges: such bits
    are replicated.
    """
    axis = packed_axis(kernel)
    mask = bits.unpack(packed, axis, kernel.edge_shape[axis])
    return mask if weights is None else sharded_as(kernel, mask, weights)


def sharded_as(kernel: Kernel, per_edge: jax.Array, weights: jax.Array) -> jax.Array:
    """An array per edge, sharded as the weights, where shardings are types."""
    axes = [i for i, role in enumerate(kernel.roles) if role != "spatial"]
    return sharding.match_axes(per_edge, kernel.edges(weights), axes)


def full_mask(kernel: Kernel, packed: jax.Array) -> jax.Array:
    """Bits as a mask of the shape of the kernel."""
    mask = kernel.over_spatial(unpack(kernel, packed))
    return kernel.weights(jnp.broadcast_to(mask, kernel.split))


# The first state -------------------------------------------------------------------
# Every edge is kept, or what `masks` keep; no activity has been observed; and only the
# weights that `masks` prune are dormant. Each array lies on devices as its kernel does:
# a state that moved after the first update would be compiled for twice. `weights` is
# None where a tree has no leaves, as `optax.tree.map_params` gives it.
def first_mask(
    kernel: Kernel, weights: Any, masks: Mapping[str, Any] | None
) -> jax.Array:
    """The first mask of a kernel, as bits."""
    if masks is None or kernel.path not in masks:
        return all_kept(kernel, weights)
    kept = kernel.edge_mask(jnp.asarray(masks[kernel.path]))
    packed = bits.pack(kept, packed_axis(kernel))
    return sharding.like(packed, weights, _parameter_axes(kernel))


def mean_names(statistics: tuple[str, ...]) -> tuple[str, ...]:
    """Names of running means: the statistics, and the weight of each side.

    Example:
      >>> mean_names(("inputs.on_rate",))
      ('inputs.on_rate', 'inputs.weight')
    """
    sides = {f"{name.split('.')[0]}.weight" for name in statistics}
    return tuple(sorted({*statistics} | sides))


def first_means(
    kernel: Kernel, names: tuple[str, ...], weights: Any
) -> dict[str, jax.Array]:
    """No running mean yet, and no weight of the observations of a side."""
    return {name: _per_unit(kernel, side_in(name), weights, 0.0) for name in names}


def first_scale(kernel: Kernel, weights: Any) -> jax.Array:
    """No factor on the weights of any output unit yet."""
    return _per_unit(kernel, "outputs", weights, 1.0)


def first_dormant(
    kernel: Kernel, weights: Any, packed: jax.Array | None, dtype: Any
) -> jax.Array:
    """Values of pruned weights: those outside the first mask, if there is one.

    Args:
      kernel: the kernel.
      weights: of the parameter, or None.
      packed: the first mask as bits, None if it keeps every edge.
      dtype: of the values; None is that of the weights.
    """
    if dtype is None:
        dtype = kernel.dtype if weights is None else weights.dtype
    values = jnp.zeros(kernel.shape, dtype)
    if packed is not None and weights is not None:
        values = jnp.where(full_mask(kernel, packed), values, weights.astype(dtype))
    return sharding.like(values, weights, tuple(range(len(kernel.shape))))


def all_kept(kernel: Kernel, weights: Any) -> jax.Array:
    """A mask that keeps every edge, as bits."""
    shape = list(kernel.edge_shape)
    axis = packed_axis(kernel)
    size = shape[axis]
    full_bytes, left = divmod(size, 8)
    column = [255] * full_bytes + ([(1 << left) - 1] if left else [])
    shape[axis] = len(column)
    at = [1] * len(shape)
    at[axis] = len(column)
    full = jnp.broadcast_to(jnp.asarray(column, jnp.uint8).reshape(at), shape)
    return sharding.like(full, weights, _parameter_axes(kernel))


def _parameter_axes(kernel: Kernel) -> tuple[int | None, ...]:
    """For each axis of the edge view, the axis of the parameter that it is."""
    if kernel.split != kernel.shape:
        return (None,) * len(kernel.edge_shape)
    return tuple(i for i, r in enumerate(kernel.roles) if r != "spatial")


def _per_unit(kernel: Kernel, side: Side, weights: Any, value: float) -> jax.Array:
    """One number for each unit of a side, whole on every device."""
    full = jnp.full(kernel.per_unit_shape(side), value, jnp.float32)
    return sharding.like(full, weights, (None,) * full.ndim)


# Running means -------------------------------------------------------------------
def update_means(
    means: Mapping[str, jax.Array], sides: Any, decay: jax.Array | float
) -> dict[str, jax.Array]:
    """Takes one observation into the running means of a kernel; they are replicated.

    Args:
      means: of the state.
      sides: `Activity` of the kernel.
      decay: of the running mean, in [0, 1).
    """
    measured, counts = {}, {}
    for name in means:
        side, statistic = name.split(".")
        counts[side] = getattr(getattr(sides, side), "count", None)
        if statistic != "weight":
            measured[name] = getattr(getattr(sides, side), statistic)
    found: dict[str, jax.Array] = _averaged(dict(means), measured, counts, decay)
    return found


@jax.jit  # traced once for all kernels of one form
def _averaged(
    means: dict[str, jax.Array],
    measured: dict[str, jax.Array],
    counts: dict[str, jax.Array | None],
    decay: jax.Array | float,
) -> dict[str, jax.Array]:
    decay = jnp.asarray(decay).astype(jnp.float32)
    values: dict[str, jax.Array] = {}
    seen: dict[str, jax.Array] = {}
    for name, mean in means.items():
        side, statistic = name.split(".")
        if statistic == "weight":
            values[name] = jnp.ones_like(mean)
            continue
        value = sharding.whole(measured[name].astype(jnp.float32))
        values[name] = jnp.broadcast_to(value, mean.shape)
        usable = jnp.isfinite(values[name])
        count = counts[side]
        if count is not None:
            usable &= jnp.broadcast_to(sharding.whole(count) > 0, usable.shape)
        # One weight serves all statistics of a side: a unit is observed or it is not.
        seen[side] = seen[side] & usable if side in seen else usable
    taken = {
        name: jnp.where(
            seen[name.split(".")[0]], decay * mean + (1 - decay) * values[name], mean
        )
        for name, mean in means.items()
    }
    return {name: sharding.whole(mean) for name, mean in taken.items()}


@functools.partial(jax.jit, static_argnums=1)
def read_mean(means: Mapping[str, jax.Array], name: str) -> jax.Array:
    """The bias-corrected mean; where nothing was observed, 0.5 for on-rates.

    Sizes are then the mean of those that were observed (1 if none were), so that the
    weights of an expert that no token has reached yet are ranked by |w|.
    """
    side, statistic = name.split(".")
    weight = means[f"{side}.weight"]
    seen = weight > 0
    mean = means[name] / jnp.where(seen, weight, 1.0)
    empty: jax.Array | float = UNOBSERVED
    if statistic != "on_rate":
        count = jnp.sum(seen, dtype=jnp.float32)
        total = jnp.sum(jnp.where(seen, mean, 0.0))
        empty = jnp.where(count > 0, total / jnp.maximum(count, 1.0), 1.0)
    return jnp.where(seen, mean, empty)


# Reading an optimizer state ------------------------------------------------------
def find(opt_state: Any) -> tuple[PruneState, ...]:
    """The pruning states inside an optimizer state, at any depth.

    Args:
      opt_state: state of a chain, partition, `MultiSteps`, ...; or an object that holds
        one as `opt_state` (a Flax `TrainState`, an `nnx.Optimizer`).

    Raises:
      ValueError: there is none, or two of them prune the same kernel.
    """
    held = getattr(opt_state, "opt_state", opt_state)
    leaves = jax.tree_util.tree_leaves(held, is_leaf=is_pruning)
    found = tuple(without_wrappers(s) for s in leaves if is_pruning(s))
    if not found:
        raise ValueError(
            f"expected an optimizer state with bb.transform or bb.wrap inside, got "
            f"{type(opt_state).__name__} without one; pass the state that tx.init or "
            "tx.update returned (restored checkpoints need a target tree)"
        )
    paths = [kernel.path for state in found for kernel, _ in state.bb_plan.kernels]
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise ValueError(
            f"expected each kernel in one transform, got {twice} in several; join the "
            "selections with + and use one transform"
        )
    return found


def is_pruning(value: Any) -> bool:
    """Whether it is a pruning state."""
    return isinstance(value, PruneState)


def without_wrappers(state: PruneState) -> PruneState:
    """Arrays where a library (NNX) wrapped each leaf in a variable of its own."""

    def bare(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: bare(v) for k, v in value.items()}
        (array,) = jax.tree_util.tree_leaves(value)
        return array

    fields = [name for name in state._fields if name != "bb_plan"]
    return state._replace(**{name: bare(getattr(state, name)) for name in fields})


def budgeted(
    opt_state: Any,
) -> Iterator[tuple[PruneState, Kernel, tuple[Actuator, ...]]]:
    """Every budgeted kernel of an optimizer state, with its state and actuators."""
    for state in find(opt_state):
        for kernel, actuators in state.bb_plan.kernels:
            yield state, kernel, actuators


def leading(state: PruneState) -> tuple[int, ...]:
    """Sizes of the leading axes of a state: of seeds or replicas, usually none."""
    return jnp.shape(state.bb_count)


def mapped(state: PruneState, fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function of parts of a state, mapped over the leading axes of the state."""
    for _ in leading(state):
        fn = jax.vmap(fn)
    return fn


def masks(opt_state: Any) -> dict[str, jax.Array]:
    """The masks: which weights of each budgeted kernel are kept.

    Args:
      opt_state: optimizer state with `bb.transform` or `bb.wrap` at any depth.

    Returns:
      By path, a bool array of the kernel's shape, True where kept. Leading axes of the
      state (`jax.vmap(tx.init)`) come first.

    Raises:
      ValueError: no pruning state inside.

    Example:
      >>> import bbjax as bb
      >>> kernel = Kernel("w", (2, 3), fan_in=(0,), fan_out=(1,))
      >>> tx = bb.transform(bb.Units((kernel,)).select("w"))
      >>> bb.masks(tx.init({"w": jnp.ones((2, 3))}))["w"].all().item()
      True
    """
    return {
        k.path: mapped(s, functools.partial(full_mask, k))(s.bb_masks[k.path])
        for s, k, _ in budgeted(opt_state)
    }


def names(kernel: Kernel, actuators: tuple[Actuator, ...]) -> dict[Actuator, str]:
    """Keys of per-unit results: the path; `path:in` and `path:out` for both sides."""
    if len(actuators) == 1:
        return {actuators[0]: kernel.path}
    return {a: f"{kernel.path}:{a}" for a in actuators}


def degrees_of(opt_state: Any) -> dict[str, jax.Array]:
    """The degrees: how many edges each budgeted unit keeps.

    Args:
      opt_state: optimizer state with `bb.transform` or `bb.wrap` at any depth.

    Returns:
      By path, int32 of shape `stack + units`: fan-in of the output units for actuator
      "in", fan-out of the input units for "out". A kernel with both actuators has two
      entries, `path:in` and `path:out`. Leading axes of the state come first.

    Raises:
      ValueError: no pruning state inside.

    Example:
      >>> import bbjax as bb
      >>> kernel = Kernel("w", (2, 3), fan_in=(0,), fan_out=(1,))
      >>> tx = bb.transform(bb.Units((kernel,)).select("w"))
      >>> bb.degrees_of(tx.init({"w": jnp.ones((2, 3))}))["w"].tolist()
      [2, 2, 2]
    """
    return {
        name: mapped(s, functools.partial(_degrees, k, a))(s.bb_masks[k.path])
        for s, k, actuators in budgeted(opt_state)
        for a, name in names(k, actuators).items()
    }


def _degrees(kernel: Kernel, actuator: Actuator, packed: jax.Array) -> jax.Array:
    mask = unpack(kernel, packed).astype(jnp.int32)
    return kernel.gather(mask, side_of(actuator))


def on_rates(opt_state: Any) -> dict[str, jax.Array]:
    """The on-rates that degrees are computed from: bias-corrected running means.

    Args:
      opt_state: optimizer state with `bb.transform` or `bb.wrap` at any depth.

    Returns:
      By path, float32 of shape `stack + units`, 0.5 where nothing was observed; keys
      and leading axes as those of `degrees_of`.

    Raises:
      ValueError: no pruning state inside.

    Example:
      >>> import bbjax as bb
      >>> kernel = Kernel("w", (2, 3), fan_in=(0,), fan_out=(1,))
      >>> tx = bb.transform(bb.Units((kernel,)).select("w"))
      >>> bb.on_rates(tx.init({"w": jnp.ones((2, 3))}))["w"].tolist()
      [0.5, 0.5, 0.5]
    """
    return {
        name: mean_of(s, k, f"{side_of(a)}.on_rate")
        for s, k, actuators in budgeted(opt_state)
        for a, name in names(k, actuators).items()
    }


def mean_of(state: PruneState, kernel: Kernel, name: str) -> jax.Array:
    """A running mean of a state, as `read_mean` gives it."""
    read = functools.partial(read_mean, name=name)
    return mapped(state, read)(state.bb_means[kernel.path])
