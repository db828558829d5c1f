"""What every rule must pass: company of other Optax transformations."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb
from tests.support.contract import (
    CASES,
    MLP,
    RULES,
    START,
    check_exact,
    check_zeros,
    jitted,
    mostly_slow,
    pairs,
    pruner,
    same,
    shared,
    train,
)


@pairs(brief=True)
def test_map_params(rule, case):
    tx, _ = shared(rule, case)
    params = CASES[case].params()
    state = tx.init(params)
    moved = optax.tree.map_params(tx, lambda x: x + 1, state)
    chex.assert_trees_all_equal_structs(moved, state)
    for name in ("bb_masks", "bb_means", "bb_churn"):
        same(optax.tree.get(moved, name), optax.tree.get(state, name))
    same(optax.tree.get(moved, "trace"), jax.tree.map(jnp.ones_like, params))


def _rates(activities, ema=0.99):
    """Bias-corrected running means of the on-rates that a rule reads, in numpy."""
    total, weight = {}, 0.0
    for activity in activities:
        weight = ema * weight + (1 - ema)
        for path, side in (("up", "outputs"), ("down", "inputs")):
            rate = np.asarray(getattr(activity[path], side).on_rate, np.float64)
            total[path] = ema * total.get(path, 0.0) + (1 - ema) * rate
    return {path: value / weight for path, value in total.items()}


def _watch(tx, steps, each=None):
    """Trains the MLP; returns the result and every activity on the way."""
    update, seen = jitted(tx), []

    def spy(grads, state, params, activity):
        seen.append(activity)
        return update(grads, state, params, activity)

    params = MLP.params()
    params, state = train(spy, MLP, params, tx.init(params), range(steps), each)
    return params, state, seen


def _check_rates(state, activities):
    for path, rate in _rates(activities).items():
        np.testing.assert_allclose(bb.on_rates(state)[path], rate, rtol=1e-5)


@pytest.mark.long
@mostly_slow()
def test_multi_steps_inside_the_chain_sees_every_micro_batch(rule, lenient):
    inner = optax.MultiSteps(optax.adam(0.05), 4)
    tx = optax.chain(inner, pruner(RULES[rule]))
    params, state, seen = _watch(
        tx, 9, lambda n, p, s: n < START or check_zeros(p, s, rule)
    )
    assert int(optax.tree.get(state, "bb_count")) == 9
    _check_rates(state, seen)
    check_exact(MLP, state, rule)


@mostly_slow()
def test_multi_steps_around_the_chain_sees_one_micro_batch_in_four(rule, lenient):
    chained = optax.chain(optax.adam(0.05), pruner(RULES[rule]))
    tx = optax.MultiSteps(chained, 4)
    params, state, seen = _watch(tx, 9)
    assert int(optax.tree.get(state, "bb_count")) == 2
    _check_rates(state, seen[3::4])
    check_exact(MLP, state, rule)
    check_zeros(params, state, rule)


def _injected(row, **numbers):
    """The pruner with its numbers, and those of its rule, in the state."""

    def factory(density, ema, **hyper):
        return pruner(row, density=density, ema=ema, hyper=hyper)

    names = ["density", "ema", *row.hyper]  # Optax reads them off the signature
    kind = inspect.Parameter.KEYWORD_ONLY
    factory.__signature__ = inspect.Signature(
        [inspect.Parameter(name, kind) for name in names]
    )
    return optax.inject_hyperparams(factory)(**numbers)


@pytest.mark.long
@mostly_slow()
def test_injected_hyperparameters_are_traced(rule):
    row = RULES[rule]
    first = {name: values[0] for name, values in row.hyper.items()}
    second = {name: values[1] for name, values in row.hyper.items()}
    tx = _injected(row, density=0.5, ema=0.75, **first)
    plain = pruner(row, density=0.5, ema=0.75, hyper=first)
    update, params = jitted(tx), MLP.params()
    activity = MLP.gradient(params, MLP.batch(0))[1]

    def twice(update, state):
        for _ in range(2):
            _, state = update(params, state, params, activity)
        return state

    state = twice(update, tx.init(params))
    constant = bb.masks(twice(jitted(plain), plain.init(params)))
    same(bb.masks(state), constant)
    changed = {"density": 0.25, "ema": 0.5} | second
    state = twice(
        update, state._replace(hyperparams=jax.tree.map(jnp.float32, changed))
    )
    check_exact(MLP, state, rule, 0.25)
    assert update._cache_size() == 1
    expected = 0.0
    for ema in (0.75, 0.75, 0.5, 0.5):
        expected = ema * expected + (1 - ema)
    weight = optax.tree.get(state, "bb_means")["up"]["outputs.weight"]
    np.testing.assert_allclose(weight, expected, rtol=1e-6)


@pytest.mark.long
def test_injected_beta_changes_the_masks():
    row, params = RULES["beta"], MLP.params()
    activity = MLP.gradient(params, MLP.batch(0))[1]
    steep, flat = row.hyper["beta"]
    tx = _injected(row, density=0.5, ema=0.75, beta=steep)
    update, spread = jitted(tx), {}
    for beta in (steep, flat):
        state = tx.init(params)
        state.hyperparams["beta"] = jnp.float32(beta)
        for _ in range(2):
            _, state = update(params, state, params, activity)
        spread[beta] = np.ptp(bb.degrees_of(state)["up"])
    assert spread[flat] > spread[steep]  # few log-odds per edge: degrees far apart


OPTIMIZERS = {
    "adamw": lambda: optax.adamw(0.05, weight_decay=0.1),
    "lion": lambda: optax.lion(0.01, weight_decay=0.1),
    "adafactor": lambda: optax.adafactor(0.05, min_dim_size_to_factor=4),
    "muon": lambda: optax.contrib.muon(0.05, weight_decay=0.1),
    "schedule_free": lambda: optax.contrib.schedule_free_adamw(0.05),
    "lamb": lambda: optax.lamb(0.05, weight_decay=0.1),
    "nesterov": lambda: optax.sgd(0.05, momentum=0.9, nesterov=True),
    "finite": lambda: optax.apply_if_finite(optax.adam(0.05), 3),
    "ema": lambda: optax.chain(optax.adam(0.05), optax.ema(0.9)),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.05)),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zeros_survive_every_optimizer(optimizer, lenient):
    tx = optax.chain(OPTIMIZERS[optimizer](), pruner(RULES["log_odds"]))
    params = MLP.params()

    def each(n, params, state):
        chex.assert_tree_all_finite(params)
        if n >= START:
            check_exact(MLP, state, "log_odds")
            check_zeros(params, state, "log_odds")

    @jax.jit
    def update(g, s, p, a):  # schedule-free calls an argument of its own `grads`
        return tx.update(g, s, p, activity=a)

    train(update, MLP, params, tx.init(params), range(5), each)


@pytest.mark.long
def test_frozen_leaves_under_partition_and_masked():
    row = RULES["log_odds"]
    labels = {"up": "prune", "bias": "freeze", "down": "prune"}
    partition = optax.partition(
        {
            "prune": optax.chain(optax.sgd(0.1), pruner(row)),
            "freeze": optax.set_to_zero(),
        },
        labels,
    )
    masked = optax.chain(
        optax.sgd(0.1),
        optax.masked(optax.set_to_zero(), {"up": False, "bias": True, "down": False}),
        optax.masked(pruner(row), {"up": True, "bias": False, "down": True}),
    )
    results = []
    for tx in (partition, masked):
        params = MLP.params()
        params, state = train(jitted(tx), MLP, params, tx.init(params), range(4))
        np.testing.assert_array_equal(params["bias"], MLP.params()["bias"])
        check_zeros(params, state, "log_odds")
        results.append((params, bb.masks(state)))
    same(*results)


def _deep(row):
    return {
        "chain": optax.chain(optax.adam(0.1), optax.chain(pruner(row))),
        "partition": optax.partition(
            {"all": optax.chain(optax.adam(0.1), pruner(row))},
            {"up": "all", "bias": "all", "down": "all"},
        ),
        "multi_steps": optax.MultiSteps(optax.chain(optax.adam(0.1), pruner(row)), 2),
        "inject": optax.inject_hyperparams(
            lambda density: optax.chain(optax.adam(0.1), pruner(row, density=density))
        )(density=0.5),
        "wrap": bb.wrap(optax.adam(0.1), MLP.units, row.make()),
        "finite": optax.apply_if_finite(optax.chain(optax.adam(0.1), pruner(row)), 3),
    }


@pytest.mark.long
@mostly_slow()
def test_state_is_found_at_any_depth(rule, lenient):
    params = MLP.params()
    for name, tx in _deep(RULES[rule]).items():
        state = tx.init(params)
        assert set(bb.masks(state)) == {"up", "down"}, name
        assert set(bb.degrees_of(state)) == set(bb.on_rates(state)) == {"up", "down"}
        assert float(bb.metrics(state)["overall/density_got"]) == 1.0
        bits = optax.tree.get(state, "bb_masks")  # raises if there are two
        assert set(bits) == {"up", "down"} and bits["up"].dtype == jnp.uint8
