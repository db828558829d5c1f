"""Training: one compiled step per method, seeds in a loop, methods taking turns.

    loss, grads, activity = bb.value_and_grad(loss, units)(params, x, y)
    updates, state = tx.update(grads, state, params, activity=activity)
    params = apply_updates(params, updates)                  pruned entries exactly 0

The density is an argument of the step, so that one executable serves every density.
Seeds are looped over rather than vmapped: convolutions with a kernel per seed are
grouped ones, which are slower on CPUs than one seed after the other. At each step of
the main run every method trains all seeds once, in an order that rotates, so that
whatever else the machine does meets all methods alike: step times are compared within
a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bbjax as bb
from bbjax.demo import model
from bbjax.demo.data import Data, batches
from bbjax.demo.methods import Method, Timing

LEARNING_RATE = 2e-3
EMA = 0.95


class Step:
    """The training step of one method, compiled once for all seeds and densities.

    Attributes:
        method: the method.
        timing: when it prunes.
        k_min: least degree of a budgeted unit.
        run: `((params, opt_state), x, y, density) -> (params, opt_state)`.
    """

    def __init__(
        self, method: Method, units: bb.Units, timing: Timing, k_min: int, data: Data
    ) -> None:
        self.method, self.timing = method, timing
        self._units, self.k_min = method.select(units), k_min
        rows = batches(0, 1, len(data.train_y))[0]
        state = self.init(0)
        example = (state, data.train_x[rows], data.train_y[rows], np.float32(1))
        jitted = jax.jit(self._step, donate_argnums=0)
        self.run: Callable[..., Any] = jitted.lower(*example).compile()

    def init(self, seed: int) -> tuple[Any, Any]:
        """Parameters of a seed and a fresh optimizer state."""
        params = model.initial(seed)
        return params, self._optimizer(1.0).init(params)

    def _optimizer(self, density: Any) -> optax.GradientTransformationExtraArgs:
        rate = optax.cosine_decay_schedule(LEARNING_RATE, self.timing.steps, alpha=0.05)
        adam = optax.with_extra_args_support(optax.adam(rate))
        if self.method.rule is None:
            return adam
        prune = bb.transform(
            self._units,
            self.method.rule,
            density=density,
            every=self.timing.every,
            start=self.timing.start,
            stop=self.timing.stop,
            k_min=self.k_min,
            ema=EMA,
        )
        return optax.chain(adam, prune)

    def _step(self, state: Any, x: jax.Array, y: jax.Array, density: jax.Array) -> Any:
        params, opt_state = state
        rule, tx = self.method.rule, self._optimizer(density)
        if rule is None:
            grads = jax.grad(model.loss)(params, x, y)
            updates, opt_state = tx.update(grads, opt_state, params)
        else:
            gradients = bb.value_and_grad(model.loss, self._units, needs=rule.needs)
            _, grads, activity = gradients(params, x, y)
            updates, opt_state = tx.update(grads, opt_state, params, activity=activity)
        return optax.apply_updates(params, updates), opt_state


class Trainer:
    """One method at one density: parameters and optimizer states of all seeds.

    Attributes:
        method: the method.
        density: the final one.
        k_min: least degree of a budgeted unit.
        states: `(params, opt_state)` by seed.
        seconds: of each step, all seeds together.
        churn: per refresh, the share of the budgeted edges that flipped, by seed.
        kept: per refresh, the kept edges by kernel, by seed.
        on_rates: those that the last refresh read, by kernel, of seed 0.
    """

    def __init__(self, step: Step, density: float, seeds: int, data: Data) -> None:
        self.method, self.density = step.method, density
        self.k_min = step.k_min
        self.states = [step.init(seed) for seed in range(seeds)]
        self.seconds: list[float] = []
        self.churn: list[list[float]] = []
        self.kept: list[list[dict[str, int]]] = []
        self.on_rates: dict[str, np.ndarray] = {}
        steps, count = step.timing.steps, len(data.train_y)
        self._densities = step.timing.densities(density)
        self._orders = [batches(seed, steps, count) for seed in range(seeds)]
        self._refreshes = set(step.timing.refreshes())
        self._run, self._data = step.run, data

    def advance(self, n: int) -> None:
        """Takes step `n` with every seed."""
        rows = [order[n] for order in self._orders]
        fed = [(self._data.train_x[r], self._data.train_y[r]) for r in rows]
        begin = time.perf_counter()
        self.states = [
            self._run(state, x, y, self._densities[n])
            for state, (x, y) in zip(self.states, fed, strict=True)
        ]
        jax.block_until_ready(self.states)
        self.seconds.append(time.perf_counter() - begin)
        if self.method.rule is not None and n in self._refreshes:
            seen = [jax.device_get(_refreshed(opt)) for _, opt in self.states]
            self.churn.append([float(churn) for churn, _, _ in seen])
            self.kept.append(
                [{path: int(k) for path, k in kept.items()} for _, kept, _ in seen]
            )
            self.on_rates = seen[0][2]


@jax.jit
def _refreshed(opt_state: Any) -> tuple[jax.Array, dict[str, jax.Array], Any]:
    """Churn, kept edges by kernel, and on-rates, after a refresh."""
    # A kernel with two actuators is counted from both ends, which gives the same.
    kept = {
        name.partition(":")[0]: jnp.sum(degree, dtype=jnp.int32)
        for name, degree in bb.degrees_of(opt_state).items()
    }
    return bb.metrics(opt_state)["overall/churn"], kept, bb.on_rates(opt_state)


def together(
    trainers: list[Trainer], steps: int, tick: Callable[[float], None]
) -> None:
    """Trains methods side by side: one step each, in an order that rotates.

    Args:
        trainers: of the methods.
        steps: number of steps.
        tick: called after each trainer's step, with the number of nets it trained.
    """
    for n in range(steps):
        first = n % len(trainers)
        for trainer in [*trainers[first:], *trainers[:first]]:
            trainer.advance(n)
            tick(len(trainer.states))
