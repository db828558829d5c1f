"""A refresh of all kernels of a state: together where they are alike or compete.

Kernels that are alike share one program (`bbjax.training.alike`). Where edges compete
across kernels, all masks are chosen at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bbjax.arrays import sharding
from bbjax.budgets.allocation import Budgets
from bbjax.model.leaves import Leaves
from bbjax.model.units import Actuator, Kernel
from bbjax.rules.base import Candidates, Group, as_choice, taken_apart
from bbjax.training import alike
from bbjax.training.options import Options
from bbjax.training.plan import Budgeted
from bbjax.training.refresh import (
    Held,
    RefreshInput,
    Settled,
    finish,
    prepare,
    settle,
)
from bbjax.training.state import PruneState, read_mean, unpack


@dataclasses.dataclass(frozen=True)
class AllKernels:
    """All budgeted kernels at an update.

    Attributes:
      budgeted: the kernels, and their sides.
      options: of the transform.
      state: means and the number of the update are read from it.
      weights: leaves of the parameters.
      gradients: leaves of the gradients, or None.
      spend: edges to keep.
    """

    budgeted: Budgeted
    options: Options
    state: PruneState
    weights: Leaves
    gradients: Leaves | None
    spend: Budgets

    def together(self, held: Sequence[Held]) -> list[tuple[int, ...]]:
        """Positions of kernels to refresh together: all that compete, or are alike."""
        if self.options.rule.joint:
            return [tuple(range(len(self.budgeted)))]
        if not self.options.rule.alike:
            return [(i,) for i in range(len(self.budgeted))]
        forms = []
        for i, (kernel, actuators) in enumerate(self.budgeted):
            arrays = (
                self.weights.get(kernel, "parameter"),
                self.weights.bias_of(kernel),
                self._gradient(kernel),
                self.state.bb_means[kernel.path],
                self.spend.edges[i],
                held[i],
            )
            forms.append((kernel.form, actuators, alike.types(arrays)))
        return alike.classes(forms)

    def refresh(self, which: Sequence[int], held: Sequence[Held]) -> list[Held]:
        """What is held after a refresh, of kernels that are refreshed together."""
        if not self.options.rule.joint:
            return self._one_by_one(which, held)
        given = [self._prepared(i, one) for i, one in zip(which, held, strict=True)]
        chosen = self._jointly(given)
        return [_after(*three) for three in zip(given, chosen, held, strict=True)]

    def _jointly(self, given: Sequence[RefreshInput]) -> list[Settled]:
        """The masks that the rule chooses for kernels that compete."""
        # Weights of one kernel that are not finite spoil the shares of all: then every
        # mask stays.
        finite = jnp.all(jnp.stack([one.finite for one in given]))
        group = Group(tuple(one.candidates for one in given), self.spend.pool)
        return [
            settle(one._replace(finite=finite), choice.mask)
            for one, choice in zip(given, self.options.rule.choose(group), strict=True)
        ]

    def _one_by_one(self, which: Sequence[int], held: Sequence[Held]) -> list[Held]:
        """What is held once the rule has chosen the masks of kernels that are alike."""
        kernel, actuators = self.budgeted[which[0]]
        if len(which) > 1:
            kernel = kernel.form

        def read(index: int, one: Held) -> _Read:
            given = self._prepared(index, one)
            return _Read(taken_apart(given.candidates)[0], given.held, given.finite)

        def given(index: Any, seen: _Read) -> RefreshInput:
            static = self._static(kernel, actuators, index)
            candidates = Candidates(**seen.arrays, **static)
            return RefreshInput(candidates, seen.held, seen.finite)

        def change(index: Any, seen: _Read) -> Settled:
            one = given(index, seen)
            chosen = as_choice(self.options.rule.select(one.candidates))
            return settle(one, chosen.mask)

        def write(seen: _Read, settled: Settled) -> Held:
            return _after(given(which[0], seen), settled, held[0])

        return alike.each(which, held, read, change, write)

    def _prepared(self, index: int, held: Held) -> RefreshInput:
        kernel, actuators = self.budgeted[index]
        means = self.state.bb_means[kernel.path]
        names = [name for name in means if not name.endswith(".weight")]
        w = lax.stop_gradient(self.weights.get(kernel, "parameter"))
        gradient = self._gradient(kernel)
        candidates = Candidates(
            weights=w,
            mask=unpack(kernel, held.mask, w),
            statistics={name: read_mean(means, name) for name in names},
            budget=self.spend.edges[index],
            step=self.state.bb_count,
            grads=None if gradient is None else kernel.edges(gradient),
            bias=self.weights.bias_of(kernel),
            **self._static(kernel, actuators, index),
        )
        return prepare(candidates, held)

    def _gradient(self, kernel: Kernel) -> jax.Array | None:
        if self.gradients is None:
            return None
        gradient: jax.Array = self.gradients.get(kernel, "gradient")
        return gradient

    def _static(
        self, kernel: Kernel, actuators: tuple[Actuator, ...], index: Any
    ) -> dict[str, Any]:
        """The fields of candidates that hold no arrays of the kernel."""
        options = self.options
        return {
            "kernel": kernel,
            "actuators": actuators,
            "k_min": options.k_min,
            "regrow": options.regrow,
            "index": index,
            "pattern": options.pattern,
            "hysteresis": options.hysteresis,
        }


class _Read(NamedTuple):
    """What a loop reads of one of its kernels: a `RefreshInput` without the kernel."""

    arrays: dict[str, Any]
    held: Held
    finite: jax.Array


def _after(given: RefreshInput, chosen: Settled, old: Held) -> Held:
    """What is held after a refresh, with the shardings that it had: loops want that."""
    dtype = None if old.dormant is None else old.dormant.dtype
    done: Held = jax.tree.map(sharding.match, finish(given, chosen, dtype), old)
    return done
