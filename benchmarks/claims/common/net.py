"""Multilayer perceptrons with ReLU, as the paper's synthetic tasks use them.

    h_0 = relu(x W_0 + b_0),  h_1 = relu(h_0 W_1 + b_1),  ...,  logits = h_last W + b

Weights and biases begin uniform in +-1/sqrt(fan in), as PyTorch's linear layers do, so
that hidden units differ in on-rate from the start. Parameters are
`{"layer_0": {"kernel": (in, out), "bias": (out,)}, ...}`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

Params = dict[str, dict[str, jax.Array]]


@dataclass(frozen=True)
class Task:
    """What is learnt.

    Attributes:
      sizes: widths of the net, inputs first, output last (1: binary).
      sample: `(key, n) -> (x, y)`, a batch for training: x float (n, inputs), y 0 or
        1 as float (n,) where the output is one wide, else int labels (n,).
    """

    sizes: tuple[int, ...]
    sample: Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]

    def init(self, key: jax.Array) -> Params:
        """First weights."""
        return init(key, self.sizes)

    def loss(self, params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        """Mean cross-entropy, in nats."""
        return jnp.mean(losses(logits(params, x), y))


def init(key: jax.Array, sizes: Sequence[int]) -> Params:
    """First weights of a net."""
    layers = {}
    for i, fan in enumerate(sizes[:-1]):
        kernel_key, bias_key = jax.random.split(jax.random.fold_in(key, i))
        most = fan**-0.5
        shape = (fan, sizes[i + 1])
        layers[f"layer_{i}"] = {
            "kernel": jax.random.uniform(kernel_key, shape, minval=-most, maxval=most),
            "bias": jax.random.uniform(bias_key, shape[1:], minval=-most, maxval=most),
        }
    return layers


def hidden(params: Params, x: jax.Array) -> list[jax.Array]:
    """Activations of all hidden layers, each (n, units)."""
    values = []
    for i in range(len(params) - 1):
        layer = params[f"layer_{i}"]
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        values.append(x)
    return values


def logits(params: Params, x: jax.Array) -> jax.Array:
    """Outputs before the softmax, (n, classes); (n,) of a net with one output."""
    last = params[f"layer_{len(params) - 1}"]
    inside = hidden(params, x)
    out = (inside[-1] if inside else x) @ last["kernel"] + last["bias"]
    return out[..., 0] if out.shape[-1] == 1 else out


def losses(scores: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy of each sample, in nats."""
    if scores.ndim == 1:
        return optax.sigmoid_binary_cross_entropy(scores, y)
    return optax.softmax_cross_entropy_with_integer_labels(scores, y)


def right(scores: jax.Array, y: jax.Array) -> jax.Array:
    """Which samples are classified right."""
    return (scores > 0) == (y > 0.5) if scores.ndim == 1 else scores.argmax(-1) == y


def on_rates(values: jax.Array) -> jax.Array:
    """Share of samples in which each unit is on: (n, units) -> (units,)."""
    return jnp.mean((values > 0).astype(jnp.float32), 0)
