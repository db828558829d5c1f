"""Runs where nothing but the wheel and its dependencies is installed."""

import sys

import flax.linen
import flax.nnx
import jax.numpy as jnp
import optax

# Flax itself loads rich: only what `import bbjax` adds counts.
before = set(sys.modules)
import bbjax as bb  # noqa: E402

assert "site-packages" in bb.__file__, bb.__file__
added = {"matplotlib", "sklearn", "rich"} & (set(sys.modules) - before)
assert not added, f"import bbjax loads {sorted(added)}: keep the demo's libraries out"

degrees = bb.degrees(jnp.array([0.1, 0.5, 0.9]), 10, 0.5)
assert int(degrees.sum()) == 15, degrees
mask = bb.top_k_mask(jnp.arange(30.0).reshape(10, 3), degrees, axis=0)
assert (mask.sum(0) == degrees).all(), mask
assert bb.linen and bb.nnx and flax.linen and flax.nnx and optax
print("bbjax", bb.__version__, "degrees", degrees.tolist())
