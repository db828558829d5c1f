"""Moments of weights that come back, over the optimizers that Optax has.

Two runs see the same gradients, but in the second one the weights that will come back
have gradient 0. An optimizer that looks at each weight alone then holds for them what
it holds for a new weight, so after the reset the first run must go on as the second.
"""

import dataclasses
import functools
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from optax import contrib

import bbjax as bb
from bbjax.model.leaves import leaves_by_path
from bbjax.training.moments import moment_paths, reset_moments
from bbjax.training.state import PruneState

pytestmark = pytest.mark.usefixtures("lenient")

PATH = "up/kernel"
SHAPE = (4, 6)
ARRIVED = np.arange(24).reshape(SHAPE) % 5 == 0
STEPS = 5


def weights(dtype=jnp.float32):
    up, down = np.random.default_rng(0).normal(size=(2, *SHAPE))
    up = np.where(ARRIVED, 0, up)
    tree = {"up": {"kernel": up, "bias": np.ones(6)}, "down": {"kernel": down}}
    return jax.tree.map(lambda w: jnp.asarray(w, dtype), tree)


def gradients():
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda w: jnp.asarray(rng.normal(size=(STEPS, *w.shape)), jnp.float32),
        weights(),
    )


def without_arrived(grads):
    up = grads["up"]
    return grads | {"up": up | {"kernel": jnp.where(ARRIVED[None], 0, up["kernel"])}}


def labels(tree):
    return jax.tree.map(lambda w: "matrix" if w.ndim > 1 else "vector", tree)


def is_matrix(tree):
    return jax.tree.map(lambda w: w.ndim > 1, tree)


def lookahead():
    """Fast weights alone: what the optimizer inside sees."""
    tx = optax.lookahead(optax.adam(0.1), 3, 0.5)

    def update(grads, state, params):
        updates, state = tx.update(grads, state, optax.LookaheadParams(params, params))
        return updates.fast, state

    def init(params):
        return tx.init(optax.LookaheadParams.init_synced(params))

    return optax.GradientTransformation(init, update)


@dataclasses.dataclass(frozen=True)
class Row:
    """An optimizer.

    Attributes:
      tx: the optimizer.
      count: leaves of the state that hold one number per weight of a kernel.
      left: ends of the paths of other leaves that may remember weights.
      alone: whether it looks at each weight alone, so that the second run is an oracle
        for the first one.
      extra: names of further arguments of `update`.
      compiled: whether its update has functions inside that are slow without `jit`.
    """

    tx: optax.GradientTransformation
    count: int
    left: tuple[str, ...] = ()
    alone: bool = True
    extra: tuple[str, ...] = ()
    compiled: bool = False


def each(*fields):
    kernels = ("down/kernel", "up/bias", "up/kernel")
    return tuple(f"{field}/{path}" for field in fields for path in kernels)


