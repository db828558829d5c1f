"""States of one transform continued with another: every pair of twelve settings.

What is continued follows the new settings from the next update on; everything else is
refused, with what differs. `bb.adopt` takes all of them over.
"""

import functools
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bbjax as bb

STEPS, MORE = 4, 6
X = jnp.asarray(np.random.default_rng(0).normal(size=(64, 8)), jnp.float32)
BASE = {"density": 0.5, "every": 2, "start": 1, "stop": None, "ema": 0.9}

# By name: what is other than in `BASE`. Kernels with their actuators, the rule, what
# counts as on; the rest are arguments of `bb.transform`.
SETTINGS = {
    "fewer kernels": {"kernels": {"up": "in"}},
    "more kernels": {"kernels": {"up": "in", "mid": "in", "down": "in"}},
    "rule": {"rule": bb.rules.budgeted_broadcast},
    "actuator": {"kernels": {"up": "in", "mid": "out"}},
    "k_min": {"k_min": 3},
    "density": {"density": 0.3},
    "every": {"every": 3, "start": 0},
    "regrow": {"regrow": False},
    "dormant_dtype": {"dormant_dtype": jnp.bfloat16},
    "rescale": {"rescale": True},
    "ema": {"ema": 0.5},
    "on": {"on": bb.on.above(0.5)},
}
# The text that a refusal has where only one of both states has the setting.
REFUSED = {
    "fewer kernels": r"kernels that only the (state|transform) has: .*'mid'",
    "more kernels": r"kernels that only the (state|transform) has: .*'down'",
    "rule": r"rule '\w+' -> '\w+'",
    "actuator": r"'mid' with actuator (in -> out|out -> in)",
    "rescale": r"'up' with rescale (False -> True|True -> False)",
}
PAIRS = list(itertools.product(SETTINGS, repeat=2))
SAMPLE = {
    ("k_min", "density"),
    ("density", "k_min"),
    ("regrow", "dormant_dtype"),
    ("dormant_dtype", "regrow"),
    ("on", "density"),
    ("fewer kernels", "density"),
    ("density", "fewer kernels"),
    ("density", "rescale"),
    ("actuator", "rescale"),
}
ADOPTED = {
    ("regrow", "dormant_dtype"),
    ("density", "fewer kernels"),
    ("density", "rescale"),
    ("fewer kernels", "density"),
}


def pairs(sample):
    """Every pair; those that are not in the sample are slow."""
    return pytest.mark.parametrize(
        "old, new",
        [
            pytest.param(*pair, marks=() if pair in sample else pytest.mark.slow)
            for pair in PAIRS
        ],
    )


def loss(p, x):
    h = jax.nn.relu(jax.nn.relu(x @ p["up"]) @ p["mid"])
    return jnp.mean((h @ p["down"] - 1.0) ** 2)


def first_params():
    rng = np.random.default_rng(1)
    shapes = {"up": (8, 16), "mid": (16, 12), "down": (12, 6)}
    return {
        name: jnp.asarray(rng.normal(size=shape) / 3, jnp.float32)
        for name, shape in shapes.items()
    }


UNITS = bb.trace(loss, first_params(), X)


def parts(name):
    """The units, the rule, what counts as on, and the arguments of a setting."""
    given = BASE | SETTINGS.get(name, {})
    kernels = given.pop("kernels", {"up": "in", "mid": "in"})
    first, *rest = (UNITS.select(f"^{p}$", a) for p, a in kernels.items())
    on, rule = given.pop("on", None), given.pop("rule", None)
    return sum(rest, first), (rule or bb.rules.magnitude)(), on, given


@functools.cache
def optimizer(name):
    units, rule, _, given = parts(name)
    return optax.chain(optax.sgd(0.1, momentum=0.9), bb.transform(units, rule, **given))


@functools.cache
def stepper(name):
    """One step of training as a compiled function of parameters, state and batch."""
    units, _, on, _ = parts(name)
    tx, options = optimizer(name), {} if on is None else {"on": on}

    @jax.jit
    def step(params, state, x):
        _, grads, activity = bb.value_and_grad(loss, units, **options)(params, x)
        updates, state = tx.update(grads, state, params, activity=activity)
        rates = {path: side.outputs.on_rate for path, side in activity.items()}
        return optax.apply_updates(params, updates), state, rates

    return step


