"""One model written with each library: same training, same masks, no masking call.

Every class below holds the code that a user of that library writes. The weights they
start from are equal, so what raw JAX does is the oracle for all of them.
"""

import functools
import itertools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bbjax as bb

SIZES = (8, 24, 16, 3)
DENSITY, START, STEPS = 0.6, 4, 30
pytestmark = pytest.mark.usefixtures("lenient")


def make_batch():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(48, SIZES[0])).astype(np.float32)
    label = (x[:, 0] * x[:, 1] > 0) + (x[:, 2] > 0)
    return jnp.asarray(x), jnp.asarray(label.astype(np.int32))


def make_weights():
    """The same `(kernel, bias)` of three layers for every library."""
    rng = np.random.default_rng(1)
    return [
        (
            jnp.asarray(rng.normal(size=s).astype(np.float32) / np.sqrt(s[0])),
            jnp.asarray(rng.normal(size=s[1]).astype(np.float32) * 0.1),
        )
        for s in itertools.pairwise(SIZES)
    ]


def loss_of(logits, labels):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()


def optimizer(units):
    # A large eps: Adam must not turn the rounding of tiny gradients into whole steps.
    adam = optax.adamw(1e-2, eps=1e-2)
    return optax.chain(adam, bb.transform(units, density=DENSITY, start=START, every=5))


class RawJax:
    """A dict of arrays and a function."""

    traced = 0  # how often the step was traced

    paths = ("up/kernel", "mid/kernel", "down/kernel")

    def __init__(self, donate):
        self.params = {
            name.split("/")[0]: {"kernel": kernel, "bias": bias}
            for name, (kernel, bias) in zip(self.paths, make_weights(), strict=True)
        }
        self.compile(donate)

    def predict(self, params, x):
        for name in ("up", "mid", "down"):
            layer = params[name]
            x = x @ layer["kernel"] + layer["bias"]
            x = x if name == "down" else jax.nn.relu(x)
        return x

    def compile(self, donate):
        def loss_fn(params, batch):
            return loss_of(self.predict(params, batch[0]), batch[1])

        units = bb.trace(loss_fn, self.params, make_batch())
        tx = optimizer(units)
        self.opt_state = tx.init(self.params)

        @functools.partial(jax.jit, donate_argnums=(0, 1) if donate else ())
        def train_step(params, opt_state, batch):
            self.traced += 1
            (loss, activity), grads = jax.value_and_grad(
                bb.observe(loss_fn, units), has_aux=True
            )(params, batch)
            updates, opt_state = tx.update(grads, opt_state, params, activity=activity)
            return optax.apply_updates(params, updates), opt_state, loss

        self.train_step = train_step

    def step(self, batch):
        self.params, self.opt_state, loss = self.train_step(
            self.params, self.opt_state, batch
        )
        return loss

    def logits(self, x):
        return self.predict(self.params, x)

    def trained(self):
        """Everything that a step may overwrite."""
        return self.params, self.opt_state

    def kernels(self):
        keys = [path.rsplit("/", 1) for path in self.paths]
        return [np.asarray(self.params[layer][name]) for layer, name in keys]

    def masks(self):
        return [np.asarray(bb.masks(self.opt_state)[p]) for p in self.paths[:2]]


class Haiku(RawJax):
    """`hk.transform`: parameters are a dict again."""

    paths = ("mlp/~/linear_0/w", "mlp/~/linear_1/w", "mlp/~/linear_2/w")

    def __init__(self, donate):
        net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP(SIZES[1:])(x)))
        initial = net.init(jax.random.key(0), make_batch()[0])
        self.params = {
            name: {"w": kernel, "b": bias}
            for name, (kernel, bias) in zip(initial, make_weights(), strict=True)
        }
        self.predict = net.apply
        self.compile(donate)


