"""The work of the transform: the state that it makes, and what each update does.

A refresh runs `when` it is due, in place, so that plain steps copy no masks and no
dormant weights; nothing in it depends on the updates, so that the optimizer's
arithmetic still fuses with the masking. No Optax here: see `bbjax.training.transform`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from bbjax.arrays import sharding
from bbjax.arrays.loop import when
from bbjax.budgets.allocation import budgets
from bbjax.model.leaves import Leaves
from bbjax.model.units import Kernel
from bbjax.rules.base import (
    tracked,
)
from bbjax.training import arguments, continuation, observations
from bbjax.training.all_kernels import AllKernels
from bbjax.training.continuation import Contents
from bbjax.training.options import Options
from bbjax.training.plan import Budgeted, Plan
from bbjax.training.refresh import Held, apply_mask, stray_share
from bbjax.training.state import (
    PruneState,
    first_dormant,
    first_mask,
    first_means,
    first_scale,
    mean_names,
    unpack,
    update_means,
)

_Shares = dict[str, jax.Array]  # by path, a float32 scalar
HELD = 100  # updates between looks at held masks, which no refresh changes


@dataclasses.dataclass(frozen=True)
class Pruner:
    """`init` and `update` of the transform."""

    budgeted: Budgeted
    options: Options

    @functools.cached_property
    def plan(self) -> Plan:
        """What a state of this transform belongs to."""
        return Plan.of(self.options.rule.name, self.budgeted)

    @functools.cached_property
    def _contents(self) -> tuple[Contents, ...]:
        """What a state of this transform holds of each kernel."""
        rule, rescale = self.options.rule, bool(self.options.rescale)
        return tuple(
            Contents(k, mean_names(tracked(rule, acts)), rescale and "in" in acts)
            for k, acts in self.budgeted
        )

    def init(self, params: Any) -> PruneState:
        """The state before the first update: everything kept, nothing observed."""
        options, tree = self.options, Leaves.of(params)
        masks, means, dormant, churn = {}, {}, {}, {}
        stray, asked, scale = {}, {}, {}
        for kernel, names, rescale in self._contents:
            # `optax.tree.map_params` calls init with a tree of no leaves.
            weights = tree.get(kernel, "parameter") if tree.leaves else None
            packed = first_mask(kernel, weights, options.masks)
            masks[kernel.path] = packed
            means[kernel.path] = first_means(kernel, names, weights)
            churn[kernel.path] = sharding.like(jnp.float32(0), weights, ())
            stray[kernel.path] = sharding.like(jnp.float32(0), weights, ())
            first = jnp.float32(math.nan if options.start is None else 1)
            asked[kernel.path] = sharding.like(first, weights, ())
            if rescale:
                scale[kernel.path] = first_scale(kernel, weights)
            if options.dormant:
                pruned = packed if options.masks is not None else None
                dormant[kernel.path] = first_dormant(
                    kernel, weights, pruned, options.dormant_dtype
                )
        return PruneState(
            bb_count=sharding.like(jnp.int32(0), weights, ()),
            bb_masks=masks,
            bb_means=means,
            bb_dormant=dormant,
            bb_churn=churn,
            bb_stray=stray,
            bb_density=asked,
            bb_scale=scale,
            bb_k_min=sharding.like(jnp.int32(options.k_min), weights, ()),
            bb_plan=self.plan,
        )

    def continued(self, state: PruneState, params: Any) -> PruneState:
        """A state with the settings of this transform, which count from now on.

        Raises:
          TypeError: it is no pruning state.
          ValueError: no parameters, or a state that cannot be continued.
        """
        if params is None:
            raise ValueError(
                "expected params, got None; call tx.update(grads, opt_state, params, "
                "activity=activity)"
            )
        continuation.check(state, self.plan, self._contents)
        state = jax.tree.map(jnp.asarray, state)  # files give arrays of numpy
        kernels = [kernel for kernel, _ in self.budgeted]
        dormant = continuation.dormant_as(
            state.bb_dormant, kernels, self.options, Leaves.of(params)
        )
        # Computed from the old value, so that its buffer is used again (donation).
        least = jnp.where(state.bb_k_min < 0, state.bb_k_min, self.options.k_min)
        return state._replace(bb_dormant=dormant, bb_k_min=least)

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
        """The update after which pruned weights are 0, and the new state."""
        del extra
        state = self.continued(state, params)
        observations.check_needs(self.options.rule, activity, grads)
        weights, wanted = Leaves.of(params), Leaves.of(updates)
        new = self._take_activity(state, activity)
        due, looks = self._due(state.bb_count), self._looks(state.bb_count)
        if due is None:
            new, arrivals = self._look_if(looks, new, weights), dict[str, jax.Array]()
        else:
            new, arrivals = self._refresh_if(due, looks, new, weights, grads)
        observations.warn_of_stray(looks, new.bb_stray)
        for kernel, _ in self.budgeted:
            path = kernel.path
            p = jnp.asarray(weights.get(kernel, "parameter"))
            masked = apply_mask(
                kernel,
                wanted.get(kernel, "update"),
                p,
                keep=unpack(kernel, new.bb_masks[path], p),
                arrivals=_unpacked(kernel, arrivals, p),
                dormant=new.bb_dormant.get(path),
                due=due,
                ratio=_ratio(new.bb_scale.get(path), state.bb_scale.get(path)),
            )
            wanted.put(kernel, masked)
        return wanted.tree(), new._replace(bb_count=self._next(state.bb_count))

    def _due(self, count: jax.Array) -> jax.Array | None:
        """Whether this update refreshes; None if the masks stay what they are."""
        start, stop = self.options.start, self.options.stop
        if start is None:
            return None
        due = (count >= start) & ((count - start) % self.options.every == 0)
        return due if stop is None else due & (count < stop)

    def _looks(self, count: jax.Array) -> jax.Array:
        """Whether this update counts pruned weights that are not 0.

        At a refresh, which reads the weights anyway, and right after it; after the
        first update, which applies masks that were given; never before masks are.
        """
        start, every = self.options.start, self.options.every
        if start is None:
            start, every = 0, HELD
        return (count == 1) | (count > start) & ((count - start) % every <= 1)

    def _next(self, count: jax.Array) -> jax.Array:
        """The number of the next update.

        Past the last one that int32 holds it falls back by whole periods, to where no
        density schedule changes any more, so that refreshes go on.
        """
        last, every = jnp.iinfo(jnp.int32).max, self.options.every
        periods = max(
            (last - max(self.options.start or 0, arguments.FOREVER)) // every, 1
        )
        after = last if self.options.stop is not None else last + 1 - periods * every
        return jnp.where(count < last, jnp.minimum(count, last - 1) + 1, after)

    def _take_activity(self, state: PruneState, activity: Any) -> PruneState:
        if activity is None:
            return state
        means = {}
        for kernel, _ in self.budgeted:
            old = state.bb_means[kernel.path]
            if not old:  # held masks that no budget counts
                means[kernel.path] = old
                continue
            sides = observations.check_activity(kernel, tuple(old), activity)
            means[kernel.path] = update_means(old, sides, self.options.ema)
        return state._replace(bb_means=means)

    def _refresh_if(
        self,
        due: jax.Array,
        looks: jax.Array,
        state: PruneState,
        weights: Leaves,
        grads: Any,
    ) -> tuple[PruneState, dict[str, jax.Array]]:
        """The state after a refresh, if one is due, and the edges that come back."""
        kernels = [kernel for kernel, _ in self.budgeted]
        least = arguments.least_edges(self.budgeted, self.options.k_min)
        spend = budgets(self.options.density, kernels, state.bb_count, least)
        gradients = Leaves.of(grads) if "grads" in self.options.rule.needs else None
        work = AllKernels(self.budgeted, self.options, state, weights, gradients, spend)

        def each(carried: tuple[list[Held], _Shares]) -> tuple[list[Held], _Shares]:
            held, before = carried
            masks = {k.path: one.mask for k, one in zip(kernels, held, strict=True)}
            stray = self._stray(looks, masks, weights, before)
            for which in work.together(held):
                part = functools.partial(work.refresh, which)
                done = when(due, part, [held[i] for i in which])
                for i, one in zip(which, done, strict=True):
                    held[i] = one
            return held, stray

        held, stray = when(due | looks, each, (self._held(state), state.bb_stray))
        after = {k.path: one for k, one in zip(kernels, held, strict=True)}

        def by_path(name: str) -> dict[str, jax.Array]:
            found = {path: getattr(one, name) for path, one in after.items()}
            return {path: x for path, x in found.items() if x is not None}

        asked = {
            k.path: jnp.where(due, d, state.bb_density[k.path])
            for k, d in zip(kernels, spend.asked, strict=True)
        }
        new = state._replace(
            bb_masks=by_path("mask"),
            bb_dormant=by_path("dormant"),
            bb_churn=by_path("churn"),
            bb_stray=stray,
            bb_density=asked,
            bb_scale=by_path("scale"),
        )
        return new, by_path("arrivals")

    def _held(self, state: PruneState) -> list[Held]:
        """What a refresh may change of every kernel."""
        return [
            Held(
                mask=state.bb_masks[k.path],
                churn=state.bb_churn[k.path],
                dormant=state.bb_dormant.get(k.path),
                scale=state.bb_scale.get(k.path),
                arrivals=jnp.zeros_like(state.bb_masks[k.path])
                if self.options.regrow
                else None,
            )
            for k, _ in self.budgeted
        ]

    def _look_if(
        self, looks: jax.Array, state: PruneState, weights: Leaves
    ) -> PruneState:
        """The state of masks that stay, with pruned weights that are not 0 counted."""
        count = functools.partial(self._stray, looks, state.bb_masks, weights)
        return state._replace(bb_stray=when(looks, count, state.bb_stray))

    def _stray(
        self,
        looks: jax.Array,
        masks: dict[str, jax.Array],
        weights: Leaves,
        before: _Shares,
    ) -> _Shares:
        """By path, the share of the edges that are pruned and whose weight is not 0."""
        found = {}
        for kernel, _ in self.budgeted:
            mask, old = masks[kernel.path], before[kernel.path]
            p = jnp.asarray(weights.get(kernel, "parameter"))
            share = jnp.where(looks, stray_share(kernel, p, mask), old)
            found[kernel.path] = sharding.match(share, old)
        return found


def _ratio(new: jax.Array | None, old: jax.Array | None) -> jax.Array | None:
    """By what the scale of each output unit changes; exactly 1 where it does not."""
    if new is None or old is None:
        return None
    return jnp.where(new == old, 1.0, new / old)


def _unpacked(
    kernel: Kernel, packed: dict[str, jax.Array], weights: jax.Array
) -> jax.Array | None:
    if kernel.path not in packed:
        return None
    return unpack(kernel, packed[kernel.path], weights)
