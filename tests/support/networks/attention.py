"""Transformers: for images, text and sound, as loops and scanned over layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import gelu, relu, silu

from tests.support.networks.network import (
    Hidden,
    Network,
    attention,
    conv,
    dense,
    initial,
    layer_norm,
    normal,
    result_of,
    rms_norm,
    weights,
)

TOKENS = np.random.default_rng(0).integers(0, 11, (2, 5))


def heads(p, x):
    """Multi-head attention with the parameters of linen's module."""
    q, k, v = (dense(p[name], x) for name in ("query", "key", "value"))
    mixed = attention(q, k, v)
    return jnp.einsum("...hd,hdo->...o", mixed, p["out"]["kernel"]) + p["out"]["bias"]


class Block(nn.Module):
    """Attention and an MLP, each after a norm and added to the stream."""

    hidden: int = 10

    @nn.compact
    def __call__(self, x, _=None):
        y = nn.MultiHeadDotProductAttention(2, name="attend")(nn.LayerNorm(name="a")(x))
        x = x + y
        y = gelu(nn.Dense(self.hidden, name="up")(nn.LayerNorm(name="b")(x)))
        return x + nn.Dense(x.shape[-1], name="down")(y), None


def block(p, x):
    """What `Block` computes, and the value of its hidden units."""
    x = x + heads(p["attend"], layer_norm(x, p["a"]))
    y = gelu(dense(p["up"], layer_norm(x, p["b"])))
    return x + dense(p["down"], y), y


# Images ----------------------------------------------------------------------------
def scanned_vision():
    """ViT: patches, positions, scanned blocks, attention to a learned probe (MAP head).

    The probe is a parameter, so the kernel of the query multiplies no data.
    """

    class Net(nn.Module):
        @nn.compact
        def __call__(self, image):
            x = nn.Conv(8, (2, 2), 2, padding="VALID", name="patches")(image)
            x = x.reshape(image.shape[0], -1, 8)
            x = x + self.param("positions", nn.initializers.zeros, (1, 6, 8))
            layers = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            x, _ = layers(name="layers")(x, None)
            probe = self.param("probe", nn.initializers.zeros, (1, 1, 8))
            probe = jnp.tile(probe, (image.shape[0], 1, 1))
            x = nn.MultiHeadDotProductAttention(2, name="pool")(probe, x)
            y = nn.LayerNorm(name="norm")(x)
            x = x + nn.Dense(8, name="down")(gelu(nn.Dense(9, name="up")(y)))
            return nn.Dense(4, name="head")(x[:, 0])

    net, images = Net(), normal(1, 2, 4, 6, 3)
    params = initial(net, images)

    def hand(variables, image):
        p = variables["params"]
        x = conv(image, p["patches"]["kernel"], 2, padding="VALID")
        x = (x + p["patches"]["bias"]).reshape(image.shape[0], -1, 8) + p["positions"]
        seen = []
        for i in range(3):
            x, y = block(jax.tree.map(lambda a, i=i: a[i], p["layers"]), x)
            seen.append(y)
        q = dense(p["pool"]["query"], jnp.tile(p["probe"], (image.shape[0], 1, 1)))
        k, v = (dense(p["pool"][name], x) for name in ("key", "value"))
        out = p["pool"]["out"]
        x = jnp.einsum("bqhd,hdo->bqo", attention(q, k, v), out["kernel"]) + out["bias"]
        y = gelu(dense(p["up"], layer_norm(x, p["norm"])))
        x = x + dense(p["down"], y)
        return dense(p["head"], x[:, 0]), {
            "params/layers/up/kernel": Hidden(jnp.stack(seen), "gelu"),
            "params/up/kernel": Hidden(y, "gelu"),
        }

    names = ("params/layers/up/kernel", "params/up/kernel")
    probe = {"params/pool/query/kernel": "multiplies another parameter"}
    return Network(net.apply, params, (images,), hand, names, probe)


