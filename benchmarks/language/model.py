"""A Llama as a function of a tree of arrays, scanned over layers and rematerialised.

    x = embed[tokens]
    x = x + o(attention(q(n), k(n), v(n))),   n = norm(x)
    x = x + down(silu(gate(n)) * up(n)),      n = norm(x)
    logits = norm(x) @ embed.T

Kernels have the layer as their first axis: `layers/q/kernel` is (layers, width, heads,
size of a head), `layers/o/kernel` (layers, heads, size, width). Several query heads
share a head of keys and values. Positions turn pairs of adjacent entries, as GGUF files
hold them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

FFN = ("gate", "up", "down")
ATTENTION = ("q", "k", "v", "o")
PROJECTIONS = (*ATTENTION, *FFN)

Params = dict[str, Any]


class Config(NamedTuple):
    """Sizes and constants of a model.

    Attributes:
      groups: heads of keys and values; each serves `heads / groups` query heads.
      base: of the wave lengths of positions.
      epsilon: added to mean squares in norms.
    """

    vocabulary: int
    layers: int
    width: int
    hidden: int
    heads: int
    groups: int
    base: float = 100_000.0
    epsilon: float = 1e-5

    @property
    def head(self) -> int:
        """Entries of a head."""
        return self.width // self.heads


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Shape of every kernel of a layer."""
    width, hidden, head = config.width, config.hidden, config.head
    return {
        "q": (width, config.heads, head),
        "k": (width, config.groups, head),
        "v": (width, config.groups, head),
        "o": (config.heads, head, width),
        "gate": (width, hidden),
        "up": (width, hidden),
        "down": (hidden, width),
    }


def random_params(config: Config, key: jax.Array) -> Params:
    """Weights drawn at the scale that keeps variances, norms of 1."""
    keys = dict(zip((*PROJECTIONS, "embed"), jax.random.split(key, 8), strict=True))
    layers: Params = {}
    for name, shape in shapes(config).items():
        fan = shape[0] * (shape[1] if name == "o" else 1)
        drawn = jax.random.normal(keys[name], (config.layers, *shape))
        layers[name] = {"kernel": drawn / jnp.sqrt(jnp.float32(fan))}
    for name in ("attention_norm", "ffn_norm"):
        layers[name] = {"scale": jnp.ones((config.layers, config.width))}
    embed = jax.random.normal(keys["embed"], (config.vocabulary, config.width))
    return {
        "embed": embed / jnp.sqrt(jnp.float32(config.width)),
        "layers": layers,
        "norm": {"scale": jnp.ones(config.width)},
    }


def hidden(params: Params, tokens: jax.Array, config: Config) -> jax.Array:
    """What stands before the logits: (windows, positions, width)."""

    @jax.checkpoint
    def through(x, kernels):
        return layer(kernels, x, config), None

    x, _ = lax.scan(through, params["embed"][tokens], params["layers"])
    return norm(x, params["norm"], config)


def layer(kernels: Params, x: jax.Array, config: Config) -> jax.Array:
    """One layer: (windows, positions, width) in and out."""
    x = attended(kernels, x, config)
    return x + ffn(kernels, norm(x, kernels["ffn_norm"], config))


def attended(kernels: Params, x: jax.Array, config: Config) -> jax.Array:
    """The first half of a layer."""
    return x + attention(kernels, norm(x, kernels["attention_norm"], config), config)


def logits(params: Params, tokens: jax.Array, config: Config) -> jax.Array:
    """Scores of every next token: (windows, positions, vocabulary)."""
    return hidden(params, tokens, config) @ params["embed"].T


def nats(params: Params, tokens: jax.Array, config: Config) -> jax.Array:
    """-log p of every token but the first of each window: (windows, positions - 1)."""
    scores = hidden(params, tokens[:, :-1], config) @ params["embed"].T
    right = jnp.take_along_axis(scores, tokens[:, 1:, None], 2)[..., 0]
    return jax.nn.logsumexp(scores, 2) - right


def gates_on(params: Params, tokens: jax.Array, config: Config) -> jax.Array:
    """How often the gate of every unit is above 0: (layers, hidden)."""

    def through(x, kernels):
        return layer(kernels, x, config), gates_of(kernels, x, config)

    return lax.scan(through, params["embed"][tokens], params["layers"])[1]


def gates_of(kernels: Params, x: jax.Array, config: Config) -> jax.Array:
    """How often the gates of one layer are above 0: (hidden,)."""
    inputs = norm(attended(kernels, x, config), kernels["ffn_norm"], config)
    on = inputs @ kernels["gate"]["kernel"] > 0
    return jnp.mean(on, axis=(0, 1), dtype=jnp.float32)


# Parts of a layer ------------------------------------------------------------------
def norm(x: jax.Array, params: Params, config: Config) -> jax.Array:
    """Divided by the root mean square, then scaled."""
    square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    scale = jnp.reshape(params["scale"], (1,) * (x.ndim - 1) + (-1,))
    return x * lax.rsqrt(square + config.epsilon) * scale


def ffn(kernels: Params, x: jax.Array) -> jax.Array:
    """Gated units and what they send back."""
    gate = jax.nn.silu(x @ kernels["gate"]["kernel"])
    return (gate * (x @ kernels["up"]["kernel"])) @ kernels["down"]["kernel"]


def attention(kernels: Params, x: jax.Array, config: Config) -> jax.Array:
    """Values of earlier positions, weighed by how queries match keys."""
    places = jnp.arange(x.shape[1])
    q, k, v = read(kernels, x, places, config)
    return mixed(kernels, q, k, v, places)


def read(
    kernels: Params, x: jax.Array, places: jax.Array, config: Config
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values of positions `places`, turned by them."""
    q, k, v = (jnp.einsum("bti,ihd->bthd", x, kernels[n]["kernel"]) for n in "qkv")
    return turned(q, places, config.base), turned(k, places, config.base), v


def mixed(
    kernels: Params, q: jax.Array, k: jax.Array, v: jax.Array, places: jax.Array
) -> jax.Array:
    """Values of positions 0, 1, ... up to each of `places`, and what `o` makes of it.

    Args:
      q: queries of `places`, (windows, places, heads, size).
      k: keys of positions 0, 1, ..., (windows, positions, groups, size).
      v: their values.
    """
    # Query heads of one head of keys and values stand beside each other.
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])
    scores = jnp.einsum("btgrd,bsgd->bgrts", grouped, k) * k.shape[-1] ** -0.5
    earlier = places[:, None] >= jnp.arange(k.shape[1])[None]
    scores = jnp.where(earlier[None, None, None], scores, -jnp.inf)
    values = jnp.einsum("bgrts,bsgd->btgrd", jax.nn.softmax(scores, axis=-1), v)
    values = values.reshape(*q.shape[:2], -1, v.shape[-1])
    return jnp.einsum("bthd,hdo->bto", values, kernels["o"]["kernel"])


def turned(x: jax.Array, places: jax.Array, base: float) -> jax.Array:
    """Rotary positions: entries 2i and 2i + 1 turn by `place / base^(2i / size)`."""
    size = x.shape[3]
    rate = base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angle = places.astype(jnp.float32)[:, None] * rate[None]
    angle = angle[None, :, None]  # the same for every window and head
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    pairs = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return pairs.reshape(x.shape)