def trained(name, steps, params=None, state=None):
    """Parameters and states after every step."""
    params = first_params() if params is None else params
    state = optimizer(name).init(params) if state is None else state
    seen = []
    for n in range(steps):
        params, state, rates = stepper(name)(params, state, jnp.roll(X, n) * (1 + n))
        seen.append((params, state, rates))
    return seen


@functools.cache
def before(name):
    params, state, _ = trained(name, STEPS)[-1]
    return params, state


def different(old, new):
    """Which of the two settings keep one from being continued by the other."""
    odd = [name for name in {old: 0, new: 0} if old != new and name in REFUSED]
    if "fewer kernels" in odd and "actuator" in odd:
        odd.remove("actuator")  # it is that of the kernel that one of them lacks
    return odd


# Every pair ----------------------------------------------------------------------
@pytest.mark.sampled(1)
@pairs(SAMPLE)
def test_a_state_is_continued_by_other_settings_or_refused(old, new):
    params, state = before(old)
    if odd := different(old, new):
        with pytest.raises(ValueError, match="expected a state of the kernels") as info:
            stepper(new)(params, state, X)
        for name in odd:
            assert re.search(REFUSED[name], str(info.value)), name
        assert "bb.adopt(opt_state, tx, params)" in str(info.value)
        assert len(str(info.value)) < 2000
    else:
        check_run(old, new, trained(new, MORE, params, state))


