"""Whole train steps on meshes: forward, backward, activity and refresh, all sharded.

Parameters lie like FSDP (rows over the data axis), tensor parallel (columns of `up`,
rows of `down`) and both, on automatic and explicit axes: masks, running means and
parameters are those of one device, bit for bit (`lattice` says why they can be), every
step is the program of the first, and masks stay beside their weights. Collectives are
counted with their bytes, those of the refresh apart from those of the scanned model: a
refresh moves arrays per unit alone, and the rest of the step what the dense step moves.
A last test takes Adam and Gaussian weights, within a tolerance.
"""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb
from tests.support import hlo
from tests.support.contract import same
from tests.support.hlo import collectives
from tests.support.lattice import (
    BATCH,
    COUNTS,
    HIDDEN,
    LAYERS,
    LAYOUTS,
    MODELS,
    UNIT,
    WIDTH,
    Placed,
    alone,
    equal,
    exact,
    pruner,
    train,
    weights,
)

pytestmark = pytest.mark.skipif(
    jax.device_count() < 8, reason="needs 8 devices: XLA_FLAGS of tests/conftest.py"
)
BITS = WIDTH * HIDDEN // 8  # bytes of a mask: what is smaller holds no bit per edge


def _check_collectives(pruned, dense):
    """No array with a word, or a bit, per edge moves but those of the dense step."""
    inside = Counter(collectives(hlo.refresh(pruned)))
    added = Counter(collectives(pruned)) - Counter(collectives(dense))
    for moved in (inside, added):
        # The others, which move different parts to different devices, none needs.
        assert {op for op, _ in moved} <= {"all-reduce", "all-gather"}, moved
        assert all(size < BITS for _, size in moved), moved
        assert sum(size * count for (_, size), count in moved.items()) < 8 * BITS, moved


def _beside(state, params):
    """Masks lie where their weights do, in parts of the same sizes."""
    for path, bits in state[-1].bb_masks.items():
        w = params[path]
        assert bits.sharding.is_equivalent_to(w.sharding, w.ndim), path
        parts = {shard.data.nbytes * 32 for shard in bits.addressable_shards}
        assert parts == {shard.data.nbytes for shard in w.addressable_shards}


QUICK = {("stack", "fsdp", "Auto", 8), ("mlp", "tensor", "Explicit", 8)}
cases = pytest.mark.parametrize(
    "model, layout, kind, devices",
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for model in MODELS
        for layout in LAYOUTS
        for kind in ("Auto", "Explicit")
        for devices in (COUNTS if model == "mlp" else COUNTS[2:])
        if (case := (model, layout, kind, devices))
    ],
)


@pytest.mark.long
@cases
def test_any_mesh_is_one_device(model, layout, kind, devices):
    placed = Placed(model, layout, kind, devices)
    with placed.set():
        step, state = placed.compiled(exact(placed.units))
        result = train(step, placed.params, state, placed.batch)
        dense, _ = placed.compiled(optax.sign_sgd(UNIT))
    equal(alone(model)[0], result)
    _beside(result[1], result[0])
    _check_collectives(step.as_text(), dense.as_text())
    assert devices == 1 or collectives(hlo.refresh(step.as_text()))


def _loop_that_sorts(bits, w):
    def once(loop):
        kept = w * (loop[1] > 0).astype(np.float32)
        return jnp.zeros((), bool), (jnp.sort(kept, 0) > 1).astype(np.uint8)

    return jax.lax.while_loop(lambda loop: loop[0], once, (bits[0, 0] > 0, bits))[1]


def test_weights_that_move_in_a_loop_are_found():
    """The check above can fail, also where the dense step moves as much."""
    placed = Placed("mlp", "fsdp", "Auto", 8)
    w = placed.params["up"]
    bits = (w > 0).astype(np.uint8)
    text = jax.jit(_loop_that_sorts).lower(bits, w).compile().as_text()
    assert sum(size for _, size in collectives(hlo.refresh(text))) >= BITS
    with pytest.raises(AssertionError, match="all-"):
        _check_collectives(text, text)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_a_rule_that_gathers_weights_is_found(kind):
    """Sorting gathers every score on every device."""

    def sorts(seen):
        k = seen.budget // seen.kernel.unit_count(seen.actuators[0])
        axis = 0 if seen.actuators == ("in",) else 1
        return bb.top_k_mask(seen.magnitude, k, axis=axis, method="top_k")

    placed = Placed("mlp", "both", kind, 8)
    with placed.set():
        rule = bb.rules.Rule("sorts", sorts)
        step, _ = placed.compiled(exact(placed.units, rule))
        dense, _ = placed.compiled(optax.sign_sgd(UNIT))
    with pytest.raises(AssertionError, match="all-"):
        _check_collectives(step.as_text(), dense.as_text())


@pytest.mark.parametrize(
    "model", ["mlp", pytest.param("stack", marks=pytest.mark.slow)]
)
def test_every_sum_is_exact(model):
    """Sums of absolute values, which bound every partial sum, are below 2**24 units."""
    for up, down in _layers(model):
        assert not any((w / UNIT % 1).any() for w in (up, down))
        hidden = np.abs(up).sum(0)  # h is -1, 0 or 1
        assert (hidden @ np.abs(down)).max() / UNIT**2 < 2**24
        # Gradients of `down` and `up`, before they are divided by the count.
        assert BATCH * hidden.max() / UNIT < 2**24
        assert BATCH * np.abs(down).sum(1).max() / UNIT < 2**24
    count = BATCH * WIDTH * LAYERS
    assert count & (count - 1) == 0  # a division by a power of two is exact


def _layers(model):
    """The float64 kernels of every layer at every step."""
    for params in alone(model)[1]:
        up, down = (np.asarray(params[k], np.float64) for k in ("up", "down"))
        sides = (w.reshape(-1, *w.shape[-2:]) for w in (up, down))
        yield from zip(*sides, strict=True)


@pytest.mark.slow
@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_adam_on_a_mesh(kind):
    """Gaussian weights: masks are equal, weights up to the order of float32 sums."""
    rng = np.random.default_rng(3)
    params = {
        k: rng.normal(size=w.shape).astype(np.float32) / 16
        for k, w in weights("mlp").items()
    }
    results = []
    for devices in (1, 8):
        placed = Placed("mlp", "both", kind, devices, params)
        tx = optax.chain(optax.adam(1e-2), pruner(placed.units))
        with placed.set():
            step, (adam, pruned) = placed.start(tx)
            state = placed.whole(adam), pruned
            results.append(train(step, placed.params, state, placed.batch))
    (one, one_state), (many, many_state) = results
    same(bb.masks(one_state), bb.masks(many_state))
    for path, alone_there in one.items():
        np.testing.assert_allclose(alone_there, many[path], rtol=0, atol=1e-5)
