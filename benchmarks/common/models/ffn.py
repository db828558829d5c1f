"""A stack of feed-forward layers with residuals, the model of the cost budgets.

    x = x + relu(x @ up) @ down,   loss = mean (x - y)^2

Weights are a dict per layer, `layer_i/up` (model, hidden) and `layer_i/down` (hidden,
model), float32, scaled by 1 / sqrt(fan-in). `x` and `y` are (tokens, model). The usual
size is 8 x (512 -> 2048 -> 512): 16.8 M weights, all of them in kernels that can be
budgeted, so nothing dilutes what pruning costs.
"""

import dataclasses

import jax
import jax.numpy as jnp

Params = dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the stack."""

    layers: int = 8
    model: int = 512
    hidden: int = 2048


def init(shape: Shape, key: jax.Array) -> Params:
    """Parameters of the stack."""
    keys = jax.random.split(key, 2 * shape.layers)
    up, down = (shape.model, shape.hidden), (shape.hidden, shape.model)
    return {
        f"layer_{i}": {
            "up": jax.random.normal(keys[2 * i], up) * shape.model**-0.5,
            "down": jax.random.normal(keys[2 * i + 1], down) * shape.hidden**-0.5,
        }
        for i in range(shape.layers)
    }


def loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean square error of the stack."""
    for i in range(len(params)):
        layer = params[f"layer_{i}"]
        x = x + jax.nn.relu(x @ layer["up"]) @ layer["down"]
    return jnp.mean((x - y) ** 2)
