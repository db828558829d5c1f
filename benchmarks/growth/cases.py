"""What is measured: updates of a size, compiled, ready to be called in turns.

`alone` is the update of the weights and nothing else, from gradients and activity that
are given, so that what is timed is the optimizer:

    params, state = apply_updates(params, tx.update(grads, state, params, activity=...))
    tx = chain(sgd, bb.transform(units, every=3, start=0))

One executable serves refreshes and plain steps. Called in the order of `TURN` it gives
a refresh, the step after it and, behind the dense references, a plain step. `trained`
is the whole train step of two blocks d -> 4 d -> d on 64 tokens, Adam, all kernels
budgeted, against the same step without bbjax. Parameters and states are donated.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import bbjax as bb
from bbjax.activity.statistics import Activity, Statistics
from bbjax.model.units import Actuator
from benchmarks.common.measure import nbytes
from benchmarks.common.models import ffn

DENSITY, EVERY, TOKENS, BLOCKS, RATE = 0.3, 3, 64, 2, 1e-3
TURN = ("refresh", "after", "sgd", "adam", "read", "plain")
TRAIN_TURN = ("refresh", "after", "dense", "plain")
Call = Callable[[], Any]


@dataclasses.dataclass
class Case:
    """One size.

    Attributes:
        weights: number of weights.
        units: budgeted units of one kernel.
        kernels: number of kernels.
        calls: what is timed, by name, in the order of a round.
        facts: what the compiler says: bytes, operations, seconds of compilation.
    """

    weights: int
    units: int
    kernels: int
    calls: dict[str, Call]
    facts: dict[str, float]


class Stepper:
    """Calls a donated step again and again, on what it returned."""

    def __init__(self, step: Callable[..., Any], held: Any, *fixed: Any) -> None:
        self.step, self.held, self.fixed = step, held, fixed

    def __call__(self) -> Any:
        self.held = self.step(*self.held, *self.fixed)
        return self.held


def compiled(step: Callable[..., Any], *args: Any) -> tuple[Any, dict[str, float]]:
    """The executable of a step whose parameters and state are donated.

    Args:
        step: of `(params, state, ...)`.
        args: arrays or their shapes.

    Returns:
        The executable, and what the compiler says: bytes of the state and of
        temporaries, operations and bytes accessed (the body of the refresh counted
        once), seconds it took to compile.
    """
    begin = time.perf_counter()
    made = jax.jit(step, donate_argnums=(0, 1)).lower(*args).compile()
    seconds = time.perf_counter() - begin
    cost = made.cost_analysis()
    return made, {
        "state_bytes": float(nbytes(args[1])),
        "temp_bytes": float(made.memory_analysis().temp_size_in_bytes),
        "flops": float(cost["flops"]),
        "bytes_accessed": float(cost["bytes accessed"]),
        "compile_seconds": seconds,
    }


# The update alone ----------------------------------------------------------------
def side(weights: float) -> int:
    """Side of the square kernel of about that many weights, a multiple of 8."""
    return max(8, 8 * round(weights**0.5 / 8))


def kernels(shape: tuple[int, int], count: int = 1) -> tuple[bb.Kernel, ...]:
    """Kernels of one shape, inputs first."""
    return tuple(
        bb.Kernel(f"kernel_{i}", shape, fan_in=(0,), fan_out=(1,)) for i in range(count)
    )


def transformation(
    made: Sequence[bb.Kernel], actuator: Actuator, every: int = EVERY
) -> optax.GradientTransformationExtraArgs:
    """SGD with every kernel pruned; the first update refreshes."""
    units = bb.Units(tuple(made)).select("kernel", actuator)
    prune = bb.transform(units, density=DENSITY, every=every, start=0)
    return optax.chain(optax.sgd(RATE), prune)


def arguments(made: Sequence[bb.Kernel]) -> tuple[Any, Any, Any]:
    """Parameters, gradients and activity of a step."""
    keys = jax.random.split(jax.random.key(0), len(made))
    params = {
        m.path: jax.random.normal(k, m.shape) for m, k in zip(made, keys, strict=True)
    }
    grads = jax.tree.map(jnp.flip, params)
    return params, grads, {m.path: Activity(*map(_rates, m.shape)) for m in made}


def _rates(units: int) -> Statistics:
    rates = jax.random.uniform(jax.random.key(units), (units,))
    return Statistics(on_rate=rates, count=jnp.full((units,), float(TOKENS)))


def updater(tx: optax.GradientTransformation) -> Callable[..., Any]:
    """The step of a transformation: `(params, state, grads, activity)`."""
    tx = optax.with_extra_args_support(tx)

    def step(params, state, grads, activity):
        updates, state = tx.update(grads, state, params, activity=activity)
        return optax.apply_updates(params, updates), state

    return step


def facts(made: Sequence[bb.Kernel], actuator: Actuator = "in") -> dict[str, float]:
    """What the compiler says about the update; nothing is computed."""
    tx = transformation(made, actuator)
    params, grads, activity = jax.eval_shape(lambda: arguments(made))
    state = jax.eval_shape(tx.init, params)
    return compiled(updater(tx), params, state, grads, activity)[1]


def stepper(tx: Any, params: Any, *given: Any) -> tuple[Stepper, dict[str, float]]:
    """The update of a transformation, on a copy of the weights."""
    state = jax.jit(tx.init)(params)
    step, said = compiled(updater(tx), params, state, *given)
    return Stepper(step, (jax.tree.map(jnp.copy, params), state), *given), said


def alone(shape: tuple[int, int], count: int = 1, actuator: Actuator = "in") -> Case:
    """The update of `count` kernels, beside SGD, Adam and one pass that reads."""
    made = kernels(shape, count)
    params, *given = jax.jit(lambda: arguments(made))()
    pruned, said = stepper(transformation(made, actuator), params, *given)
    calls: dict[str, Call] = dict.fromkeys(("refresh", "after", "plain"), pruned)
    calls["sgd"] = stepper(optax.sgd(RATE), params, *given)[0]
    calls["adam"] = stepper(optax.adam(RATE), params, *given)[0]
    read = jax.jit(lambda tree: [jnp.max(x) for x in jax.tree.leaves(tree)])
    calls["read"] = lambda: read(given[0])
    units = shape[1] if actuator == "in" else shape[0]
    size = count * shape[0] * shape[1]
    return Case(size, units, count, {n: calls[n] for n in TURN}, said)


# The whole train step ------------------------------------------------------------
def width(weights: float) -> int:
    """Width d of the blocks of about that many weights, 8 d**2 each."""
    return max(8, 8 * round((weights / (8 * BLOCKS)) ** 0.5 / 8))


def _dense(tx: Any, params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
    updates, state = tx.update(jax.grad(ffn.loss)(params, x, y), state, params)
    return optax.apply_updates(params, updates), state


def _pruned(
    tx: Any, units: bb.Units, params: Any, state: Any, x: jax.Array, y: jax.Array
) -> Any:
    gradient = jax.grad(bb.observe(ffn.loss, units), has_aux=True)
    grads, activity = gradient(params, x, y)
    updates, state = tx.update(grads, state, params, activity=activity)
    return optax.apply_updates(params, updates), state


def trained(d: int) -> Case:
    """The train step of blocks of width d, dense and pruned."""
    batch = [jax.random.normal(jax.random.key(i), (TOKENS, d)) for i in (1, 2)]
    first = partial(ffn.init, ffn.Shape(BLOCKS, d, 4 * d), jax.random.key(0))
    found = bb.trace(ffn.loss, jax.eval_shape(first), *batch)
    units = found.select("up", "in") + found.select("down", "out")
    adam = optax.adam(RATE)
    prune = bb.transform(units, density=DENSITY, every=EVERY, start=0)
    tx = optax.chain(adam, prune)

    def stepper(tx, step):
        params = jax.jit(first)()
        state = jax.jit(tx.init)(params)
        executable, said = compiled(step, params, state, *batch)
        return Stepper(executable, (params, state), *batch), said

    pruned, said = stepper(tx, partial(_pruned, tx, units))
    calls: dict[str, Call] = dict.fromkeys(TRAIN_TURN, pruned)
    calls["dense"] = stepper(adam, partial(_dense, adam))[0]
    return Case(8 * BLOCKS * d * d, 4 * d, 2 * BLOCKS, calls, said)
