"""One run: a net, a method and a seed, trained and tested on every cell.

The step is compiled once for each net and method; seeds are looped over, for grouped
convolutions are slow on CPUs (see `bbjax.demo.train`). First weights and batches of a
seed are the same for all methods, and so are the spoiled images.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bbjax as bb
from bbjax.demo.data import BATCH, batches
from bbjax.demo.methods import Timing
from bbjax.demo.train import EMA, LEARNING_RATE
from benchmarks.corruptions.corrupt import all_cells
from benchmarks.corruptions.methods import METHODS, Method
from benchmarks.corruptions.nets import Net

DENSITY = 0.05
K_MIN = 1


class Step:
    """The training step of one net and method, compiled."""

    def __init__(self, bench: "Bench", method: Method) -> None:
        self._net, self._units, self._timing = bench.net, None, bench.timing
        self._rule = None if method.make is None else method.make()
        if self._rule is not None:
            pattern = bench.net.pattern
            self._units = bench.units.select(pattern, actuator=method.actuator)
        data = bench.data
        x, y = data.train_x[:BATCH], data.train_y[:BATCH]
        jitted = jax.jit(self._step, donate_argnums=0)
        self.run = jitted.lower(self.initial(0), x, y).compile()

    def initial(self, seed: int) -> Any:
        """Parameters, the net's state and the optimizer's."""
        params, state = self._net.initial(seed)
        return params, state, self._optimizer().init(params)

    def _optimizer(self) -> optax.GradientTransformationExtraArgs:
        when = self._timing
        rate = optax.cosine_decay_schedule(LEARNING_RATE, when.steps, alpha=0.05)
        adam = optax.with_extra_args_support(optax.adam(rate))
        if self._rule is None:
            return adam
        prune = bb.transform(
            self._units,
            self._rule,
            density=bb.ramp(DENSITY, when.start, when.ramp, power=3),
            every=when.every,
            start=when.start,
            stop=when.stop,
            k_min=K_MIN,
            ema=EMA,
        )
        return optax.chain(adam, prune)

    def _step(self, carry: Any, x: jax.Array, y: jax.Array) -> Any:
        params, state, opt_state = carry
        extra = {}
        if self._rule is not None and self._rule.needs:
            observed = bb.observe(self._net.loss, self._units, has_aux=True)
            grads, aux = jax.grad(observed, has_aux=True)(params, state, x, y)
            state, extra["activity"] = aux
        else:
            gradient = jax.grad(self._net.loss, has_aux=True)
            grads, state = gradient(params, state, x, y)
        updates, opt_state = self._optimizer().update(grads, opt_state, params, **extra)
        return optax.apply_updates(params, updates), state, opt_state


class Bench:
    """A net with its images, and the steps that were compiled so far."""

    def __init__(self, net: Net, data: Any, steps: int) -> None:
        self.net, self.data, self.timing = net, data, Timing(steps)
        self.units = net.trace(data)
        self._steps: dict[str, Step] = {}
        self._spoiled: tuple[int, dict[str, np.ndarray]] | None = None
        self._right = jax.jit(self._count_right)

    def run(self, key: str, seed: int) -> dict[str, Any]:
        """Trains and tests: accuracy of every cell in percent, kept share, seconds."""
        if key not in self._steps:
            self._steps[key] = Step(self, METHODS[key])
        step, images = self._steps[key], self._images(seed)
        started = time.perf_counter()
        carry, data = step.initial(seed), self.data
        for rows in batches(seed, self.timing.steps, len(data.train_y)):
            carry = step.run(carry, data.train_x[rows], data.train_y[rows])
        params, state, _ = jax.block_until_ready(carry)
        trained = time.perf_counter() - started
        counts = {
            cell: int(self._right(params, state, x, data.test_y))
            for cell, x in images.items()
        }
        return {
            "accuracy": {
                cell: round(100 * count / len(data.test_y), 4)
                for cell, count in counts.items()
            },
            "kept": round(self._kept(params), 6),
            "seconds": round(time.perf_counter() - started, 2),
            "training_seconds": round(trained, 2),
        }

    def _images(self, seed: int) -> dict[str, np.ndarray]:
        """Test images of a seed: made once, for all methods."""
        if self._spoiled is None or self._spoiled[0] != seed:
            self._spoiled = seed, dict(all_cells(self.data.test_x, seed))
        return self._spoiled[1]

    def _count_right(self, params: Any, state: Any, x: Any, y: Any) -> jax.Array:
        found = jnp.argmax(self.net.logits(params, state, x), axis=-1)
        return jnp.sum(found == y)

    def _kept(self, params: Any) -> float:
        """The kept share of the edges of the budgeted kernels."""
        kept = edges = 0
        for path in self.net.pruned:
            layer, name = path.split("/")
            kernel = self.units[path]
            kept += int(kernel.edge_mask(params[layer][name] != 0).sum())
            edges += kernel.edge_count
        return kept / edges
