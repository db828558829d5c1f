"""The work of the transform: what it remembers and what it does at each update.

A refresh runs as a loop of zero or one iterations. Loop state is updated in place, so
that plain steps copy no masks and no dormant weights; nothing in the loop depends on
the updates, so that the optimizer's arithmetic still fuses with the landing; and under
`vmap` the refresh still runs only when it is due. No Optax here: see `bbjax.transform`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bbjax import bits, placement, settings
from bbjax.budget import exact_budget
from bbjax.leaves import Leaves
from bbjax.refresh import Refreshed, land, refresh
from bbjax.rules.base import Candidates, Rule, side_in, side_of
from bbjax.state import (
    Plan,
    PruneState,
    pack,
    packed_axis,
    read_mean,
    unpack,
    update_means,
)
from bbjax.units import Actuator, Kernel

Density = float | jax.Array | Callable[[jax.Array], Any]


@dataclasses.dataclass(frozen=True)
class Pruner:
    """`init` and `update` of the transform."""

    plan: Plan
    rule: Rule
    density: Density
    every: int
    start: int
    stop: int | None
    dormant: bool
    regrow: bool
    rescale: bool
    ema: Any
    dormant_dtype: Any

    def init(self, params: Any) -> PruneState:
        """The state before the first update: everything kept, nothing observed."""
        tree = Leaves.of(params)
        masks, means, dormant, churn = {}, {}, {}, {}
        for kernel, actuators in self.plan.kernels:
            # `optax.tree.map_params` calls init with a tree of no leaves.
            weights = tree.get(kernel, "parameter") if tree.leaves else None
            masks[kernel.path] = _all_kept(kernel, weights)
            means[kernel.path] = {
                name: _no_mean(kernel, name, weights)
                for name in _tracked(self.rule, actuators)
            }
            churn[kernel.path] = placement.like(jnp.float32(0), weights, ())
            if self.dormant:
                dormant[kernel.path] = self._no_dormant(kernel, weights)
        return PruneState(
            bb_count=placement.like(jnp.int32(0), weights, ()),
            bb_masks=masks,
            bb_means=means,
            bb_dormant=dormant,
            bb_churn=churn,
            bb_density=placement.like(jnp.float32(1), weights, ()),
            bb_plan=self.plan,
        )

    def _no_dormant(self, kernel: Kernel, weights: Any) -> jax.Array:
        own = kernel.dtype if weights is None else weights.dtype
        zeros = jnp.zeros(kernel.shape, self.dormant_dtype or own)
        return placement.like(zeros, weights, tuple(range(len(kernel.shape))))

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
        settings.check_needs(self.rule, activity, grads)
        weights, wanted = Leaves.of(params), Leaves.of(updates)
        state = self._take_activity(state, activity)
        due = self._due(state.bb_count)
        new, changes = self._refresh_if(due, state, weights, grads)
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
        due = (count >= self.start) & ((count - self.start) % self.every == 0)
        return due if self.stop is None else due & (count < self.stop)

    def _take_activity(self, state: PruneState, activity: Any) -> PruneState:
        if activity is None:
            return state
        means = {}
        for kernel, _ in self.plan.kernels:
            old = state.bb_means[kernel.path]
            sides = settings.check_activity(kernel, tuple(old), activity)
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
        density = self.density
        if callable(density):
            density = density(state.bb_count)
        held = _Held(
            state.bb_masks, state.bb_dormant, state.bb_churn, self._no_changes(state)
        )

        def once(loop):
            _, old = loop
            new = old.copy()
            for index, (kernel, _) in enumerate(self.plan.kernels):
                path = kernel.path
                mask = unpack(kernel, old.masks[path], weights.get(kernel, "parameter"))
                rest = old.dormant.get(path)
                done = self._refresh_kernel(
                    index, mask, rest, state, weights, gradients, density
                )
                new.take(kernel, done)
            return jnp.zeros((), bool), new.matched(old)

        _, held = lax.while_loop(lambda loop: loop[0], once, (due, held))
        asked = jnp.asarray(density).astype(jnp.float32)
        new = state._replace(
            bb_masks=held.masks,
            bb_dormant=held.dormant,
            bb_churn=held.churn,
            bb_density=jnp.where(due, asked, state.bb_density),
        )
        return new, held.changes

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

    def _refresh_kernel(
        self,
        index: int,
        mask: jax.Array,
        dormant: jax.Array | None,
        state: PruneState,
        weights: Leaves,
        gradients: Leaves | None,
        density: Any,
    ) -> Refreshed:
        kernel, actuators = self.plan.kernels[index]
        means = state.bb_means[kernel.path]
        names = [name for name in means if not name.endswith(".weight")]
        w = lax.stop_gradient(weights.get(kernel, "parameter"))
        budget = exact_budget(density, kernel.edge_count)
        grads = None
        if gradients is not None:
            grads = kernel.edges(gradients.get(kernel, "gradient"))
        seen = Candidates(
            kernel=kernel,
            actuators=actuators,
            weights=w,
            mask=mask,
            statistics={name: read_mean(means, name) for name in names},
            budget=jnp.broadcast_to(budget, kernel.stack_shape),
            k_min=self.plan.k_min,
            regrow=self.regrow,
            step=state.bb_count,
            grads=grads,
            index=index,
        )
        rescale = self.rescale and "in" in actuators
        return refresh(self.rule, seen, w, dormant, rescale=rescale)


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


def _tracked(rule: Rule, actuators: tuple[Actuator, ...]) -> tuple[str, ...]:
    """Names of the running means: on-rates always, and what the rule needs."""
    sides = [side_of(a) for a in actuators]
    wanted = {f"{side}.on_rate" for side in sides}
    for need in rule.needs:
        if need != "grads":
            wanted |= {need} if "." in need else {f"{side}.{need}" for side in sides}
    wanted |= {f"{name.split('.')[0]}.weight" for name in wanted}
    return tuple(sorted(wanted))
