"""Network Trimming: the bar, who is counted, and that trimming ends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bbjax as bb
from bbjax.rules import apoz
from tests.support.runs import candidates, dense

SHAPE = (4, 9)
STACK = bb.Kernel("w", (2, *SHAPE), stack=(0,), fan_in=(1,), fan_out=(2,))


def trim(share, mask=None, kernel=None, actuator="in", regrow=True, **hyper):
    """Which units are left after one trimming."""
    share = jnp.asarray(share, jnp.float32)
    kernel = dense(3, share.shape[0]) if kernel is None else kernel
    mask = np.ones(kernel.edge_shape, bool) if mask is None else mask
    return _trim(share, mask, kernel, actuator, regrow, **hyper)


def _run(share, mask, kernel, actuator, regrow, **hyper):
    rule = apoz(**hyper)
    seen = candidates(
        kernel,
        jnp.ones(kernel.split),
        kernel.edge_count,
        actuators=(actuator,),
        mask=mask,
        regrow=regrow,
    )
    side = "outputs" if actuator == "in" else "inputs"
    (need,) = rule.needs
    seen = dataclasses.replace(seen, statistics={f"{side}.{need}": share})
    return rule.select(seen)


_compiled = jax.jit(
    _run,
    static_argnames=("kernel", "actuator", "regrow", "statistic"),
)


def _trim(*args, **hyper):
    return np.asarray(_compiled(*args, **hyper))


def trimmed(share, alive, sigmas=1.0):
    """The paper's criterion in float64."""
    rest = np.asarray(share, np.float64)[alive]
    return alive & ~(share > rest.mean() + sigmas * rest.std())


def test_hand_case():
    """Two images of 4 x 4, three channels with 11, 12 and 14 zeros of 32 each."""
    mask = trim(np.array([11, 12, 14]) / 32)
    assert mask.all(0).tolist() == [True, True, False]
    assert mask.any(0).tolist() == [True, True, False]


def test_a_unit_at_the_bar_stays():
    """With two values, half and half, the higher is exactly mean + std."""
    for low, high in ((0.1, 0.7), (0.3, 0.9), (0.2, 0.2000001)):
        assert trim([low] * 4 + [high] * 4).all()
    assert trim([0.1] * 5 + [0.7] * 3).any(0).sum() == 5
    assert trim([0.3] * 7).all()  # equal units: no deviation, none above it


@pytest.mark.long
@given(
    share=st.lists(
        st.lists(st.integers(0, 64), min_size=9, max_size=9), min_size=2, max_size=2
    ),
    gone=st.lists(st.booleans(), min_size=9, max_size=9),
)
def test_bar_is_that_of_the_living_units_of_a_slice(share, gone):
    share = np.array(share) / 64
    alive = np.stack([~np.array(gone), np.ones(9, bool)])
    mask = np.broadcast_to(alive[:, None], STACK.shape)
    left = trim(share, mask, STACK)
    for got, s, a in zip(left, share, alive, strict=True):
        if a.any():
            rest = s[a]
            if np.abs(s - rest.mean() - rest.std()).min() > 1e-5:
                assert (got.any(0) == trimmed(s, a)).all()
            assert got.any(0)[a].any()  # somebody stays
        assert not got.any(0)[~a].any()
        assert (got.any(0) == got.all(0)).all()


@pytest.mark.long
@pytest.mark.parametrize("regrow", [True, False])
def test_units_do_not_return_and_trimming_ends(regrow, getkey):
    share = np.asarray(jax.random.uniform(getkey(), (30,)))
    alive, mask = np.ones(30, bool), np.ones((3, 30), bool)
    rounds = 0
    while True:
        alive = trimmed(share, alive)
        after = trim(share, mask, regrow=regrow)
        np.testing.assert_array_equal(after.all(0), alive)
        rounds += 1
        if (after == mask).all():
            break
        mask = after
    assert rounds > 2 and 0 < alive.sum() < 30
    silent = trim(1 - share, mask, regrow=regrow)  # the pruned are now the busiest
    assert not (silent & ~mask).any()


@pytest.mark.long
def test_other_activations_and_sides(getkey):
    share = np.asarray(jax.random.uniform(getkey(), (9,)))
    want = trimmed(share, np.ones(9, bool))
    off = trim(1 - share, statistic="off_rate")  # an on-rate
    np.testing.assert_array_equal(off.all(0), want)
    out = trim(share, kernel=dense(9, 5), actuator="out")
    np.testing.assert_array_equal(out.all(1), want)
    np.testing.assert_array_equal(out.any(1), want)


def test_more_sigmas_cut_less(getkey):
    share = np.asarray(jax.random.uniform(getkey(), (40,)))
    left = [trim(share, sigmas=s).any(0).sum() for s in (0.0, 0.5, 1.0, 1.5, 9.0)]
    assert left == sorted(left) and left[0] < left[1] and left[-1] == 40


@pytest.mark.long
def test_measured_zeros_of_a_relu(getkey):
    """From the model to the mask: the unit that is hardly ever on is trimmed."""
    w = jax.random.normal(getkey(), (6, 12))
    params = {"up": w, "bias": jnp.zeros(12).at[4].set(-3.0), "down": w.T}

    def fn(params, x):
        hidden = jax.nn.relu(x @ params["up"] + params["bias"].reshape(1, -1))
        return hidden @ params["down"]

    x = jax.random.normal(getkey(), (256, 6))
    units = bb.trace(fn, params, x)
    rule = apoz(sigmas=2.0)
    _, activity = bb.observe(fn, units, needs=rule.needs)(params, x)
    tx = bb.transform(units, rule, every=1, start=0)
    state = tx.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = jax.jit(tx.update)(zeros, state, params, activity=activity)
    assert np.flatnonzero(~np.asarray(bb.masks(state)["up"]).any(0)).tolist() == [4]


@pytest.mark.long
@pytest.mark.usefixtures("unchecked")
def test_bad_arguments():
    with pytest.raises(TypeError, match="expected sigmas to be a number, got array"):
        apoz(sigmas=np.ones(2))
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"expected sigmas in \[0, inf\), got"):
            apoz(sigmas=bad)
    with pytest.raises(ValueError, match='expected statistic "zero_share" or "off_ra'):
        apoz(statistic="on_rate")
    assert apoz().free and not apoz().patterned
