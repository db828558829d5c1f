"""A whole training state in an Orbax checkpoint, masks inside, on another mesh.

The contract suite interrupts every rule; here is what a user does: a Flax train state,
a checkpoint manager, meshes of two axes, a state made anew as the target.
"""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import bbjax as bb

pytestmark = pytest.mark.usefixtures("lenient")
N = 3  # the checkpoint falls between two refreshes
ROWS, COLUMNS = P("data", "model"), P("model", "data")


class Model(nn.Module):
    """Widths whose shards are no multiples of the 8 masks in a byte."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(24, name="up")(x))
        return nn.Dense(4, name="down")(nn.relu(nn.Dense(40, name="mid")(x)))


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((Model().apply({"params": params}, x) - y) ** 2)


def batch(n):
    rng = np.random.default_rng(n)
    return np.float32(rng.standard_normal((16, 8))), np.float32(rng.random((16, 4)))


UNITS = bb.trace(
    loss_fn,
    jax.eval_shape(Model().init, jax.random.key(0), batch(0)[0])["params"],
    batch(0),
)


def mesh(*shape):
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


@functools.cache  # what is made once is compiled once
def optimizer(units, prune):
    links = [optax.adamw(1e-2)]
    links += [bb.transform(units, density=0.4, start=1, every=2)] if prune else []
    return optax.chain(*links)


def fresh(on, kernels, units=UNITS, seed=0, prune=True):
    """A state as at the start of training: kernels sharded, the rest on all devices."""
    params = Model().init(jax.random.key(seed), batch(0)[0])["params"]
    specs = {True: NamedSharding(on, kernels), False: NamedSharding(on, P())}
    params = jax.tree.map(lambda x: jax.device_put(x, specs[x.ndim == 2]), params)
    tx = optimizer(units, prune)
    state = bb.linen.TrainState.create(apply_fn=None, params=params, tx=tx)
    return state


@jax.jit
def train_step(state, batch):
    (loss, activity), grads = jax.value_and_grad(
        bb.observe(loss_fn, UNITS), has_aux=True
    )(state.params, batch)
    return state.apply_gradients(grads=grads, activity=activity), loss


def train(state, steps):
    for n in steps:
        state, _ = train_step(state, batch(n))
    return state


def same(mine, theirs):
    leaves = map(jax.tree.leaves, (mine, theirs))
    chex.assert_trees_all_equal(*leaves, strict=True)


@pytest.fixture
def half():
    return train(fresh(mesh(4, 2), ROWS), range(N))


@pytest.fixture
def manager(tmp_path):
    with ocp.CheckpointManager(tmp_path) as manager:
        yield manager


def save(manager, state):
    manager.save(N, args=ocp.args.StandardSave(state))
    manager.wait_until_finished()


def restore(manager, target=None):
    return manager.restore(N, args=ocp.args.StandardRestore(target))


@pytest.mark.long
@pytest.mark.parametrize(
    "shape, kernels", [((2, 2), COLUMNS), ((1, 1), P())], ids=["4 devices", "one"]
)
def test_training_goes_on_bit_for_bit_on_another_mesh(half, manager, shape, kernels):
    """As if the state had been moved there in memory."""
    save(manager, half)
    made = fresh(mesh(*shape), kernels, seed=9)
    target = bb.restore_target(made, mesh(*shape))
    restored = restore(manager, target)
    same(restored, half)
    places = lambda tree: jax.tree.map(lambda x: x.sharding, tree)  # noqa: E731
    assert places(restored) == places(target)
    assert places(restored.params) == places(made.params)
    moved = jax.device_put(half, places(target))
    resumed, uninterrupted = (train(s, range(N, 2 * N)) for s in (restored, moved))
    same(resumed, uninterrupted)
    assert int(resumed.step) == 2 * N
    for path, mask in bb.masks(resumed).items():
        layer, name = path.split("/")
        mask, kernel = np.asarray(mask), np.asarray(resumed.params[layer][name])
        assert mask.sum() == round(0.4 * mask.size)
        assert (kernel[~mask] == 0).all()


def test_a_target_has_shapes_and_places_of_the_state_and_none_of_its_values():
    """Also of a state that was never computed, and of leaves that lie elsewhere."""
    on = mesh(2, 2)
    whole, rows = NamedSharding(on, P()), NamedSharding(on, P("data"))
    state = {
        "sharded": jax.device_put(jnp.ones((4, 2)), rows),
        "count": jnp.int32(3),
        "abstract": jax.ShapeDtypeStruct((3,), jnp.bfloat16),
        "host": np.ones(2, np.float32),
        "step": 0,
        "fn": jnp.tanh,
    }
    target = bb.restore_target(state, on)
    fn = target.pop("fn")
    assert fn is jnp.tanh
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in target.values())
    assert {name: (x.shape, x.dtype, x.sharding) for name, x in target.items()} == {
        "sharded": ((4, 2), jnp.float32, rows),
        "count": ((), jnp.int32, whole),
        "abstract": ((3,), jnp.bfloat16, whole),
        "host": ((2,), jnp.float32, whole),
        "step": ((), jnp.int32, whole),
    }


# Without masks -------------------------------------------------------------------
def test_a_checkpoint_without_masks_is_no_state_with_masks(manager):
    plain = fresh(mesh(4, 2), ROWS, prune=False)
    save(manager, plain.replace(step=N))
    with pytest.raises(ValueError, match="structures do not match:\nopt_state"):
        restore(manager, fresh(mesh(2, 2), ROWS))


@pytest.mark.long
def test_a_checkpoint_of_other_kernels_is_refused(half, manager):
    save(manager, half)
    with pytest.raises(ValueError, match="bb_masks"):
        restore(manager, fresh(mesh(2, 2), ROWS, UNITS.select("down")))


def test_a_checkpoint_of_weights_that_were_never_scaled_is_refused(half, manager):
    """Whether weights are scaled is in the arrays, not in the target alone."""
    save(manager, half)
    made = fresh(mesh(2, 2), ROWS)
    tx = optax.chain(optax.adamw(1e-2), bb.transform(UNITS, rescale=True))
    with pytest.raises(ValueError, match="bb_scale"):
        restore(manager, made.replace(opt_state=tx.init(made.params)))


@pytest.mark.long
def test_a_checkpoint_restored_without_target_asks_for_one(half, manager):
    save(manager, half)
    with pytest.raises(ValueError, match="restored checkpoints need a target tree"):
        bb.masks(restore(manager)["opt_state"])