@pytest.mark.long
@pairs(ADOPTED)
def test_a_state_is_adopted_by_any_other_settings(old, new):
    params, state = before(old)
    adopted = bb.adopt(state, optimizer(new), params)
    fresh = optimizer(new).init(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(adopted, fresh)
    masks, kept = bb.masks(state), bb.masks(adopted)
    for path, mask in kept.items():
        want = masks.get(path, np.ones(mask.shape, bool))
        np.testing.assert_array_equal(mask, want, err_msg=path)
    chex.assert_trees_all_equal(adopted[0], state[0])  # moments
    assert adopted[1].bb_count == STEPS
    rates = bb.on_rates(adopted)
    for path, rate in bb.on_rates(state).items():
        if path in rates and rate.shape == rates[path].shape:
            np.testing.assert_array_equal(rates[path], rate, err_msg=path)
    check_run(old, new, trained(new, MORE, params, adopted))


def check_run(old, new, seen):
    """The new settings count in every step."""
    given = {"k_min": 1, "regrow": True, "dormant_dtype": jnp.float32} | parts(new)[3]
    _, state = before(old)
    masks = {p: np.asarray(m) for p, m in bb.masks(state).items()}
    structure = jax.tree.structure(optimizer(new).init(first_params()))
    refreshed = False
    for n, (params, after, rates) in enumerate(seen, STEPS):
        assert jax.tree.structure(after) == structure
        prune = after[1]
        assert prune.bb_count == n + 1 and prune.bb_k_min == given["k_min"]
        kinds = {values.dtype for values in prune.bb_dormant.values()}
        assert kinds == (
            {jnp.dtype(given["dormant_dtype"])} if given["regrow"] else set()
        )
        due = n >= given["start"] and (n - given["start"]) % given["every"] == 0
        refreshed |= due
        for path, mask in bb.masks(after).items():
            mask = np.asarray(mask)
            assert not np.asarray(params[path])[~mask].any()
            known = masks.get(path, np.ones(mask.shape, bool))
            if not due:
                np.testing.assert_array_equal(mask, known)
            else:
                check_mask(mask, known, given)
            masks[path] = mask
        if due and given["regrow"]:
            assert min(k.min() for k in bb.degrees_of(after).values()) >= given["k_min"]
        if refreshed:
            asked = bb.metrics(after)["overall/density_asked"]
            np.testing.assert_allclose(asked, given["density"], rtol=1e-6)
        check_means(state[1], prune, rates, given["ema"])
        state = after


def check_mask(mask, known, given):
    """The exact budget, and no edge that comes back without regrowth."""
    budget = round(given["density"] * mask.size)
    if given["regrow"]:
        assert mask.sum() == budget
    else:
        assert mask.sum() == min(budget, known.sum()) and not (mask & ~known).any()


def check_means(old, new, rates, decay):
    for path, means in new.bb_means.items():
        name = "outputs.on_rate"
        if name in means and name in old.bb_means.get(path, {}):
            want = decay * old.bb_means[path][name] + (1 - decay) * rates[path]
            np.testing.assert_allclose(means[name], want, rtol=1e-5, atol=1e-6)


# Single ones ---------------------------------------------------------------------
@pytest.mark.long
def test_direct_continuation_is_that_of_an_adopted_state():
    """Where both work they are the same, bit for bit."""
    params, state = before("density")
    adopted = bb.adopt(state, optimizer("dormant_dtype"), params)
    runs = [trained("dormant_dtype", 3, params, s)[-1][:2] for s in (state, adopted)]
    chex.assert_trees_all_equal(*runs)


@pytest.mark.long
def test_a_state_adopted_by_its_own_settings_is_the_same():
    params, state = before("density")
    adopted = bb.adopt(state, optimizer("density"), params)
    chex.assert_trees_all_equal(adopted, state)
    assert jax.tree.structure(adopted) == jax.tree.structure(state)


@pytest.mark.long
@pytest.mark.parametrize(
    "new", ["regrow", pytest.param("dormant_dtype", marks=pytest.mark.slow)]
)
def test_an_adopted_state_goes_through_a_scan(new):
    """Its tree does not change any more, as it would at a direct continuation."""
    params, state = before("density")
    state = bb.adopt(state, optimizer(new), params)

    def step(carry, x):
        params, state, _ = stepper(new)(*carry, x)
        return (params, state), None

    (params, state), _ = jax.lax.scan(step, (params, state), jnp.stack([X, -X]))
    assert state[1].bb_count == STEPS + 2


@pytest.mark.long
def test_weights_that_rested_nowhere_come_back_at_zero():
    """A state without dormant weights, continued with regrowth at a higher density."""
    params, rule = first_params(), bb.rules.magnitude()
    zero = jax.tree.map(jnp.zeros_like, params)
    old, new = (
        bb.transform(UNITS.select("up"), rule, start=0, every=1, **given)
        for given in ({"density": 0.5, "regrow": False}, {"density": 0.75})
    )
    updates, state = jax.jit(old.update)(zero, old.init(params), params)
    params, before = optax.apply_updates(params, updates), bb.masks(state)["up"]
    updates, state = jax.jit(new.update)(zero, state, params)
    params, after = optax.apply_updates(params, updates), bb.masks(state)["up"]
    assert before.mean() == 0.5 and after.mean() == 0.75
    assert not np.asarray(params["up"])[~np.asarray(before)].any()
    assert state.bb_dormant["up"].shape == before.shape


@pytest.mark.parametrize("name", ["fewer kernels", "rescale"])
def test_wrap_refuses_what_transform_refuses(name):
    params = first_params()
    made = []
    for each in ("density", name):
        units, rule, _, given = parts(each)
        made.append(bb.wrap(optax.sgd(0.1), units, rule, **given))
    grads = params
    _, activity = jax.eval_shape(bb.observe(loss, UNITS), params, X)
    state = made[0].init(params)
    with pytest.raises(
        ValueError, match=REFUSED[name].replace("(state|transform)", ".*")
    ):
        made[1].update(grads, state, params, activity=activity)
    adopted = bb.adopt(state, made[1], params)
    jax.eval_shape(made[1].update, grads, adopted, params, activity=activity)


def test_other_statistics_of_a_rule_of_the_same_name_are_refused():
    params = first_params()
    units = UNITS.select("up")
    plain, sized = (
        bb.transform(units, bb.rules.priced(inputs=inputs), density=0.5)
        for inputs in (0, 0.5)
    )
    text = "'up' with statistics outputs.on_rate, .* -> inputs.mean_square, "
    with pytest.raises(ValueError, match=text):
        sized.update(params, plain.init(params), params, activity={})


def test_other_shapes_are_refused():
    small = {
        "up": jnp.ones((8, 16)),
        "mid": jnp.ones((16, 4)),
        "down": jnp.ones((4, 6)),
    }
    units = bb.trace(loss, small, X).select("up|mid")
    tx = bb.transform(units, density=0.5)
    state = bb.transform(UNITS.select("up|mid"), density=0.5).init(first_params())
    with pytest.raises(ValueError, match=r"'mid' of shape \(16, 12\) -> \(16, 4\)"):
        tx.update(small, state, small, activity={})
    with pytest.raises(ValueError, match=r"expected 'mid' of shape \(16, 12\), as in"):
        bb.adopt(state, tx, small)


def test_arrays_of_another_shape_are_refused():
    """A state that was put together by hand."""
    tx, params = bb.transform(UNITS.select("up"), density=0.5), first_params()
    state = tx.init(params)
    odd = state._replace(bb_masks={"up": state.bb_masks["up"][:, :4]})
    with pytest.raises(
        ValueError, match=r"'up' with masks of shape \(1, 4\) -> \(1, 16"
    ):
        tx.update(params, odd, params, activity={})


def test_what_is_no_state_is_refused():
    """As checkpoints are that were restored without a target."""
    tx, params = bb.transform(UNITS.select("up"), density=0.5), first_params()
    with pytest.raises(TypeError, match="got dict; restore checkpoints into the tree"):
        tx.update(params, tx.init(params)._asdict(), params, activity={})


def test_parameters_are_needed_by_wrap_as_well():
    tx, params = bb.wrap(optax.sgd(0.1), UNITS.select("up")), first_params()
    with pytest.raises(ValueError, match="expected params, got None; call tx.update"):
        tx.update(params, tx.init(params), activity={})


def test_other_roles_of_the_axes_are_refused():
    kernels = [bb.Kernel("w", (6, 6), fan_in=(i,), fan_out=(1 - i,)) for i in range(2)]
    old, new = (bb.transform(bb.Units((k,)).select("w"), density=0.5) for k in kernels)
    params = {"w": jnp.ones((6, 6))}
    with pytest.raises(ValueError, match="'w' with axes in out -> out in"):
        new.update(params, old.init(params), params, activity={})


def test_a_long_list_of_differences_is_cut():
    kernels = [bb.Kernel(f"w{i}", (8, 8), fan_in=(0,), fan_out=(1,)) for i in range(99)]
    params = {k.path: jnp.ones(k.shape) for k in kernels}
    old, new = (
        bb.transform(bb.Units(tuple(ks)).select("w"), bb.rules.random(), density=0.5)
        for ks in (kernels[:1], kernels)
    )
    with pytest.raises(ValueError, match="'w1', 'w2', 'w3', 'w4' and 94 more") as info:
        new.update(params, old.init(params), params)
    assert len(str(info.value)) < 2000


@pytest.mark.slow
def test_an_nnx_optimizer_is_made_anew_and_filled():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(8, 16, rngs=rngs)
            self.down = nnx.Linear(16, 4, rngs=rngs)

        def __call__(self, x):
            return self.down(nnx.relu(self.up(x)))

    def loss(model, x):
        return jnp.mean(model(x) ** 2)

    def step(optimizer, units):
        _, grads, activity = bb.value_and_grad(loss, units)(model, X)
        optimizer.update(model, grads, activity=activity)

    def made(units, **settings):
        tx = bb.transform(units, density=0.5, start=0, every=2, **settings)
        return nnx.Optimizer(model, optax.chain(optax.sgd(0.1), tx), wrt=nnx.Param)

    model = Model(nnx.Rngs(0))
    units = bb.trace(loss, model, X).select("up")
    more = units + units.select("down", "out")
    old, new = made(units), made(more, rescale=True)
    step(old, units)
    old.tx = new.tx
    with pytest.raises(ValueError, match="kernels that only the transform has: 'down"):
        step(old, more)
    state = nnx.state(model, nnx.Param)
    adopted = bb.adopt(old.opt_state, new.tx, state)
    nnx.update(new.opt_state, nnx.state(adopted))
    np.testing.assert_array_equal(
        bb.masks(new.opt_state)["up/kernel"], bb.masks(old.opt_state)["up/kernel"]
    )
    for _ in range(2):
        step(new, more)
    assert {p: float(m.mean()) for p, m in bb.masks(new.opt_state).items()} == {
        "up/kernel": 0.5,
        "down/kernel": 0.5,
    }


@pytest.mark.long
def test_states_that_adopt_refuses():
    params = first_params()
    units, masks = UNITS.select("up"), {"up": np.ones((8, 16), bool)}
    state = bb.transform(units, density=0.5).init(params)
    chained = optax.chain(optax.adam(0.1), bb.transform(units))
    with pytest.raises(ValueError, match="without one; pass the state that tx.init or"):
        bb.adopt(optax.sgd(0.1).init(params), chained, params)
    with pytest.raises(ValueError, match="same optimizer .*'0/0/mu/up': none -> "):
        bb.adopt((optax.EmptyState(), state), chained, params)
    with pytest.raises(ValueError, match="expected masks= that are those of the state"):
        bb.adopt(state, bb.hold({"up": masks["up"] & (np.arange(16) > 3)}), params)
    hold = bb.hold({"up": np.arange(16)[None] * np.ones((8, 1)) > 3})
    with pytest.raises(ValueError, match="call bb.adopt outside of jax.jit"):
        jax.jit(lambda s: bb.adopt(s, hold, params))(state)


@pytest.mark.long
def test_masks_of_training_are_held():
    params, state = before("density")
    masks = bb.masks(state)
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), bb.hold(masks))
    with pytest.raises(ValueError, match="rule 'magnitude' -> 'hold'"):
        tx.update(params, state, params)
    held = bb.adopt(state, tx, params)
    updates, held = tx.update(params, held, params)
    chex.assert_trees_all_equal(bb.masks(held), masks)
    new = optax.apply_updates(params, updates)
    assert all(not np.asarray(new[p])[~np.asarray(m)].any() for p, m in masks.items())


