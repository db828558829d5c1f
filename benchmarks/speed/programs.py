"""Training steps of a task, to be compiled: dense, observe, and pruned.

    dense      gradient, Adam, apply
    observe    the same with `bb.observe`; the on-rates are returned
    pruned     observe + Adam + `bb.transform`, refresh and plain step in one program

All are `(params, state, *batch) -> (params, state, ...)` and donate the first two, as a
training loop does; the batch is an argument, so nothing is folded into the program.
Makers and `compiled` remember what they made: all parts of a run share a program.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

import bbjax as bb
from benchmarks.speed.options import DENSITY, every
from benchmarks.speed.tasks import Task

RATE = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A step of `(params, state, *batch)`, and `init` of its state from params."""

    task: Task
    step: Callable[..., Any]
    init: Callable[[Any], Any]

    def shapes(self) -> tuple[Any, ...]:
        """Shapes of the arguments of the step."""
        params, batch = self.task.shapes()
        return (params, jax.eval_shape(self.init, params), *batch)

    def lower(self) -> Any:
        """The step, traced and lowered."""
        return jax.jit(self.step, donate_argnums=(0, 1)).lower(*self.shapes())


@functools.cache
def compiled(program: Program) -> Any:
    """The executable."""
    return program.lower().compile()


@functools.cache
def dense(task: Task) -> Program:
    """The plain training step."""
    adam = optax.adam(RATE)

    def step(params: Any, state: Any, *batch: jax.Array) -> Any:
        _, grads = jax.value_and_grad(task.loss)(params, *batch)
        updates, state = adam.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return Program(task, step, adam.init)


@functools.cache
def observe(task: Task) -> Program:
    """The dense step that measures activity."""
    adam, units = optax.adam(RATE), task.units()

    def step(params: Any, state: Any, *batch: jax.Array) -> Any:
        observed = jax.value_and_grad(bb.observe(task.loss, units), has_aux=True)
        (_, activity), grads = observed(params, *batch)
        updates, state = adam.update(grads, state, params)
        rates = [(a.inputs.on_rate, a.outputs.on_rate) for a in activity.values()]
        return optax.apply_updates(params, updates), state, rates

    return Program(task, step, adam.init)


@functools.cache
def law() -> bb.rules.Rule:
    """Budgeted Broadcast without competition: one selection a refresh."""
    return bb.rules.budgeted_broadcast(competition=0)


@functools.cache
def default() -> bb.rules.Rule:
    """The rule of `bb.transform`: units also compete in their layer."""
    return bb.rules.budgeted_broadcast()


@functools.cache
def pruned(task: Task, rule: Any = None, **settings: Any) -> Program:
    """The step with `bb.transform`, its rule the law alone; `settings` are its own.

    Step 0 refreshes, then every `every()`-th.
    """
    units = task.units()
    bb_tx = bb.transform(
        units, rule or law(), density=DENSITY, every=every(), start=0, **settings
    )
    tx = optax.chain(optax.adam(RATE), bb_tx)

    def step(params: Any, state: Any, *batch: jax.Array) -> Any:
        observed = jax.value_and_grad(bb.observe(task.loss, units), has_aux=True)
        (_, activity), grads = observed(params, *batch)
        updates, state = tx.update(grads, state, params, activity=activity)
        return optax.apply_updates(params, updates), state

    return Program(task, step, tx.init)
