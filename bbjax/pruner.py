"""The work of the transform: what it remembers and what it does at each update.

A refresh runs as a loop of zero or one iterations. Loop state is updated in place, so
that plain steps copy no masks and no dormant weights; nothing in the loop depends on
the updates, so that the optimizer's arithmetic still fuses with the landing; and under
`vmap` the refresh still runs only when it is due. No Optax here: see `bbjax.transform`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bbjax import bits, needs, placement, settings
from bbjax.allocation import Budgets, Density, budgets
from bbjax.leaves import Leaves
from bbjax.patterns import Pattern
from bbjax.refresh import Refreshed, Sight, land, look, settle
from bbjax.rules.base import (
    Candidates,
    Choice,
    Group,
    Rule,
    as_choice,
    side_in,
    tracked,
)
from bbjax.state import (
    Plan,
    PruneState,
    full_mask,
    pack,
    packed_axis,
    read_mean,
    unpack,
    update_means,
)
from bbjax.units import Kernel


@dataclasses.dataclass(frozen=True)
class Pruner:
    """`init` and `update` of the transform."""

    plan: Plan
    rule: Rule
    density: Density
    every: int
    start: int | None
    stop: int | None
    dormant: bool
    regrow: bool
    rescale: bool
    ema: Any
    dormant_dtype: Any
    pattern: Pattern | None = None
    masks: Mapping[str, Any] | None = None

    def init(self, params: Any) -> PruneState:
        """The state before the first update: everything kept, nothing observed."""
        tree = Leaves.of(params)
        masks, means, dormant, churn, asked = {}, {}, {}, {}, {}
        for kernel, actuators in self.plan.kernels:
            # `optax.tree.map_params` calls init with a tree of no leaves.
            weights = tree.get(kernel, "parameter") if tree.leaves else None
            masks[kernel.path] = _first_mask(kernel, weights, self.masks)
            means[kernel.path] = {
                name: _no_mean(kernel, name, weights)
                for name in _with_weights(tracked(self.rule, actuators))
            }
            churn[kernel.path] = placement.like(jnp.float32(0), weights, ())
            first = jnp.float32(math.nan if self.start is None else 1)
            asked[kernel.path] = placement.like(first, weights, ())
            if self.dormant:
                first = masks[kernel.path]
                dormant[kernel.path] = self._first_dormant(kernel, weights, first)
        return PruneState(
            bb_count=placement.like(jnp.int32(0), weights, ()),
            bb_masks=masks,
            bb_means=means,
            bb_dormant=dormant,
            bb_churn=churn,
            bb_density=asked,
            bb_plan=self.plan,
        )

    def _first_dormant(
        self, kernel: Kernel, weights: Any, mask: jax.Array
    ) -> jax.Array:
        """Nothing rests yet, but for weights that masks prune from the beginning."""
        dtype = self.dormant_dtype or (
            kernel.dtype if weights is None else weights.dtype
        )
        rest = jnp.zeros(kernel.shape, dtype)
        if self.masks is not None and weights is not None:
            rest = jnp.where(full_mask(kernel, mask), rest, weights.astype(dtype))
        return placement.like(rest, weights, tuple(range(len(kernel.shape))))

    def update(
        self,
        updates: Any,
        state: PruneState,
        params: Any = None,
        *,
        activity: Any = None,
        grads: Any = None,
        **extra: Any,
    ) -> tuple[Any, PruneState]:
        """The update that lands on sparse weights, and the new state."""
        del extra
        if params is None:
            raise ValueError(
                "expected params, got None; call tx.update(grads, opt_state, params, "
                "activity=activity)"
            )
        needs.check_needs(self.rule, activity, grads)
        weights, wanted = Leaves.of(params), Leaves.of(updates)
        new = self._take_activity(state, activity)
        due, changes = None, _Changes({}, {})
        if self.start is not None:  # else the masks stay what they are
            due = self._due(state.bb_count)
            new, changes = self._refresh_if(due, new, weights, grads)
        for kernel, _ in self.plan.kernels:
            path = kernel.path
            p = weights.get(kernel, "parameter")
            landed = land(
                kernel,
                wanted.get(kernel, "update"),
                p,
                keep=unpack(kernel, new.bb_masks[path], p),
                arrivals=_unpacked(kernel, changes.arrivals, p),
                dormant=new.bb_dormant.get(path),
                due=due,
                ratio=changes.ratios.get(path),
            )
            wanted.put(kernel, landed)
        last = jnp.iinfo(jnp.int32).max
        count = jnp.minimum(state.bb_count, last - 1) + 1
        return wanted.tree(), new._replace(bb_count=count)

    def _due(self, count: jax.Array) -> jax.Array:
        assert self.start is not None
        due = (count >= self.start) & ((count - self.start) % self.every == 0)
        return due if self.stop is None else due & (count < self.stop)

    def _take_activity(self, state: PruneState, activity: Any) -> PruneState:
        if activity is None:
            return state
        means = {}
        for kernel, _ in self.plan.kernels:
            old = state.bb_means[kernel.path]
            sides = needs.check_activity(kernel, tuple(old), activity)
            taken = update_means(old, sides, self.ema)
            means[kernel.path] = {
                k: placement.match(v, old[k]) for k, v in taken.items()
            }
        return state._replace(bb_means=means)

    def _refresh_if(
        self, due: jax.Array, state: PruneState, weights: Leaves, grads: Any
    ) -> tuple[PruneState, _Changes]:
        """The state after a refresh, if one is due, and what it changed."""
        gradients = Leaves.of(grads) if "grads" in self.rule.needs else None
        kernels = [kernel for kernel, _ in self.plan.kernels]
        least = settings.least_edges(self.plan.kernels, self.plan.k_min)
        spend = budgets(self.density, kernels, state.bb_count, least)
        held = _Held(
            state.bb_masks, state.bb_dormant, state.bb_churn, self._no_changes(state)
        )

        def once(loop):
            _, old = loop
            new = old.copy()
            looked = (
                self._look(i, old, state, weights, gradients, spend)
                for i in range(len(kernels))
            )
            for sight, choice in self._choices(looked, spend):
                path = sight.seen.kernel.path
                rest = old.dormant.get(path)
                dtype = None if rest is None else rest.dtype
                new.take(sight.seen.kernel, settle(sight, choice.mask, dtype))
            return jnp.zeros((), bool), new.matched(old)

        _, held = lax.while_loop(lambda loop: loop[0], once, (due, held))
        asked = {
            k.path: jnp.where(due, d, state.bb_density[k.path])
            for k, d in zip(kernels, spend.asked, strict=True)
        }
        new = state._replace(
            bb_masks=held.masks,
            bb_dormant=held.dormant,
            bb_churn=held.churn,
            bb_density=asked,
        )
        return new, held.changes

    def _choices(
        self, looked: Iterator[Sight], spend: Budgets
    ) -> Iterator[tuple[Sight, Choice]]:
        """What the rule chooses, kernel by kernel unless they compete."""
        if not self.rule.joint:
            for sight in looked:
                yield sight, as_choice(self.rule.select(sight.seen))
            return
        sights = list(looked)
        # One broken kernel and the shares of all are off: then every mask stays.
        sound = jnp.all(jnp.stack([s.sound for s in sights]))
        group = Group(tuple(s.seen for s in sights), spend.pool)
        for sight, choice in zip(sights, self.rule.choose(group), strict=True):
            yield sight._replace(sound=sound), choice

    def _no_changes(self, state: PruneState) -> _Changes:
        kernels = self.plan.kernels
        return _Changes(
            arrivals={
                k.path: jnp.zeros_like(state.bb_masks[k.path])
                for k, _ in kernels
                if self.regrow
            },
            ratios={
                k.path: jnp.ones(k.per_unit_shape("outputs"), jnp.float32)
                for k, actuators in kernels
                if self.rescale and "in" in actuators
            },
        )

    def _look(
        self,
        index: int,
        held: _Held,
        state: PruneState,
        weights: Leaves,
        gradients: Leaves | None,
        spend: Budgets,
    ) -> Sight:
        kernel, actuators = self.plan.kernels[index]
        means = state.bb_means[kernel.path]
        names = [name for name in means if not name.endswith(".weight")]
        w = lax.stop_gradient(weights.get(kernel, "parameter"))
        grads = None
        if gradients is not None:
            grads = kernel.edges(gradients.get(kernel, "gradient"))
        seen = Candidates(
            kernel=kernel,
            actuators=actuators,
            weights=w,
            mask=unpack(kernel, held.masks[kernel.path], w),
            statistics={name: read_mean(means, name) for name in names},
            budget=spend.edges[index],
            k_min=self.plan.k_min,
            regrow=self.regrow,
            step=state.bb_count,
            grads=grads,
            index=index,
            bias=weights.bias_of(kernel),
            pattern=self.pattern,
        )
        rescale = self.rescale and "in" in actuators
        return look(seen, held.dormant.get(kernel.path), rescale=rescale)


class _Changes(NamedTuple):
    """What a refresh changed, for the update that lands on it.

    Attributes:
      arrivals: by path, edges that come back, as bits; all 0 without a refresh.
      ratios: by path, factor on the kept weights of each output unit.
    """

    arrivals: dict[str, jax.Array]
    ratios: dict[str, jax.Array]

    def copy(self) -> _Changes:
        """A copy whose dicts may be changed."""
        return _Changes(dict(self.arrivals), dict(self.ratios))


class _Held(NamedTuple):
    """What the loop of a refresh carries: parts of the state, by path, and changes."""

    masks: dict[str, jax.Array]
    dormant: dict[str, jax.Array]
    churn: dict[str, jax.Array]
    changes: _Changes

    def copy(self) -> _Held:
        """A copy whose dicts may be changed."""
        masks, dormant, churn = (dict(part) for part in self[:3])
        return _Held(masks, dormant, churn, self.changes.copy())

    def take(self, kernel: Kernel, done: Refreshed) -> None:
        """Takes in the refresh of one kernel."""
        path = kernel.path
        old = self.masks[path]
        new = placement.match(pack(kernel, done.mask, old), old)
        self.masks[path] = new
        # Counts of a slice are exact in int32, those of a whole stack may not be.
        flips = bits.count(new ^ old, kernel.axes("group", "in", "out"))
        flipped = jnp.sum(flips.astype(jnp.float32))
        self.churn[path] = flipped / math.prod(kernel.edge_shape)
        if done.dormant is not None:
            self.dormant[path] = done.dormant
        if path in self.changes.arrivals:
            self.changes.arrivals[path] = new & ~old
        if path in self.changes.ratios:
            self.changes.ratios[path] = done.ratio

    def matched(self, old: _Held) -> _Held:
        """The same with the shardings of `old`, as a loop wants it."""
        return jax.tree.map(placement.match, self, old)


def _unpacked(
    kernel: Kernel, packed: dict[str, jax.Array], weights: jax.Array
) -> jax.Array | None:
    if kernel.path not in packed:
        return None
    return unpack(kernel, packed[kernel.path], weights)


# Initial values ------------------------------------------------------------------
def _first_mask(
    kernel: Kernel, weights: Any, masks: Mapping[str, Any] | None
) -> jax.Array:
    if masks is None or kernel.path not in masks:
        return _all_kept(kernel, weights)
    full = kernel.edges(jnp.asarray(masks[kernel.path]))
    kept = kernel.sum_spatial(full.astype(jnp.int32)) > 0
    packed = bits.pack(kept, packed_axis(kernel))
    return placement.like(packed, weights, _parameter_axes(kernel))


def _all_kept(kernel: Kernel, weights: Any) -> jax.Array:
    shape = list(kernel.edge_shape)
    axis = packed_axis(kernel)
    size = shape[axis]
    whole, rest = divmod(size, 8)
    column = [255] * whole + ([(1 << rest) - 1] if rest else [])
    shape[axis] = len(column)
    at = [1] * len(shape)
    at[axis] = len(column)
    full = jnp.broadcast_to(jnp.asarray(column, jnp.uint8).reshape(at), shape)
    return placement.like(full, weights, _parameter_axes(kernel))


def _parameter_axes(kernel: Kernel) -> tuple[int | None, ...]:
    """For each axis of the edge view, the axis of the parameter that it is."""
    if kernel.split != kernel.shape:
        return (None,) * len(kernel.edge_shape)
    return tuple(i for i, r in enumerate(kernel.roles) if r != "spatial")


def _no_mean(kernel: Kernel, name: str, weights: Any) -> jax.Array:
    side = side_in(name)
    zeros = jnp.zeros(kernel.per_unit_shape(side), jnp.float32)
    axes: tuple[int | None, ...] = (None,) * zeros.ndim
    if kernel.split == kernel.shape:  # else units are no axes of the parameter
        own = "in" if side == "inputs" else "out"
        roles = list(enumerate(kernel.roles))
        axes = tuple(i for role in ("stack", own) for i, r in roles if r == role)
    return placement.beside(zeros, weights, axes)


def _with_weights(names: tuple[str, ...]) -> tuple[str, ...]:
    """The running means, and beside them the weight of the observations of a side."""
    return tuple(sorted({*names, *(f"{n.split('.')[0]}.weight" for n in names)}))
