"""Text from a model: one token after the other, with keys and values remembered.

    cache, scores = prefill(params, tokens, config, room)
    cache, scores = step(params, cache, token, config)
    tokens = generate(params, tokens, count, config)

Sizes come from the arrays, so a shrunk model runs in the same functions.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.language import model
from benchmarks.language.model import Config, Params


class Cache(NamedTuple):
    """Keys and values of the positions so far, (layers, windows, room, groups, size).

    Attributes:
      used: how many positions there are.
    """

    keys: jax.Array
    values: jax.Array
    used: jax.Array


def prefill(
    params: Params, tokens: jax.Array, config: Config, room: int
) -> tuple[Cache, jax.Array]:
    """Reads a prompt at once.

    Args:
      tokens: (windows, positions), at least one.
      room: positions that the cache has, at least those of the prompt.

    Returns:
      The cache, and scores of the next token, (windows, vocabulary).
    """
    places = jnp.arange(tokens.shape[1])
    more = room - tokens.shape[1]

    def through(x, kernels):
        n = model.norm(x, kernels["attention_norm"], config)
        q, k, v = model.read(kernels, n, places, config)
        x = _sent(kernels, x + model.mixed(kernels, q, k, v, places), config)
        kept = (jnp.pad(a, ((0, 0), (0, more), (0, 0), (0, 0))) for a in (k, v))
        return x, tuple(kept)

    x, (keys, values) = lax.scan(through, params["embed"][tokens], params["layers"])
    used = jnp.int32(tokens.shape[1])
    return Cache(keys, values, used), _scores(params, x[:, -1:], config)


def step(
    params: Params, cache: Cache, token: jax.Array, config: Config
) -> tuple[Cache, jax.Array]:
    """Reads one token more.

    Args:
      token: (windows,).

    Returns:
      The cache, and scores of the next token, (windows, vocabulary).
    """
    places = cache.used[None]

    def through(x, given):
        kernels, keys, values = given
        n = model.norm(x, kernels["attention_norm"], config)
        q, k, v = model.read(kernels, n, places, config)
        keys = lax.dynamic_update_slice_in_dim(keys, k, cache.used, 1)
        values = lax.dynamic_update_slice_in_dim(values, v, cache.used, 1)
        x = x + model.mixed(kernels, q, keys, values, places)
        return _sent(kernels, x, config), (keys, values)

    given = (params["layers"], cache.keys, cache.values)
    x, (keys, values) = lax.scan(through, params["embed"][token[:, None]], given)
    return Cache(keys, values, cache.used + 1), _scores(params, x, config)


@functools.partial(jax.jit, static_argnames=("count", "config"))
def generate(
    params: Params, tokens: jax.Array, count: int, config: Config
) -> jax.Array:
    """The `count` tokens that follow, each the one of the highest score.

    Args:
      tokens: (windows, positions), the prompts, of one length.

    Returns:
      (windows, count).
    """
    cache, scores = prefill(params, tokens, config, tokens.shape[1] + count)

    def one(carry, _):
        cache, scores = carry
        token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        return step(params, cache, token, config), token

    return lax.scan(one, (cache, scores), None, length=count)[1].T


def _sent(kernels: Params, x: jax.Array, config: Config) -> jax.Array:
    return x + model.ffn(kernels, model.norm(x, kernels["ffn_norm"], config))


def _scores(params: Params, x: jax.Array, config: Config) -> jax.Array:
    return (model.norm(x, params["norm"], config) @ params["embed"].T)[:, -1]
