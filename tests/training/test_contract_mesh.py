"""What every rule must pass: any number of devices, any mesh, either axis sharded."""

import contextlib
import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import bbjax as bb
from tests.support.contract import (
    CASES,
    RULES,
    Case,
    chain,
    compilations,
    jitted,
    same,
    shared,
)
from tests.support.hlo import collectives

pytestmark = pytest.mark.skipif(
    jax.device_count() < 8, reason="needs 8 devices: XLA_FLAGS of tests/conftest.py"
)
SPECS = {"rows": P("x", None), "columns": P(None, "x")}


def _wide(p, x):
    return jax.nn.relu(x @ p["up"]) @ p["down"]


# Large enough that an array of weights (512 KiB) and one of units (2 KiB) differ.
WIDE = Case(
    {"up": (256, 512), "down": (512, 256)},
    _wide,
    (8, 256),
    (("up", "in"), ("down", "out")),
)
STEPS = 4
SMALL = 8 * 512 * 4  # bytes: a few numbers per unit


def _mesh(devices, kind):
    return jax.make_mesh((devices,), ("x",), (kind,), devices=jax.devices()[:devices])


@functools.cache
def _record():
    """Gradients and activity of a few steps, made on one device."""
    seen = [WIDE.gradient(WIDE.params(n), WIDE.batch(n)) for n in range(STEPS)]
    return jax.device_get(seen)


def _run(update, params, state, seen, place, each=None):
    for n, (grads, activity) in enumerate(seen):
        with compilations() as compiled:
            updates, state = update(place(grads), state, params, activity)
        assert n == 0 or compiled.count == 0
        params = optax.apply_updates(params, updates)
        if each is not None:
            each(params, state)
    return params, state


def _placed(mesh, spec):
    return lambda tree: jax.device_put(tree, NamedSharding(mesh, spec))


def _same_shardings(first, second):
    for (key, a), b in zip(
        jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(second), strict=True
    ):
        name = jax.tree_util.keystr(key)
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim), (
            f"{name}: {a.sharding} became {b.sharding}"
        )


def test_collectives_are_read_off_the_program():
    mesh = _mesh(8, AxisType.Auto)
    whole = NamedSharding(mesh, P())
    x = _placed(mesh, P("x"))(np.zeros((64, 4), np.float32))
    gathered = jax.jit(lambda x: x * 2, out_shardings=whole).lower(x).compile()
    assert collectives(gathered.as_text()) == [("all-gather", 64 * 4 * 4)]
    summed = jax.jit(lambda x: x.sum(0), out_shardings=whole).lower(x).compile()
    assert collectives(summed.as_text()) == [("all-reduce", 4 * 4)]


@functools.cache
def _alone(rule):
    tx, params = chain(RULES[rule], WIDE), WIDE.params()
    return _run(jitted(tx), params, tx.init(params), _record(), lambda t: t)


def _check(rule, devices, kind, spec):
    alone, seen = _alone(rule), _record()
    mesh = _mesh(devices, kind)
    place = _placed(mesh, spec)
    tx, params = chain(RULES[rule], WIDE), place(WIDE.params())
    explicit = kind == AxisType.Explicit
    with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
        state, update = tx.init(params), jitted(tx)
        grads, activity = seen[0]
        program = update.lower(place(grads), state, params, activity).compile()

        def each(new_params, new_state):
            _same_shardings((params, state), (new_params, new_state))

        result = _run(update, params, state, seen, place, each)
    assert update._cache_size() == 1
    same(alone, result)
    same(bb.degrees_of(alone[1]), bb.degrees_of(result[1]))
    assert not all(mask.all() for mask in bb.masks(result[1]).values())
    moved = collectives(program.as_text())
    assert moved  # one of the two kernels is sharded along what its units select from
    assert max(size for _, size in moved) <= SMALL, moved
    bits = result[1][1].bb_masks["up"].addressable_shards
    assert [shard.data.size for shard in bits] == [256 * 512 // 8 // devices] * devices


QUICK = ("global", "rigl")  # edges that compete over kernels; that drop and grow


QUICK_MESH = ("Explicit", "columns")


def _brief(rule, kind, spec, devices):
    stands = RULES[rule].core or rule in QUICK
    return devices == 8 and (kind, spec) == QUICK_MESH and stands


def _meshes(devices):
    """Rules beyond the core meet one mesh of two devices, and two of eight."""
    some = {("Explicit", "rows")} if devices == 2 else {QUICK_MESH, ("Auto", "rows")}
    return pytest.mark.parametrize(
        "rule, kind, spec",
        [
            pytest.param(
                r, k, s, marks=() if _brief(r, k, s, devices) else pytest.mark.slow
            )
            for r, row in RULES.items()
            for k in ("Auto", "Explicit")
            for s in SPECS
            if row.core or (k, s) in some
        ],
    )


@pytest.mark.long
@_meshes(8)
def test_eight_devices_are_one(rule, kind, spec):
    _check(rule, 8, AxisType[kind], SPECS[spec])


@_meshes(2)
def test_two_devices_are_one(rule, kind, spec):
    _check(rule, 2, AxisType[kind], SPECS[spec])


ODD = {("log_odds", "mlp"), ("random", "mlp"), ("log_odds", "conv")}


@pytest.mark.long
@pytest.mark.parametrize(
    "rule, name",
    [
        pytest.param(r, n, marks=() if (r, n) in ODD else pytest.mark.slow)
        for r, row in RULES.items()
        for n in row.cases
        if row.core or n == "mlp"
    ],
)
def test_shards_that_no_byte_fits(rule, name):
    """Two devices, the last axis of every array sharded, masks in odd parts."""
    case = CASES[name]
    tx, update = shared(rule, name)
    params = case.params()
    seen = [case.gradient(case.params(n), case.batch(n)) for n in range(STEPS)]
    seen = jax.device_get(seen)
    alone = _run(update, params, tx.init(params), seen, lambda t: t)
    mesh = _mesh(2, AxisType.Explicit)

    def place(tree):
        def put(x):
            odd = x.shape[-1] % 2
            spec = P() if odd else P(*[None] * (x.ndim - 1), "x")
            return jax.device_put(x, NamedSharding(mesh, spec))

        return jax.tree.map(put, tree)

    with jax.set_mesh(mesh):
        params = place(params)
        result = _run(jitted(tx), params, tx.init(params), seen, place)
    same(bb.masks(alone[1]), bb.masks(result[1]))
    same(alone[0], result[0])
