"""What every rule must pass: single updates, and updates in a row."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb
from tests.support.contract import (
    CASES,
    CORE,
    MLP,
    RULES,
    START,
    chain,
    check_exact,
    check_zeros,
    compilations,
    eager,
    jitted,
    mostly_slow,
    pairs,
    pruner,
    same,
    same_kinds,
    shared,
    train,
)

rules = pytest.mark.parametrize("rule", RULES)


def example(rule):
    """A pruner and what its first update takes."""
    tx, params = pruner(RULES[rule]), MLP.params()
    grads, activity = MLP.gradient(params, MLP.batch(0))
    return tx, params, tx.init(params), grads, activity


@rules
def test_unknown_extra_arguments_are_ignored(rule):
    tx, params, state, grads, activity = example(rule)

    def update(**extra):
        return jax.make_jaxpr(
            lambda g, s, p, a: tx.update(g, s, p, activity=a, grads=g, **extra)
        )(grads, state, params, activity)

    assert str(update(value=1.0, unheard_of="text")) == str(update())


@pytest.mark.sampled(2)
@pairs()
def test_budget_zeros_and_state_at_every_step(rule, case):
    tx, update = shared(rule, case)
    case = CASES[case]
    params = case.params()
    state = before = tx.init(params)

    def each(n, params, state):
        same_kinds(state, before)
        if n < START:  # nothing is pruned before
            assert all(mask.all() for mask in bb.masks(state).values())
            return
        check_exact(case, state, rule)
        check_zeros(params, state, rule)

    train(update, case, params, state, range(5), each)


@pytest.mark.sampled(2)
@pairs()
def test_refresh_and_plain_step_are_one_executable(rule, case):
    tx, update = shared(rule, case)
    case = CASES[case]
    params = case.params()
    start = train(update, case, params, tx.init(params), range(1))  # may compile
    executables, refreshes = update._cache_size(), []
    with compilations() as compiled:
        train(update, case, *start, range(1, 5), lambda n, p, s: refreshes.append(s))
    assert compiled.count == 0
    assert update._cache_size() == executables
    counts = [int(optax.tree.get(s, "bb_count")) for s in refreshes]
    assert counts == [2, 3, 4, 5]


@pytest.mark.long
@mostly_slow()
def test_state_is_stable_under_scan(rule):
    tx, update = shared(rule, "mlp")
    params = MLP.params()
    seen = [MLP.gradient(MLP.params(n), MLP.batch(n)) for n in range(6)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *seen)

    def step(carry, x):
        params, state = carry
        updates, state = eager(tx)(x[0], state, params, x[1])
        return (optax.apply_updates(params, updates), state), None

    start = params, tx.init(params)
    scanned, _ = jax.jit(lambda c, x: jax.lax.scan(step, c, x))(start, stacked)
    looped = start
    for grads, activity in seen:
        updates, state = update(grads, looped[1], looped[0], activity)
        looped = optax.apply_updates(looped[0], updates), state
    same(bb.masks(scanned[1]), bb.masks(looped[1]))
    chex.assert_trees_all_close(scanned, looped, rtol=1e-6, atol=1e-7)
    check_exact(MLP, scanned[1], rule)


@pytest.mark.sampled(2)
@pairs(brief=True)
def test_state_is_stable_under_cond(rule, case):
    case = CASES[case]
    tx, params = pruner(RULES[rule], case), case.params()
    grads, activity = case.gradient(params, case.batch(0))

    def either(flag, state):
        return jax.lax.cond(
            flag,
            lambda s: eager(tx)(grads, s, params, activity),
            lambda s: (grads, s),
            state,
        )

    state = tx.init(params)
    same_kinds(jax.eval_shape(either, True, state)[1], state)


CHANGES = [{"regrow": False}, {"rescale": True}, {"dormant_dtype": jnp.bfloat16}]


@pytest.mark.parametrize(
    "rule, case, changes",
    [(r, "mlp", {}) for r in RULES]
    + [(r, c, {}) for r in CORE for c in CASES if c != "mlp"]
    + [("log_odds", c, change) for c in CASES for change in CHANGES],
)
def test_eval_shape_of_init_and_update(rule, case, changes):
    case = CASES[case]
    tx, params = pruner(RULES[rule], case, **changes), case.params()
    state = tx.init(params)
    same_kinds(jax.eval_shape(tx.init, params), state)
    updates, new = jax.eval_shape(
        jitted(tx), params, state, params, case.gradient(params, case.batch(0))[1]
    )
    same_kinds((updates, new), (params, state))


@pytest.mark.long
@mostly_slow()
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_kept(rule, dtype):
    tx, params = chain(RULES[rule]), MLP.params(dtype=dtype)
    state = tx.init(params)
    before = params, state

    def each(n, params, state):
        same_kinds((params, state), before)
        if n >= 1:
            check_exact(MLP, state, rule)
            check_zeros(params, state, rule)

    train(jitted(tx), MLP, params, state, range(4), each)


@mostly_slow()
@pytest.mark.parametrize(
    "update_dtype, param_dtype, expected",
    [
        (jnp.bfloat16, jnp.float32, jnp.float32),  # bf16 cannot land f32 on 0
        (jnp.float32, jnp.bfloat16, jnp.float32),
        (jnp.float16, jnp.bfloat16, jnp.float32),
        (jnp.bfloat16, jnp.bfloat16, jnp.bfloat16),
        (jnp.float16, jnp.float16, jnp.float16),
    ],
)
def test_updates_land_in_the_wider_dtype(
    rule, update_dtype, param_dtype, expected, lenient
):
    tx, params = pruner(RULES[rule]), MLP.params(dtype=param_dtype)
    updates = MLP.params(dtype=update_dtype)
    activity = MLP.gradient(MLP.params(), MLP.batch(0))[1]
    landed, _ = jax.eval_shape(jitted(tx), updates, tx.init(params), params, activity)
    assert landed["up"].dtype == landed["down"].dtype == expected
    assert landed["bias"].dtype == update_dtype


@pytest.mark.long
@pytest.mark.parametrize(
    "update_dtype, param_dtype",
    [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16)],
)
def test_mixed_dtypes_land_on_exact_zeros(update_dtype, param_dtype, lenient):
    tx, params = pruner(RULES["log_odds"], start=0), MLP.params(dtype=param_dtype)
    _, activity = MLP.gradient(MLP.params(), MLP.batch(0))
    updates = jax.tree.map(lambda x: x.astype(update_dtype) * 0.1, MLP.params(1))
    updates, state = jitted(tx)(updates, tx.init(params), params, activity)
    params = optax.apply_updates(params, updates)
    assert {x.dtype for x in params.values()} == {jnp.dtype(param_dtype)}
    check_zeros(params, state, "log_odds")


@pytest.mark.sampled(2)
@pairs()
@pytest.mark.parametrize("value", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_equal_scores_meet_the_budget_exactly(rule, case, value):
    tx, update = shared(rule, case)
    case = CASES[case]
    params = jax.tree.map(lambda x: jnp.full_like(x, value), case.params())
    state, zeros = tx.init(params), jax.tree.map(jnp.zeros_like, params)
    _, activity = case.gradient(params, case.batch(0))
    for _ in range(4):
        updates, state = update(zeros, state, params, activity)
        params = optax.apply_updates(params, updates)
    check_exact(case, state, rule)


@pytest.mark.long
@mostly_slow()
def test_zeros_survive_momentum_and_weight_decay(rule, lenient):
    tx = optax.chain(optax.adamw(0.05, weight_decay=0.1), pruner(RULES[rule]))
    params = MLP.params()

    def each(n, params, state):
        if n >= 1:
            check_exact(MLP, state, rule)
            check_zeros(params, state, rule)

    train(jitted(tx), MLP, params, tx.init(params), range(6), each)


@pytest.mark.long
@mostly_slow()
def test_compiled_and_eager_agree(rule):
    tx, update = shared(rule, "mlp")
    params = MLP.params()
    before = train(update, MLP, params, tx.init(params), range(1))
    compiled = train(update, MLP, *before, range(1, 2))
    plain = train(eager(tx), MLP, *before, range(1, 2))
    same(bb.masks(compiled[1]), bb.masks(plain[1]))
    check_zeros(*plain, rule)
    chex.assert_trees_all_close(compiled, plain, rtol=1e-6, atol=1e-7)


def _permuted(activity, order):
    """Activity with the hidden units of the MLP in another order."""
    permute = lambda side: jax.tree.map(lambda x: x[order], side)  # noqa: E731
    up, down = activity["up"], activity["down"]
    return {
        "up": up._replace(outputs=permute(up.outputs)),
        "down": down._replace(inputs=permute(down.inputs)),
    }


def _distinct(x):
    """On-rates all different; counts as they are."""
    rng = np.random.default_rng(x.size)
    spread = rng.permutation(np.linspace(0.05, 0.95, x.size, dtype=np.float32))
    return jnp.asarray(spread if x.max() <= 1 else np.asarray(x))


@pytest.mark.long
@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(r, marks=() if row.core else pytest.mark.slow)
        for r, row in RULES.items()
        if not row.by_place
    ],
)
def test_permuting_units_permutes_masks(rule):
    # Half of the edges is the same number for each unit: what would be left over, rules
    # that read no activity give to the first units.
    tx = chain(RULES[rule], density=0.5)
    update = jitted(tx)
    params, order = MLP.params(), np.random.default_rng(5).permutation(24)
    grads, activity = MLP.gradient(params, MLP.batch(0))
    activity = jax.tree.map(_distinct, activity)

    def masks(change, activity):
        p, g = change(params), change(grads)
        state = tx.init(p)
        for _ in range(4):
            updates, state = update(g, state, p, activity)
            p = optax.apply_updates(p, updates)
        return bb.masks(state)

    def change(tree):
        up, bias, down = tree["up"], tree["bias"], tree["down"]
        return {"up": up[:, order], "bias": bias[order], "down": down[order]}

    straight = masks(lambda t: t, activity)
    shuffled = masks(change, _permuted(activity, order))
    np.testing.assert_array_equal(shuffled["up"], straight["up"][:, order])
    np.testing.assert_array_equal(shuffled["down"], straight["down"][order])


@pairs(brief=True)
def test_other_leaves_are_returned_as_they_are(rule, case):
    case = CASES[case]
    tx, params = pruner(RULES[rule], case), case.params()
    others = set(params) - set(case.units.budgeted)
    grads, activity = case.gradient(params, case.batch(0))

    def update(grads, state, params, activity):
        updates, _ = eager(tx)(grads, state, params, activity)
        return {name: updates[name] is grads[name] for name in others}

    untouched = []
    jax.eval_shape(
        lambda *a: untouched.append(update(*a)),
        grads,
        tx.init(params),
        params,
        activity,
    )
    assert others or case is CASES["stack"]
    assert untouched == [dict.fromkeys(others, True)]
