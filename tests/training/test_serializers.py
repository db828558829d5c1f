"""A training state through every serializer: bit for bit, and training goes on.

Msgpack and pickle keep the plan of the state that was written; the others restore into
the tree of a fresh state.
"""

import functools
import io
import pickle

import chex
import cloudpickle
import equinox as eqx
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.flax
from flax.training import train_state

import bbjax as bb

pytestmark = pytest.mark.usefixtures("lenient")
STEPS, MORE = 4, 4
X = jnp.asarray(np.random.default_rng(0).normal(size=(64, 8)), jnp.float32)


def loss(p, x):
    hidden = jax.nn.relu(x.astype(jnp.bfloat16) @ p["up"])
    return jnp.mean((hidden @ p["down"] - 1.0).astype(jnp.float32) ** 2)


def first_params(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"up": (8, 20), "down": (20, 4)}
    return {
        name: jnp.asarray(rng.normal(size=shape) / 3, jnp.bfloat16)
        for name, shape in shapes.items()
    }


UNITS = bb.trace(loss, first_params(), X)
TX = {
    "chain": optax.chain(
        optax.adam(0.05),
        bb.transform(UNITS, density=0.4, start=1, every=2, rescale=True),
    ),
    "wrap": bb.wrap(optax.adam(0.05), UNITS, density=0.4, start=1, every=2),
}


@functools.cache
def stepper(name):
    @jax.jit
    def step(params, state, x):
        _, grads, activity = bb.value_and_grad(loss, UNITS)(params, x)
        updates, state = TX[name].update(grads, state, params, activity=activity)
        return optax.apply_updates(params, updates), state

    return step


def trained(name, steps, params, state):
    for n in steps:
        params, state = stepper(name)(params, state, X * (1 + n))
    return params, state


@functools.cache
def half(name):
    params = first_params()
    return trained(name, range(STEPS), params, TX[name].init(params))


def msgpack(state, fresh, folder):
    return flax.serialization.from_bytes(fresh, flax.serialization.to_bytes(state))


def state_dict(state, fresh, folder):
    plain = flax.serialization.to_state_dict(state)
    return flax.serialization.from_state_dict(fresh, plain)


def orbax(state, fresh, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "state", fresh)


def pickled(state, fresh, folder):
    return pickle.loads(pickle.dumps(state))


def cloudpickled(state, fresh, folder):
    return cloudpickle.loads(cloudpickle.dumps(state))


def equinox(state, fresh, folder):
    eqx.tree_serialise_leaves(folder / "state.eqx", state)
    return eqx.tree_deserialise_leaves(folder / "state.eqx", fresh)


def safetensors_of_leaves(state, fresh, folder):
    keyed, _ = jax.tree_util.tree_flatten_with_path(state)
    arrays = {jax.tree_util.keystr(path): leaf for path, leaf in keyed}
    safetensors.flax.save_file(arrays, folder / "state.safetensors")
    loaded = safetensors.flax.load_file(folder / "state.safetensors")
    _, structure = jax.tree_util.tree_flatten_with_path(fresh)
    return jax.tree.unflatten(structure, [loaded[name] for name in arrays])


def npz(state, fresh, folder):
    leaves, _ = jax.tree.flatten(state)
    kinds = [leaf.dtype for leaf in leaves]
    file = io.BytesIO()
    np.savez(file, *[np.atleast_1d(x).view(np.uint8) for x in map(np.asarray, leaves)])
    file.seek(0)
    with np.load(file) as loaded:
        back = [
            loaded[name].view(kind).reshape(leaf.shape)
            for name, kind, leaf in zip(loaded.files, kinds, leaves, strict=True)
        ]
    return jax.tree.unflatten(jax.tree.structure(fresh), back)


SERIALIZERS = {
    f.__name__: f
    for f in (
        msgpack,
        state_dict,
        orbax,
        pickled,
        cloudpickled,
        equinox,
        safetensors_of_leaves,
        npz,
    )
}


@pytest.mark.parametrize(
    "name", ["chain", pytest.param("wrap", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_training_goes_on_bit_for_bit(serializer, name, tmp_path):
    params, state = half(name)
    other = first_params(seed=9)
    fresh = (other, TX[name].init(other))
    restored = SERIALIZERS[serializer]((params, state), fresh, tmp_path)
    same(restored, (params, state))
    masks = bb.masks(restored[1])
    chex.assert_trees_all_equal(masks, bb.masks(state))
    goes_on, uninterrupted = (
        trained(name, range(STEPS, STEPS + MORE), *each)
        for each in (restored, (params, state))
    )
    same(goes_on, uninterrupted)


def same(mine, theirs):
    """The same tree, static parts included, with the same bits."""
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="down")(nn.relu(nn.Dense(20, name="up")(x)))


@pytest.mark.long
@pytest.mark.parametrize("kind", [bb.linen.TrainState, train_state.TrainState])
def test_a_linen_train_state_is_written_as_bytes(kind):
    model = Model()

    def fresh(seed):
        params = model.init(jax.random.key(seed), X)["params"]
        return kind.create(apply_fn=model.apply, params=params, tx=tx)

    def loss(params, x):
        return jnp.mean(model.apply({"params": params}, x) ** 2)

    shapes = jax.eval_shape(model.init, jax.random.key(0), X)["params"]
    units, rule = bb.trace(loss, shapes, X), bb.rules.magnitude()
    tx = optax.chain(optax.adam(0.1), bb.transform(units, rule, density=0.5, start=0))
    passes = kind is bb.linen.TrainState  # extra arguments on to the optimizer

    @jax.jit
    def step(state):
        _, grads, activity = bb.value_and_grad(loss, units)(state.params, X)
        extra = {"activity": activity} if passes else {}
        return state.apply_gradients(grads=grads, **extra)

    state = step(fresh(0))
    data = flax.serialization.to_bytes(state)
    restored = flax.serialization.from_bytes(fresh(1), data)
    same(restored, state)
    same(step(restored), step(state))


def test_arrays_of_numpy_are_read_and_updated():
    """As Flax restores them; also without jit."""
    params, state = half("chain")
    plain = jax.tree.map(np.asarray, (params, state))
    for read in (bb.masks, bb.degrees_of, bb.on_rates, bb.metrics):
        chex.assert_trees_all_equal(read(plain[1]), read(state))
    tx = bb.transform(UNITS, bb.rules.magnitude(), density=0.4, start=0)
    state = tx.init(params)
    plain = jax.tree.map(np.asarray, (params, state))
    given, restored = (tx.update(p, s, p) for p, s in ((params, state), plain))
    chex.assert_trees_all_equal(given, restored)


def test_a_file_of_other_settings_is_refused_by_the_update():
    """The bytes of a state name the rule and the kernels that it belongs to."""
    params, units = first_params(), UNITS.select("up")
    old, new = (
        bb.transform(units, rule, density=0.5, regrow=False)
        for rule in (bb.rules.magnitude(), bb.rules.random())
    )
    data = flax.serialization.to_bytes(old.init(params))
    restored = flax.serialization.from_bytes(new.init(params), data)
    with pytest.raises(ValueError, match="rule 'magnitude' -> 'random'"):
        new.update(params, restored, params)


@pytest.mark.long
def test_a_plan_is_shown_in_a_few_words():
    """Error messages of JAX show the structure of a state."""
    state = TX["chain"].init(first_params())
    text = str(jax.tree.structure(state[1].bb_plan))
    assert "rule 'budgeted_broadcast', 1 kernels" in text and len(text) < 200
