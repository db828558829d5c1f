"""One training loop for all claims: steps in a scan, lanes in a vmap.

A lane is one seed (of the weights and of the batches, the same for every method, so
that differences between methods are paired), perhaps at one density or beta of several.
Training goes in blocks: `every` steps, then a look at the weights and the optimizer
state, whose results are stacked.

    lane = start(...)                        Lane(params, state, key)
    lane, seen = train(..., steps, look)     seen: of all looks, (blocks, ...)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bbjax as bb
from benchmarks.claims.common.net import Params, Task

BATCH = 128
ELSEWHERE = 10**6  # to fold into a key for draws that no batch makes
RATE = 1e-3


class Lane(NamedTuple):
    """What training changes."""

    params: Params
    state: Any
    key: jax.Array


Look = Callable[[Lane], Any]


def trace(task: Task, *selected: tuple[str, str]) -> bb.Units:
    """The units of a task's net, with kernels selected as (pattern, actuator)."""
    params = jax.eval_shape(task.init, jax.random.key(0))
    x, y = jax.eval_shape(lambda key: task.sample(key, BATCH), jax.random.key(0))
    units = bb.trace(task.loss, params, x, y)
    picked = [units.select(pattern, actuator=side) for pattern, side in selected]
    return sum(picked[1:], picked[0])


class Loop:
    """Trains one task with one transformation.

    Args:
      task: what is learnt.
      units: kernels to observe.
      tx: the transformation, pruning included.
      needs: statistics to observe; None observes nothing.
      batch: samples of a step.
    """

    def __init__(
        self,
        task: Task,
        units: bb.Units,
        tx: Any,
        needs: tuple[str, ...] | None = None,
        batch: int = BATCH,
    ) -> None:
        self.task, self.units, self.needs, self.batch = task, units, needs, batch
        self.tx = optax.with_extra_args_support(tx)

    def start(self, params: Params, key: jax.Array) -> Lane:
        """A lane before its first step."""
        return Lane(params, self.tx.init(params), key)

    def step(self, lane: Lane) -> Lane:
        """One step of training on a new batch."""
        params, state, key = lane
        key, drawn = jax.random.split(key)
        x, y = self.task.sample(drawn, self.batch)
        extra = {}
        if self.needs is None:
            grads = jax.grad(self.task.loss)(params, x, y)
        else:
            observed = bb.observe(self.task.loss, self.units, needs=self.needs)
            grads, extra["activity"] = jax.grad(observed, has_aux=True)(params, x, y)
        updates, state = self.tx.update(grads, state, params, **extra)
        return Lane(optax.apply_updates(params, updates), state, key)

    def train(
        self, lane: Lane, steps: int, every: int, look: Look | None = None
    ) -> tuple[Lane, Any]:
        """Trains for `steps`, a multiple of `every`, and looks after each `every`."""

        def block(lane: Lane, _: None) -> tuple[Lane, Any]:
            lane = jax.lax.fori_loop(0, every, lambda _, lane: self.step(lane), lane)
            return lane, None if look is None else look(lane)

        return jax.lax.scan(block, lane, length=steps // every)


def seeds_of(count: int, first: int = 0) -> jax.Array:
    """Numbers of the seeds."""
    return jnp.arange(first, first + count)


def keys(seed: Any) -> tuple[jax.Array, jax.Array]:
    """Keys of a seed: of its first weights and of its batches."""
    weights, order = jax.random.split(jax.random.key(seed))
    return weights, order


def over_seeds(lane: Callable[..., Any], *args: Any, axes: Any = 0) -> Any:
    """Runs lanes in one compiled program: numpy arrays, lanes in front."""
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(lane, axes))(*args))
