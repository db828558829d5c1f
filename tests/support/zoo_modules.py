"""The model zoo, other libraries: Flax NNX, Equinox, Haiku."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

from tests.support.zoo_case import Case, Model, conv, dense, loss, normal, rate, relu

IMAGES = normal(21, 2, 4, 4, 3)


class Stateful(nnx.Module):
    """Batch norm and dropout: a call changes the module."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (1, 1), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, use_fast_variance=False, rngs=rngs)
        self.mid = nnx.Linear(4, 6, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(1))
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        x = jnp.mean(nnx.relu(self.norm(self.conv(x))), axis=(1, 2))
        return self.head(self.drop(nnx.relu(self.mid(x))))


def stateful_loss(module, x):
    return loss(module(x))


def stateful_rates(module, x):
    module = nnx.clone(module)  # the oracle must not move the random counters
    h = nnx.relu(module.norm(module.conv(x)))
    pooled = jnp.mean(h, axis=(1, 2))
    mid = nnx.relu(module.mid(pooled))
    left = module.drop(mid)
    return {
        "conv/kernel": (rate(x), rate(h)),
        "mid/kernel": (rate(pooled), rate(mid)),  # before the dropout
        "head/kernel": (rate(left), rate(module.head(left))),
    }


class Layers(nnx.Module):
    """One layer used twice, known by its first name, and stacked layers in a scan."""

    def __init__(self):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def made(rngs):
            return nnx.Linear(4, 4, rngs=rngs)

        self.layers = made(nnx.Rngs(2))
        self.first = nnx.Linear(4, 4, rngs=nnx.Rngs(3))
        self.again = self.first

    def __call__(self, x):
        @nnx.remat
        def layer(layer, x):
            return jnp.tanh(layer(x))

        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def through(layers, x):
            return layer(layers, x)

        return through(self.layers, nnx.relu(self.again(nnx.relu(self.first(x)))))


def layers_rates(module, x):
    a = nnx.relu(module.first(x))
    b = nnx.relu(module.first(a))
    rows, h = [], b
    for w, bias in zip(module.layers.kernel, module.layers.bias, strict=True):
        y = jnp.tanh(h @ w + bias[None])
        rows.append((rate(h), rate(y)))
        h = y
    both = ((rate(x) + rate(a)) / 2, (rate(a) + rate(b)) / 2)
    stacked = tuple(jnp.stack(side) for side in zip(*rows, strict=True))
    return {"again/kernel": both, "layers/kernel": stacked}


class Net(eqx.Module):
    """Equinox: kernels as `weight @ x` under `vmap`, activation functions as leaves."""

    conv: eqx.nn.Conv1d
    norm: eqx.nn.LayerNorm
    mlp: eqx.nn.MLP

    def __init__(self, key):
        self.conv = eqx.nn.Conv1d(2, 3, 2, key=key)
        self.norm = eqx.nn.LayerNorm(3)
        self.mlp = eqx.nn.MLP(3, 2, 5, 1, key=key)

    def __call__(self, x):
        return self.mlp(self.norm(jnp.mean(relu(self.conv(x)), axis=1)))


def net_loss(net, x):
    return loss(jax.vmap(net)(x))


def net_rates(net, x):
    h = relu(jax.vmap(net.conv)(x))
    pooled = jax.vmap(net.norm)(jnp.mean(h, axis=2))
    first, last = net.mlp.layers
    mid = relu(pooled @ first.weight.T + first.bias[None])
    out = mid @ last.weight.T + last.bias[None]
    channels_last = jnp.moveaxis(x, 1, 2), jnp.moveaxis(h, 1, 2)
    return {
        "conv/weight": tuple(map(rate, channels_last)),
        "mlp/layers/0/weight": (rate(pooled), rate(mid)),
        "mlp/layers/1/weight": (rate(mid), rate(out)),
    }


def haiku_model():
    def forward(x):
        x = relu(hk.Conv2D(4, 1, with_bias=False)(x))
        x = relu(hk.Linear(5)(hk.Flatten()(x)))
        return hk.Linear(2)(x)

    net = hk.without_apply_rng(hk.transform(forward))
    params = net.init(jax.random.key(22), IMAGES)
    return Model(lambda params, x: loss(net.apply(params, x)), params, (IMAGES,))


def haiku_rates(p, x):
    a = relu(jnp.einsum("bhwi,io->bhwo", x, p["conv2_d"]["w"][0, 0]))
    flat = a.reshape(2, -1)
    b = relu(flat @ p["linear"]["w"])
    out = b @ p["linear_1"]["w"]
    return {
        "conv2_d/w": (rate(x), rate(a)),
        "linear/w": (rate(flat), rate(b)),
        "linear_1/w": (rate(b), rate(out)),
    }


ROWS = dense((1,), (0,))  # weight @ x

CASES = [
    Case(
        "nnx",
        lambda: Model(stateful_loss, Stateful(), (IMAGES,)),
        {"conv/kernel": conv(2), "mid/kernel": dense(), "head/kernel": dense()},
        stateful_rates,
        {"conv/kernel": "relu", "mid/kernel": "relu", "head/kernel": ""},
        {"mid/kernel": ("conv/kernel",), "head/kernel": ("mid/kernel",)},
        lenient=True,
    ),
    Case(
        "nnx_layers",
        lambda: Model(stateful_loss, Layers(), (normal(23, 6, 4),)),
        {"again/kernel": dense(), "layers/kernel": dense((1,), (2,), stack=(0,))},
        layers_rates,
        {"again/kernel": "relu", "layers/kernel": "tanh"},
        lenient=True,
    ),
    Case(
        "equinox",
        lambda: Model(net_loss, Net(jax.random.key(24)), (normal(25, 6, 2, 4),)),
        {
            "conv/weight": {"fan_in": (1,), "fan_out": (0,), "spatial": (2,)},
            "mlp/layers/0/weight": ROWS,
            "mlp/layers/1/weight": ROWS,
        },
        net_rates,
        {"conv/weight": "relu", "mlp/layers/0/weight": "relu"},
        {"mlp/layers/0/weight": ("conv/weight",)},
        lenient=True,
    ),
    Case(
        "haiku",
        haiku_model,
        {"conv2_d/w": conv(2), "linear/w": dense(), "linear_1/w": dense()},
        haiku_rates,
        {"conv2_d/w": "relu", "linear/w": "relu", "linear_1/w": ""},
        {"linear/w": ("conv2_d/w",)},
        lenient=True,
    ),
]
