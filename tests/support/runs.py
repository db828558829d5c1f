"""Small runs by hand: activity made of on-rates, one refresh, one rule alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import bbjax as bb
from bbjax.activity.statistics import Activity, Statistics
from bbjax.rules import Candidates
from bbjax.rules.base import side_of
from bbjax.training.state import packed_axis


def dense(n_in, n_out, path="w"):
    return bb.Kernel(path, (n_in, n_out), fan_in=(0,), fan_out=(1,))


def select(kernel, *actuators):
    picks = [bb.Units((kernel,)).select(kernel.path, a) for a in actuators or ("in",)]
    return sum(picks[1:], picks[0])


def packed(kernel, mask):
    """A mask as the state stores it: lowest bit first, by numpy."""
    return jnp.asarray(np.packbits(mask, packed_axis(kernel), bitorder="little"))


def statistics(rate, count=1.0):
    rate = jnp.asarray(rate, jnp.float32)
    count = jnp.broadcast_to(jnp.asarray(count, jnp.float32), rate.shape)
    return Statistics(on_rate=rate, count=count)


def activity(kernel, outputs=None, inputs=None, count=1.0):
    """Activity of one kernel; on-rates that are not given are 0.5."""
    shapes = {"inputs": kernel.in_units, "outputs": kernel.out_units}
    given = {"inputs": inputs, "outputs": outputs}
    sides = {
        side: statistics(
            np.full(kernel.stack_shape + units, 0.5)
            if given[side] is None
            else given[side],
            count,
        )
        for side, units in shapes.items()
    }
    return {kernel.path: Activity(**sides)}


def updated(tx, state, weights, updates, seen=None, **extra):
    """One update of one kernel: `(weights, state)` after it."""
    (path,) = (k.path for k, _ in state.bb_plan.kernels)
    update = jax.jit(tx.update)
    landed, state = update(
        {path: jnp.asarray(updates)}, state, {path: weights}, activity=seen, **extra
    )
    return weights + landed[path], state


def refreshed(kernel, rule, weights, seen, *, actuators=("in",), **options):
    """Prunes once at update 0, with an update of 0: `(weights, state)`."""
    weights = jnp.asarray(weights)
    tx = bb.transform(select(kernel, *actuators), rule, start=0, **options)
    state = tx.init({kernel.path: weights})
    return updated(tx, state, weights, jnp.zeros_like(weights), seen)


def candidates(kernel, weights, budget, rates=None, actuators=("in",), **rest):
    """What a rule sees at a refresh."""
    rates = rates or {}
    units = {"in": kernel.out_units, "out": kernel.in_units}
    rates = {
        f"{side_of(a)}.on_rate": rates.get(
            a, jnp.full(kernel.stack_shape + units[a], 0.5)
        )
        for a in actuators
    }
    defaults = {
        "mask": jnp.ones(kernel.edge_shape, bool),
        "k_min": 1,
        "regrow": True,
        "step": jnp.zeros((), jnp.int32),
    }
    arrays = {
        name: jnp.asarray(value) if isinstance(value, np.ndarray) else value
        for name, value in (defaults | rest).items()
    }
    return Candidates(
        kernel=kernel,
        actuators=actuators,
        weights=jnp.asarray(weights),
        statistics=rates,
        budget=jnp.broadcast_to(jnp.asarray(budget, jnp.int32), kernel.stack_shape),
        **arrays,
    )


@functools.partial(
    jax.jit,
    static_argnames=("rule", "kernel", "actuators", "k_min", "regrow"),
)
def _choose(rule, kernel, weights, budget, rates, actuators, **rest):
    return rule.select(candidates(kernel, weights, budget, rates, actuators, **rest))


def chosen(rule, kernel, weights, budget, rates=None, actuators=("in",), **rest):
    """The mask that a rule chooses, as numpy."""
    return np.asarray(_choose(rule, kernel, weights, budget, rates, actuators, **rest))
