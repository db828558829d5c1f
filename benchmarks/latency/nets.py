"""Forward passes of four models, pure functions of `(params, inputs)`.

Every shape comes from the parameters, so the same function runs on smaller ones.

    mlp       x = relu(x @ w + b), last layer without relu; x is (batch, features)
    resnet    basic blocks, the first of a later stage with stride 2 and a projection
              beside; norms with running statistics; images are (batch, side, side, 3)
    unet      two convolutions a level, maxima down, nearest neighbours and a
              concatenation up again; scores for every pixel
    gpt       RMSNorm, grouped-query attention, gated MLP; tokens are (batch, length)

`decode` is one token of the same GPT behind a cache: per layer keys and values of shape
(batch, groups, length, units). It returns scores and the new token's own keys and
values, one row a layer that the caller writes into the cache, so no copy of a cache is
measured. References: He et al., arXiv 1512.03385; Ronneberger et al., arXiv 1505.04597;
Ainslie et al., arXiv 2305.13245.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

EPSILON = 1e-5


def beside(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A vector of the last axis, as an array of the same rank."""
    return vector[(None,) * (x.ndim - 1)]


# MLP -----------------------------------------------------------------------------
def mlp(params: Any, x: jax.Array) -> jax.Array:
    """Scores, (batch, classes)."""
    *hidden, last = (params[name] for name in sorted(params))
    for layer in hidden:
        h = x @ layer["kernel"]
        x = jax.nn.relu(h + beside(layer["bias"], h))
    h = x @ last["kernel"]
    return h + beside(last["bias"], h)


# Convolutions --------------------------------------------------------------------
def conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """A convolution of (batch, height, width, units)."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=numbers
    )


def conv_norm(x: jax.Array, p: Any, stride: int = 1) -> jax.Array:
    """A convolution and a batch norm with running statistics."""
    x = conv(x, p["kernel"], stride)
    scale = p["scale"] * lax.rsqrt(p["var"] + EPSILON)
    return x * beside(scale, x) + beside(p["bias"] - p["mean"] * scale, x)


def resnet(params: Any, x: jax.Array) -> jax.Array:
    """Scores, (batch, classes)."""
    x = jax.nn.relu(conv_norm(x, params["stem"]))
    for name in sorted(n for n in params if n.startswith("block")):
        block = params[name]
        stride = 2 if "skip" in block else 1
        h = jax.nn.relu(conv_norm(x, block["a"], stride))
        h = conv_norm(h, block["b"])
        skip = conv_norm(x, block["skip"], stride) if "skip" in block else x
        x = jax.nn.relu(h + skip)
    h = jnp.mean(x, axis=(1, 2)) @ params["head"]["kernel"]
    return h + beside(params["head"]["bias"], h)


def double(x: jax.Array, p: Any) -> jax.Array:
    """Two convolutions with norms."""
    x = jax.nn.relu(conv_norm(x, p["a"]))
    return jax.nn.relu(conv_norm(x, p["b"]))


def unet(params: Any, x: jax.Array) -> jax.Array:
    """Scores of the classes at every pixel."""
    levels = sum(name.startswith("down") for name in params)
    window, seen = (1, 2, 2, 1), []
    for level in range(levels):
        if level:
            x = lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")
        x = double(x, params[f"down_{level}"])
        seen.append(x)
    for level in reversed(range(levels - 1)):
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        x = jnp.concatenate([seen[level], x], axis=-1)
        x = double(x, params[f"up_{level}"])
    return conv(x, params["head"])


# GPT -----------------------------------------------------------------------------
def rms(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Root mean square norm over the last axis."""
    size = lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON)
    return x * size * beside(scale, x)


def project(p: Any, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, and keys and values as a cache keeps them."""
    q = jnp.einsum("btd,dgnk->bgntk", x, p["q"]) * p["q"].shape[-1] ** -0.5
    k = jnp.einsum("btd,dgk->bgtk", x, p["k"])
    return q, k, jnp.einsum("btd,dgk->bgtk", x, p["v"])


def gated(p: Any, x: jax.Array) -> jax.Array:
    """The MLP of a layer."""
    return (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]


def finish(params: Any, x: jax.Array) -> jax.Array:
    """Scores of the next token."""
    return rms(x, params["norm"]) @ params["head"]


def layers(params: Any) -> list[Any]:
    """The layers in order."""
    return [params["layers"][name] for name in sorted(params["layers"])]


def prefill(params: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
    """Scores at all positions, and the cache."""
    length = tokens.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))[None, None, None]
    x = params["embed"][tokens] + params["places"][None, :length]
    cache = []
    for p in layers(params):
        q, k, v = project(p, rms(x, p["norm_a"]))
        scores = jnp.einsum("bgntk,bgsk->bgnts", q, k)
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
        h = jnp.einsum("bgnts,bgsk->bgntk", weights, v)
        x = x + jnp.einsum("bgntk,gnkd->btd", h, p["o"])
        x = x + gated(p, rms(x, p["norm_b"]))
        cache.append((k, v))
    return finish(params, x), cache


def gpt(params: Any, tokens: jax.Array) -> jax.Array:
    """Scores at all positions, (batch, length, vocabulary)."""
    return prefill(params, tokens)[0]


def decode(params: Any, cache: Any, token: jax.Array) -> tuple[jax.Array, Any]:
    """Scores of one token (batch, 1) behind a cache, and its own keys and values."""
    length = cache[0][0].shape[2]
    x = params["embed"][token] + params["places"][None, length : length + 1]
    rows = []
    for p, (keys, values) in zip(layers(params), cache, strict=True):
        q, k, v = project(p, rms(x, p["norm_a"]))
        before = jnp.einsum("bgntk,bgsk->bgnts", q, keys)
        own = jnp.einsum("bgntk,bgsk->bgnts", q, k)
        weights = jax.nn.softmax(jnp.concatenate([before, own], axis=-1))
        h = jnp.einsum("bgnts,bgsk->bgntk", weights[..., :-1], values)
        h = h + jnp.einsum("bgnts,bgsk->bgntk", weights[..., -1:], v)
        x = x + jnp.einsum("bgntk,gnkd->btd", h, p["o"])
        x = x + gated(p, rms(x, p["norm_b"]))
        rows.append((k, v))
    return finish(params, x), rows
