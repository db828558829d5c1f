"""Flax NNX: modules with state, its transformations, and its optimizer."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bbjax as bb

pytestmark = pytest.mark.usefixtures("lenient")
DENSITY = 0.6


class Model(nnx.Module):
    """BatchNorm and Dropout change while the model is called."""

    def __init__(self, rngs):
        self.up = nnx.Linear(8, 24, rngs=rngs)
        self.norm = nnx.BatchNorm(24, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(24, 16, rngs=rngs)])
        self.down = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(nnx.relu(self.norm(self.up(x))))
        return self.down(nnx.relu(self.layers[0](x)))


PATHS = ("up/kernel", "layers/0/kernel", "down/kernel")
BUDGETED = PATHS[:2]


@pytest.fixture
def batch(getkey):
    x = jax.random.normal(getkey(), (48, 8))
    return x, (x[:, 0] * x[:, 1] > 0).astype(jnp.int32)


def loss_fn(model, batch):
    losses = optax.softmax_cross_entropy_with_integer_labels(model(batch[0]), batch[1])
    return losses.mean()


def chain(units, **settings):
    settings = {"density": DENSITY, "start": 3, "every": 5} | settings
    return optax.chain(optax.adamw(1e-2), bb.transform(units, **settings))


def make(batch, make_optimizer=chain):
    model = Model(nnx.Rngs(0))
    units = bb.trace(loss_fn, model, batch)
    optimizer = nnx.Optimizer(model, make_optimizer(units), wrt=nnx.Param)
    return units, model, optimizer


def train(units, model, optimizer, batch):
    (loss, activity), grads = nnx.value_and_grad(
        bb.observe(loss_fn, units), has_aux=True
    )(model, batch)
    optimizer.update(model, grads, activity=activity)
    return loss


def check_sparse(model, optimizer):
    masks = bb.masks(optimizer)
    assert set(masks) == set(BUDGETED)
    kernels = (model.up.kernel, model.layers[0].kernel)
    for path, kernel in zip(BUDGETED, kernels, strict=True):
        kernel = np.array(kernel[...])
        np.testing.assert_array_equal(kernel != 0, masks[path])
        assert np.count_nonzero(kernel) == round(DENSITY * kernel.size)


def assert_equal(mine, theirs, **tolerance):
    mine, theirs = (nnx.to_pure_dict(nnx.state(m)) for m in (mine, theirs))
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, **tolerance)


def test_paths_end_without_value_and_tracing_leaves_the_module_alone(batch):
    model = Model(nnx.Rngs(0))
    assert bb.trace(loss_fn, model, batch).paths == PATHS
    assert_equal(model, Model(nnx.Rngs(0)), rtol=0)


def test_an_abstract_module_can_be_traced(batch):
    abstract = nnx.eval_shape(lambda: Model(nnx.Rngs(0)))
    units = bb.trace(loss_fn, abstract, batch)
    assert units == bb.trace(loss_fn, Model(nnx.Rngs(0)), batch)


@pytest.mark.long
def test_observing_changes_a_module_as_a_plain_call_does(batch):
    observed, plain = Model(nnx.Rngs(0)), Model(nnx.Rngs(0))
    units = bb.trace(loss_fn, observed, batch)
    for _ in range(3):  # other dropout masks each time
        loss, _ = bb.observe(loss_fn, units)(observed, batch)
        np.testing.assert_allclose(loss, loss_fn(plain, batch), rtol=1e-6)
    assert_equal(observed, plain, rtol=1e-6, atol=1e-7)
    assert not np.allclose(plain.norm.mean[...], 0)


@pytest.mark.long
def test_trains_sparse_under_nnx_jit(batch):
    units, model, optimizer = make(batch)

    @functools.partial(nnx.jit, donate_argnums=(0, 1))
    @chex.assert_max_traces(n=1)
    def train_step(model, optimizer, batch):
        return train(units, model, optimizer, batch)

    losses = []
    for step in range(40):
        losses.append(float(train_step(model, optimizer, batch)))
        if step >= 3:
            check_sparse(model, optimizer)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    model.eval()
    assert loss_fn(model, batch) < 0.8 * losses[0]


@pytest.mark.long
def test_split_and_merge_under_jax_jit_is_the_same_training(batch):
    units, model, optimizer = make(batch)
    _, other, other_optimizer = make(batch)
    graph, state = nnx.split((model, optimizer))

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state, batch):
        model, optimizer = nnx.merge(graph, state)
        loss = train(units, model, optimizer, batch)
        return nnx.state((model, optimizer)), loss

    in_place = nnx.jit(functools.partial(train, units))
    for _ in range(12):
        state, loss = train_step(state, batch)
        other_loss = in_place(other, other_optimizer, batch)
    np.testing.assert_allclose(loss, other_loss, rtol=1e-4)
    model, optimizer = nnx.merge(graph, state)
    check_sparse(model, optimizer)
    assert_equal(bb_masks(optimizer), bb_masks(other_optimizer), rtol=0)


def bb_masks(optimizer):
    return nnx.Dict({p.replace("/", "_"): m for p, m in bb.masks(optimizer).items()})


@pytest.mark.long
def test_parameters_split_from_the_rest_are_plain_jax(batch):
    model = Model(nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def split_loss(params, rest, batch):
        model = nnx.merge(graph, params, rest)
        return loss_fn(model, batch), nnx.state(model, nnx.Not(nnx.Param))

    units = bb.trace(split_loss, params, rest, batch)
    whole = bb.trace(loss_fn, model, batch)
    assert units.paths == whole.paths  # of the module running means are leaves as well
    for path in units.paths:
        mine, its = units[path], whole[path]
        assert (mine.roles, mine.bias, mine.reads) == (its.roles, its.bias, its.reads)
        assert set(mine.companions) <= set(its.companions)
    tx = chain(units)
    opt_state = tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    @chex.assert_max_traces(n=1)
    def train_step(params, opt_state, rest, batch):
        observed = bb.observe(split_loss, units, has_aux=True)
        (_, (rest, activity)), grads = jax.value_and_grad(observed, has_aux=True)(
            params, rest, batch
        )
        updates, opt_state = tx.update(grads, opt_state, params, activity=activity)
        return optax.apply_updates(params, updates), opt_state, rest

    for _ in range(6):
        params, opt_state, rest = train_step(params, opt_state, rest, batch)
    check_sparse(nnx.merge(graph, params, rest), opt_state)


def rng_loss(model, batch, rngs):
    x = model["dropout"](nnx.relu(model["up"](batch[0])), rngs=rngs)
    return jnp.mean((model["down"](x)[:, 0] - batch[1]) ** 2)


@pytest.mark.long
@pytest.mark.parametrize("by_name", [False, True])
def test_rngs_among_the_arguments_advance(batch, by_name):
    rngs = nnx.Rngs(0)
    model = {
        "up": nnx.Linear(8, 24, rngs=rngs),
        "dropout": nnx.Dropout(0.5),
        "down": nnx.Linear(24, 1, rngs=rngs),
    }
    units = bb.trace(rng_loss, model, batch, nnx.Rngs(1))
    assert units.paths == ("up/kernel", "down/kernel")
    mine, plain = nnx.Rngs(1), nnx.Rngs(1)
    observed = bb.observe(rng_loss, units)
    losses = []
    for _ in range(3):
        given = ((), {"rngs": mine}) if by_name else ((mine,), {})
        losses.append(observed(model, batch, *given[0], **given[1])[0])
        np.testing.assert_allclose(losses[-1], rng_loss(model, batch, plain), rtol=1e-6)
    assert len({float(loss) for loss in losses}) == 3
    assert mine.default.count[...] == plain.default.count[...] == 3


@pytest.mark.long
def test_objects_that_share_an_array_still_share_it(batch):
    model = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    batch_count = nnx.Dict(kernel=model.kernel, calls=nnx.BatchStat(jnp.zeros(())))

    def shared_loss(model, x, other):
        other["calls"][...] += 1
        return jnp.mean(nnx.relu(model(x)) @ other["kernel"][...])

    units = bb.trace(shared_loss, model, batch[0], batch_count)
    assert units["kernel"].uses == 2
    loss, _ = bb.observe(shared_loss, units)(model, batch[0], batch_count)
    assert batch_count["calls"][...] == 1
    np.testing.assert_allclose(
        loss, shared_loss(model, batch[0], batch_count), rtol=1e-6
    )


class Tied(nnx.Module):
    """Two layers with one kernel."""

    def __init__(self, rngs):
        self.a = nnx.Linear(8, 12, rngs=rngs)
        self.b = nnx.Linear(12, 8, rngs=rngs)
        self.c = nnx.Linear(8, 12, rngs=rngs)
        self.c.kernel = self.a.kernel
        self.out = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.b(nnx.relu(self.a(x))))
        return self.out(nnx.relu(self.c(x)))


WAYS = {
    "prune": lambda fn, model, units, x: bb.prune(
        model, units.select("a/kernel"), bb.rules.magnitude(), density=0.5
    ),
    "prune_in_order": lambda fn, model, units, x: bb.prune_in_order(
        fn, model, units.select("a/kernel"), bb.rules.magnitude(), [(x,)], 0.5
    ),
    "relieve": lambda fn, model, units, x: bb.relieve(
        fn, model, units, [(x,)], alpha_dense=0.5
    ),
    "personalise": lambda fn, model, units, x: bb.personalise(
        fn, model, units, [(x,)], remove=0.5
    ),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("within", ["alone", "in a tree"])
@pytest.mark.parametrize("way", sorted(WAYS))
def test_pruned_modules_go_on_sharing_an_array(batch, way, within):
    inside = within == "in a tree"
    model, key = Tied(nnx.Rngs(0)), "net/a/kernel" if inside else "a/kernel"
    params = {"net": model, "other": nnx.Linear(3, 2, rngs=nnx.Rngs(1))}

    def fn(params, x):
        return params["other"](params["net"](x)) if inside else params(x)

    given = params if inside else model
    units = bb.trace(fn, given, batch[0])
    pruned, masks, *_ = WAYS[way](fn, given, units, batch[0])
    tied = pruned["net"] if inside else pruned
    assert tied.a.kernel is tied.c.kernel
    kernel, mask = np.asarray(tied.a.kernel[...]), np.asarray(masks[key])
    assert 0 < mask.sum() < mask.size
    np.testing.assert_array_equal(kernel, np.where(mask, model.a.kernel[...], 0))


@pytest.mark.long
@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda units: optax.MultiSteps(chain(units, start=0), 2),
        lambda units: bb.wrap(optax.adamw(1e-2), units, density=DENSITY, start=0),
    ],
    ids=["MultiSteps", "wrap"],
)
def test_accessors_take_the_optimizer_and_its_state(batch, make_optimizer):
    units, model, optimizer = make(batch, make_optimizer)
    train_step = nnx.jit(functools.partial(train, units))
    for _ in range(2):
        train_step(model, optimizer, batch)
    check_sparse(model, optimizer)
    for accessor in (bb.masks, bb.degrees_of, bb.on_rates, bb.metrics):
        mine, held = accessor(optimizer), accessor(optimizer.opt_state)
        assert mine.keys() == held.keys()
        for key in mine:
            assert isinstance(mine[key], jax.Array)
            np.testing.assert_array_equal(mine[key], held[key])
    density = nnx.jit(lambda optimizer: bb.metrics(optimizer)["overall/density_got"])
    np.testing.assert_allclose(density(optimizer), DENSITY, atol=1e-2)


@pytest.mark.long
def test_a_scanned_stack_has_a_budget_per_layer(batch):
    class Stack(nnx.Module):
        def __init__(self, rngs):
            @nnx.split_rngs(splits=3)
            @nnx.vmap
            def make_layers(rngs):
                return nnx.Linear(8, 8, rngs=rngs)

            self.layers = make_layers(rngs)
            self.down = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            def apply(x, layer):
                return nnx.relu(layer(x))

            return self.down(apply(x, self.layers))

    model = Stack(nnx.Rngs(0))
    units = bb.trace(loss_fn, model, batch)
    optimizer = nnx.Optimizer(model, chain(units, start=0), wrt=nnx.Param)
    nnx.jit(functools.partial(train, units))(model, optimizer, batch)
    kept = np.count_nonzero(model.layers.kernel[...], axis=(1, 2))
    np.testing.assert_array_equal(kept, 3 * [round(DENSITY * 64)])