def mixer():
    """MLP-Mixer: one MLP over positions, one over channels."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(8, name="embed")(x)
            y = jnp.swapaxes(nn.LayerNorm(name="a")(x), 1, 2)
            y = nn.Dense(6, name="down")(gelu(nn.Dense(7, name="positions")(y)))
            x = x + jnp.swapaxes(y, 1, 2)
            y = gelu(nn.Dense(10, name="channels")(nn.LayerNorm(name="b")(x)))
            x = x + nn.Dense(8, name="back")(y)
            return nn.Dense(3, name="head")(nn.LayerNorm(name="c")(x).mean(1))

    net, x = Net(), normal(2, 4, 6, 5)
    params = initial(net, x)

    def hand(variables, x):
        p = variables["params"]
        x = dense(p["embed"], x)
        y = jnp.swapaxes(layer_norm(x, p["a"]), 1, 2)
        positions = gelu(dense(p["positions"], y))
        x = x + jnp.swapaxes(dense(p["down"], positions), 1, 2)
        channels = gelu(dense(p["channels"], layer_norm(x, p["b"])))
        x = x + dense(p["back"], channels)
        return dense(p["head"], layer_norm(x, p["c"]).mean(1)), {
            "params/positions/kernel": Hidden(positions, "gelu"),
            "params/channels/kernel": Hidden(channels, "gelu"),
        }

    names = ("params/positions/kernel", "params/channels/kernel")
    return Network(net.apply, params, (x,), hand, names)


def perceiver():
    """Learned latents attend to the input; their own stream is a parameter at first."""
    params = weights(
        3,
        latents=(3, 8),
        q=(8, 6),
        k=(5, 6),
        v=(5, 6),
        o=(6, 8),
        up=(8, 9),
        down=(9, 8),
        head=(8, 2),
    )

    def parts(p, x):
        q = p["latents"] @ p["q"]
        scores = jnp.einsum("qd,bkd->bqk", q, x @ p["k"]) / 6**0.5
        z = (
            p["latents"]
            + jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(scores), x @ p["v"]) @ p["o"]
        )
        h = relu(layer_norm(z) @ p["up"])
        return (z + h @ p["down"]).mean(1) @ p["head"], {"up": Hidden(h, "relu")}

    refused = {"q": "multiplies another parameter", "latents": ""}
    return Network(
        result_of(parts),
        params,
        (normal(4, 4, 7, 5),),
        parts,
        ("up",),
        refused,
    )


# Sound -----------------------------------------------------------------------------
def whisper():
    """Two convolutions over time, fixed positions, one block of the encoder."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = gelu(nn.Conv(8, (3,), name="one")(x), approximate=False)
            x = gelu(nn.Conv(8, (3,), 2, name="two")(x), approximate=False)
            x = x + POSITIONS
            x, _ = Block(name="block")(x)
            return nn.Dense(2, name="out")(nn.LayerNorm(name="norm")(x))

    net, x = Net(), normal(5, 2, 8, 5)
    params = initial(net, x)

    def hand(variables, x):
        p = variables["params"]
        one = gelu(conv(x, p["one"]["kernel"]) + p["one"]["bias"], approximate=False)
        two = conv(one, p["two"]["kernel"], 2) + p["two"]["bias"]
        two = gelu(two, approximate=False)
        x, y = block(p["block"], two + POSITIONS)
        return dense(p["out"], layer_norm(x, p["norm"])), {
            "params/one/kernel": Hidden(one, "gelu"),
            "params/two/kernel": Hidden(two, "gelu"),
            "params/block/up/kernel": Hidden(y, "gelu"),
        }

    names = [f"params/{n}/kernel" for n in ("one", "two", "block/up")]
    return Network(net.apply, params, (x,), hand, tuple(names))


POSITIONS = np.sin(np.arange(4)[:, None] * np.arange(1, 9)).astype(np.float32)


