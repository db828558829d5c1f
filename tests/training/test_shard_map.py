"""Data parallel by hand: `shard_map`, with `pmean` of gradients and of activity.

    activity <- pmean(activity)      each device then makes the same masks by itself

A mean over devices is that over the whole batch where all devices saw equally many real
samples; under padding on-rates have to be weighted by their counts. The model is that
of `lattice`, so that results are those of one device bit for bit.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import bbjax as bb
from tests.support import hlo
from tests.support.hlo import collectives
from tests.support.lattice import (
    BATCH,
    Placed,
    alone,
    equal,
    exact,
    inputs,
    mlp,
    train,
    weights,
)

pytestmark = pytest.mark.skipif(
    jax.device_count() < 8, reason="needs 8 devices: XLA_FLAGS of tests/conftest.py"
)


def _by_hand(units, tx, check_vma, merge):
    """A step inside `shard_map`: whole parameters, a part of the batch each.

    Where JAX tracks what varies over devices (`check_vma`), the gradient of a mean over
    devices is whole by itself; else gradients are averaged like activity.
    """

    def loss(params, x):
        own = mlp(params, x)
        return jax.lax.pmean(own, "data") if check_vma else own

    def step(params, state, x):
        observed = bb.observe(loss, units)
        (_, activity), grads = jax.value_and_grad(observed, has_aux=True)(params, x)
        if not check_vma:
            grads = jax.lax.pmean(grads, "data")
        updates, state = tx.update(grads, state, params, activity=merge(activity))
        return optax.apply_updates(params, updates), state

    return step


def _over(mesh, step, check_vma):
    specs = {"in_specs": (P(), P(), P("data")), "out_specs": (P(), P())}
    return jax.jit(jax.shard_map(step, mesh=mesh, check_vma=check_vma, **specs))


def _pmean(activity):
    return jax.lax.pmean(activity, "data")


def _shard_map_start(devices):
    placed = Placed("mlp", "fsdp", "Auto", devices)
    whole = NamedSharding(placed.mesh, P())
    params = jax.tree.map(lambda w: jax.device_put(w, whole), placed.params)
    tx = exact(placed.units)
    return placed, params, tx, tx.init(params)


@pytest.mark.long
@pytest.mark.parametrize(
    "devices, check_vma",
    [
        (8, True),
        pytest.param(8, False, marks=pytest.mark.slow),
        pytest.param(2, False, marks=pytest.mark.slow),
    ],
)
def test_shard_map_with_pmean_is_one_device(devices, check_vma):
    placed, params, tx, state = _shard_map_start(devices)
    step = _by_hand(placed.units, tx, check_vma, _pmean)
    step = _over(placed.mesh, step, check_vma)
    step = step.lower(params, state, placed.batch(inputs(0))).compile()
    equal(alone("mlp")[0], train(step, params, state, placed.batch))
    assert collectives(hlo.refresh(step.as_text())) == []  # each device does it all


def test_shard_map_without_pmean_is_refused():
    """Masks that would differ between devices do not pass for one mask."""
    placed, params, tx, state = _shard_map_start(8)
    step = _over(placed.mesh, _by_hand(placed.units, tx, True, lambda a: a), True)
    with pytest.raises((TypeError, ValueError), match="data"):
        step.lower(params, state, placed.batch(inputs(0)))


def _weighted(activity):
    """Means over devices that saw unequal numbers of samples, by their counts."""

    def of(own):
        count = jax.lax.psum(own.count, "data")
        total = jax.lax.psum(own.on_rate * own.count, "data")
        rate = total / jnp.maximum(count, 1)
        return dataclasses.replace(own, on_rate=rate, count=count)

    return jax.tree.map(of, activity, is_leaf=lambda x: hasattr(x, "on_rate"))


def test_padding_over_shard_map_is_weighted_by_counts():
    """A mean of means is right where every device has as many real samples only."""
    real = np.arange(BATCH) < 27  # the last device has none, the one before 3 of 4
    placed, params, *_ = _shard_map_start(8)
    x = placed.batch(inputs(0))
    rates = {}
    for merge in (_pmean, _weighted):

        def measure(params, x, real, merge=merge):
            observed = bb.observe(mlp, placed.units, where=real)
            return merge(observed(params, x)[1])

        specs = {"in_specs": (P(), P("data"), P("data")), "out_specs": P()}
        seen = jax.jit(jax.shard_map(measure, mesh=placed.mesh, **specs))
        rates[merge] = seen(params, x, jnp.asarray(real))["up"].outputs.on_rate
    want = np.mean(inputs(0)[real] @ weights("mlp")["up"] > 0, 0)
    np.testing.assert_allclose(rates[_weighted], want, rtol=1e-6)
    assert np.abs(rates[_pmean] - want).max() > 0.1
