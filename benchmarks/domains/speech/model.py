"""A Transformer that reads spectra and writes words, with a CTC branch.

Frames are read in fours, and a convolution takes every second four; 2 encoder and 2
decoder layers of width 96 with 4 heads, norms in front, ReLU feed-forward layers four
times as wide, dropout at the end of each branch in training (with a key named
"dropout"). The decoder's feed-forward kernels, `up` and `down`, are what is pruned.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.domains.speech.data import BEGIN, END, PAD, WORDS

WIDTH, HEADS, ENCODERS, DECODERS = 96, 4, 2, 2
DROPOUT = 0.1
TOGETHER = 4  # frames
STRIDE = 2 * TOGETHER


class FeedForward(nn.Module):
    """Two kernels with ReLU between; what the units say is kept as `units`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.relu(nn.Dense(4 * WIDTH, name="up")(x))
        self.sow("intermediates", "units", hidden)
        return nn.Dense(WIDTH, name="down")(hidden)


class Layer(nn.Module):
    """Self-attention, attention to a memory if there is one, feed-forward."""

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: Any, memory: Any = None, seen: Any = None
    ) -> jax.Array:
        def drop(y: jax.Array) -> jax.Array:
            return nn.Dropout(DROPOUT, deterministic=not self.has_rng("dropout"))(y)

        def attend(name: str, y: jax.Array, of: jax.Array, mask: Any) -> jax.Array:
            made = nn.MultiHeadDotProductAttention(HEADS, name=name)
            return drop(made(y, of, mask=mask))

        y = nn.LayerNorm()(x)
        x = x + attend("own", y, y, mask)
        if memory is not None:
            x = x + attend("other", nn.LayerNorm()(x), memory, seen)
        return x + drop(FeedForward(name="ffn")(nn.LayerNorm()(x)))


class Recognizer(nn.Module):
    """Frames and words to scores of the next word, and of CTC."""

    words: int

    def setup(self) -> None:
        self.fours = nn.Dense(WIDTH)
        self.front = nn.Conv(WIDTH, (3,), (2,))
        self.encoder = [Layer(name=f"encoder_{i}") for i in range(ENCODERS)]
        self.decoder = [Layer(name=f"decoder_{i}") for i in range(DECODERS)]
        self.norms = [nn.LayerNorm(name=name) for name in ("read", "said")]
        self.embed = nn.Embed(self.words, WIDTH)
        self.ctc, self.out = nn.Dense(self.words), nn.Dense(self.words)

    def encode(self, frames: jax.Array, length: jax.Array) -> tuple[Any, Any]:
        """The memory, and which of it is real."""
        count, length_padded, bands = frames.shape
        x = frames.reshape(count, length_padded // TOGETHER, TOGETHER * bands)
        x = nn.relu(self.front(nn.relu(self.fours(x))))
        real = jnp.arange(x.shape[1]) < -(-length[:, None] // STRIDE)
        x = x + places(x.shape[1])
        mask = real[:, None, None]
        for layer in self.encoder:
            x = layer(x, mask)
        return self.norms[0](x), real

    def decode(self, words: jax.Array, memory: Any, real: Any) -> jax.Array:
        """Scores of the word after each."""
        x = self.embed(words) * WIDTH**0.5 + places(words.shape[1])
        causal = nn.make_causal_mask(words)
        for layer in self.decoder:
            x = layer(x, causal, memory, real[:, None, None])
        return self.out(self.norms[1](x))

    def __call__(self, frames: Any, length: Any, words: Any) -> tuple[Any, Any, Any]:
        """Scores of the next words, of CTC, and which frames of CTC are real."""
        memory, real = self.encode(frames, length)
        return self.decode(words, memory, real), self.ctc(memory), real


def places(count: int) -> np.ndarray:
    """Sines and cosines of a position, (count, WIDTH)."""
    rates = 10_000 ** (-np.arange(0, WIDTH, 2) / WIDTH)
    angles = np.arange(count)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)


def greedy(net: Recognizer, params: Any, batch: dict[str, Any]) -> jax.Array:
    """Words as the decoder writes them, (n, WORDS); ends with END."""
    variables = {"params": params}
    memory, real = net.apply(
        variables, batch["frames"], batch["length"], method=net.encode
    )
    first = jnp.full((len(batch["frames"]), WORDS), PAD).at[:, 0].set(BEGIN)

    def write(place: jax.Array, words: jax.Array) -> jax.Array:
        scores = net.apply(variables, words, memory, real, method=net.decode)
        best = jnp.argmax(scores[:, place - 1].at[:, : BEGIN + 1].set(-jnp.inf), -1)
        over = jnp.any(words == END, axis=1)
        return words.at[:, place].set(jnp.where(over, PAD, best))

    return jax.lax.fori_loop(1, WORDS, write, first)