# Text ------------------------------------------------------------------------------
def llama():
    """Rotated queries and keys, fewer heads of keys, SwiGLU, one shared table."""
    shapes = {
        "table": (11, 8),
        "q": (8, 4, 6),
        "k": (8, 2, 6),
        "v": (8, 2, 6),
        "o": (4, 6, 8),
        "gate": (8, 12),
        "up": (8, 12),
        "down": (12, 8),
    }
    params = weights(6, **shapes, a=(8,), b=(8,), c=(8,))

    def rotated(x):
        angle = jnp.arange(x.shape[1])[:, None, None] * 0.1 ** jnp.arange(3)
        one, two = jnp.split(x, 2, -1)
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], -1)

    def parts(p, tokens):
        x = p["table"][tokens]
        y = rms_norm(x, p["a"])
        q, k, v = (jnp.einsum("bti,ihd->bthd", y, p[n]) for n in "qkv")
        q, k = rotated(q), jnp.repeat(rotated(k), 2, 2)
        causal = jnp.tril(jnp.ones((5, 5), bool))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 6**0.5
        shares = jax.nn.softmax(jnp.where(causal, scores, -1e9))
        y = jnp.einsum("bhqk,bkhd->bqhd", shares, jnp.repeat(v, 2, 2))
        x = x + jnp.einsum("bqhd,hdo->bqo", y, p["o"])
        y = rms_norm(x, p["b"])
        h = silu(y @ p["gate"]) * (y @ p["up"])
        logits = rms_norm(x + h @ p["down"], p["c"]) @ p["table"].T
        hidden = Hidden(h, "silu product")
        return logits, {"gate": hidden, "up": hidden}

    return Network(result_of(parts), params, (TOKENS,), parts, ("gate", "up"))


def t5():
    """Biases of relative positions, no scale of scores, a gated MLP."""
    shapes = {
        "table": (11, 8),
        "bias": (4, 2),
        "q": (8, 2, 5),
        "k": (8, 2, 5),
        "v": (8, 2, 5),
        "o": (2, 5, 8),
        "wi_0": (8, 9),
        "wi_1": (8, 9),
        "wo": (9, 8),
    }
    params = weights(7, **shapes, a=(8,), b=(8,))

    def parts(p, tokens):
        x = p["table"][tokens]
        apart = jnp.clip(jnp.arange(5)[None] - jnp.arange(5)[:, None] + 2, 0, 3)
        bias = jnp.moveaxis(p["bias"][apart], -1, 0)
        y = rms_norm(x, p["a"])
        q, k, v = (jnp.einsum("bti,ihd->bthd", y, p[n]) for n in "qkv")
        x = x + jnp.einsum("bqhd,hdo->bqo", attention(q, k, v, bias, 1.0), p["o"])
        y = rms_norm(x, p["b"])
        h = gelu(y @ p["wi_0"]) * (y @ p["wi_1"])
        logits = (x + h @ p["wo"]) @ p["table"].T * 8**-0.5
        hidden = Hidden(h, "gelu product")
        return logits, {"wi_0": hidden, "wi_1": hidden}

    return Network(
        result_of(parts),
        params,
        (TOKENS,),
        parts,
        ("wi_0", "wi_1"),
        {"bias": "read by index"},
    )


def bert():
    """Norms after the sums; embeddings of tokens, positions and segments are added."""
    shapes = {
        "table": (11, 8),
        "positions": (5, 8),
        "segments": (2, 8),
        "qkv": (8, 3, 2, 4),
        "o": (2, 4, 8),
        "up": (8, 9),
        "down": (9, 8),
        "pool": (8, 7),
        "head": (7, 2),
    }
    params = weights(8, **shapes, b=(9,))

    def parts(p, tokens):
        x = p["table"][tokens] + p["positions"] + p["segments"][tokens % 2]
        x = layer_norm(x)
        q, k, v = jnp.moveaxis(jnp.einsum("bti,ishd->btshd", x, p["qkv"]), 2, 0)
        x = layer_norm(x + jnp.einsum("bqhd,hdo->bqo", attention(q, k, v), p["o"]))
        h = gelu(x @ p["up"] + p["b"], approximate=False)
        x = layer_norm(x + h @ p["down"])
        pooled = jnp.tanh(x[:, 0] @ p["pool"])
        values = {"up": Hidden(h, "gelu"), "pool": Hidden(pooled, "tanh")}
        return pooled @ p["head"], values

    return Network(result_of(parts), params, (TOKENS,), parts, ("up", "pool"))


