"""Convolutional networks: classifiers, autoencoders, diffusion, sound."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import gelu, relu, sigmoid, silu

from tests.support.networks.network import (
    Hidden,
    Network,
    batch_norm,
    conv,
    dense,
    group_norm,
    initial,
    layer_norm,
    normal,
    result_of,
    weights,
)

IMAGES = normal(0, 2, 6, 4, 3)


def norms(seed, **sizes):
    """Scale and bias by name."""
    shapes = {f"{n}.{k}": (s,) for n, s in sizes.items() for k in ("scale", "bias")}
    flat = weights(seed, **shapes)
    return {n: {k: flat[f"{n}.{k}"] for k in ("scale", "bias")} for n in sizes}


def values(**named):
    """Hidden units after one nonlinearity, by name of the nonlinearity and kernel."""
    return {k: Hidden(v, after) for after, d in named.items() for k, v in d.items()}


# Classifiers -----------------------------------------------------------------------
def convnext():
    """A depthwise convolution, a norm, an MLP over channels, a scale, a sum.

    A unit of the depthwise convolution has a single edge.
    """

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(8, (2, 2), 2, padding="VALID", name="stem")(x)
            y = nn.Conv(8, (3, 3), feature_group_count=8, name="depth")(x)
            y = gelu(nn.Dense(12, name="up")(nn.LayerNorm(name="norm")(y)))
            scale = self.param("scale", nn.initializers.ones, (8,))
            x = x + scale * nn.Dense(8, name="down")(y)
            return nn.Dense(3, name="head")(x.mean((1, 2)))

    net = Net()

    def hand(variables, x):
        p = variables["params"]
        x = conv(x, p["stem"]["kernel"], 2) + p["stem"]["bias"]
        y = conv(x, p["depth"]["kernel"], groups=8) + p["depth"]["bias"]
        h = gelu(dense(p["up"], layer_norm(y, p["norm"])))
        x = x + p["scale"] * dense(p["down"], h)
        return dense(p["head"], x.mean((1, 2))), values(gelu={"params/up/kernel": h})

    params = initial(net, IMAGES)
    return Network(net.apply, params, (IMAGES,), hand, ("params/up/kernel",))


def mbconv():
    """EfficientNet: expand, a depthwise convolution, squeeze and excite, project.

    The gate of a channel is a unit, and the gated channel its value.
    """
    shapes = {
        "expand": (1, 1, 3, 8),
        "depth": (3, 3, 1, 8),
        "squeeze": (8, 2),
        "excite": (2, 8),
        "project": (1, 1, 8, 3),
        "head": (3, 2),
    }
    params = weights(1, **shapes) | norms(2, a=8, b=8, c=3)

    def parts(p, x):
        expand = silu(batch_norm(conv(x, p["expand"]), p["a"]))
        depth = silu(batch_norm(conv(expand, p["depth"], groups=8), p["b"]))
        squeeze = silu(depth.mean((1, 2)) @ p["squeeze"])
        excite = depth * sigmoid(squeeze @ p["excite"])[:, None, None]
        y = x + batch_norm(conv(excite, p["project"]), p["c"])
        seen = {"expand": expand, "depth": depth, "squeeze": squeeze}
        seen = values(silu=seen) | {"excite": Hidden(excite, "silu product")}
        return y.mean((1, 2)) @ p["head"], seen

    names = ("expand", "squeeze", "excite")
    return Network(result_of(parts), params, (IMAGES,), parts, names)


def densenet():
    """Every layer reads, after a norm and relu of its own, all layers before it."""
    shapes = {
        "stem": (3, 3, 3, 4),
        "a.one": (1, 1, 4, 6),
        "a.two": (3, 3, 6, 5),
        "b.one": (1, 1, 9, 6),
        "b.two": (3, 3, 6, 5),
        "head": (14, 2),
    }
    sizes = {"a.0": 4, "a.1": 6, "b.0": 9, "b.1": 6, "end": 14}
    params = weights(3, **shapes) | norms(4, **sizes)

    def parts(p, x):
        x, seen = conv(x, p["stem"]), {}
        for layer in "ab":
            y = conv(relu(batch_norm(x, p[f"{layer}.0"])), p[f"{layer}.one"])
            seen[f"{layer}.one"] = y = relu(batch_norm(y, p[f"{layer}.1"]))
            x = jnp.concatenate([x, conv(y, p[f"{layer}.two"])], -1)
        x = relu(batch_norm(x, p["end"])).mean((1, 2))
        return x @ p["head"], values(relu=seen)

    names = ("a.one", "b.one")
    return Network(result_of(parts), params, (IMAGES,), parts, names)


def preactivated():
    """ResNet v2: norm and relu in front of every convolution; the sum is left."""
    shapes = {
        "stem": (3, 3, 3, 5),
        "one": (3, 3, 5, 6),
        "two": (3, 3, 6, 8),
        "short": (1, 1, 5, 8),
        "head": (8, 2),
    }
    params = weights(5, **shapes) | norms(6, a=5, b=6, c=8)

    def parts(p, x):
        x = conv(x, p["stem"])
        stem = relu(batch_norm(x, p["a"]))
        one = relu(batch_norm(conv(stem, p["one"], 2), p["b"]))
        x = conv(stem, p["short"], 2) + conv(one, p["two"])
        last = relu(batch_norm(x, p["c"]))
        seen = {"stem": stem, "one": one, "short": last, "two": last}
        return last.mean((1, 2)) @ p["head"], values(relu=seen)

    names = ("stem", "one", "short", "two")
    return Network(result_of(parts), params, (IMAGES,), parts, names)


# Autoencoders ----------------------------------------------------------------------
def vector_quantised():
    """VQ-VAE: strided convolutions, residual layers, the nearest row of a codebook.

    A residual layer reads the sum after relu; what it adds has no nonlinearity of its
    own, but in the last layer.
    """
    shapes = {
        "one": (4, 4, 3, 5),
        "two": (3, 3, 5, 6),
        "a.wide": (3, 3, 6, 4),
        "a.back": (1, 1, 4, 6),
        "b.wide": (3, 3, 6, 4),
        "b.back": (1, 1, 4, 6),
        "before": (1, 1, 6, 3),
        "codes": (3, 7),
        "decode": (3, 3, 3, 5),
        "out": (3, 3, 5, 3),
    }
    params = weights(7, **shapes)

    def parts(p, x):
        seen = {"one": relu(conv(x, p["one"], 2))}
        h = conv(seen["one"], p["two"])
        for layer in "ab":
            seen[f"{layer}.wide"] = relu(conv(relu(h), p[f"{layer}.wide"]))
            h = h + conv(seen[f"{layer}.wide"], p[f"{layer}.back"])
        seen["b.back"] = relu(h)
        z = conv(seen["b.back"], p["before"])
        near = (z**2).sum(-1, keepdims=True) - 2 * z @ p["codes"]
        near = (near + (p["codes"] ** 2).sum(0)).argmin(-1)
        code = p["codes"].T[near]
        loss = ((lax.stop_gradient(code) - z) ** 2).mean()
        seen["decode"] = relu(conv(z + lax.stop_gradient(code - z), p["decode"]))
        return (conv(seen["decode"], p["out"]), loss), values(relu=seen)

    names = ("one", "a.wide", "b.wide", "b.back", "decode")
    return Network(result_of(parts), params, (IMAGES,), parts, names)


def variational():
    """VAE: mean and deviation from one layer, a random code, a decoder."""
    params = weights(
        8, encode=(6, 7), mean=(7, 3), log=(7, 3), decode=(3, 8), out=(8, 6)
    )

    def parts(p, x, key):
        encode = relu(x @ p["encode"])
        mean, log = encode @ p["mean"], encode @ p["log"]
        z = mean + jnp.exp(0.5 * log) * jax.random.normal(key, mean.shape)
        decode = relu(z @ p["decode"])
        apart = -0.5 * (1 + log - mean**2 - jnp.exp(log)).sum()
        out = sigmoid(decode @ p["out"])
        return (out, apart), values(relu={"encode": encode, "decode": decode})

    args = normal(9, 5, 6), jax.random.key(1)
    return Network(result_of(parts), params, args, parts, ("encode", "decode"))


# Diffusion -------------------------------------------------------------------------
def diffusion():
    """A U-Net of one level: noise level by FiLM, attention, a connection across.

    Three kernels make the units of the modulated convolution: its own, and those of the
    scale and the shift.
    """
    shapes = {
        "time": (8, 10),
        "time2": (10, 10),
        "stem": (3, 3, 3, 8),
        "shift": (10, 8),
        "scale": (10, 8),
        "one": (3, 3, 8, 8),
        "two": (3, 3, 8, 8),
        "q": (8, 8),
        "k": (8, 8),
        "v": (8, 8),
        "o": (8, 8),
        "down": (3, 3, 8, 8),
        "up": (3, 3, 8, 8),
        "join": (3, 3, 16, 8),
        "out": (3, 3, 8, 3),
    }
    params = weights(10, **shapes) | norms(11, a=8, b=8, c=8, d=8, e=8)

    def parts(p, x, t):
        waves = t[:, None] * jnp.exp(-jnp.arange(4.0))
        waves = jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], -1)
        time = silu(waves @ p["time"])
        time2 = silu(time @ p["time2"])
        stem = conv(x, p["stem"])
        y = conv(silu(group_norm(stem, 2, p["a"])), p["one"])
        scale = (time2 @ p["scale"])[:, None, None]
        shift = (time2 @ p["shift"])[:, None, None]
        one = silu(group_norm(y, 2, p["b"]) * (1 + scale) + shift)
        h = stem + conv(one, p["two"])
        flat = group_norm(h, 2, p["c"]).reshape(2, 24, 8)
        q, k, v = (flat @ p[n] for n in "qkv")
        shares = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k) / 8**0.5)
        h = h + (jnp.einsum("bqk,bkd->bqd", shares, v) @ p["o"]).reshape(h.shape)
        down = silu(group_norm(conv(h, p["down"], 2), 2, p["d"]))
        wide = jax.image.resize(down, h.shape, "nearest")
        up = conv(wide, p["up"])
        join = silu(
            group_norm(conv(jnp.concatenate([h, up], -1), p["join"]), 2, p["e"])
        )
        seen = {"time": time, "time2": time2, "down": down, "join": join}
        seen |= dict.fromkeys(("one", "scale", "shift"), one)
        return conv(join, p["out"]), values(silu=seen)

    names = ("time", "time2", "one", "scale", "shift", "down", "join")
    args = IMAGES, jnp.array([0.3, 0.8])
    return Network(result_of(parts), params, args, parts, names)


# Sound -----------------------------------------------------------------------------
def wavenet():
    """Causal convolutions with holes, a gate, sums over all layers."""
    shapes = {"stem": (1, 3, 6), "last": (7, 5), "out": (5, 2)}
    for i in "ab":
        shapes |= {f"{i}.filter": (2, 6, 8), f"{i}.gate": (2, 6, 8)}
        shapes |= {f"{i}.back": (1, 8, 6), f"{i}.skip": (1, 8, 7)}
    params = weights(12, **shapes)

    def causal(x, w, holes):
        return lax.conv_general_dilated(
            x,
            w,
            (1,),
            [(holes, 0)],
            rhs_dilation=(holes,),
            dimension_numbers=("NHC", "HIO", "NHC"),
        )

    def parts(p, x):
        h, total, seen = conv(x, p["stem"]), 0.0, {}
        for i, holes in (("a", 1), ("b", 2)):
            gate = sigmoid(causal(h, p[f"{i}.gate"], holes))
            y = jnp.tanh(causal(h, p[f"{i}.filter"], holes)) * gate
            hidden = Hidden(y, "tanh product")
            seen |= {f"{i}.filter": hidden, f"{i}.gate": hidden}
            total = total + conv(y, p[f"{i}.skip"])
            h = h + conv(y, p[f"{i}.back"])
        summed = relu(total)
        last = relu(summed @ p["last"])
        seen |= values(relu={"a.skip": summed, "b.skip": summed, "last": last})
        return last @ p["out"], seen

    names = [f"{i}.{k}" for i in "ab" for k in ("filter", "gate", "skip")]
    return Network(
        result_of(parts),
        params,
        (normal(13, 2, 7, 3),),
        parts,
        (*names, "last"),
    )


NETWORKS = {
    "ConvNeXt": convnext,
    "MBConv (EfficientNet)": mbconv,
    "DenseNet": densenet,
    "ResNet v2": preactivated,
    "VQ-VAE": vector_quantised,
    "VAE": variational,
    "diffusion U-Net": diffusion,
    "WaveNet": wavenet,
}
