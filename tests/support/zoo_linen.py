"""The model zoo, Flax linen: modules with norms, dropout, pooling, attention, scans."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.support.zoo_case import Case, Model, conv, dense, loss, normal, rate, relu

IMAGES = normal(11, 2, 6, 6, 3)
TOKENS = normal(12, 2, 5, 4)


def taken(module, x, *, mutable=(), returned=False):
    """A model of a module: its loss, and what it changes or returns as aux."""
    keys = {"params": jax.random.key(13), "dropout": jax.random.key(14)}
    variables = dict(jax.jit(module.init)(keys, x))
    params = variables.pop("params")

    def fn(params, x):
        every = {"params": params, **variables}
        rngs = {"dropout": jax.random.key(15)}
        if mutable:
            out, changed = module.apply(every, x, rngs=rngs, mutable=list(mutable))
            return loss(out), changed
        out = module.apply(every, x, rngs=rngs)
        return (loss(out), out) if returned else loss(out)

    return Model(fn, params, (x,), bool(mutable) or returned)


class Normed(nn.Module):
    """Convolutions with norms, pooling and flatten before dense layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False, use_fast_variance=False)(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.leaky_relu(nn.GroupNorm(num_groups=2)(nn.Conv(6, (2, 2))(x)))
        x = x.reshape(x.shape[0], -1)
        x = nn.silu(nn.LayerNorm()(nn.Dense(5)(x)))
        x = nn.Dropout(0.4, deterministic=False)(x)
        return nn.Dense(2)(x)


def standard(x, axes, eps):
    mean = jnp.mean(x, axes, keepdims=True)
    return (x - mean) / jnp.sqrt(jnp.var(x, axes, keepdims=True) + eps)


def window(x, w, size):
    """A convolution as a sum over its window, SAME padding."""
    before = (size - 1) // 2
    pads = (before, size - 1 - before)
    padded = jnp.pad(x, ((0, 0), pads, pads, (0, 0)))
    n = x.shape[1]
    return sum(
        jnp.einsum("bhwi,io->bhwo", padded[:, i : i + n, j : j + n], w[i, j])
        for i in range(size)
        for j in range(size)
    )


def normed_rates(p, x):
    a = relu(standard(window(x, p["Conv_0"]["kernel"], 3), (0, 1, 2), 1e-5))
    pooled = a.reshape(2, 3, 2, 3, 2, 4).max((2, 4))
    b = window(pooled, p["Conv_1"]["kernel"], 2)
    grouped = standard(b.reshape(2, 9, 2, 3), (1, 3), 1e-6).reshape(b.shape)
    b = jnp.where(grouped > 0, grouped, 0.01 * grouped)
    flat = b.reshape(2, -1)
    c = jax.nn.silu(standard(flat @ p["Dense_0"]["kernel"], (1,), 1e-6))
    key = _dropout_key()
    left = jnp.where(jax.random.bernoulli(key, 0.6, c.shape), c / 0.6, 0.0)
    return {
        "Conv_0/kernel": (rate(x), rate(a)),
        "Conv_1/kernel": (rate(pooled), rate(b)),
        "Dense_0/kernel": (rate(flat), rate(c)),  # before the dropout
        "Dense_1/kernel": (rate(left), rate(left @ p["Dense_1"]["kernel"])),
    }


class _Key(nn.Module):
    """The key that the dropout layer of `Normed` draws."""

    @nn.compact
    def __call__(self):
        return Asks(name="Dropout_0")()


class Asks(nn.Module):
    def __call__(self):
        return self.make_rng("dropout")


def _dropout_key():
    return _Key().apply({}, rngs={"dropout": jax.random.key(15)})


class General(nn.Module):
    """Several contracted and several output axes."""

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.DenseGeneral((3, 2), axis=(-2, -1), name="up")(x))
        return nn.DenseGeneral(2, axis=(-2, -1), name="down")(h)


def general_rates(p, x):
    h = relu(jnp.einsum("bij,ijkl->bkl", x, p["up"]["kernel"]))
    out = jnp.einsum("bkl,klo->bo", h, p["down"]["kernel"])
    return {
        "up/kernel": (rate(x, 2), rate(h, 2)),
        "down/kernel": (rate(h, 2), rate(out)),
    }


