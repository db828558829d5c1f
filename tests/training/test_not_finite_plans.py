"""Every rule under values that are not finite: where, what, and for how long.

A plan puts NaN or infinity into weights, gradients or activity of some updates, or of
all. At each update: budgets are exact, once there was a refresh that saw sound values;
masks are bits of the edges alone; pruned weights are 0; dormant weights and running
means are finite. Masks do not depend on what stands beside a value that is not finite,
nor on which of those values it is. And once values are sound again, training goes on to
finite weights with an exact budget.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb
from tests.support.contract import MLP, RULES, check_exact, pruner, same

STEPS, SICK = 8, 3  # updates of a run; the one that is sick, a refresh
FOREVER = range(SICK, STEPS)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is not finite, and at which updates.

    Attributes:
      where: "weights", "grads" or "activity".
      bad: the value.
      steps: numbers of updates.
      whole: all of the array, not a few of its entries.
    """

    where: str
    bad: float
    steps: range = range(SICK, SICK + 1)
    whole: bool = False


PLANS = {
    "a weight is NaN once": Plan("weights", np.nan),
    "a weight is infinite once": Plan("weights", -np.inf),
    "all weights are NaN once": Plan("weights", np.nan, whole=True),
    "a gradient is NaN once": Plan("grads", np.nan),
    "all gradients are infinite for good": Plan("grads", np.inf, FOREVER, whole=True),
    "activity is NaN once": Plan("activity", np.nan),
    "activity is infinite for good": Plan("activity", np.inf, FOREVER),
    "all activity is NaN for good": Plan("activity", np.nan, FOREVER, whole=True),
}


def spoiled(x: Any, plan: Plan) -> jax.Array:
    """The array with values that are not finite."""
    x = np.array(x)
    if x.dtype.kind != "f":
        return jnp.asarray(x)
    flat = x.reshape(-1)
    flat[... if plan.whole else slice(0, None, 7)] = plan.bad
    return jnp.asarray(x)


@functools.cache
def given(n: int) -> tuple[Any, Any]:
    return MLP.gradient(MLP.params(n), MLP.batch(n))


@functools.cache
def shared(rule: str) -> tuple[Any, Callable[..., Any]]:
    """The transform alone, and a step of it with what the rule reads."""
    tx = pruner(RULES[rule])

    def step(params, state, wanted, grads, activity):
        landed, state = tx.update(wanted, state, params, activity=activity, grads=grads)
        return optax.apply_updates(params, landed), state

    return tx, jax.jit(step)


def run(rule: str, plan: Plan | None, each: Callable[..., None] | None = None) -> Any:
    """Trains with plain descent; parameters and state after every update."""
    tx, step = shared(rule)
    params, history = MLP.params(), []
    state = tx.init(params)
    for n in range(STEPS):
        grads, activity = given(n)
        clean = params
        if plan is not None and n in plan.steps:
            if plan.where == "weights":
                params = {k: spoiled(w, plan) for k, w in params.items()}
            elif plan.where == "grads":
                grads = {k: spoiled(g, plan) for k, g in grads.items()}
            else:
                activity = jax.tree.map(lambda x: spoiled(x, plan), activity)
        wanted = jax.tree.map(lambda g: -0.1 * g, grads)
        params, state = step(params, state, wanted, grads, activity)
        history.append((params, state))
        # A loop that goes on drops an update that was not finite, as users do.
        params = {k: jnp.where(jnp.isfinite(w), w, clean[k]) for k, w in params.items()}
        mask = bb.masks(state)
        params = bb.apply_masks(params, mask)
    return history


def valid(rule: str, n: int, params: Any, state: Any, plan: Plan) -> None:
    """What holds after every update, whatever came."""
    for path, mask in bb.masks(state).items():
        assert mask.dtype == bool and mask.shape == MLP.shapes[path]
        if plan.where != "weights" or n not in plan.steps:
            pruned = np.asarray(params[path])[~np.asarray(mask)]
            np.testing.assert_array_equal(pruned, 0)
    for leaf in jax.tree.leaves((state.bb_dormant, state.bb_means, state.bb_churn)):
        assert np.isfinite(leaf).all()
    if n >= 1:  # the first refresh, before anything was sick
        check_exact(MLP, state, rule)


SAMPLE = {
    ("log_odds", "a weight is NaN once"),
    ("log_odds", "activity is infinite for good"),
    ("rigl", "all gradients are infinite for good"),
    ("global", "all weights are NaN once"),
    ("threshold", "all activity is NaN for good"),
}
EVERY = [
    pytest.param(r, p, marks=() if (r, p) in SAMPLE else pytest.mark.slow)
    for r in RULES
    for p in PLANS
]


@pytest.mark.long
@pytest.mark.parametrize("rule, plan", EVERY)
def test_any_rule_under_any_plan(rule, plan):
    plan = PLANS[plan]
    history = run(rule, plan)
    for n, (params, state) in enumerate(history):
        valid(rule, n, params, state, plan)
    _does_not_depend_on_which_bad_value(rule, plan, history)
    _recovers(rule, plan, history)


def _does_not_depend_on_which_bad_value(rule, plan, history):
    """NaN, infinity of either sign: the same masks."""
    for bad in {np.nan, np.inf, -np.inf} - {plan.bad}:
        other = run(rule, dataclasses.replace(plan, bad=bad))
        for (_, mine), (_, theirs) in zip(history, other, strict=True):
            same(bb.masks(mine), bb.masks(theirs))


def _recovers(rule, plan, history):
    """Sound updates after it: finite weights, an exact budget, and masks that move."""
    _, step = shared(rule)
    params, state = history[-1]
    sound = MLP.params()
    params = {k: jnp.where(jnp.isfinite(w), w, sound[k]) for k, w in params.items()}
    params = bb.apply_masks(params, bb.masks(state))
    for n in range(STEPS, STEPS + 4):
        grads, activity = given(n)
        wanted = jax.tree.map(lambda g: -0.1 * g, grads)
        params, state = step(params, state, wanted, grads, activity)
    check_exact(MLP, state, rule)
    assert all(np.isfinite(w).all() for w in params.values())
    for path, mask in bb.masks(state).items():
        np.testing.assert_array_equal(np.asarray(params[path])[~np.asarray(mask)], 0)
