"""`bb.value_and_grad`: loss, gradients and activity side by side, of any framework."""

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

import bbjax as bb
from tests.support.zoo_case import normal, relu, weights

X = normal(1, 8, 4)
P = weights(w=(4, 6), o=(6, 2))


def loss_fn(p, x, scale=1.0):
    return scale * jnp.mean(jnp.square(relu(x @ p["w"]) @ p["o"]))


def with_aux(p, x):
    hidden = relu(x @ p["w"])
    return jnp.mean(jnp.square(hidden @ p["o"])), {"hidden": hidden}


UNITS = bb.trace(loss_fn, P, X)


def equal(got, want, **tolerance):
    tolerance = {"rtol": 1e-6, "atol": 1e-7} | tolerance
    chex.assert_trees_all_close(got, want, **tolerance)


# Arrays --------------------------------------------------------------------------
@pytest.mark.long
def test_returns_what_jax_and_observe_return():
    loss, grads, activity = bb.value_and_grad(loss_fn, UNITS)(P, X)
    equal((loss, grads), jax.value_and_grad(loss_fn)(P, X))
    equal(activity, bb.observe(loss_fn, UNITS)(P, X)[1])


def test_side_outputs_stand_beside_the_loss():
    (loss, aux), grads, activity = bb.value_and_grad(with_aux, UNITS, has_aux=True)(
        P, X
    )
    equal(((loss, aux), grads), jax.value_and_grad(with_aux, has_aux=True)(P, X))
    equal(activity, bb.observe(loss_fn, UNITS)(P, X)[1])


def test_keywords_reach_the_function():
    loss, grads, _ = bb.value_and_grad(loss_fn, UNITS)(P, X, scale=3.0)
    equal((loss, grads), jax.value_and_grad(loss_fn)(P, X, scale=3.0))


@pytest.mark.parametrize(
    "options",
    [
        {"where": jnp.arange(8) < 5},
        {"where": lambda x: x[:, 0] > 0},
        {"on": bb.on.above(0.5)},
        {"needs": ("mean_square", "outputs.mean_abs")},
    ],
    ids=["mask", "function", "on", "needs"],
)
def test_options_are_those_of_observe(options):
    activity = bb.value_and_grad(loss_fn, UNITS, **options)(P, X)[2]
    equal(activity, bb.observe(loss_fn, UNITS, **options)(P, X)[1])
    plain = bb.value_and_grad(loss_fn, UNITS)(P, X)[2]
    same = jax.tree.structure(activity) == jax.tree.structure(plain)
    pairs = zip(jax.tree.leaves(activity), jax.tree.leaves(plain), strict=False)
    assert not same or not all(np.allclose(a, b) for a, b in pairs)


@pytest.mark.long
def test_a_rule_that_needs_more_trains_with_its_needs():
    rule = bb.rules.wanda()
    tx = optax.chain(optax.sgd(0.1), bb.transform(UNITS, rule, density=0.5, start=0))

    def step(needs):
        _, grads, activity = bb.value_and_grad(loss_fn, UNITS, needs=needs)(P, X)
        updates, _ = tx.update(grads, tx.init(P), P, activity=activity)
        return optax.apply_updates(P, updates)

    with pytest.raises(ValueError, match=r"needs=rule\.needs to bb\.value_and_grad"):
        step(())
    assert int((step(rule.needs)["w"] != 0).sum()) == 12


@pytest.mark.long
def test_under_jit_vmap_and_scan():
    run = bb.value_and_grad(loss_fn, UNITS)
    want = run(P, X)
    equal(jax.jit(run)(P, X), want)
    equal(
        jax.tree.map(lambda v: v[1], jax.vmap(run, (None, 0))(P, jnp.stack([X, X]))),
        want,
    )
    _, found = jax.lax.scan(lambda c, x: (c, run(P, x)), 0, jnp.stack([X, X]))
    equal(jax.tree.map(lambda v: v[0], found), want)


def test_in_a_shard_map():
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))

    def mean_loss(p, x):
        return jax.lax.pmean(loss_fn(p, x), "data")

    def device(p, x):
        loss, grads, activity = bb.value_and_grad(mean_loss, UNITS)(p, x)
        return loss, grads, jax.lax.pmean(activity, "data")

    everywhere = PartitionSpec()
    specs = {"in_specs": (everywhere, PartitionSpec("data")), "out_specs": everywhere}
    got = jax.jit(jax.shard_map(device, mesh=mesh, **specs))(P, X)
    want = bb.value_and_grad(loss_fn, UNITS)(P, X)
    equal(got[:2], want[:2], rtol=1e-5)  # another order of sums
    for path in P:
        rates = [found[2][path].outputs.on_rate for found in (got, want)]
        np.testing.assert_allclose(*rates, rtol=1e-6)