# Rescaling -----------------------------------------------------------------------
@pytest.mark.long
def test_weights_that_were_never_scaled_are_scaled_once():
    """Rescaling switched on: the next refresh scales by the whole factor."""
    params, state = before("density")
    tx = optimizer("rescale")
    state = bb.adopt(state, tx, params)
    assert all((scale == 1).all() for scale in state[1].bb_scale.values())
    due = state[1]._replace(bb_count=jnp.int32(1))
    zero = jax.tree.map(jnp.zeros_like, params)
    state = (optimizer("rescale").init(params)[0], due)
    updates, after = jax.jit(tx.update)(zero, state, params)
    new = optax.apply_updates(params, updates)
    for path in ("up", "mid"):
        kept = bb.masks(after)[path] & bb.masks(due)[path]
        fan = params[path].shape[0]
        factor = np.sqrt(fan / np.asarray(bb.degrees_of(after)[path]))[None]
        want = np.where(kept, params[path] * factor, 0)
        np.testing.assert_allclose(np.where(kept, new[path], 0), want, rtol=1e-5)


@pytest.mark.long
def test_weights_of_given_masks_are_scaled_by_the_first_refresh():
    """They come as they are: nobody scaled them for these masks."""
    params = first_params()
    units = UNITS.select("up")
    masks = {"up": np.arange(8)[:, None] % 2 == np.zeros((8, 16))}
    tx = bb.transform(
        units, bb.rules.magnitude(), masks=masks, density=0.5, start=0, rescale=True,
        hysteresis=1e9,
    )  # fmt: skip
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, state = tx.update(zero, tx.init(params), params)
    np.testing.assert_array_equal(bb.masks(state)["up"], masks["up"])
    new = optax.apply_updates(params, updates)["up"]
    want = np.where(masks["up"], params["up"] * np.float32(np.sqrt(2)), 0)
    np.testing.assert_allclose(new, want, rtol=1e-6)
