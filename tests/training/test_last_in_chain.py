"""Pruned weights that are not 0: an update counts them, and later steps refuse them.

What changes updates after the transform leaves such weights, while masks and densities
look right. They are counted at every refresh and right after it, where it costs
nothing that another step would notice (`test_cost.py`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb
from bbjax.training.state import find
from tests.support.contract import CASES, RULES, same
from tests.support.contract import pruner as contract_pruner
from tests.support.runs import dense, select

pytestmark = pytest.mark.usefixtures("lenient")  # for Adam
START, EVERY, STEPS = 2, 3, 7
MASK = np.arange(48).reshape(6, 8) % 2 == 0
WRONG = "expected pruned weights to be 0, got others: 24 of 24 in 'up'; put bb.transf"


def loss(params, x):
    hidden = jax.nn.relu(x @ params["up"].astype(jnp.float32))
    return jnp.mean((hidden @ params["down"]) ** 2)


def start(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = {"up": (6, 8), "down": (8, 2)}
    return {
        name: jnp.asarray(rng.normal(size=s), dtype if name == "up" else jnp.float32)
        for name, s in shapes.items()
    }


X = jnp.asarray(np.random.default_rng(1).normal(size=(16, 6)), jnp.float32)
UNITS = bb.trace(loss, start(), X)


def pruner(**changes):
    settings = {"density": 0.5, "start": START, "every": EVERY} | changes
    return bb.transform(UNITS, bb.rules.magnitude(), **settings)


@jax.jit
def gradients(params):
    return jax.grad(loss)(params, X)


def train(tx, params=None, steps=STEPS, jit=True):
    """Parameters and state at the end, and the share counted at every update."""
    params = start() if params is None else params
    update = jax.jit(tx.update) if jit else tx.update
    state, counted = tx.init(params), []
    for _ in range(steps):
        updates, state = update(gradients(params), state, params)
        params = optax.apply_updates(params, updates)
        (found,) = find(state)
        counted.append(float(found.bb_stray["up"]))
    return params, state, counted


FREEZE = optax.masked(optax.set_to_zero(), {"up": True, "down": False})
LATER = {
    "an optimizer": lambda: optax.adam(1e-2),
    "a scale": lambda: optax.scale(0.5),
    "clipped": lambda: optax.clip(1e-3),
    "frozen": lambda: FREEZE,
    "partitioned": lambda: optax.partition(
        {"train": optax.identity(), "freeze": optax.set_to_zero()},
        {"up": "freeze", "down": "train"},
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("later", LATER)
def test_the_update_after_a_refresh_counts_what_was_left(later):
    """All pruned weights, half of the edges, are off by then."""
    tx = optax.chain(optax.sgd(1e-2), pruner(), LATER[later]())
    params, state, counted = train(tx, steps=START + 2)
    assert counted == [0, 0, 0, 0.5]
    assert float(bb.metrics(state)["overall/pruned_nonzero"]) == 0.5
    assert float(bb.metrics(state)["overall/density_got"]) == 0.5
    assert (params["up"] != 0).all()


def test_saving_and_reporting_refuse_them(tmp_path):
    params, state, _ = train(optax.chain(pruner(), optax.adam(1e-2)))
    masks = bb.masks(state)
    with pytest.raises(ValueError, match=WRONG):
        bb.save(tmp_path / "a", params, masks, UNITS)
    with pytest.raises(ValueError, match=WRONG):
        bb.report(state, UNITS, params=params)
    with pytest.raises(ValueError, match=WRONG):
        bb.report(masks, UNITS, params=params)
    (note,) = bb.report(state).notes  # without parameters: what the state counted
    assert note.startswith("A share of 0.5 of the edges of up was pruned, yet not 0 in")
    pruned = bb.apply_masks(params, masks)
    bb.save(tmp_path / "a", pruned, masks, UNITS)
    assert bb.report(masks, UNITS, params=pruned).notes == ()


@pytest.mark.long
def test_outside_jit_an_update_warns():
    text = "pruned weights to be 0 in params.* 0.5 of 'up'; put bb.transform last"
    for first in (pruner(start=0, every=9), bb.hold({"up": MASK}, UNITS)):
        with pytest.warns(UserWarning, match=text) as caught:
            train(optax.chain(first, optax.adam(1e-2)), jit=False, steps=4)
        assert len(caught) == 1  # right after the update that applied masks


GOOD = {
    "last": lambda: optax.chain(optax.adam(1e-2), pruner()),
    "every update refreshes": lambda: optax.chain(optax.sgd(0.1), pruner(every=1)),
    "from the first on": lambda: optax.chain(optax.adam(1e-2), pruner(start=0)),
    "no regrowth": lambda: optax.chain(optax.adam(1e-2), pruner(regrow=False)),
    "rescaled": lambda: optax.chain(optax.adam(1e-2), pruner(rescale=True)),
    "density falls": lambda: optax.chain(
        optax.adam(1e-2), pruner(density=bb.ramp(0.25, 2, 6), every=1)
    ),
    "masks": lambda: optax.chain(optax.adam(1e-2), pruner(masks={"up": MASK})),
    "masks, at once": lambda: optax.chain(
        optax.adam(1e-2), pruner(masks={"up": MASK}, start=0)
    ),
    "held": lambda: optax.chain(optax.adam(1e-2), bb.hold({"up": MASK}, UNITS)),
    "wrapped": lambda: bb.wrap(
        optax.adam(1e-2), UNITS, bb.rules.magnitude(), density=0.5, start=1, every=2
    ),
    "micro-batches": lambda: optax.MultiSteps(
        optax.chain(optax.adam(1e-2), pruner(start=1, every=1)), 2
    ),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("good", GOOD)
def test_no_false_alarm(good):
    """Weights are dense before the first selection."""
    params, state, counted = train(GOOD[good]())
    assert counted == [0] * STEPS and (params["up"] == 0).any()
    assert bb.report(state, UNITS, params=params).notes == ()


@pytest.mark.long
def test_no_false_alarm_outside_jit():
    """Warnings are errors here."""
    train(optax.chain(optax.sgd(0.1), pruner(start=0, every=1)), jit=False, steps=3)


def test_no_false_alarm_before_masks_act():
    """The weights outside of masks to begin with become 0 with the first update."""
    state = pruner(masks={"up": MASK}).init(start())
    assert bb.report(state, UNITS, params=start()).notes == ()


def test_held_masks_are_looked_at_after_the_first_update():
    held = bb.hold({"up": MASK}, UNITS)
    _, _, counted = train(optax.chain(held, optax.adam(1e-2)), steps=3)
    assert counted == [0, 0.5, 0.5]


@pytest.mark.long
def test_it_is_counted_anew():
    """What is set right is no longer counted from the next refresh on."""
    step, params = jax.jit(pruner(every=4).update), start()
    state = pruner().init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    counted = []
    for n in range(START + 7):
        landed, state = step(zeros, state, params)
        if n >= START + 2:  # before, what the transform asked for is ignored
            params = optax.apply_updates(params, landed)
        counted.append(float(state.bb_stray["up"]))
    assert counted == [0, 0, 0, 0.5, 0.5, 0.5, 0, 0, 0]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("value", [-0.0, 1.0, np.nan])
def test_what_counts_as_0(dtype, value):
    """Both zeros do; NaN does not."""
    params, tx = start(dtype), pruner(start=0)
    zeros, update = jax.tree.map(jnp.zeros_like, params), jax.jit(tx.update)
    _, state = update(zeros, tx.init(params), params)
    w = params["up"].at[~np.asarray(bb.masks(state)["up"])].set(value)
    _, state = update(zeros, state, params | {"up": w})
    assert float(state.bb_stray["up"]) == (0 if value == 0 else 0.5)


@pytest.mark.long
def test_of_a_window_and_of_a_stack_edges_are_counted():
    """One position of a window that is not 0 makes its edge count."""
    kernel = bb.Kernel(
        "w", (3, 2, 4, 6), spatial=(0,), stack=(1,), fan_in=(2,), fan_out=(3,)
    )
    tx = bb.transform(
        bb.Units((kernel,)).select("w"), bb.rules.magnitude(), density=0.5, start=0
    )
    w = jnp.ones(kernel.shape)
    _, state = jax.jit(tx.update)({"w": w}, tx.init({"w": w}), {"w": w})
    pruned = np.argwhere(~np.asarray(bb.masks(state)["w"])[0])
    stray = bb.apply_masks({"w": w}, bb.masks(state))["w"]
    for slice_, a, b in pruned[:5]:
        stray = stray.at[1, slice_, a, b].set(1.0)
    _, state = jax.jit(tx.update)({"w": w}, state, {"w": stray})
    np.testing.assert_allclose(state.bb_stray["w"], 5 / 48, rtol=1e-6)


@pytest.mark.long
def test_seeds_under_vmap_are_counted_one_by_one():
    tx, count = bb.transform(select(dense(6, 4)), bb.rules.magnitude(), start=0), 3
    params = {"w": jnp.asarray(np.random.normal(size=(count, 6, 4)), jnp.float32)}
    update = jax.jit(jax.vmap(tx.update))
    landed, state = update(params, jax.vmap(tx.init)(params), params)
    good = optax.apply_updates(params, landed)["w"]
    mixed = jnp.concatenate([params["w"][:1], good[1:]])
    _, state = update(params, state, {"w": mixed})
    assert (np.asarray(state.bb_stray["w"]) > 0).tolist() == [True, False, False]


QUICK = {("log_odds", "mlp"), ("set", "conv")}


@pytest.mark.long
@pytest.mark.parametrize(
    "rule, case",
    [
        pytest.param(r, c, marks=() if (r, c) in QUICK else pytest.mark.slow)
        for r in ("log_odds", "global", "set")
        for c in RULES[r].cases
    ],
)
def test_every_model_is_counted(rule, case):
    """A chain that goes on after the transform, and one that does not."""
    model = CASES[case]
    for later, wrong in ((optax.scale(0.5), True), (optax.identity(), False)):
        tx = optax.chain(contract_pruner(RULES[rule], model), later)
        params = model.params()
        state, update = tx.init(params), jax.jit(functools.partial(_update, tx))
        for n in range(3):
            grads, seen = model.gradient(params, model.batch(n))
            params, state = update(grads, state, params, seen)
        share = float(bb.metrics(state)["overall/pruned_nonzero"])
        np.testing.assert_allclose(share, 0.6 * wrong, atol=0.02)


def _update(tx, grads, state, params, activity):
    grads = jax.tree.map(lambda g: 0.01 * g, grads)
    updates, state = tx.update(grads, state, params, activity=activity, grads=grads)
    return optax.apply_updates(params, updates), state


@pytest.mark.long
def test_the_second_copy_of_an_average_is_pruned_by_apply_masks():
    """A moving average holds weights of steps before their pruning."""
    tx, params = optax.chain(optax.adam(1e-2), pruner()), start()
    average = optax.ema(0.9)
    copy = average.init(params)
    params, state, _ = train(tx, params)
    smooth, copy = average.update(start(), copy)
    smooth, _ = average.update(params, copy)
    with pytest.raises(ValueError, match=WRONG):
        bb.report(state, UNITS, params=smooth)
    masked = bb.apply_masks(smooth, bb.masks(state))
    same(masked["down"], smooth["down"])
    assert bb.report(state, UNITS, params=masked).got == 0.5