ADAM = optax.adam(0.1)
ROWS = {
    "sgd": Row(optax.sgd(0.1), 0),
    "momentum": Row(optax.sgd(0.1, momentum=0.9, nesterov=True), 1),
    "noisy_sgd": Row(optax.noisy_sgd(0.1, key=jax.random.key(0)), 0),
    "signum": Row(optax.signum(0.1), 1),
    "sign_sgd": Row(optax.sign_sgd(0.1), 0),
    "fromage": Row(optax.fromage(0.1), 0),
    "adam": Row(ADAM, 2),
    "adam bf16 mu": Row(optax.adam(0.1, mu_dtype=jnp.bfloat16), 2),
    "adamw": Row(optax.adamw(0.1, weight_decay=0.1), 2),
    "adamax": Row(optax.adamax(0.1), 2),
    "adamaxw": Row(optax.adamaxw(0.1), 2),
    "amsgrad": Row(optax.amsgrad(0.1), 3),
    "adabelief": Row(optax.adabelief(0.1), 2),
    "adadelta": Row(optax.adadelta(0.1), 2),
    "adagrad": Row(optax.adagrad(0.1), 1),
    "adan": Row(optax.adan(0.1), 4),
    "lion": Row(optax.lion(0.1), 1),
    "lamb": Row(optax.lamb(0.1), 2),
    "lars": Row(optax.lars(0.1, momentum=0.9), 1, alone=False),
    "nadam": Row(optax.nadam(0.1), 2),
    "nadamw": Row(optax.nadamw(0.1), 2),
    "radam": Row(optax.radam(0.1), 2),
    "rmsprop": Row(optax.rmsprop(0.1, centered=True, momentum=0.9), 3),
    # From another value than 0, the mean of squares of a resting weight decays.
    "rmsprop from 1": Row(optax.rmsprop(0.1, initial_scale=1.0), 1, alone=False),
    "rprop": Row(optax.rprop(0.1), 2),
    "yogi": Row(optax.yogi(0.1), 2, alone=False),  # starts at 1e-6, which decays
    "yogi from 0": Row(optax.scale_by_yogi(initial_accumulator_value=0.0), 2),
    "optimistic": Row(optax.optimistic_gradient_descent(0.1), 1),
    "optimistic_adam": Row(optax.optimistic_adam_v2(0.1), 3),
    "ema": Row(optax.ema(0.9), 1),
    "apply_every": Row(optax.apply_every(3), 1),
    # One statistic per matrix, or per row and column.
    "novograd": Row(optax.novograd(0.1), 1, each("nu"), alone=False),
    "adafactor": Row(
        optax.adafactor(0.1, min_dim_size_to_factor=2, momentum=0.9),
        1,
        # The vector is not factored: its second moment has its own shape.
        (*each("v_row", "v_col"), "v/down/kernel", "v/up/kernel"),
        alone=False,
    ),
    "adafactor whole": Row(optax.adafactor(0.1), 1, each("v_row", "v_col")),
    "sm3": Row(
        optax.sm3(0.1),
        1,
        tuple(f"mu/{p}/{i}" for p in ("down/kernel", "up/kernel") for i in (0, 1))
        + ("mu/up/bias/0",),
        alone=False,
    ),
    "lbfgs": Row(
        optax.scale_by_lbfgs(3),
        2,
        (*each("diff_params_memory", "diff_updates_memory"), "weights_memory"),
        alone=False,
        compiled=True,
    ),
    "galore": Row(
        contrib.galore(0.1, rank=2),
        0,
        ("mu/down/kernel", "mu/up/kernel", "nu/down/kernel", "nu/up/kernel")
        + each("projector"),
        alone=False,
        compiled=True,
    ),
    # Momentum per weight; what the matrix function makes of it is of all weights.
    "muon": Row(contrib.muon(0.1), 1, ("ns_coeffs",), compiled=True),
    # Divides by the moments of the step before: huge where these are 0.
    "acprop": Row(contrib.acprop(0.1), 2, alone=False),
    "ademamix": Row(contrib.ademamix(0.1), 3),
    "simplified_ademamix": Row(contrib.simplified_ademamix(0.1), 2),
    "adopt": Row(contrib.adopt(0.1), 2),
    "sophia": Row(
        contrib.sophia(0.1), 2, alone=False, extra=("obj_fn",), compiled=True
    ),
    # A learning rate that is measured on all weights.
    "prodigy": Row(contrib.prodigy(0.1), 4, alone=False),
    "dadapt_adamw": Row(contrib.dadapt_adamw(0.1), 3, alone=False),
    "dog": Row(contrib.dog(0.1), 1, alone=False),
    "dowg": Row(contrib.dowg(0.1), 1, alone=False),
    "cocob": Row(contrib.cocob(), 5, alone=False),
    "madgrad": Row(contrib.madgrad(0.1), 3),
    "mechanize": Row(contrib.mechanize(ADAM), 3, ("r", "m", "v", "s"), alone=False),
    "momo": Row(contrib.momo(0.1), 1, alone=False, extra=("value",)),
    "momo_adam": Row(contrib.momo_adam(0.1), 2, alone=False, extra=("value",)),
    # Keeps weights: z is the weight that came back itself.
    "schedule_free": Row(contrib.schedule_free_adamw(0.1), 2),
    "schedule_free_sgd": Row(contrib.schedule_free_sgd(0.1), 1),
    "sam": Row(contrib.sam(optax.sgd(0.1), optax.sgd(0.1, 0.9)), 2, alone=False),
    # Around another optimizer.
    "chain": Row(optax.chain(optax.clip(1.0), optax.trace(0.9), ADAM), 3),
    "named_chain": Row(optax.named_chain(("a", optax.trace(0.9)), ("b", ADAM)), 3),
    "MultiSteps": Row(optax.MultiSteps(ADAM, 3), 3, compiled=True),
    "inject": Row(optax.inject_hyperparams(optax.adam)(0.1), 2),
    "partition": Row(
        optax.partition({"matrix": ADAM, "vector": optax.sgd(0.1)}, labels), 2
    ),
    "masked": Row(optax.masked(ADAM, is_matrix), 2),
    "masked subtree": Row(optax.masked(ADAM, {"up": True, "down": False}), 2),
    "apply_if_finite": Row(optax.apply_if_finite(ADAM, 3), 2, compiled=True),
    "conditionally": Row(
        optax.conditionally_transform(ADAM, lambda step: step > 1), 2, compiled=True
    ),
    "lookahead": Row(lookahead(), 2),
    # Parameters joined into one vector: out of reach.
    "flatten": Row(optax.flatten(ADAM), 0, ("mu", "nu"), alone=False),
}
EVERY_ROW = pytest.mark.parametrize("name", ROWS)
EXTRA = {
    "value": jnp.float32(2.0),
    "obj_fn": lambda params: sum(jnp.sum(jnp.cos(w)) for w in jax.tree.leaves(params)),
}


