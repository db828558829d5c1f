"""What every rule must pass: whole runs, batched, donated, interrupted and resumed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import bbjax as bb
from tests.support.contract import (
    CASES,
    DENSITY,
    MLP,
    RULES,
    Case,
    chain,
    check_exact,
    check_zeros,
    eager,
    jitted,
    mostly_slow,
    pairs,
    pruner,
    same,
    shared,
    train,
)

SLOW = pytest.mark.slow
BRIEF = ("log_odds", "random")  # rules that stand for the others where it takes long
QUICK = [(r, "mlp") for r in BRIEF]
N = 3  # an update short of a refresh: the second half starts in between


# Batched -------------------------------------------------------------------------
@pytest.mark.long
@mostly_slow()
def test_vmap_over_seeds(rule):
    tx, update = shared(rule, "mlp")
    seeds = [MLP.params(seed) for seed in range(3)]
    batched = jax.tree.map(lambda *x: jnp.stack(x), *seeds)
    seen = [[MLP.gradient(p, MLP.batch(n)) for p in seeds] for n in range(2)]
    state = jax.vmap(tx.init)(batched)
    many = jax.jit(jax.vmap(eager(tx)))
    for n in range(2):
        grads, activity = jax.tree.map(lambda *x: jnp.stack(x), *seen[n])
        updates, state = many(grads, state, batched, activity)
        batched = optax.apply_updates(batched, updates)
    for i, params in enumerate(seeds):
        alone = tx.init(params)
        for n in range(2):
            grads, activity = seen[n][i]
            updates, alone = update(grads, alone, params, activity)
            params = optax.apply_updates(params, updates)
        mine = jax.tree.map(lambda x, i=i: x[i], state)
        check_exact(MLP, mine, rule)
        same(bb.masks(mine), bb.masks(alone))
        for name, value in params.items():
            np.testing.assert_allclose(batched[name][i], value, rtol=1e-6, atol=1e-7)


@pytest.mark.long
@mostly_slow()
def test_vmap_over_densities(rule):
    params, densities = MLP.params(), (0.125, 0.5, 0.75)
    _, activity = MLP.gradient(params, MLP.batch(0))

    def masks(density):
        tx = pruner(RULES[rule], density=density, start=0)
        return eager(tx)(params, tx.init(params), params, activity)[1]

    front = jax.jit(jax.vmap(masks))(jnp.array(densities))
    for i, density in enumerate(densities):
        check_exact(MLP, jax.tree.map(lambda x, i=i: x[i], front), rule, density)
    alone = jax.jit(masks, static_argnums=0)(densities[1])
    same(bb.masks(jax.tree.map(lambda x: x[1], front)), bb.masks(alone))


def test_vmap_over_the_seed_of_a_rule():
    params = MLP.params()

    def masks(seed):
        rule = bb.rules.random(seed=seed)
        tx = bb.transform(MLP.units, rule, density=DENSITY, start=0)
        return bb.masks(tx.update(params, tx.init(params), params)[1])["up"]

    drawn = np.asarray(jax.jit(jax.vmap(masks))(jnp.arange(3)))
    assert (drawn[0] != drawn[1]).any() and (drawn[1] != drawn[2]).any()
    np.testing.assert_array_equal(drawn[1], jax.jit(masks)(1))


# Donated -------------------------------------------------------------------------
@pytest.mark.long
@mostly_slow()
def test_donated_buffers_change_nothing(rule):
    tx, update = shared(rule, "mlp")
    donating = jax.jit(eager(tx), donate_argnums=(0, 1))
    params = MLP.params()
    plain = train(update, MLP, params, tx.init(params), range(7))
    given = tx.init(params)
    donated = train(donating, MLP, params, given, range(7))
    same(plain, donated)
    assert all(x.is_deleted() for x in jax.tree.leaves(given) if x.size > 1)


@pytest.mark.long
@mostly_slow()
def test_donated_train_step(rule):
    """Parameters and state are given away together, as train steps do."""
    tx = chain(RULES[rule])

    def step(params, state, grads, activity):
        updates, state = eager(tx)(grads, state, params, activity)
        return optax.apply_updates(params, updates), state

    donating = jax.jit(step, donate_argnums=(0, 1))
    params = MLP.params()
    state = tx.init(params)
    for n in range(6):
        grads, activity = MLP.gradient(params, MLP.batch(n))
        params, state = donating(params, state, grads, activity)
    plain = MLP.params()
    expected = train(shared(rule, "mlp")[1], MLP, plain, tx.init(plain), range(6))
    same(bb.masks(state), bb.masks(expected[1]))
    check_zeros(params, state, rule)
    for name, value in expected[0].items():
        np.testing.assert_allclose(params[name], value, rtol=1e-5, atol=1e-6)


# Interrupted and resumed ---------------------------------------------------------
def _like(tree, sharding=None):
    place = lambda x: sharding(x) if sharding else x.sharding  # noqa: E731
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), tree
    )


def _save(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def _restore(path, target):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, target)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "rule, case",
    [
        pytest.param(r, c, marks=() if "log_odds" == r or (r, c) in QUICK else SLOW)
        for r, row in RULES.items()
        for c in row.cases
        if row.core or c == "mlp"
    ],
)
def test_resumed_run_is_the_uninterrupted_one(rule, case, tmp_path):
    tx, update = shared(rule, case)
    case = CASES[case]
    params = case.params()
    whole = train(update, case, params, tx.init(params), range(2 * N))
    half = train(update, case, params, tx.init(params), range(N))
    _save(tmp_path / "half", half)
    fresh = case.params(9)
    target = _like((fresh, tx.init(fresh)))
    restored = _restore(tmp_path / "half", target)
    same(restored, half)
    same(train(update, case, *restored, range(N, 2 * N)), whole)


WIDE = Case(
    {"up": (64, 128), "down": (128, 64)},
    lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"],
    (8, 64),
    (("up", "in"), ("down", "out")),
)


@pytest.mark.long
@pytest.mark.parametrize(
    "rule", [pytest.param(r, marks=() if r == BRIEF[0] else SLOW) for r in RULES]
)
def test_resumed_on_another_mesh(rule, tmp_path):
    """Eight devices, rows sharded; then four, columns sharded; against one device."""
    tx = chain(RULES[rule], WIDE)
    seen = [WIDE.gradient(WIDE.params(n), WIDE.batch(n)) for n in range(2 * N)]
    seen = jax.device_get(seen)

    def run(params, state, steps, place):
        update = jitted(tx)
        for grads, activity in seen[steps]:
            updates, state = update(place(grads), state, params, activity)
            params = optax.apply_updates(params, updates)
        return params, state

    params = WIDE.params()
    whole = run(params, tx.init(params), slice(0, 2 * N), lambda t: t)
    first = jax.make_mesh((8,), ("x",))
    with jax.set_mesh(first):
        place = lambda t: jax.device_put(t, NamedSharding(first, P("x")))  # noqa: E731
        half = run(place(params), tx.init(place(params)), slice(0, N), place)
        _save(tmp_path / "half", half)
    second = jax.make_mesh((4,), ("y",), devices=jax.devices()[:4])
    with jax.set_mesh(second):
        columns = NamedSharding(second, P(None, "y"))
        place = lambda t: jax.device_put(t, columns)  # noqa: E731
        fresh = place(WIDE.params(9))
        restored = _restore(tmp_path / "half", _like((fresh, tx.init(fresh))))
        assert restored[1][1].bb_masks["up"].sharding.mesh == second
        resumed = run(*restored, slice(N, 2 * N), place)
    same(resumed, whole)


@pytest.mark.long
def test_orbax_pytree_checkpointer(tmp_path):
    tx, update = shared("log_odds", "mlp")
    params = MLP.params()
    half = train(update, MLP, params, tx.init(params), range(N))
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "half", half)
        arguments = ocp.checkpoint_utils.construct_restore_args(half)
        restored = checkpointer.restore(
            tmp_path / "half", item=half, restore_args=arguments
        )
    same(restored, half)


# Memory --------------------------------------------------------------------------
@pairs(brief=True)
def test_state_without_regrowth_is_one_bit_per_edge(rule, case):
    case = CASES[case]
    state = pruner(RULES[rule], case, regrow=False).init(case.params())
    bits = state.bb_masks
    assert set(bits) == set(case.units.budgeted)
    for path, mask in bits.items():
        kernel = case.units[path]
        edges = kernel.edge_count * int(np.prod(kernel.stack_shape))
        assert mask.dtype == jnp.uint8
        # An axis that is no multiple of 8 leaves bits over in its last byte.
        wasted = min(-(-n // 8) * 8 / n for n in kernel.edge_shape)
        assert mask.size == round(edges * wasted / 8)
    units = max(
        max(np.prod(case.units[p].in_units), np.prod(case.units[p].out_units))
        * np.prod(case.units[p].stack_shape)
        for p in bits
    )
    for leaf in jax.tree.leaves(state._replace(bb_masks={})):
        assert leaf.size <= units


WHOLE = Case(
    {"up": (256, 512), "down": (512, 256)}, WIDE.apply, (8, 256), WIDE.selection
)
_COPY = re.compile(r"= f32\[(256,512|512,256)\]\S* copy(-start)?\(")


@pytest.mark.sampled(1)
@mostly_slow()
@pytest.mark.parametrize("regrow, scratch", [(True, 2.0), (False, 2.5)])
def test_no_copies_of_donated_state(rule, regrow, scratch):
    """One program for plain and refresh steps, and it copies no array of weights.

    Its scratch memory, in arrays of each kernel, is that of the refresh: scores, their
    keys and masks; and the random bits of a rule that draws noise.
    """
    tx, params = chain(RULES[rule], WHOLE, regrow=regrow), WHOLE.params()
    grads, activity = WHOLE.gradient(params, WHOLE.batch(0))

    def step(params, state, grads, activity):
        updates, state = eager(tx)(grads, state, params, activity)
        return optax.apply_updates(params, updates), state

    donating = jax.jit(step, donate_argnums=(0, 1))
    compiled = donating.lower(params, tx.init(params), grads, activity).compile()
    assert not _COPY.findall(compiled.as_text())
    memory = compiled.memory_analysis()
    held = sum(x.nbytes for x in jax.tree.leaves((params, tx.init(params))))
    assert memory.alias_size_in_bytes >= held
    kernels = sum(x.nbytes for x in params.values())
    scratch += RULES[rule].scratch
    assert memory.temp_size_in_bytes <= scratch * kernels