class Upward(nn.Module):
    """Transposed convolutions; the second stores its kernel the other way round."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.ConvTranspose(3, (2,), strides=(2,), name="a")(x))
        return nn.ConvTranspose(5, (2,), strides=(2,), transpose_kernel=True, name="b")(
            x
        )


def upward_rates(p, x):
    def grown(x, w):  # windows do not overlap: every input makes two outputs
        return jnp.einsum("bti,kio->btko", x, w).reshape(x.shape[0], -1, w.shape[2])

    h = relu(grown(x, p["a"]["kernel"]))
    flipped = jnp.flip(jnp.swapaxes(p["b"]["kernel"], 1, 2), 0)
    return {
        "a/kernel": (rate(x), rate(h)),
        "b/kernel": (rate(h), rate(grown(h, flipped))),
    }


class Block(nn.Module):
    """A Transformer block: attention and a feed-forward net on a residual stream."""

    @nn.compact
    def __call__(self, x, _=None):
        x = x + nn.MultiHeadDotProductAttention(2, name="attend")(nn.LayerNorm()(x))
        h = nn.gelu(nn.Dense(6, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(4, name="down")(h), None


class Transformer(nn.Module):
    """Three blocks, scanned and rematerialised, with stacked parameters on an axis."""

    axis: int = 0

    @nn.compact
    def __call__(self, x):
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        block = nn.remat(Block, policy=policy, prevent_cse=False)
        axes = {"params": self.axis}
        rngs = {"params": True, "dropout": True}
        scanned = nn.scan(block, variable_axes=axes, split_rngs=rngs, length=3)
        x, _ = scanned(name="layers")(x, None)
        return nn.Dense(2, name="head")(x)


def transformer_rates(p, x, axis=0):
    rows = []
    for i in range(3):
        layer = jax.tree.map(lambda v, i=i: jnp.take(v, i, axis), p["layers"])
        inside = _block_values(layer, x)
        rows.append({n: (rate(a, k), rate(b, m)) for n, (a, k, b, m) in inside.items()})
        x, _ = Block().apply({"params": layer}, x)
    names = {f"layers/{n}/kernel": n for n in rows[0]}
    stacked = {
        path: tuple(jnp.stack([row[n][side] for row in rows]) for side in (0, 1))
        for path, n in names.items()
    }
    head = x @ p["head"]["kernel"] + p["head"]["bias"][None, None]
    return stacked | {"head/kernel": (rate(x), rate(head))}


def _block_values(p, x):
    """Inputs and outputs of the kernels of a block, with their numbers of unit axes."""
    attend = p["attend"]
    y = standard(x, (2,), 1e-6)
    q, k, v = (
        jnp.einsum("btd,dhk->bthk", y, attend[n]["kernel"])
        for n in ("query", "key", "value")
    )
    scores = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k) / jnp.sqrt(2.0))
    mixed = jnp.einsum("bhts,bshk->bthk", scores, v)
    out = jnp.einsum("bthk,hkd->btd", mixed, attend["out"]["kernel"])
    z = standard(x + out, (2,), 1e-6)
    h = jax.nn.gelu(z @ p["up"]["kernel"])
    values = {"query": q, "key": k, "value": v}
    found = {f"attend/{n}": (y, 1, u, 2) for n, u in values.items()}
    found["attend/out"] = (mixed, 2, out, 1)
    found["up"] = (z, 1, h, 1)
    found["down"] = (h, 1, h @ p["down"]["kernel"], 1)
    return found


def _transformer_layout(axis):
    def at(fan_in, fan_out):  # axes of one layer's kernel, shifted past the stack axis
        def shift(axes):
            return tuple(a + (a >= axis) for a in axes)

        return dense(shift(fan_in), shift(fan_out), stack=(axis,))

    names = [f"layers/attend/{n}/kernel" for n in ("query", "key", "value")]
    return {n: at((0,), (1, 2)) for n in names} | {
        "layers/attend/out/kernel": at((0, 1), (2,)),
        "layers/up/kernel": at((0,), (1,)),
        "layers/down/kernel": at((0,), (1,)),
        "head/kernel": dense(),
    }


class TiedHead(nn.Module):
    """An embedding that is also the output layer."""

    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(7, 4, name="embed")
        h = nn.relu(nn.Dense(4, use_bias=False, name="mix")(table(tokens)))
        return table.attend(h)


def tied_head_rates(p, tokens):
    table = p["embed"]["embedding"]
    x = table[tokens]
    h = relu(x @ p["mix"]["kernel"])
    return {
        "mix/kernel": (rate(x), rate(h)),
        "embed/embedding": (rate(h), rate(h @ table.T)),
    }


CASES = [
    Case(
        "linen_norms",
        lambda: taken(Normed(), IMAGES, mutable=("batch_stats",)),
        {
            "Conv_0/kernel": conv(2),
            "Conv_1/kernel": conv(2),
            "Dense_0/kernel": dense(),
            "Dense_1/kernel": dense(),
        },
        normed_rates,
        {"Conv_0/kernel": "relu", "Conv_1/kernel": "leaky_relu", "Dense_1/kernel": ""},
        {"Conv_1/kernel": ("Conv_0/kernel",), "Dense_0/kernel": ("Conv_1/kernel",)},
        lenient=True,
    ),
    Case(
        "linen_general",
        lambda: taken(General(), normal(16, 6, 4, 3)),
        {
            "up/kernel": dense((0, 1), (2, 3)),
            "down/kernel": dense((0, 1), (2,)),
        },
        general_rates,
        {"up/kernel": "relu"},
        {"down/kernel": ("up/kernel",)},
        lenient=True,
    ),
    Case(
        "linen_transposed_conv",
        lambda: taken(Upward(), normal(17, 2, 3, 4)),
        {
            "a/kernel": conv(1),
            "b/kernel": {"fan_in": (2,), "fan_out": (1,), "spatial": (0,)},
        },
        upward_rates,
        lenient=True,
    ),
    *[
        Case(
            f"linen_transformer_axis{axis}",
            lambda axis=axis: taken(Transformer(axis), TOKENS),
            _transformer_layout(axis),
            lambda p, x, axis=axis: transformer_rates(p, x, axis),
            {"layers/up/kernel": "gelu", "layers/down/kernel": ""},
            {
                "layers/attend/out/kernel": ("layers/attend/value/kernel",),
                "layers/down/kernel": ("layers/up/kernel",),
                "layers/up/kernel": (),
            },
            lenient=True,
        )
        for axis in (0, 1)
    ],
    Case(
        "linen_tied_head",
        lambda: taken(TiedHead(), jnp.array([[1, 2, 3], [4, 4, 0]]), returned=True),
        {"mix/kernel": dense(), "embed/embedding": dense((1,), (0,))},
        tied_head_rates,
        {"mix/kernel": "relu"},
        lenient=True,
    ),
]
