"""Kernels that are alike share one program, and get what each would get by itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb
from bbjax.training import alike
from bbjax.training.state import find

LAYERS, MODEL, HIDDEN = 2, 6, 16
pytestmark = pytest.mark.usefixtures("lenient")  # for biases


def loss(params, x):
    for layer in params.values():
        hidden = jax.nn.relu(x @ layer["up"] + layer["bias"])
        x = x + hidden @ layer["down"]
    return jnp.mean(jnp.square(x - 1))


def first(key=0, layers=LAYERS):
    keys = jax.random.split(jax.random.key(key), 2 * layers)
    return {
        f"layer_{i}": {
            "up": jax.random.normal(keys[2 * i], (MODEL, HIDDEN)) / 2,
            "bias": jnp.full(HIDDEN, i / 8),
            "down": jax.random.normal(keys[2 * i + 1], (HIDDEN, MODEL)) / 4,
        }
        for i in range(layers)
    }


def selected(params, x):
    units = bb.trace(loss, params, x)
    return units.select("up", "in") + units.select("down", "out")


def make(rule, settings, params, x):
    units = selected(params, x)
    return units, optax.chain(
        optax.adam(0.05), bb.transform(units, rule, start=0, every=2, **settings)
    )


def stepped(units, tx, params, state, x):
    _, grads, activity = bb.value_and_grad(loss, units)(params, x)
    updates, state = tx.update(grads, state, params, activity=activity, grads=grads)
    return optax.apply_updates(params, updates), state


def trained(rule, settings, steps=3):
    """Parameters and state after some steps of a model whose layers are alike."""
    params, x = first(), jax.random.normal(jax.random.key(9), (32, MODEL))
    units, tx = make(rule, settings, params, x)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        return stepped(units, tx, params, state, x)

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def apart(rule):
    """The same rule, one program for every kernel."""
    return dataclasses.replace(rule, alike=False)


CASES = {
    "default": (bb.rules.budgeted_broadcast(), {"density": 0.4}),
    "prune only, rescaled": (
        bb.rules.budgeted_broadcast(competition=0),
        {"density": 0.4, "regrow": False, "rescale": True},
    ),
    "gradients, by layer, rescaled": (
        bb.rules.rigl(),
        {"density": {"layer_1": 0.2, ".*": 0.4}, "rescale": True},
    ),
    "hysteresis": (bb.rules.magnitude(), {"density": 0.4, "hysteresis": 0.1}),
    "in groups": (
        bb.rules.magnitude(),
        {"pattern": bb.n_m(1, 2), "dormant_dtype": jnp.bfloat16},
    ),
}


SLOW = ("prune only, rescaled", "hysteresis", "in groups")


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW), id=name)
        for name in CASES
    ],
)
def test_alike_kernels_get_what_each_gets_by_itself(name):
    rule, settings = CASES[name]
    together, one_by_one = trained(rule, settings), trained(apart(rule), settings)
    for a, b in zip(*map(jax.tree.leaves, (together, one_by_one)), strict=True):
        np.testing.assert_array_equal(a, b)
    (state,) = find(together[1])
    kept = [np.asarray(mask) for path, mask in state.bb_masks.items() if "up" in path]
    assert any((a != b).any() for a in kept for b in kept)  # not one mask for all


@pytest.mark.long
def test_a_rule_is_traced_once_for_kernels_that_are_alike():
    seen = []

    def select(candidates):
        seen.append(candidates.kernel.path)
        return bb.rules.magnitude().select(candidates)

    rule = bb.rules.Rule("mine", select)
    trained(rule, {"density": 0.4}, steps=1)
    assert sorted(set(seen)) == ["layer_*/down", "layer_*/up"]
    # JAX may trace the body of a loop again to find the types of what it carries.
    assert len(seen) <= 4
    seen.clear()
    trained(apart(rule), {"density": 0.4}, steps=1)
    layers = [f"layer_{i}" for i in range(LAYERS)]
    assert set(seen) == {f"{at}/{name}" for at in layers for name in ("up", "down")}


@pytest.mark.long
def test_another_kernel_of_a_known_form_adds_no_loop_to_a_refresh():
    def loops(layers):
        params, x = first(layers=layers), jnp.zeros((8, MODEL))
        units, tx = make(bb.rules.magnitude(), {"density": 0.4}, params, x)
        step = functools.partial(stepped, units, tx)
        text = jax.jit(step).lower(params, tx.init(params), x).compile().as_text()
        return text.count(" while(")

    # What is written is written in a loop of no or one turn: one for each kernel.
    assert loops(4) - loops(2) == 2 * (loops(3) - loops(2)) == 2 * 2


@pytest.mark.slow
def test_seeds_and_alike_kernels():
    x = jax.random.normal(jax.random.key(9), (32, MODEL))
    rule, settings = CASES["default"]
    seeds = [first(i) for i in range(3)]
    units, tx = make(rule, settings, seeds[0], x)
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    step = jax.jit(jax.vmap(lambda p, s: stepped(units, tx, p, s, x), in_axes=(0, 0)))
    params, state = step(*step(many, jax.vmap(tx.init)(many)))
    masks = bb.masks(state)
    alone = jax.jit(lambda p, s: stepped(units, tx, p, s, x))
    for i, one in enumerate(seeds):
        _, state = alone(*alone(one, tx.init(one)))
        for path, mask in bb.masks(state).items():
            np.testing.assert_array_equal(mask, masks[path][i])


def test_types_tell_kernels_apart():
    """One layer in another precision, one of another width: three forms."""
    weights = [jnp.ones((MODEL, HIDDEN))] * 5
    weights[2] = weights[2].astype(jnp.bfloat16)
    weights[4] = jnp.ones((MODEL, HIDDEN + 8))
    kernels = [
        bb.Kernel(f"layer_{i}/up", w.shape, fan_in=(0,), fan_out=(1,))
        for i, w in enumerate(weights)
    ]
    forms = [
        (kernel.form, alike.types(w))
        for kernel, w in zip(kernels, weights, strict=True)
    ]
    assert alike.classes(forms) == [(0, 1, 3), (2,), (4,)]


@pytest.mark.parametrize("n", [1, 2, 7])
def test_each_is_a_plain_loop(n, monkeypatch):
    monkeypatch.setattr(alike, "MOST", 3)
    which = tuple(range(5, 5 + n))
    held = [{"sum": jnp.float32(i), "last": jnp.arange(3.0) * i} for i in range(n)]
    tables = {i: jnp.arange(3.0) + 10 * i for i in which}

    def read(i, one):
        return {"table": tables[i], "before": one["last"]}

    def change(i, seen):
        return jnp.sum(seen["table"]) + jnp.asarray(i, jnp.float32)

    def write(seen, made):
        return {"sum": made, "last": seen["before"] + seen["table"]}

    got = jax.jit(lambda held: alike.each(which, held, read, change, write))(held)
    for i, one, new in zip(which, held, got, strict=True):
        table = np.arange(3.0) + 10 * i
        assert float(new["sum"]) == table.sum() + i
        np.testing.assert_array_equal(new["last"], one["last"] + table)
