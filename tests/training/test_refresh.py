"""One refresh of one kernel: dormant values, values that come back, and scaling."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax.training.refresh import Held, finish, prepare, scale_of, settle
from bbjax.training.state import pack, unpack
from tests.support.runs import candidates, dense

KERNEL = dense(6, 4)
CONV = bb.Kernel("w", (3, 3, 4, 2), spatial=(0, 1), fan_in=(2,), fan_out=(3,))
GROUPED = bb.Kernel(
    "w",
    (3, 2, 6),
    groups=2,
    split=(3, 2, 2, 3),
    roles=("spatial", "in", "group", "out"),
)


@functools.partial(jax.jit, static_argnames=("kernel", "rescale"))
def _run(kernel, keep, mask, w, dormant, rescale):
    held = holding(kernel, mask, dormant, scale_of(kernel, mask) if rescale else None)
    given = prepare(candidates(kernel, w, 0, mask=mask), held)
    dtype = None if dormant is None else dormant.dtype
    done = finish(given, settle(given, keep), dtype)
    units = kernel.per_unit_shape("outputs")
    ratio = done.scale / held.scale if rescale else jnp.ones(units, jnp.float32)
    return Done(unpack(kernel, done.mask), done.dormant, ratio, done.churn)


def holding(kernel, mask, dormant, scale):
    """What is held of a kernel before a refresh."""
    bits = pack(kernel, mask, mask)
    return Held(bits, jnp.float32(0), dormant, scale, arrivals=None)


class Done(NamedTuple):
    """A refresh, with the factor on the kept weights of each output unit."""

    mask: jax.Array
    dormant: jax.Array | None
    ratio: jax.Array
    churn: jax.Array


def run(kernel, keep, mask, w, dormant, rescale=False):
    arrays = [None if x is None else jnp.asarray(x) for x in (keep, mask, w, dormant)]
    return jax.tree.map(np.asarray, _run(kernel, *arrays, rescale=rescale))


@pytest.fixture
def example():
    """Old and new mask, sparse weights, and dormant weights with junk at kept ones."""
    rng = np.random.default_rng(3)
    mask, keep = rng.random((2, 6, 4)) < 0.5
    mask[0], keep[0] = True, True  # no unit without edges
    w = np.where(mask, rng.normal(size=(6, 4)), 0).astype(np.float32)
    dormant = rng.normal(size=(6, 4)).astype(np.float32)
    for a in (True, False):
        for b in (True, False):
            assert ((mask == a) & (keep == b)).any()
    return mask, keep, w, dormant


def test_what_rests_and_what_comes_back(example):
    mask, keep, w, dormant = example
    done = run(KERNEL, keep, mask, w, dormant)
    np.testing.assert_array_equal(done.mask, keep)
    leaves, away, back = mask & ~keep, ~mask & ~keep, ~mask & keep
    np.testing.assert_array_equal(done.dormant[leaves], w[leaves])
    np.testing.assert_array_equal(done.dormant[away], dormant[away])
    np.testing.assert_array_equal(done.dormant[back], dormant[back])
    assert (done.ratio == 1).all()
    assert done.churn == np.float32((mask != keep).mean())


def test_the_rule_sees_latent_weights(example):
    """Weights where kept, their dormant values where pruned, both without the scale."""
    mask, _, w, dormant = example
    view = candidates(KERNEL, jnp.asarray(w), 0, mask=jnp.asarray(mask))
    scaled = scale_of(KERNEL, jnp.asarray(mask))
    rest = [(jnp.asarray(dormant), None), (jnp.asarray(dormant), scaled), (None, None)]
    held = [holding(KERNEL, jnp.asarray(mask), d, s) for d, s in rest]
    seen = [prepare(view, one).candidates for one in held]
    plain, unscaled, without = [np.asarray(v.weights) for v in seen]
    np.testing.assert_array_equal(plain, np.where(mask, w, dormant))
    scale = np.sqrt(6 / mask.sum(0))
    np.testing.assert_allclose(unscaled, np.where(mask, w / scale, dormant), rtol=1e-6)
    np.testing.assert_array_equal(without, w)


def test_rescaled_values(example):
    mask, keep, w, dormant = example
    done = run(KERNEL, keep, mask, w, dormant, rescale=True)
    old, new = (np.sqrt(6 / m.sum(0)) for m in (mask, keep))
    np.testing.assert_allclose(done.ratio, new / old, rtol=1e-6)
    leaves, away, back = mask & ~keep, ~mask & ~keep, ~mask & keep
    unscaled, scaled = w / old, dormant * new
    np.testing.assert_allclose(done.dormant[leaves], unscaled[leaves], rtol=1e-6)
    np.testing.assert_array_equal(done.dormant[away], dormant[away])
    np.testing.assert_allclose(done.dormant[back], scaled[back], rtol=1e-6)


def test_rescale_preserves_the_variance_of_pre_activations():
    """With unlike degrees, random weights, white input; without it variance falls."""
    kernel = dense(256, 4)
    rng = np.random.default_rng(0)
    w = rng.normal(size=kernel.shape).astype(np.float32) / 16
    mask = rng.random(kernel.shape) < [0.2, 0.4, 0.6, 0.8]
    x = rng.normal(size=(4000, 256)).astype(np.float32)
    all_kept = np.ones(kernel.shape, bool)
    done = run(kernel, mask, all_kept, w, np.zeros_like(w), rescale=True)
    before = (x @ w).var(0)
    after = (x @ np.where(mask, w * done.ratio, 0)).var(0)
    np.testing.assert_allclose(after / before, np.ones(4), atol=0.3)
    assert ((x @ np.where(mask, w, 0)).var(0) / before).min() < 0.3


def test_there_and_back_again_is_the_identity(example):
    """A weight that was pruned and comes back is what it was, scaled or not."""
    _, keep, _, _ = example
    w = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    everything = np.ones((6, 4), bool)
    for rescale in (False, True):
        out = run(KERNEL, keep, everything, w, np.zeros_like(w), rescale)
        sparse = np.where(keep, w * out.ratio, 0).astype(np.float32)
        back = run(KERNEL, everything, keep, sparse, out.dormant, rescale)
        whole = np.where(keep, sparse * back.ratio, back.dormant)
        np.testing.assert_allclose(whole, w, rtol=1e-6)


def test_scale_of():
    mask = np.zeros((6, 4), bool)
    mask[:3, 0], mask[:1, 1], mask[:, 2] = True, True, True
    got = scale_of(KERNEL, jnp.asarray(mask))
    want = [np.sqrt(2), np.sqrt(6), 1, 1]  # nothing kept: nothing to scale
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(
    "kernel, fan", [(CONV, 4), (GROUPED, 2)], ids=["conv", "grouped"]
)
def test_scale_counts_edges_not_window_weights(kernel, fan):
    mask = np.ones(kernel.edge_shape, bool)
    mask[0] = False
    got = scale_of(kernel, jnp.asarray(mask))
    want = np.full(kernel.out_units, np.sqrt(fan / (fan - 1)))
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("kernel", [CONV, GROUPED], ids=["conv", "grouped"])
def test_whole_windows_rest_and_come_back(kernel):
    rng = np.random.default_rng(0)
    mask, keep = rng.random((2, *kernel.edge_shape)) < 0.5
    full = np.asarray(kernel.over_spatial(jnp.asarray(mask)))
    w = np.where(full, rng.normal(size=kernel.split), 0).astype(np.float32)
    dormant = rng.normal(size=kernel.shape).astype(np.float32)
    done = run(kernel, keep, mask, w.reshape(kernel.shape), dormant)
    after = np.asarray(kernel.over_spatial(jnp.asarray(keep)))
    want = np.where(full, w, dormant.reshape(kernel.split))
    want = np.where(full & after, 0, want)
    np.testing.assert_array_equal(done.dormant.reshape(kernel.split), want)


def test_dormant_weights_keep_their_dtype(example):
    mask, keep, w, dormant = example
    done = run(KERNEL, keep, mask, w, dormant.astype(jnp.bfloat16))
    assert done.dormant.dtype == jnp.bfloat16
    away = ~mask & ~keep
    np.testing.assert_array_equal(
        done.dormant[away], dormant.astype(jnp.bfloat16)[away]
    )


def test_without_dormant_weights_nothing_is_stored(example):
    mask, keep, w, _ = example
    assert run(KERNEL, keep & mask, mask, w, None).dormant is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_keeps_the_old_mask(example, bad):
    mask, keep, w, dormant = example
    w[tuple(np.argwhere(mask)[0])] = bad
    done = run(KERNEL, keep, mask, w, dormant)
    np.testing.assert_array_equal(done.mask, mask)
    np.testing.assert_array_equal(done.dormant[~mask], dormant[~mask])
    assert (done.ratio == 1).all()


@pytest.mark.long
def test_a_narrow_dtype_stores_finite_values(example):
    mask, keep, w, dormant = example
    w = np.where(mask & ~keep, np.float32(1e30), w)
    done = run(KERNEL, keep, mask, w, dormant.astype(jnp.float16))
    cut = np.asarray(done.dormant)[mask & ~keep]
    assert (cut == np.finfo(np.float16).max).all() and cut.size