def history(update, init, grads):
    """The state after all gradients but the last; weights rest."""
    params, state = weights(), init(weights())
    for i in range(STEPS - 1):
        _, state = update(jax.tree.map(operator.itemgetter(i), grads), state, params)
    return state


@functools.cache
def runs(name):
    """Of each run: the state, the state after the reset, and the next updates."""
    row, params, init = ROWS[name], weights(), ROWS[name].tx.init
    update = functools.partial(row.tx.update, **{e: EXTRA[e] for e in row.extra})
    if row.compiled:  # functions inside are compiled anew in every call otherwise
        update = jax.jit(update)
    found = []
    for grads in (gradients(), without_arrived(gradients())):
        old = history(update, init, grads)
        new = reset_moments(old, init, params, {PATH: ARRIVED})
        assert types(new) == types(old)
        updates, _ = update(jax.tree.map(lambda g: g[-1], gradients()), new, params)
        found.append(tuple(by_path(tree) for tree in (old, new, updates)))
    return found


def types(tree):
    """Shapes, dtypes and whether they are weak: what a scan wants unchanged."""
    return jax.tree.structure(tree), [
        jax.typeof(leaf) for leaf in jax.tree.leaves(tree)
    ]


def by_path(tree):
    """Leaves as numpy, random keys as their bits."""
    found = {}
    for path, leaf in leaves_by_path(tree)[0]:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        found[path] = np.asarray(leaf)
    return found


def assert_same_bits(mine, theirs, message=""):
    assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), message
    assert mine.tobytes() == theirs.tobytes(), message


@EVERY_ROW
def test_what_can_be_reset_is_known(name):
    row = ROWS[name]
    found = moment_paths(jax.eval_shape(row.tx.init, weights()), weights())
    assert set(found.reset) == {"up/kernel", "up/bias", "down/kernel"}
    assert len(found.reset[PATH]) == row.count
    assert all(path.endswith(f"/{PATH}") for path in found.reset[PATH])
    assert len(found.left) == len(row.left)
    for end in row.left:
        assert any(path.endswith(end) for path in found.left), end


@pytest.mark.sampled(18)
@EVERY_ROW
def test_arrived_weights_start_anew_and_no_other_bit_changes(name):
    (old, new, _), _ = runs(name)
    fresh = ROWS[name].tx.init(weights())
    reset = moment_paths(fresh, weights()).reset[PATH]
    assert list(old) == list(new)
    fresh = by_path(fresh)
    for path, before in old.items():
        want = np.where(ARRIVED, fresh[path], before) if path in reset else before
        assert_same_bits(new[path], want, path)


@pytest.mark.sampled(25)
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.alone])
def test_an_arrived_weight_goes_on_as_one_that_never_had_a_gradient(name):
    (_, *mine), (_, *theirs) = runs(name)
    chex.assert_trees_all_close(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "name", [name for name, row in ROWS.items() if row.count and row.alone]
)
def test_without_a_reset_it_would_not(name):
    (old, _, _), (rested, _, _) = runs(name)
    assert any(not np.allclose(old[path], rested[path]) for path in old)


@pytest.mark.parametrize("name", ["adam", "MultiSteps", "schedule_free"])
def test_resets_under_jit_vmap_scan_and_cond(name):
    tx, params = ROWS[name].tx, weights()

    def step(state, grads):
        _, state = tx.update(grads, state, params)
        return state, None

    def run(grads, arrivals, due):
        state, _ = jax.lax.scan(step, tx.init(params), grads)
        return jax.lax.cond(
            due,
            lambda state: reset_moments(state, tx.init, params, {PATH: arrivals}),
            lambda state: state,
            state,
        )

    grads = jax.tree.map(lambda g: g[:-1], gradients())
    arrivals = jnp.stack([ARRIVED, ARRIVED, np.zeros_like(ARRIVED)])
    mapped = jax.vmap(run, in_axes=(None, 0, 0))
    found = jax.jit(mapped)(grads, arrivals, jnp.array([True, False, True]))
    (old, new, _), _ = runs(name)
    for path, leaves in by_path(found).items():
        for leaf, want in zip(leaves, (new[path], old[path], old[path]), strict=True):
            np.testing.assert_allclose(leaf, want, rtol=1e-5, atol=1e-7, err_msg=path)
        if path in moment_paths(tx.init(params), params).reset[PATH]:
            fresh = by_path(tx.init(params))[path][ARRIVED]
            np.testing.assert_array_equal(leaves[0][ARRIVED], fresh)
            np.testing.assert_array_equal(leaves[0][~ARRIVED], leaves[1][~ARRIVED])


