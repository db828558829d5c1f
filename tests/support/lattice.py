"""A model whose training is exact, so that any mesh gives what one device gives.

Weights are multiples of 1/16 and inputs are -1, 0 or 1; the loss is an L1 distance,
whose gradient is a sign; the optimizer steps by the sign of the gradient, 1/16 at a
time; and a layer hands integers on. So every product and partial sum is a multiple of a
power of two below 2^24 units (checked in `test_every_sum_is_exact`), float32 holds it,
and its order does not matter. Only then may masks be compared bit for bit over many
steps: with weights that differ in the last bit, a rule may rightly choose another edge.
The running mean has decay 1/2, so that on-rates are exact too.

    y = relu(h @ up) @ down,  loss = mean |y - 1|,  h' = clip(round(h + y / 64), -1, 1)
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import bbjax as bb
from tests.support.contract import compilations, same

BATCH, WIDTH, HIDDEN, LAYERS = 32, 256, 512, 2
STEPS, UNIT = 6, 1 / 16
COUNTS = (1, 2, 4, 8)
# By layout: the mesh of so many devices, and how `up` and `down` lie on it.
LAYOUTS = {
    "fsdp": ({n: (n, 1) for n in COUNTS}, P("data", None), P("data", None)),
    "tensor": ({n: (1, n) for n in COUNTS}, P(None, "model"), P("model", None)),
    "both": (
        {1: (1, 1), 2: (2, 1), 4: (2, 2), 8: (2, 4)},
        P("data", "model"),
        P("model", "data"),
    ),
}


# The model -----------------------------------------------------------------------
def _explicit():
    return AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def _dot(x, w, used, made):
    """A product; explicit meshes want weights gathered and results placed by hand."""
    if not _explicit():
        return x @ w
    return jnp.einsum("bi,io->bo", x, jax.sharding.reshard(w, used), out_sharding=made)


def _layer(h, w):
    hidden = jax.nn.relu(_dot(h, w["up"], P(None, "model"), P("data", "model")))
    y = _dot(hidden, w["down"], P("model", None), P("data", None))
    new = jnp.clip(jnp.round(h + y / 64), -1, 1)
    return jax.lax.stop_gradient(new), jnp.mean(jnp.abs(y - 1))


def mlp(params, x):
    return _layer(x, params)[1]


def stack(params, x):
    return jnp.mean(jax.lax.scan(_layer, x, params)[1])


MODELS = {"mlp": (mlp, ()), "stack": (stack, (LAYERS,))}


def weights(model):
    rng, (_, lead) = np.random.default_rng(0), MODELS[model]
    shapes = {"up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
    return {
        k: (rng.integers(-12, 13, lead + s) * UNIT).astype(np.float32)
        for k, s in shapes.items()
    }


def inputs(n):
    # Inputs that differ in how often they are on, so that units do.
    rng = np.random.default_rng(100 + n)
    on = rng.random((BATCH, WIDTH)) < np.linspace(0.1, 0.9, WIDTH)
    return np.where(on, rng.choice([-1, 1, 1], on.shape), 0).astype(np.float32)


def budgeted(model, params, x):
    traced = bb.trace(MODELS[model][0], params, x)
    return traced.select("up", "in") + traced.select("down", "out")


def pruner(units, rule=None):
    return bb.transform(units, rule, density=0.3, every=2, start=1, ema=0.5)


def exact(units, rule=None):
    return optax.chain(optax.sign_sgd(UNIT), pruner(units, rule))


def step_of(model, units, tx):
    """The train step; without pruning where `tx` takes no activity."""
    observed = bb.observe(MODELS[model][0], units)
    tx = optax.with_extra_args_support(tx)

    def step(params, state, x):
        (_, activity), grads = jax.value_and_grad(observed, has_aux=True)(params, x)
        updates, state = tx.update(grads, state, params, activity=activity)
        return optax.apply_updates(params, updates), state

    return jax.jit(step)


def train(step, params, state, place, each=lambda params: None):
    for n in range(STEPS):
        each(params)
        with compilations() as compiled:
            params, state = step(params, state, place(inputs(n)))
        assert n == 0 or compiled.count == 0, f"step {n} was compiled again"
    return params, state


@functools.cache
def alone(model):
    """One device, no mesh: the result, and the parameters before each step."""
    params = jax.tree.map(jnp.asarray, weights(model))
    units, seen = budgeted(model, params, inputs(0)), []
    tx = exact(units)
    step = step_of(model, units, tx)
    return train(step, params, tx.init(params), jnp.asarray, seen.append), seen


# On meshes -----------------------------------------------------------------------
class Placed:
    """A model and its parameters on a mesh."""

    def __init__(self, model, layout, kind, devices, params=None):
        shapes, *sides = LAYOUTS[layout]
        self.model, self.kind = model, AxisType[kind]
        self.mesh = jax.make_mesh(
            shapes[devices],
            ("data", "model"),
            (self.kind,) * 2,
            devices=jax.devices()[:devices],
        )
        lead = [None] * len(MODELS[model][1])
        specs = {k: P(*lead, *s) for k, s in zip(("up", "down"), sides, strict=True)}
        self.params = jax.tree.map(self._put, params or weights(model), specs)
        with self.set():
            self.units = budgeted(model, self.params, self.batch(inputs(0)))

    def _put(self, x, spec):
        return jax.device_put(x, NamedSharding(self.mesh, spec))

    def whole(self, tree):
        """Scalars that Optax left on one device, where the second step finds none."""
        return jax.tree.map(lambda x: self._put(x, P()) if x.ndim == 0 else x, tree)

    def set(self):
        explicit = self.kind == AxisType.Explicit
        return jax.set_mesh(self.mesh) if explicit else contextlib.nullcontext()

    def batch(self, x):
        return self._put(x, P("data", None))

    def start(self, tx):
        """The train step, and the state before the first one."""
        return step_of(self.model, self.units, tx), tx.init(self.params)

    def compiled(self, tx):
        """A step that refuses arrays that lie elsewhere than at the first step."""
        step, state = self.start(tx)
        return step.lower(self.params, state, self.batch(inputs(0))).compile(), state


def equal(first, second):
    """Parameters, masks, running means and degrees, bit for bit."""
    (params, state), (other, other_state) = jax.device_get((first, second))
    same(params, other)
    same(bb.masks(state), bb.masks(other_state))
    same(state[-1].bb_means, other_state[-1].bb_means)
    same(bb.degrees_of(state), bb.degrees_of(other_state))
    assert not all(mask.all() for mask in bb.masks(state).values())