def transformer_xl():
    """Attention to a memory, with relative positions that are multiplied by a kernel.

    The sinusoids are constants, so that kernel multiplies no data.
    """
    shapes = {
        "q": (8, 2, 4),
        "k": (8, 2, 4),
        "v": (8, 2, 4),
        "r": (8, 2, 4),
        "o": (2, 4, 8),
        "up": (8, 9),
        "down": (9, 8),
        "head": (8, 3),
    }
    params = weights(9, **shapes, u=(2, 4), w=(2, 4))
    sinusoids = np.sin(np.arange(7)[:, None] * np.arange(1, 9)).astype(np.float32)

    def parts(p, x, memory):
        everything = jnp.concatenate([memory, x], 1)
        q = jnp.einsum("bti,ihd->bthd", x, p["q"])
        k, v = (jnp.einsum("bti,ihd->bthd", everything, p[n]) for n in "kv")
        r = jnp.einsum("ti,ihd->thd", sinusoids, p["r"])
        content = jnp.einsum("bqhd,bkhd->bhqk", q + p["u"], k)
        place = jnp.einsum("bqhd,khd->bhqk", q + p["w"], r)
        shifted = jnp.pad(place, ((0, 0), (0, 0), (0, 0), (1, 0)))
        shifted = shifted.reshape(2, 2, 8, 4)[:, :, 1:].reshape(2, 2, 4, 7)
        shares = jax.nn.softmax((content + shifted) / 2)
        y = jnp.einsum("bhqk,bkhd->bqhd", shares, v)
        x = layer_norm(x + jnp.einsum("bqhd,hdo->bqo", y, p["o"]))
        h = relu(x @ p["up"])
        x = layer_norm(x + h @ p["down"])
        return (x @ p["head"], lax.stop_gradient(x)), {"up": Hidden(h, "relu")}

    args = normal(10, 2, 4, 8), normal(11, 2, 3, 8)
    return Network(
        result_of(parts),
        params,
        args,
        parts,
        ("up",),
        {"r": "constant"},
    )


def mixture_of_experts():
    """A router sends every token to one of the experts, with room for two each."""
    params = weights(12, router=(6, 4), up=(4, 6, 9), down=(4, 9, 6), head=(6, 2))

    def parts(p, x):
        shares = jax.nn.softmax(x @ p["router"])
        chosen = jax.nn.one_hot(shares.argmax(-1), 4)
        place = jnp.cumsum(chosen, 0) * chosen - 1
        sent = (place[..., None] == jnp.arange(2.0)) * chosen[..., None]
        tokens = jnp.einsum("tec,ti->eci", sent, x)
        h = gelu(jnp.einsum("eci,eif->ecf", tokens, p["up"]))
        back = jnp.einsum("ecf,efi->eci", h, p["down"])
        y = jnp.einsum("tec,te,eci->ti", sent, shares, back)
        return (x + y) @ p["head"], {"up": Hidden(h, "gelu")}

    return Network(result_of(parts), params, (normal(13, 8, 6),), parts, ("up",))


NETWORKS = {
    "ViT, scanned, with a MAP head": scanned_vision,
    "MLP-Mixer": mixer,
    "Perceiver": perceiver,
    "Whisper's encoder": whisper,
    "Llama": llama,
    "T5": t5,
    "BERT": bert,
    "Transformer-XL": transformer_xl,
    "mixture of experts by einsum": mixture_of_experts,
}