# Values that are not 0 -----------------------------------------------------------
@pytest.mark.parametrize(
    "tx, path, value",
    [
        (optax.adagrad(0.1, initial_accumulator_value=0.3), "sum_of_squares", 0.3),
        (optax.rprop(0.2), "step_sizes", 0.2),
        (optax.rmsprop(0.1, initial_scale=0.5), "nu", 0.5),
        (contrib.schedule_free_sgd(0.1), "z", 7.0),
        (contrib.prodigy(0.1), "params0", 7.0),
    ],
    ids=["adagrad", "rprop", "rmsprop", "schedule_free", "prodigy"],
)
def test_a_new_weight_starts_where_the_optimizer_starts_it(tx, path, value):
    grads = gradients()
    state = history(tx.update, tx.init, grads)
    params = weights()
    params["up"]["kernel"] = jnp.where(ARRIVED, 7.0, params["up"]["kernel"])
    state = reset_moments(state, tx.init, params, {PATH: ARRIVED})
    (leaf,) = (v for k, v in by_path(state).items() if k.endswith(f"{path}/{PATH}"))
    np.testing.assert_allclose(leaf[ARRIVED], value)
    assert not np.allclose(leaf[~ARRIVED], value)


# Which leaf belongs to which weight ----------------------------------------------
def reset_paths(tx, params, path):
    return moment_paths(tx.init(params), params).reset[path]


def test_a_path_that_ends_like_another_is_another():
    params = {"w": jnp.ones(3), "block": {"w": jnp.ones(3)}, "mu": {"w": jnp.ones(3)}}
    assert reset_paths(ADAM, params, "w") == ("0/mu/w", "0/nu/w")
    assert reset_paths(ADAM, params, "mu/w") == ("0/mu/mu/w", "0/nu/mu/w")
    _, state = ADAM.update(params, ADAM.init(params))
    state = reset_moments(state, ADAM.init, params, {"w": np.ones(3, bool)})
    mu = state[0].mu
    assert (float(mu["w"][0]), float(mu["block"]["w"][0])) == (0.0, pytest.approx(0.1))


def test_a_part_of_the_parameters_is_found_by_its_holes():
    params = {"w": jnp.ones(3), "block": {"w": jnp.ones(3)}}
    tx = optax.partition(
        {"a": optax.trace(0.9), "b": ADAM}, {"w": "a", "block": {"w": "b"}}
    )
    assert reset_paths(tx, params, "w") == ("inner_states/a/inner_state/trace/w",)
    assert reset_paths(tx, params, "block/w") == (
        "inner_states/b/inner_state/0/mu/block/w",
        "inner_states/b/inner_state/0/nu/block/w",
    )


def test_lists_of_vectors_are_not_mistaken():
    """SM3 keeps a list for each vector, whose only entry has the path of the first."""
    params = [jnp.ones(3), jnp.ones(3)]
    assert reset_paths(optax.sm3(0.1), params, "0") == ("0/nu/0",)
    assert reset_paths(optax.sm3(0.1), params, "1") == ("0/nu/1",)


@pytest.mark.parametrize(
    "params, path",
    [
        (jnp.ones((2, 3)), ""),
        ((jnp.ones((2, 3)), None), "0"),
        ([{"w": jnp.ones((2, 3)), "b": None}], "0/w"),
    ],
    ids=["bare", "tuple", "none inside"],
)
def test_any_tree_of_parameters(params, path):
    tx = optax.chain(optax.trace(0.9), ADAM)
    _, state = tx.update(params, tx.init(params))
    arrived = np.array([[True, False, True], [False, False, True]])
    state = reset_moments(state, tx.init, params, {path: arrived})
    for moment in (state[0].trace, state[1][0].mu, state[1][0].nu):
        (leaf,) = jax.tree.leaves(moment)
        np.testing.assert_array_equal(leaf == 0, arrived)


