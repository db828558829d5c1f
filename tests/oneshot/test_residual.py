"""The residual rule: what is compared, and which side of a sum goes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bbjax as bb
from bbjax.oneshot.nnrelief.residual import Residual, residual_cuts, residual_keep
from tests.support.zoo_case import normal, weights
from tests.support.zoo_conv import convolution

relu = jax.nn.relu
NORMS = st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e3)), min_size=1)


@given(NORMS, st.floats(0.5, 1))
def test_at_most_one_side_goes_and_it_is_the_smaller(norms, alpha):
    u, r = np.float32(norms).T
    branch, shortcut = map(np.asarray, residual_keep(u, r, alpha))
    assert (branch | shortcut).all()
    assert (u[~branch] < r[~branch]).all() and (r[~shortcut] < u[~shortcut]).all()


def test_shares_that_go():
    """Of a sum of 10, a share of less than a tenth is less than 1."""
    u = jnp.array([0.5, 2.0, 9.5, 0.0, 0.0])
    r = jnp.array([9.5, 8.0, 0.5, 0.0, 3.0])
    branch, shortcut = residual_keep(u, r, 0.9)
    assert branch.tolist() == [False, True, True, True, False]
    assert shortcut.tolist() == [True, True, False, True, True]
    assert all(side.all() for side in residual_keep(u, r, 1))


def block(params, x):
    x = relu(convolution(x, params["stem"]))
    h = relu(convolution(x, params["one"], window_strides=(2, 2)))
    u = convolution(h, params["two"]) * params["scale"][None, None, None]
    r = convolution(x, params["proj"], window_strides=(2, 2))
    return convolution(relu(u + r), params["last"])


def test_norms_are_of_the_mean_maps_of_what_is_added():
    params = weights(
        stem=(3, 3, 2, 3), one=(3, 3, 3, 4), two=(3, 3, 4, 5), last=(1, 1, 5, 2)
    )
    params |= {"proj": normal(8, 1, 1, 3, 5), "scale": jnp.geomspace(1e-2, 1, 5)}
    x = normal(4, 6, 5, 4, 2)
    s = relu(convolution(x, params["stem"]))
    h = relu(convolution(s, params["one"], window_strides=(2, 2)))
    u = convolution(h, params["two"]) * params["scale"][None, None, None]
    r = convolution(s, params["proj"], window_strides=(2, 2))
    u, r = (np.sqrt((np.abs(v).mean(0) ** 2).sum((0, 1))) for v in (u, r))
    pair = Residual("two", projection="proj")
    batches = [(x[:2],), (x[2:],)]
    units = bb.trace(block, params, x)
    (cut,) = residual_cuts(block, params, units, batches, [pair], {"two": 0.9})
    np.testing.assert_allclose(cut.u, u, rtol=1e-5)
    np.testing.assert_allclose(cut.r, r, rtol=1e-5)
    np.testing.assert_array_equal(cut.branch, u / (u + r) >= 0.1)
    np.testing.assert_array_equal(cut.shortcut, r / (u + r) >= 0.1)
    assert 0 < cut.branch.sum() < 5


def test_alpha_that_could_cut_both():
    with pytest.raises(ValueError, match=r"alpha in \[0.5, 1\] for residuals, got 0.4"):
        residual_keep(jnp.ones(2), jnp.ones(2), 0.4)


@pytest.mark.parametrize("sides", [{}, {"projection": "a", "identity": "b"}])
def test_a_block_has_one_shortcut(sides):
    with pytest.raises(ValueError, match="a projection or an identity for the branch"):
        Residual("c", **sides)


def test_sides_of_one_sum_have_one_size():
    params = weights(
        stem=(3, 3, 2, 3), one=(3, 3, 3, 4), two=(3, 3, 4, 5), last=(1, 1, 5, 2)
    )
    params |= {"proj": normal(8, 1, 1, 3, 5), "scale": jnp.ones(5)}
    x = normal(4, 6, 5, 4, 2)
    units = bb.trace(block, params, x)
    with pytest.raises(ValueError, match=r"shape \(5,\).*got \(3,\), the inputs of"):
        residual_cuts(
            block, params, units, [], [Residual("two", identity="one")], {"two": 0.9}
        )
