"""A decoder-only Transformer: one scanned, rematerialised layer over stacked weights.

    h = h + o(attend(rotate(q(norm h)), rotate(k(norm h)), v(norm h)))
    h = h + down(gelu(up(norm h)))

Pre-norm (RMS), rotary positions, grouped queries (`kv_heads <= heads`), embedding and
head not tied. Weights are kept in float32 and cast to `Shape.dtype` where they are
used. Stacked arrays have the layers in front: `layers/up` is (layers, model, hidden).
`specs` says how they lie on a mesh with the axes "fsdp" and "tensor".
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

Place = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the model; `heads` divides `model`, `kv_heads` divides `heads`."""

    layers: int
    model: int
    hidden: int
    heads: int
    kv_heads: int
    vocabulary: int
    dtype: Any = jnp.float32

    @property
    def head(self) -> int:
        return self.model // self.heads


SMALL = Shape(12, 256, 1024, 4, 4, 512)  # for a CPU
GPT_125M = Shape(12, 768, 3072, 12, 12, 50_304, jnp.bfloat16)
GPT_1B3 = Shape(24, 2048, 8192, 16, 16, 50_304, jnp.bfloat16)
GPT_8B = Shape(32, 4096, 21_504, 32, 8, 128_256, jnp.bfloat16)


def init(shape: Shape, key: jax.Array) -> Any:
    """Parameters in float32, projections scaled by 1 / sqrt(fan-in)."""
    s, kv = shape, shape.kv_heads * shape.head
    sizes = {
        "q": (s.layers, s.model, s.model),
        "k": (s.layers, s.model, kv),
        "v": (s.layers, s.model, kv),
        "o": (s.layers, s.model, s.model),
        "up": (s.layers, s.model, s.hidden),
        "down": (s.layers, s.hidden, s.model),
        "embedding": (s.vocabulary, s.model),
        "head": (s.model, s.vocabulary),
    }
    keys = dict(zip(sizes, jax.random.split(key, len(sizes)), strict=True))
    drawn = {
        name: jax.random.normal(keys[name], size) * size[-2] ** -0.5
        for name, size in sizes.items()
    }
    outside = {name: drawn.pop(name) for name in ("embedding", "head")}
    norms = {f"norm_{part}": jnp.ones((s.layers, s.model)) for part in ("a", "b")}
    return {"layers": drawn | norms, "norm": jnp.ones(s.model)} | outside


def specs() -> Any:
    """Where parameters lie: the two sides of a projection on one axis each."""
    wide, narrow = P(None, "fsdp", "tensor"), P(None, "tensor", "fsdp")
    layers = {name: wide for name in ("q", "k", "v", "up")}
    layers |= {name: narrow for name in ("o", "down")}
    layers |= {f"norm_{part}": P(None, None) for part in ("a", "b")}
    return {
        "layers": layers,
        "norm": P(None),
        "embedding": P("tensor", "fsdp"),
        "head": P("fsdp", "tensor"),
    }


def _anywhere(h: jax.Array) -> jax.Array:
    return h


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    size = jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-6)
    return (wide * size * scale).astype(x.dtype)


def _rotate(x: jax.Array) -> jax.Array:
    """Rotary positions; x is (batch, length, heads, head)."""
    half = x.shape[-1] // 2
    speed = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None, None] * speed
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def _layer(shape: Shape, h: jax.Array, w: Any) -> tuple[jax.Array, None]:
    def project(x: jax.Array, name: str) -> jax.Array:
        return x @ w[name].astype(shape.dtype)

    def heads(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], -1, shape.head)

    x = _norm(h, w["norm_a"])
    q, k = (_rotate(heads(project(x, name))) for name in ("q", "k"))
    attended = jax.nn.dot_product_attention(
        q, k, heads(project(x, "v")), is_causal=True
    )
    h = h + project(attended.reshape(h.shape), "o")
    x = _norm(h, w["norm_b"])
    return h + project(jax.nn.gelu(project(x, "up")), "down"), None


def logits(
    shape: Shape, params: Any, tokens: jax.Array, place: Place = _anywhere
) -> jax.Array:
    """Float32 scores of the next token; tokens are int32 (batch, length).

    `place` says where activations lie at the start of each layer and behind the last.
    """

    def layer(h: jax.Array, w: Any) -> tuple[jax.Array, None]:
        return _layer(shape, place(h), w)

    h = params["embedding"].astype(shape.dtype)[tokens]
    h, _ = jax.lax.scan(jax.checkpoint(layer), h, params["layers"])
    h = _norm(place(h), params["norm"])
    return (h @ params["head"].astype(shape.dtype)).astype(jnp.float32)


def loss(
    shape: Shape, params: Any, tokens: jax.Array, place: Place = _anywhere
) -> jax.Array:
    """Mean cross-entropy of every token given those before it."""
    scores = logits(shape, params, tokens[:, :-1], place)
    own = jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(scores, axis=-1) - own)