@pytest.mark.long
def test_pruning_state_is_the_very_same():
    params = {"up": jnp.ones((3, 4)), "down": jnp.ones((4, 3))}
    kernels = tuple(
        bb.Kernel(path, w.shape, fan_in=(0,), fan_out=(1,))
        for path, w in params.items()
    )
    # With every parameter budgeted, its dictionaries look like parameters.
    units = bb.Units(kernels).select(".")
    tx = optax.chain(optax.trace(0.9), bb.transform(units, bb.rules.magnitude()))
    _, state = tx.update(params, tx.init(params), params)
    assert moment_paths(state, params).reset["up"] == ("0/trace/up",)
    after = reset_moments(state, tx.init, params, {"up": np.ones((3, 4), bool)})
    assert not np.any(after[0].trace["up"])
    assert isinstance(after[1], PruneState)
    mine, theirs = jax.tree.leaves(after[1]), jax.tree.leaves(state[1])
    assert len(mine) > 4
    assert all(a is b for a, b in zip(mine, theirs, strict=True))


def test_a_state_keeps_a_dtype_of_its_own():
    """As where a user has cast it since `init`."""
    params = {"w": jnp.ones(2)}
    state = optax.TraceState({"w": jnp.full(2, 0.5, jnp.bfloat16)})
    arrived = {"w": np.array([True, False])}
    new = reset_moments(state, optax.trace(0.9).init, params, arrived).trace["w"]
    assert new.dtype == jnp.bfloat16
    assert new.tolist() == [0, 0.5]


def test_no_arrivals_give_back_the_same_state():
    state = ADAM.init(weights())
    assert reset_moments(state, ADAM.init, weights(), {}) is state


@pytest.mark.parametrize("only_matrices", [False, True])
def test_nnx_optimizer(only_matrices):
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    tx = optax.chain(optax.masked(ADAM, is_matrix) if only_matrices else ADAM)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = nnx.grad(lambda model: jnp.sum(model(jnp.ones((2, 4))) ** 2))(model)
    optimizer.update(model, grads)
    params, before = nnx.state(model, nnx.Param), optimizer.opt_state
    arrived = np.arange(12).reshape(4, 3) % 2 == 0
    after = reset_moments(before, tx.init, params, {"kernel": arrived})
    assert jax.tree.structure(after) == jax.tree.structure(before)
    mine, theirs = by_path(after), by_path(before)
    reset = [path for path in mine if path.endswith("/kernel")]
    assert len(reset) == 2
    for path, value in mine.items():
        old = theirs[path]
        assert np.all(old[..., :1]) if path in reset else True
        want = np.where(arrived, 0, old) if path in reset else old
        np.testing.assert_array_equal(value, want)


# Meshes --------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_moments_keep_their_own_sharding(kind):
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind,) * 2)
    rows, columns = (NamedSharding(mesh, spec) for spec in (P("x"), P(None, "y")))
    tx = optax.trace(0.9)
    with jax.set_mesh(mesh):
        params = {"w": jax.device_put(jnp.ones((4, 8)), rows)}
        old = {"w": jax.device_put(jnp.arange(32.0).reshape(4, 8), columns)}
        arrived = jax.device_put(np.eye(4, 8, dtype=bool), NamedSharding(mesh, P()))
        reset = jax.jit(
            lambda state, params, arrived: reset_moments(
                state, tx.init, params, {"w": arrived}
            )
        )
        new = reset(optax.TraceState(old), params, arrived).trace["w"]
    if kind == AxisType.Explicit:  # else the compiler chooses
        assert new.sharding.is_equivalent_to(columns, 2)
    np.testing.assert_array_equal(new, np.where(arrived, 0, old["w"]))


# What is refused -----------------------------------------------------------------
def refused(arrivals, init=ADAM.init):
    return reset_moments(ADAM.init(weights()), init, weights(), arrivals)


def test_arrivals_of_no_parameter_are_refused():
    message = "expected arrivals of parameters, got 'w' .*'up/kernel'.*init takes"
    with pytest.raises(ValueError, match=message):
        refused({"w": ARRIVED})


def test_arrivals_that_are_no_mask_are_refused():
    message = "expected bool arrivals at 'up/kernel', got int8; True where"
    with pytest.raises(TypeError, match=message):
        refused({PATH: ARRIVED.astype(np.int8)})


def test_arrivals_of_another_shape_are_refused():
    message = r"arrivals at 'up/kernel' of shape \(4, 6\), got \(6, 4\); give one"
    with pytest.raises(ValueError, match=message):
        refused({PATH: ARRIVED.T})


def test_the_state_of_another_optimizer_is_refused():
    message = "expected a state as init.*differs at .*nu_max.*; pass the init"
    with pytest.raises(ValueError, match=message):
        refused({PATH: ARRIVED}, optax.amsgrad(0.1).init)
