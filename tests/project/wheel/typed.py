"""A user's program that runs, and whose types `mypy --strict` finds to be real ones.

`assert_type` refuses `Any` in the place of another type.
"""

from collections.abc import Callable
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bbjax as bb
from bbjax.files.container import Loaded
from bbjax.reporting import Report
from bbjax.shrinking import Shrunk

Params = dict[str, jax.Array]


def loss_fn(params: Params, x: jax.Array) -> jax.Array:
    return jnp.mean(jax.nn.relu(x @ params["up"]) @ params["down"])


params: Params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2))}
x = jnp.ones((3, 4))

# Where: units.
units = bb.trace(loss_fn, params, x)
assert_type(units, bb.Units)
assert_type(units.select("up"), bb.Units)
assert_type(units["up"], bb.Kernel)

# When: transformations of optax.
tx = bb.transform(units, bb.rules.magnitude(), density=0.25)
assert_type(tx, optax.GradientTransformationExtraArgs)
assert_type(
    bb.wrap(optax.sgd(0.1), units, density=bb.ramp(0.25, 100, 900)),
    optax.GradientTransformationExtraArgs,
)
assert_type(
    bb.hold({"up": jnp.ones((4, 8), bool)}), optax.GradientTransformationExtraArgs
)

# A step of training.
step = bb.value_and_grad(loss_fn, units)
assert_type(step, Callable[..., tuple[Any, Any, dict[str, bb.activity.Activity]]])
loss, grads, activity = step(params, x)
assert_type(activity["up"].outputs.on_rate, jax.Array | None)
state = tx.init(params)
assert_type(bb.masks(state), dict[str, jax.Array])
assert_type(bb.degrees_of(state), dict[str, jax.Array])
assert_type(bb.metrics(state), dict[str, jax.Array])

# A trained network.
assert_type(
    bb.calibrate(loss_fn, units, params, [(x,)]), dict[str, bb.activity.Activity]
)
pruned, masks = bb.prune(params, units, bb.rules.magnitude(), density=0.5)
assert_type(masks, dict[str, jax.Array])
small = bb.shrink(loss_fn, pruned, masks, x)
assert_type(small, Shrunk)
assert_type(small.widths, dict[str, tuple[int, int]])
assert_type(bb.report(masks, units).html(), str)
assert_type(bb.report(masks, units), Report)

# Files.
bb.save("model.safetensors", pruned, masks, units)
loaded = bb.load("model.safetensors", params, units)
assert_type(loaded, Loaded)
assert_type(loaded.masks, dict[str, np.ndarray])

# Modules that are imported on first use.
assert_type(bb.linen.features(small), dict[str, int | tuple[int, ...]])
assert_type(bb.nnx.objects_in(params), bool)
