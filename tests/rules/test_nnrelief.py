"""NNrelief keeps each unit's signal: the worked case and the guarantee."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

import bbjax as bb
from bbjax.activity.calibrate import calibrate
from bbjax.oneshot.prune import prune
from bbjax.rules import nnrelief
from bbjax.rules.nnrelief import sizes
from bbjax.rules.parts.shares import keep_share
from tests.support.runs import candidates, dense

SEEDS = st.integers(0, 2**32 - 1)
NORMS = ("fro_of_mean", "mean_of_fro", "l1")


def linear(params, x):
    return x @ params["w"] + params["b"][None]


def pruned(fn, params, batches, rule, pattern="."):
    units = bb.trace(fn, params, *batches[0]).select(pattern)
    stats = calibrate(fn, units, params, batches, needs=rule.needs)
    return *prune(params, units, rule, stats=stats), stats


# The worked case -----------------------------------------------------------------
X = jnp.array([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])
WORKED = {
    "w": jnp.array([[1.0, -1.0], [5.0, 5.0], [2.0, 0.5]]),
    "b": jnp.array([1.0, -4.0]),
}


def test_worked_case():
    """Sizes (x1, x2, x3, bias) are 2 0 2 1 and 2 0 .5 4; three quarters are kept."""
    left, masks, stats = pruned(linear, WORKED, [(X,)], nnrelief(alpha=0.75))
    np.testing.assert_array_equal(
        stats["w"].inputs.fro_of_mean, [[2, 2], [0, 0], [2, 0.5]]
    )
    assert masks["w"].tolist() == [[True, True], [False, False], [True, False]]
    assert masks["b"].tolist() == [False, True]
    assert left["w"].tolist() == [[1, -1], [0, 0], [2, 0]]
    assert left["b"].tolist() == [0, -4]


@pytest.mark.parametrize("conv", NORMS)
def test_batches_and_the_norm_of_a_convolution_do_not_matter_to_a_product(conv):
    _, masks, _ = pruned(
        linear, WORKED, [(X[:1],), (X[1:],)], nnrelief(alpha=0.75, conv=conv)
    )
    assert masks["w"].sum() == 3 and masks["b"].tolist() == [False, True]


@pytest.mark.long
def test_a_model_without_biases_has_no_mask_of_one():
    params = {"w": WORKED["w"]}
    _, masks, _ = pruned(lambda p, x: x @ p["w"], params, [(X,)], nnrelief(alpha=0.75))
    assert set(masks) == {"w"}
    assert masks["w"].tolist() == [[True, True], [False, False], [True, False]]


# The guarantee -------------------------------------------------------------------
@functools.cache
def dense_case():
    """One program for all examples: what is kept, the error and its bound."""

    def run(w, b, x, alpha):
        size = jnp.abs(w) * jnp.mean(jnp.abs(x), axis=0)[:, None]
        keep = keep_share(dense(9, 6), size, jnp.abs(b), alpha)
        less = {"w": jnp.where(keep.edges, w, 0), "b": jnp.where(keep.bias, b, 0)}
        error = jnp.mean(jnp.abs(linear({"w": w, "b": b}, x) - linear(less, x)), 0)
        return error, jnp.sum(size, 0) + jnp.abs(b), keep.edges

    return jax.jit(run)


@pytest.mark.long
@given(SEEDS, st.floats(0.05, 1))
def test_error_bound(seed, alpha):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-3, 3, (9, 1))
    w = np.float32(rng.normal(size=(9, 6)) * scale)
    b = np.float32(rng.normal(size=6) * rng.integers(2))
    x = np.float32(rng.normal(size=(20, 9)) * (rng.uniform(size=(20, 9)) < 0.5))
    error, signal, keep = dense_case()(w, b, x, np.float32(alpha))
    assert (error <= (1 - alpha) * signal + 1e-5 * signal).all()
    assert alpha > 0.99 or not keep.all()


def convolved(params, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(
        x, params["w"], (2, 1), "SAME", dimension_numbers=numbers
    )
    return y + params["b"][None, None, None]


SIZE_OF = {  # of a map (samples, height, width, units) of differences
    "l1": lambda d: np.abs(d).sum((1, 2)).mean(0),
    "mean_of_fro": lambda d: np.sqrt(np.square(d).sum((1, 2))).mean(0),
    "fro_of_mean": lambda d: np.sqrt(np.square(np.abs(d).mean(0)).sum((0, 1))),
}
BIAS_OF = {"l1": 15, "mean_of_fro": math.sqrt(15), "fro_of_mean": math.sqrt(15)}


@functools.cache
def conv_case():
    """Outputs are 3 x 5 maps; the statistics of all three norms from one stream."""
    keys = jax.random.split(jax.random.key(4), 3)
    params = {
        "w": jax.random.normal(keys[0], (3, 3, 8, 5)),
        "b": jax.random.normal(keys[1], (5,)),
    }
    x = jax.random.normal(keys[2], (4, 6, 5, 8))
    units = bb.trace(convolved, params, x).select("w")
    needs = [n for conv in NORMS for n in nnrelief(conv=conv).needs]
    batches = [(x[:2],), (x[2:],)]
    stats = calibrate(convolved, units, params, batches, needs=needs)
    return params, x, units, stats


@pytest.mark.long
@pytest.mark.parametrize("conv", NORMS)
def test_bias_of_a_convolution_counts_at_every_position(conv):
    params, _, units, stats = conv_case()
    seen = {
        f"inputs.{conv}": getattr(stats["w"].inputs, conv),
        "outputs.positions": stats["w"].outputs.positions,
    }
    view = candidates(units["w"], params["w"], 40, bias=params["b"])
    edges, bias = sizes(dataclasses.replace(view, statistics=seen), conv)
    np.testing.assert_allclose(bias, np.abs(params["b"]) * BIAS_OF[conv], rtol=1e-6)
    np.testing.assert_array_equal(edges, seen[f"inputs.{conv}"])


@pytest.mark.parametrize("alpha", [0.6, 0.9, 1.0])
@pytest.mark.parametrize("conv", NORMS)
def test_error_bound_of_a_convolution_in_its_own_norm(conv, alpha):
    params, x, units, stats = conv_case()
    left, masks = prune(params, units, nnrelief(alpha=alpha, conv=conv), stats=stats)
    sizes = np.asarray(getattr(stats["w"].inputs, conv))
    signal = sizes.sum(0) + np.abs(params["b"]) * BIAS_OF[conv]
    error = SIZE_OF[conv](np.asarray(convolved(params, x) - convolved(left, x)))
    assert (error <= (1 - alpha) * signal + 1e-5 * signal).all()
    assert masks["w"].all() == (alpha == 1) and (error > 0).all() == (alpha < 1)
    whole = masks["w"].all((0, 1)) | ~masks["w"].any((0, 1))
    assert whole.all()  # an edge is a window


# Use -----------------------------------------------------------------------------
def test_what_is_gone_neither_counts_nor_comes_back():
    units = bb.trace(linear, WORKED, X).select("w")
    rule = nnrelief(alpha=0.75)
    stats = calibrate(linear, units, WORKED, [(X,)], needs=rule.needs)
    before = {"w": jnp.array([[False, True], [True, True], [True, True]])}
    _, masks = prune(WORKED, units, rule, stats=stats, masks=before)
    # What is left of unit 0 is worth 2 and the bias 1: together it takes both.
    assert masks["w"].tolist() == [[False, True], [False, False], [True, False]]
    assert masks["b"].tolist() == [True, True]


@pytest.mark.long
def test_alpha_may_be_traced():
    seen = {"inputs.fro_of_mean": jnp.arange(12.0).reshape(4, 3)}
    seen["outputs.positions"] = jnp.ones(3)
    view = candidates(dense(4, 3), jnp.ones((4, 3)), 12)
    view = dataclasses.replace(view, statistics=seen)

    def kept_edges(alpha):
        return nnrelief(alpha=alpha).select(view).mask.sum()

    counts = jax.jit(jax.vmap(kept_edges))(jnp.array([0.1, 0.5, 1.0]))
    assert counts.tolist() == [3, 5, 11]


def test_the_density_is_an_outcome():
    units = bb.trace(linear, WORKED, X).select("w")
    with pytest.raises(ValueError, match="expected no density for rule 'nnrelief'"):
        prune(WORKED, units, nnrelief(), 0.5, stats={})
    with pytest.raises(ValueError, match="'nnrelief', which prunes once"):
        bb.transform(units, nnrelief())
    with pytest.raises(ValueError, match="expected stats, which rule 'nnrelief'"):
        prune(WORKED, units, nnrelief())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("alpha", [0, 1.01, -1, float("nan")])
def test_alpha_out_of_range(alpha):
    with pytest.raises(TypeError, match="expected alpha to be a number, got array"):
        nnrelief(alpha=np.full(2, alpha))
    with pytest.raises(ValueError, match=r"expected alpha in \(0, 1\], got"):
        nnrelief(alpha=alpha)


def test_unknown_norm():
    with pytest.raises(ValueError, match="expected conv in .*'l1'.*, got 'max'"):
        nnrelief(conv="max")


@pytest.mark.long
def test_outgoing_edges_are_refused():
    units = bb.trace(linear, WORKED, X).select("w", actuator="out")
    rule = nnrelief()
    stats = calibrate(linear, units, WORKED, [(X,)], needs=rule.needs)
    with pytest.raises(ValueError, match="expected actuator 'in' for 'w', got out"):
        prune(WORKED, units, rule, stats=stats)
