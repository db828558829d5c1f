"""Removing units from modules: Flax linen and NNX, with norms, pooling and streams."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

import bbjax as bb
from bbjax import graph
from tests.support.zoo_case import normal

pytestmark = pytest.mark.usefixtures("lenient")
IMAGES = normal(71, 3, 6, 4, 2)


class Net(nn.Module):
    """Convolution, batch norm, pooling, flatten in the order H, W, C, dense layers."""

    channels: int = 5
    hidden: int = 7
    train: bool = False

    @nn.compact
    def __call__(self, x, on=(1.0, 1.0)):
        x = nn.Conv(self.channels, (3, 3), name="conv")(x)
        x = nn.BatchNorm(use_running_average=not self.train, name="norm")(x)
        x = nn.gelu(x) * on[0]
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.sigmoid(nn.Dense(self.hidden, name="hidden")(x)) * on[1]
        return nn.Dense(3, name="out")(x)


class Residual(nn.Module):
    """Two blocks whose sums go on through a ReLU."""

    width: int = 4

    @nn.compact
    def __call__(self, x, on=(1.0, 1.0)):
        def norm(x):
            return nn.BatchNorm(use_running_average=True)(x)

        x = nn.relu(norm(nn.Conv(self.width, (3, 3), name="stem")(x)))
        for i in range(2):
            h = nn.relu(norm(nn.Conv(5, (3, 3), name=f"first{i}")(x * on[0])))
            h = norm(nn.Conv(self.width, (3, 3), name=f"second{i}")(h * on[1]))
            x = nn.relu(x + h)
        return nn.Dense(3, name="out")(jnp.mean(x * on[0], axis=(1, 2)))


STREAM = ("stem/kernel", "second0/kernel", "second1/kernel")


def made(module, seed=0):
    """Parameters and statistics of a module, all of them random."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.uniform(0.2, 1.0, s.shape), s.dtype), shapes
    )


def applied(module, params, stats, *args):
    return module.apply({"params": params, "batch_stats": stats}, IMAGES, *args)


@pytest.mark.long
@pytest.mark.parametrize("whole", [False, True], ids=["params", "variables"])
def test_linen_net(whole):
    module = Net()
    variables = made(module)
    params, stats = variables["params"], variables["batch_stats"]
    prefix = "params/" if whole else ""
    traced = variables if whole else params

    def fn(given, *args):
        if whole:
            return module.apply(given, IMAGES, *args)
        return applied(module, given, stats, *args)

    units = bb.trace(fn, traced)
    assert {k.path for k in units.kernels if k.closed} == {
        f"{prefix}conv/kernel",
        f"{prefix}hidden/kernel",
    }
    ((_, place),) = units.graph.read_by(f"{prefix}hidden/kernel")
    np.testing.assert_array_equal(place.units, np.tile(np.arange(5), 6))
    names = [f"{prefix}{n}" for n in ("conv/bias", "norm/scale", "norm/bias")]
    found = units[f"{prefix}conv/kernel"].companions
    if whole:
        names[1:1] = ["batch_stats/norm/mean", "batch_stats/norm/var"]
    assert found == tuple(names)

    channels, hidden = np.arange(5) % 2 > 0, np.arange(7) % 3 > 0
    keep = {f"{prefix}conv/kernel": channels, f"{prefix}hidden/kernel": hidden}
    pruned, _ = graph.remove_units(traced, units, keep)
    want = fn(traced, (channels * 1.0, hidden * 1.0))
    np.testing.assert_allclose(fn(pruned), want, rtol=1e-5)
    assert np.abs(want - fn(traced)).max() > 1e-3


@pytest.mark.long
def test_linen_net_really_smaller():
    module = Net()
    variables = made(module)
    flat = {"/".join(k): np.asarray(v) for k, v in flatten_dict(variables).items()}
    units = bb.trace(lambda v: module.apply(v, IMAGES), variables)
    keep = {
        "params/conv/kernel": np.arange(5) % 2 > 0,
        "params/hidden/kernel": np.arange(7) % 3 > 0,
    }
    pruned, _ = graph.remove_units(variables, units, keep)
    for path, kept in keep.items():
        flat[path] = np.compress(kept, flat[path], -1)
        for companion in units[path].companions:
            flat[companion] = np.compress(kept, flat[companion])
        ((reader, place),) = graph.consumers(units)[path]
        flat[reader] = np.compress(kept[place.units], flat[reader], -2)
    small = unflatten_dict({tuple(k.split("/")): v for k, v in flat.items()})
    got = Net(channels=2, hidden=4).apply(small, IMAGES)
    np.testing.assert_allclose(got, module.apply(pruned, IMAGES), rtol=1e-5)


def test_linen_net_in_training_updates_statistics_of_its_own_units():
    """A running mean that is returned belongs to the unit."""
    module = Net(train=True)
    variables = made(module)
    stats = variables["batch_stats"]

    def fn(params):
        both = {"params": params, "batch_stats": stats}
        return module.apply(both, IMAGES, mutable=["batch_stats"])

    assert bb.trace(fn, variables["params"])["conv/kernel"].closed

    def means(params):  # but what a function makes of its units is its own
        h = nn.Conv(5, (3, 3)).apply({"params": params["conv"]}, IMAGES)
        return jnp.mean(h, axis=(0, 1, 2)), fn(params)

    kernel = bb.trace(means, variables["params"])["conv/kernel"]
    assert kernel.why_not == "the function returns them"


@pytest.mark.long
def test_linen_residual_stream():
    module = Residual()
    variables = made(module)
    params, stats = variables["params"], variables["batch_stats"]
    units = bb.trace(lambda p: applied(module, p, stats), params)
    assert set(units["stem/kernel"].stream) == set(STREAM[1:])
    assert all(k.closed for k in units.kernels if k.path != "out/kernel")
    stream, inside = np.arange(4) % 2 > 0, np.arange(5) % 3 > 0
    keep = dict.fromkeys(STREAM, stream)
    keep |= {f"first{i}/kernel": inside for i in range(2)}
    pruned, _ = graph.remove_units(params, units, keep)
    want = applied(module, params, stats, (stream * 1.0, inside * 1.0))
    np.testing.assert_allclose(applied(module, pruned, stats), want, rtol=1e-5)


class Module(nnx.Module):
    def __init__(self, hidden=6):
        rngs = nnx.Rngs(3)
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.hidden = nnx.Linear(96, hidden, rngs=rngs)
        self.out = nnx.Linear(hidden, 3, rngs=rngs)

    def __call__(self, x, on=(1.0, 1.0)):
        x = nnx.relu(self.norm(self.conv(x))) * on[0]
        x = nnx.tanh(self.hidden(x.reshape(x.shape[0], -1))) * on[1]
        return self.out(x)


@pytest.mark.long
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_nnx_module(train):
    module = Module()
    module.train() if train else module.eval()
    units = bb.trace(lambda m, x: m(x), module, IMAGES)
    assert {k.path for k in units.kernels if k.closed} == {
        "conv/kernel",
        "hidden/kernel",
    }
    graph_def, state = nnx.split(module)
    channels, hidden = np.arange(4) % 2 > 0, np.arange(6) % 3 > 0
    keep = {"conv/kernel": channels, "hidden/kernel": hidden}
    pruned, masks = graph.remove_units(state, units, keep)
    assert {"norm/scale", "norm/mean", "hidden/bias", "out/kernel"} <= set(masks)
    want = nnx.merge(graph_def, state)(IMAGES, (channels * 1.0, hidden * 1.0))
    got = nnx.merge(graph_def, pruned)(IMAGES)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