class Linen(RawJax):
    """`bb.linen.TrainState`."""

    paths = ("layers_0/kernel", "layers_2/kernel", "layers_4/kernel")

    def __init__(self, donate):
        relu = nn.relu
        dense = [nn.Dense(n) for n in SIZES[1:]]
        model = nn.Sequential([dense[0], relu, dense[1], relu, dense[2]])
        params = {
            path.split("/")[0]: {"kernel": kernel, "bias": bias}
            for path, (kernel, bias) in zip(self.paths, make_weights(), strict=True)
        }

        def loss_fn(params, batch):
            return loss_of(model.apply({"params": params}, batch[0]), batch[1])

        units = bb.trace(loss_fn, params, make_batch())
        self.state = bb.linen.TrainState.create(
            apply_fn=model.apply, params=params, tx=optimizer(units)
        )

        @functools.partial(jax.jit, donate_argnums=(0,) if donate else ())
        def train_step(state, batch):
            self.traced += 1
            (loss, activity), grads = jax.value_and_grad(
                bb.observe(loss_fn, units), has_aux=True
            )(state.params, batch)
            return state.apply_gradients(grads=grads, activity=activity), loss

        self.train_step = train_step

    @property
    def params(self):
        return self.state.params

    def step(self, batch):
        self.state, loss = self.train_step(self.state, batch)
        return loss

    def logits(self, x):
        return self.state.apply_fn({"params": self.state.params}, x)

    def trained(self):
        return self.state.params, self.state.opt_state

    def masks(self):
        return [np.asarray(bb.masks(self.state)[p]) for p in self.paths[:2]]


class Nnx(RawJax):
    """`nnx.value_and_grad` and `nnx.Optimizer`, both changed in place."""

    paths = ("layers/0/kernel", "layers/2/kernel", "layers/4/kernel")

    def __init__(self, donate):
        rngs = nnx.Rngs(0)
        dense = [nnx.Linear(*s, rngs=rngs) for s in itertools.pairwise(SIZES)]
        for layer, (kernel, bias) in zip(dense, make_weights(), strict=True):
            layer.kernel[...], layer.bias[...] = kernel, bias
        model = nnx.Sequential(dense[0], nnx.relu, dense[1], nnx.relu, dense[2])

        def loss_fn(model, batch):
            return loss_of(model(batch[0]), batch[1])

        units = bb.trace(loss_fn, model, make_batch())
        self.model, self.dense = model, dense
        self.optimizer = nnx.Optimizer(model, optimizer(units), wrt=nnx.Param)

        @functools.partial(nnx.jit, donate_argnums=(0, 1) if donate else ())
        def train_step(model, optimizer, batch):
            self.traced += 1
            (loss, activity), grads = nnx.value_and_grad(
                bb.observe(loss_fn, units), has_aux=True
            )(model, batch)
            optimizer.update(model, grads, activity=activity)
            return loss

        self.train_step = train_step

    def step(self, batch):
        return self.train_step(self.model, self.optimizer, batch)

    def logits(self, x):
        return self.model(x)

    def trained(self):
        return nnx.to_pure_dict(nnx.state((self.model, self.optimizer)))

    def kernels(self):
        return [np.asarray(layer.kernel[...]) for layer in self.dense]

    def masks(self):
        return [np.asarray(bb.masks(self.optimizer)[p]) for p in self.paths[:2]]


class Equinox(RawJax):
    """The module is the parameter tree; the optimizer gets its float arrays."""

    paths = ("layers/0/weight", "layers/1/weight", "layers/2/weight")

    def __init__(self, donate):
        layers = [
            eqx.nn.Linear(*s, key=jax.random.key(0)) for s in itertools.pairwise(SIZES)
        ]
        for i, (kernel, bias) in enumerate(make_weights()):
            layers[i] = eqx.tree_at(
                lambda m: (m.weight, m.bias), layers[i], (kernel.T, bias)
            )
        model = EquinoxMlp(layers, jax.nn.relu)

        def loss_fn(model, batch):
            return loss_of(jax.vmap(model)(batch[0]), batch[1])

        units = bb.trace(loss_fn, model, make_batch())
        tx = optimizer(units)
        self.model = model
        self.opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))

        @eqx.filter_jit(donate="all-except-first" if donate else "none")
        def train_step(batch, model, opt_state):
            self.traced += 1
            (loss, activity), grads = eqx.filter_value_and_grad(
                bb.observe(loss_fn, units), has_aux=True
            )(model, batch)
            params = eqx.filter(model, eqx.is_inexact_array)
            updates, opt_state = tx.update(grads, opt_state, params, activity=activity)
            return eqx.apply_updates(model, updates), opt_state, loss

        self.train_step = train_step

    def step(self, batch):
        self.model, self.opt_state, loss = self.train_step(
            batch, self.model, self.opt_state
        )
        return loss

    def logits(self, x):
        return jax.vmap(self.model)(x)

    def trained(self):
        return eqx.filter((self.model, self.opt_state), eqx.is_array)

    def kernels(self):
        return [np.asarray(layer.weight).T for layer in self.model.layers]

    def masks(self):
        return [mask.T for mask in super().masks()]


