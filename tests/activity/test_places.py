"""The place that is measured is the one that the trace found, or an error is raised.

Statistics of a batch norm that are averaged over devices are summaries of the units, as
those of one device are. Values are by hand.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.nn import relu
from jax.sharding import PartitionSpec

import bbjax as bb

pytestmark = pytest.mark.usefixtures("lenient")


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


X = normal(0, 8, 6) + 0.3
W, OUT = normal(1, 6, 8), normal(2, 8, 3)


class Linen(nn.Module):
    axis: str | None
    fast: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, use_bias=False, name="up")(x)
        norm = partial(nn.BatchNorm, axis_name=self.axis, name="norm")
        x = norm(use_running_average=False, use_fast_variance=self.fast)(x)
        return nn.Dense(3, use_bias=False, name="down")(relu(x))


def linen_loss(axis, fast=True):
    net = Linen(axis, fast)
    stats = {"norm": {"mean": jnp.zeros(8), "var": jnp.ones(8)}}

    def loss(params, x):
        variables = {"params": params, "batch_stats": stats}
        out, _ = net.apply(variables, x, mutable=["batch_stats"])
        return jnp.mean(out**2)

    return loss


def by_hand(axis):
    """Means and squares joined on one axis, averaged, and taken apart again."""

    def loss(params, x):
        h = x @ params["up"]["kernel"]
        both = jnp.concatenate([h.mean(0), (h * h).mean(0)])
        mean, square = jnp.split(lax.pmean(both, axis) if axis else both, 2)
        h = (h - mean) * lax.rsqrt(square - mean**2 + 1e-5) + params["norm"]["bias"]
        return jnp.mean((relu(h) @ params["down"]["kernel"]) ** 2)

    return loss


PARAMS = {
    "up": {"kernel": W},
    "norm": {"scale": jnp.ones(8), "bias": jnp.full(8, -0.7)},
    "down": {"kernel": OUT},
}
H = np.asarray(X) @ np.asarray(W)
RATE = np.mean((H - H.mean(0)) / np.sqrt(H.var(0) + 1e-5) > 0.7, axis=0)
LOSSES = {
    "linen": linen_loss,
    "linen, exact variance": partial(linen_loss, fast=False),
    "concatenated": by_hand,
}


@pytest.mark.long
@pytest.mark.parametrize("name", LOSSES)
def test_statistics_over_devices_are_summaries_of_the_units(name):
    loss = LOSSES[name]
    units = bb.trace(loss(None), PARAMS, X)
    assert units["up/kernel"].nonlinearity == "relu"
    seen = []

    def each(params, x):
        here = bb.trace(loss("devices"), params, x)
        seen.append([k.nonlinearity for k in here.kernels])
        _, activity = bb.observe(loss("devices"), units)(params, x)
        return lax.pmean(activity["up/kernel"].outputs.on_rate, "devices")

    found = jax.vmap(each, (None, 0), axis_name="devices")(PARAMS, X.reshape(4, 2, 6))
    assert seen == [["relu", ""]]
    np.testing.assert_allclose(found[0], RATE, atol=1e-6)

    def whole(params, x):
        parts = jax.vmap(loss("devices"), (None, 0), axis_name="devices")
        return parts(params, x.reshape(4, 2, 6)).mean()

    _, activity = bb.observe(whole, units)(PARAMS, X)
    np.testing.assert_allclose(activity["up/kernel"].outputs.on_rate, RATE, atol=1e-6)


def test_units_traced_without_the_axis_are_measured_inside_shard_map():
    units = bb.trace(linen_loss(None), PARAMS, X)
    mesh = jax.make_mesh((4,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    split = PartitionSpec("devices")

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(PartitionSpec(), split),
        out_specs=PartitionSpec(),
    )
    def step(params, x):
        run = bb.value_and_grad(linen_loss("devices"), units)
        loss, _, activity = run(params, x)
        return lax.pmean((loss, activity["up/kernel"].outputs.on_rate), "devices")

    loss, found = jax.jit(step)(PARAMS, X)
    np.testing.assert_allclose(found, RATE, atol=1e-6)
    np.testing.assert_allclose(loss, linen_loss(None)(PARAMS, X), rtol=1e-5)


@pytest.mark.long
def test_a_synchronised_norm_of_nnx():
    def net(axis):
        rngs = nnx.Rngs(0)
        up = nnx.Linear(6, 8, use_bias=False, rngs=rngs)
        norm = nnx.BatchNorm(8, axis_name=axis, rngs=rngs)
        up.kernel[...], norm.bias[...] = W, jnp.full(8, -0.7)
        return nnx.Sequential(up, norm, relu, nnx.Linear(8, 3, rngs=rngs))

    def loss(model, x):
        return jnp.mean(model(x) ** 2)

    units = bb.trace(loss, net(None), X)

    def each(x):
        _, activity = bb.observe(loss, units)(net("devices"), x)
        return lax.pmean(activity["layers/0/kernel"].outputs.on_rate, "devices")

    found = jax.vmap(each, axis_name="devices")(X.reshape(4, 2, 6))
    np.testing.assert_allclose(found[0], RATE, atol=1e-6)


# Another place -----------------------------------------------------------------------
def curved(curve):
    def loss(p, x):
        return jnp.mean((curve(x @ p["w"]) @ p["o"]) ** 2)

    return loss


P = {"w": W, "o": OUT}
RUNS = {
    "observe": lambda fn, units: bb.observe(fn, units)(P, X),
    "value_and_grad": lambda fn, units: bb.value_and_grad(fn, units)(P, X),
    "calibrate": lambda fn, units: bb.calibrate(fn, units, P, [(X,)]),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_function_with_another_nonlinearity_is_refused(name):
    units = bb.trace(curved(relu), P, X)
    why = (
        "expected to measure the outputs of 'w' after relu, where the trace found "
        "them, got a function that has them after tanh; trace the function that you"
    )
    with pytest.raises(ValueError, match=why):
        RUNS[name](curved(jnp.tanh), units)


@pytest.mark.long
def test_a_function_whose_nonlinearity_is_not_found_is_refused():
    def shuffled(h):
        return relu(jnp.sort(h, -1))

    units = bb.trace(curved(relu), P, X)
    why = "'w' after relu.* got a function that has them at the raw output"
    with pytest.raises(ValueError, match=why):
        bb.observe(curved(shuffled), units)(P, X)
    bb.observe(curved(shuffled), units.select("^o$"))(P, X)


@pytest.mark.long
def test_the_last_layer_may_be_scored_by_the_loss():
    """What a loss makes of outputs that no kernel reads is no place of theirs."""
    units = bb.trace(lambda p, x: jax.nn.softmax(relu(x @ p["w"]) @ p["o"]), P, X)
    _, activity = bb.observe(curved(relu), units)(P, X)
    hidden = np.maximum(np.asarray(X) @ np.asarray(W), 0)
    rate = np.mean(hidden @ np.asarray(OUT) > 0, axis=0)
    np.testing.assert_allclose(activity["o"].outputs.on_rate, rate, atol=1e-6)