def test_costs_what_the_nested_call_costs():
    def nested(p, x):
        (loss, activity), grads = jax.value_and_grad(
            bb.observe(loss_fn, UNITS), has_aux=True
        )(p, x)
        return loss, grads, activity

    costs = [
        jax.jit(f).lower(P, X).compile().cost_analysis()["flops"]
        for f in (nested, bb.value_and_grad(loss_fn, UNITS))
    ]
    assert costs[0] == costs[1]


def test_leaves_that_have_no_gradient_get_none():
    def counted(p, x):
        return loss_fn(p["net"], x) + 0.0 * p["calls"].astype(x.dtype)

    params = {"net": P, "calls": jnp.int32(3), "name": "mlp"}
    units = bb.trace(counted, params, X)
    loss, grads, _ = bb.value_and_grad(counted, units)(params, X)
    assert grads["calls"] is None and grads["name"] is None
    equal((loss, grads["net"]), jax.value_and_grad(loss_fn)(P, X))


# Linen ---------------------------------------------------------------------------
class Normed(nn.Module):
    """BatchNorm and dropout, as most image models have them."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x)))
        return nn.Dense(2)(nn.Dropout(0.3, deterministic=not train)(x))


@pytest.mark.long
@pytest.mark.usefixtures("lenient")
def test_linen_with_running_means_and_dropout():
    model = Normed()
    variables = model.init(jax.random.key(0), X, train=False)
    params, stats = variables["params"], variables["batch_stats"]

    def loss(params, stats, x, key):
        out, new = model.apply(
            {"params": params, "batch_stats": stats},
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return jnp.mean(out**2), new["batch_stats"]

    key = jax.random.key(1)
    units = bb.trace(loss, params, stats, X, key)
    run = jax.jit(bb.value_and_grad(loss, units, has_aux=True))
    (got, new), grads, activity = run(params, stats, X, key)
    want = jax.value_and_grad(loss, has_aux=True)(params, stats, X, key)
    equal(((got, new), grads), want, rtol=1e-5, atol=1e-6)
    assert activity["Dense_0/kernel"].outputs.on_rate.shape == (16,)


# NNX -----------------------------------------------------------------------------
class Model(nnx.Module):
    """Changes while it is called: running means, and the counter of dropout."""

    def __init__(self, rngs):
        self.up = nnx.Linear(4, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.down = nnx.LoRALinear(16, 2, lora_rank=2, rngs=rngs)

    def __call__(self, x):
        return self.down(self.dropout(nnx.relu(self.norm(self.up(x)))))


def model_loss(model, x):
    return jnp.mean(model(x) ** 2)


def model_with_aux(model, x):
    out = model(x)
    return jnp.mean(out**2), out


def pure(tree):
    """Nested dicts of the arrays of a module, or of a state."""
    if isinstance(tree, dict):
        return {name: pure(value) for name, value in tree.items()}
    return nnx.to_pure_dict(nnx.state(tree) if isinstance(tree, nnx.Module) else tree)


def arrays(model):
    """Its arrays, random counters as numbers."""
    return [
        jax.random.key_data(v) if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v
        for v in jax.tree.leaves(pure(model))
    ]


@pytest.mark.long
@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("aux", [False, True])
def test_a_module_gives_and_becomes_what_nnx_makes_of_it(aux, jitted):
    fn = model_with_aux if aux else model_loss
    mine, theirs = Model(nnx.Rngs(0)), Model(nnx.Rngs(0))
    units = bb.trace(fn, mine, X)
    run = bb.value_and_grad(fn, units, has_aux=aux)
    run = nnx.jit(run) if jitted else run
    for _ in range(2):  # dropout draws anew
        got, grads, activity = run(mine, X)
        want, slopes = nnx.value_and_grad(fn, has_aux=aux)(theirs, X)
        equal((got, pure(grads)), (want, pure(slopes)), rtol=1e-4, atol=1e-6)
        equal(arrays(mine), arrays(theirs), rtol=1e-4, atol=1e-6)
        assert activity["up/kernel"].outputs.on_rate.shape == (16,)


@pytest.mark.long
@pytest.mark.usefixtures("lenient")
def test_variables_that_get_gradients_are_chosen_as_in_nnx():
    model = Model(nnx.Rngs(0))
    units = bb.trace(model_loss, model, X)
    run = bb.value_and_grad(model_loss, units, wrt=nnx.LoRAParam)
    grads = run(model, X)[1]
    twin = Model(nnx.Rngs(0))
    chosen = nnx.DiffState(0, nnx.LoRAParam)
    want = nnx.grad(model_loss, argnums=chosen)(twin, X)
    assert set(pure(grads)) == {"down"} and set(pure(grads)["down"]) == {"lora"}
    equal(pure(grads), pure(want), rtol=1e-4, atol=1e-6)


@pytest.mark.long
@pytest.mark.usefixtures("lenient")
def test_an_optimizer_of_nnx_takes_the_results_as_they_are():
    model = Model(nnx.Rngs(0))
    units = bb.trace(model_loss, model, X).select("up")
    tx = optax.chain(optax.adam(1e-2), bb.transform(units, density=0.25, start=0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        loss, grads, activity = bb.value_and_grad(model_loss, units)(model, x)
        optimizer.update(model, grads, activity=activity)
        return loss

    losses = [float(step(model, optimizer, X)) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert int((model.up.kernel[...] != 0).sum()) == 16


@pytest.mark.long
@pytest.mark.usefixtures("lenient")
def test_several_modules_and_random_streams_beside_arrays():
    pair = {
        "a": nnx.Linear(4, 6, rngs=nnx.Rngs(0)),
        "b": nnx.Linear(6, 2, rngs=nnx.Rngs(1)),
    }

    def of_pair(pair, x):
        return jnp.mean(pair["b"](nnx.relu(pair["a"](x))) ** 2)

    grads = bb.value_and_grad(of_pair, bb.trace(of_pair, pair, X))(pair, X)[1]
    plain = pure(pair)

    def of_arrays(p, x):
        hidden = relu(x @ p["a"]["kernel"] + p["a"]["bias"])
        return jnp.mean((hidden @ p["b"]["kernel"] + p["b"]["bias"]) ** 2)

    equal(pure(grads), jax.grad(of_arrays)(plain, X))

    def noisy(p, x, rngs):
        return loss_fn(p, x + 0.1 * jax.random.normal(rngs(), x.shape))

    rngs, twin = nnx.Rngs(3), nnx.Rngs(3)
    units = bb.trace(noisy, P, X, nnx.Rngs(3))
    for _ in range(2):  # the stream goes on
        got = bb.value_and_grad(noisy, units)(P, X, rngs)[:2]
        equal(got, nnx.value_and_grad(noisy)(P, X, twin))


# Equinox -------------------------------------------------------------------------
@pytest.mark.long
@pytest.mark.usefixtures("lenient")
def test_an_equinox_module_gets_gradients_that_it_can_apply():
    net = eqx.nn.MLP(4, 2, 16, 1, key=jax.random.key(0))

    def of(net, x):
        return jnp.mean(jax.vmap(net)(x) ** 2)

    units = bb.trace(of, net, X)
    loss, grads, activity = eqx.filter_jit(bb.value_and_grad(of, units))(net, X)
    want, slopes = eqx.filter_value_and_grad(of)(net, X)
    equal((loss, grads), (want, slopes))
    moved = eqx.apply_updates(net, jax.tree.map(lambda g: -0.1 * g, grads))
    assert of(moved, X) < loss
    assert activity["layers/0/weight"].outputs.on_rate.shape == (16,)


# Refused -------------------------------------------------------------------------
@pytest.mark.long
def test_a_result_that_is_no_scalar_is_refused():
    with pytest.raises(TypeError, match=r"scalar, got tuple; .* has_aux=True"):
        bb.value_and_grad(with_aux, UNITS)(P, X)
    with pytest.raises(TypeError, match=r"scalar, got an array of shape \(8,\)"):
        bb.value_and_grad(lambda p, x: loss_fn(p, x) * x[:, 0], UNITS)(P, X)


@pytest.mark.parametrize(
    "fn, got",
    [
        (loss_fn, "one result"),
        (lambda p, x: (loss_fn(p, x), x, x), "3 results"),
        (lambda p, x: jnp.stack([loss_fn(p, x)] * 2), "one result"),
    ],
)
def test_side_outputs_that_are_not_there_are_missed(fn, got):
    for observed in (bb.value_and_grad, bb.observe):
        with pytest.raises(
            TypeError, match=rf"\(out, aux\) .* got {got}; return a pair"
        ):
            observed(fn, UNITS, has_aux=True)(P, X)


def test_a_filter_of_variables_needs_a_module():
    with pytest.raises(TypeError, match=r"wrt only with an NNX module, got .*Param"):
        bb.value_and_grad(loss_fn, UNITS, wrt=nnx.Param)(P, X)


@pytest.mark.long
def test_refuses_what_observe_refuses():
    with pytest.raises(TypeError, match=r"units from bb\.trace, got dict"):
        bb.value_and_grad(loss_fn, P)
    with pytest.raises(ValueError, match="unknown|expected"):
        bb.value_and_grad(loss_fn, UNITS, needs=("loudness",))
    with pytest.raises(ValueError, match="without"):
        bb.value_and_grad(lambda p, x: jnp.sum(x), UNITS)(P, X)