class EquinoxMlp(eqx.Module):
    layers: list
    activation: object  # a function among the leaves, as eqx.nn.MLP has one

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


LIBRARIES = {c.__name__: c for c in (RawJax, Haiku, Linen, Nnx, Equinox)}
every_library = pytest.mark.parametrize("name", LIBRARIES)


@functools.cache
def run(name, donate=False):
    """A trained model: losses, kernels and masks after every step, and the session."""
    session, batch = LIBRARIES[name](donate), make_batch()
    losses, kernels, masks = [], [], []
    for _ in range(STEPS):
        losses.append(float(session.step(batch)))
        kernels.append(session.kernels())
        masks.append(session.masks())
    return losses, kernels, masks, session


@pytest.mark.long
@every_library
def test_every_step_leaves_the_exact_number_of_weights(name):
    _, kernels, masks, _ = run(name)
    for step in range(STEPS):
        for kernel, mask in zip(kernels[step], masks[step], strict=False):
            kept = mask.size if step < START else round(DENSITY * mask.size)
            assert mask.shape == kernel.shape
            assert mask.sum() == kept
            np.testing.assert_array_equal(kernel != 0, mask)
        assert (kernels[step][-1] != 0).all()  # the last layer has no budget


@pytest.mark.sampled(1)
@every_library
def test_the_loss_falls_in_one_compilation(name):
    losses, _, _, session = run(name)
    assert losses[-1] < 0.8 * losses[0]
    assert session.traced == 1


@every_library
def test_evaluation_needs_no_masking_call(name):
    _, kernels, masks, session = run(name)
    x, _ = make_batch()
    biases = [np.asarray(b) for b in _biases(session)]
    hidden = np.asarray(x)
    for kernel, mask, bias in zip(kernels[-1], masks[-1], biases, strict=False):
        hidden = np.maximum(hidden @ np.where(mask, kernel, 0) + bias, 0)
    expected = hidden @ kernels[-1][-1] + biases[-1]
    np.testing.assert_allclose(session.logits(x), expected, rtol=1e-4, atol=1e-5)


def _biases(session):
    if isinstance(session, Nnx):
        return [layer.bias[...] for layer in session.dense]
    if isinstance(session, Equinox):
        return [layer.bias for layer in session.model.layers]
    layers = [session.params[p.rsplit("/", 1)[0]] for p in session.paths]
    return [layer.get("bias", layer.get("b")) for layer in layers]


@pytest.mark.long
@pytest.mark.parametrize("name", [n for n in LIBRARIES if n != "RawJax"])
def test_training_is_that_of_raw_jax(name):
    losses, kernels, masks, _ = run(name)
    raw_losses, raw_kernels, raw_masks, _ = run("RawJax")
    np.testing.assert_allclose(losses, raw_losses, rtol=1e-4)
    for mine, raw in zip(masks[-1], raw_masks[-1], strict=True):
        np.testing.assert_array_equal(mine, raw)
    for mine, raw in zip(kernels[-1], raw_kernels[-1], strict=True):
        np.testing.assert_allclose(mine, raw, rtol=1e-3, atol=1e-5)


@pytest.mark.long
@every_library
def test_donation_changes_nothing_and_every_buffer_is_reused(name):
    # A donated buffer that no output can take is a warning, and so an error here.
    losses, kernels, masks, _ = run(name)
    donated_losses, donated_kernels, donated_masks, session = run(name, donate=True)
    assert donated_losses == losses
    for mine, other in zip(donated_kernels[-1], kernels[-1], strict=True):
        np.testing.assert_array_equal(mine, other)
    for mine, other in zip(donated_masks[-1], masks[-1], strict=True):
        np.testing.assert_array_equal(mine, other)
    session.step(make_batch())  # numpy has not looked at what this step returns
    before = jax.tree.leaves(session.trained())
    session.step(make_batch())
    assert all(leaf.is_deleted() for leaf in before)
