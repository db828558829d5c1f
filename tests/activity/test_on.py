"""What counts as on: values in [0, 1], thresholds in the unit they say."""

import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from tests.support.zoo_case import normal, relu, weights

X = np.array([[-3.0, -0.5, 0.0], [0.25, 1.0, 2.0]], np.float32)
RMS = float(np.sqrt(np.mean(X**2)))
TABLE = {
    "positive": (bb.on.positive, X > 0),
    "above": (bb.on.above(0.5), np.abs(X) > 0.5),
    "above_rms": (bb.on.above(0.7, relative_to="rms"), np.abs(X) > 0.7 * RMS),
    "soft": (bb.on.soft(0.5), 1 / (1 + np.exp(-X / 0.5))),
    "callable": (lambda x: jnp.where(x > 1, 0.5, 0.0), np.where(X > 1, 0.5, 0.0)),
}


@pytest.mark.long
@pytest.mark.parametrize("name", TABLE)
def test_measures_the_mean_of_its_function(name):
    on, want = TABLE[name]
    np.testing.assert_allclose(on(jnp.asarray(X)), want, rtol=1e-6)
    params = {"w": jnp.eye(3)}
    units = bb.trace(lambda p, x: jnp.sum(x @ p["w"]), params, X)
    observed = bb.observe(lambda p, x: jnp.sum(x @ p["w"]), units, on=on)
    got = observed(params, jnp.asarray(X))[1]["w"]
    for side in (got.inputs, got.outputs):
        np.testing.assert_allclose(side.on_rate, want.mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_floats_are_counted_in_float32(dtype):
    x = jnp.asarray(X, dtype)
    for on, _ in TABLE.values():
        hit = np.asarray(on(x), np.float32)
        assert hit.min() >= 0 and hit.max() <= 1


@pytest.mark.long
def test_default_is_positive():
    params = weights(w=(4, 3))
    x = normal(1, 5, 4)
    fn = lambda p, x: jnp.sum(relu(x @ p["w"]))  # noqa: E731
    units = bb.trace(fn, params, x)
    default, named = (
        bb.observe(fn, units, **kwargs)(params, x)[1]["w"].inputs.on_rate.tolist()
        for kwargs in ({}, {"on": bb.on.positive})
    )
    assert default == named


@pytest.mark.long
def test_rms_leaves_padding_out():
    x = jnp.array([[1.0, 2.0], [100.0, 100.0]])
    params = {"w": jnp.eye(2)}
    fn = lambda p, x: jnp.sum(x @ p["w"])  # noqa: E731
    units = bb.trace(fn, params, x)
    on = bb.on.above(1.0, relative_to="rms")
    seen = bb.observe(fn, units, on=on, where=jnp.array([True, False]))
    # rms of (1, 2) is 1.58: with the padding, 2 would not be above it
    assert seen(params, x)[1]["w"].inputs.on_rate.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf")])
def test_bad_threshold_raises(threshold):
    with pytest.raises(ValueError, match=r"expected threshold in \[0, inf\)"):
        bb.on.above(threshold)


def test_bad_scale_and_temperature_raise():
    with pytest.raises(
        ValueError, match='expected relative_to None or "rms", got "?\'?std'
    ):
        bb.on.above(1.0, relative_to="std")
    for temperature in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match=r"expected temperature in \(0, inf\)"):
            bb.on.soft(temperature)


@pytest.mark.long
def test_a_function_that_changes_the_shape_raises():
    params = {"w": jnp.eye(3)}
    fn = lambda p, x: jnp.sum(x @ p["w"])  # noqa: E731
    observed = bb.observe(fn, bb.trace(fn, params, X), on=lambda x: jnp.mean(x))
    with pytest.raises(ValueError, match=r"expected `on` to keep the shape \(2, 3\)"):
        observed(params, X)
