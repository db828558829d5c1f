"""Gradients for saliency rules, and pruning by flow in rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chex import assert_trees_all_close as close

import bbjax as bb
from bbjax.oneshot.saliency import hessian_gradient, prune_by_flow, synaptic_flow
from bbjax.rules import snip, synflow
from tests.support.runs import dense


# Hessian times gradient -----------------------------------------------------------
def quadratic(params, matrix):
    return 0.5 * params["w"] @ matrix @ params["w"]


def symmetric(n):
    a = np.random.normal(size=(n, n)).astype(np.float32)
    return a + a.T


def test_hessian_gradient_of_a_quadratic():
    """g = A w and H = A, so H g = A A w."""
    a, w = symmetric(7), np.random.normal(size=7).astype(np.float32)
    got = hessian_gradient(quadratic, {"w": w}, a)
    close(got, {"w": a @ a @ w}, rtol=1e-3, atol=1e-3)


def test_hessian_gradient_of_many_batches():
    """The mean Hessian times the mean gradient, as for all of it at once."""
    many, w = [symmetric(5) for _ in range(3)], np.random.normal(size=5)
    params = {"w": w.astype(np.float32)}
    mean = {"w": sum(a @ params["w"] for a in many) / 3}
    got = sum(hessian_gradient(quadratic, params, a, gradient=mean)["w"] for a in many)
    close(
        {"w": got / 3},
        hessian_gradient(quadratic, params, sum(many) / 3),
        rtol=1e-3,
        atol=1e-3,
    )


def test_hessian_gradient_under_jit_and_of_trees_with_other_leaves():
    def loss(params, x):
        picked = jnp.take(params["w"], params["order"])
        return jnp.sum(jnp.tanh(picked * x)) * params["scale"]

    params = {"w": jnp.arange(3.0), "order": jnp.array([2, 0, 1]), "scale": 2.0}
    x = jnp.array([0.3, -0.4, 0.5])
    got = jax.jit(lambda p: hessian_gradient(loss, p, x))(params)
    assert got["order"] is None and set(got) == set(params)
    floats = {k: params[k] for k in ("w", "scale")}

    def half(floats):
        g = jax.grad(lambda f: loss(f | {"order": params["order"]}, x))(floats)
        return sum(jnp.sum(jnp.square(leaf)) for leaf in g.values()) / 2

    wanted = jax.grad(half)(floats)
    close({k: got[k] for k in floats}, wanted, rtol=1e-4, atol=1e-5)


# Flow -------------------------------------------------------------------------------
def net(params, x):
    h = jax.nn.relu(x @ params["up"] + params["bias"][None])
    return h @ params["down"]


def weights(n=4, width=6, out=3, dtype=jnp.float32):
    shapes = {"up": (n, width), "bias": (width,), "down": (width, out)}
    return {k: jnp.asarray(np.random.normal(size=s), dtype) for k, s in shapes.items()}


@pytest.mark.long
def test_flow_is_that_of_absolute_values_and_ones():
    params = weights()
    flow = synaptic_flow(net, params, np.random.normal(size=(1, 4)).astype(np.float32))
    up, bias, down = (np.abs(np.asarray(params[k])) for k in ("up", "bias", "down"))
    behind = down.sum(1)
    close(flow["up"], np.tile(behind, (4, 1)), rtol=1e-5)
    close(flow["bias"], behind, rtol=1e-5)
    close(flow["down"], np.tile((up.sum(0) + bias)[:, None], (1, 3)), rtol=1e-5)


def test_flow_of_shapes_and_of_whatever_is_no_float():
    """Tokens and other leaves are passed on as they are; bf16 stays bf16."""

    def fn(params, tokens, x):
        found = jnp.take(params["table"], tokens, axis=0) * params["sizes"]
        return {"out": found * x, "tokens": tokens}

    params = {"table": -jnp.ones((3, 2), jnp.bfloat16), "sizes": jnp.bfloat16(2.0)}
    params["names"] = jnp.array([1, 2])
    tokens, x = jnp.array([0, 0, 2]), jax.ShapeDtypeStruct((3, 2), jnp.bfloat16)
    flow = synaptic_flow(fn, params, tokens, x)
    assert flow["names"] is None
    close(flow["table"], jnp.array([[4, 4], [0, 0], [2, 2]], jnp.bfloat16))
    assert flow["table"].dtype == jnp.bfloat16


def test_scale_multiplies_the_flow_of_a_net_without_biases():
    params = weights() | {"bias": jnp.zeros(6)}
    x = jnp.ones((1, 4))
    one, small = (synaptic_flow(net, params, x, scale=s) for s in (1.0, 2.0**-20))
    for path in ("up", "down"):
        np.testing.assert_array_equal(small[path], one[path] * 2.0**-40)


@pytest.mark.long
def test_a_flow_out_of_range_is_refused_and_a_scale_helps():
    def deep(params, x):
        for _ in range(16):
            x = jax.nn.relu(x @ params["w"])
        return x

    params = {"w": jnp.full((8, 8), 300.0)}
    with pytest.raises(ValueError, match=r"overflow at 'w' with scale=1.0; pass a"):
        synaptic_flow(deep, params, jnp.ones((1, 8)))
    flow = synaptic_flow(deep, params, jnp.ones((1, 8)), scale=1e-30)
    assert np.isfinite(flow["w"]).all() and (np.asarray(flow["w"]) > 0).all()
    units = bb.Units((dense(8, 8),)).select("w")
    with pytest.raises(ValueError, match="expected a finite flow"):
        prune_by_flow(deep, params, units, 0.5, jnp.ones((1, 8)), rounds=2)


# Rounds -----------------------------------------------------------------------------
WIDTHS = (12, 30, 3, 30, 5)
PATHS = ("a", "b", "c", "d")
UNITS = bb.Units(
    tuple(dense(*WIDTHS[i : i + 2], path) for i, path in enumerate(PATHS))
).select("a|b|c|d")
TOTAL = 360 + 90 + 90 + 150


def narrow(params, x):
    for path in PATHS[:-1]:
        x = jax.nn.relu(x @ params[path])
    return x @ params["d"]


def hourglass():
    made = {}
    for i, path in enumerate(PATHS):
        w = np.random.normal(size=WIDTHS[i : i + 2]) / np.sqrt(WIDTHS[i])
        made[path] = jnp.asarray(w, jnp.float32)
    return made


def counts(masks):
    return {p: int(np.asarray(m).sum()) for p, m in masks.items()}


X = jnp.ones((1, 12))


@pytest.mark.long
def test_rounds_equal_pruning_by_hand():
    """Kept edges fall as density ** (e / rounds); every flow is of what is left."""
    rounds, density = 7, 0.05
    got, masks = prune_by_flow(
        narrow, hourglass_0 := hourglass(), UNITS, density, X, rounds=rounds, k_min=0
    )
    held = {p: np.ones(np.shape(w), bool) for p, w in hourglass_0.items()}
    for e in range(1, rounds + 1):
        masked = {p: jnp.where(held[p], w, 0.0) for p, w in hourglass_0.items()}
        flow = synaptic_flow(narrow, masked, X)
        score = np.concatenate(
            [
                np.where(held[p], np.abs(masked[p] * flow[p]), -1.0).ravel()
                for p in PATHS
            ]
        )
        k = round(density ** (e / rounds) * TOTAL)
        keep = np.isin(np.arange(TOTAL), np.argsort(-score, kind="stable")[:k])
        start = 0
        for p in PATHS:
            held[p] = keep[start : start + held[p].size].reshape(held[p].shape)
            start += held[p].size
    for p in PATHS:
        np.testing.assert_array_equal(masks[p], held[p])
        np.testing.assert_array_equal(got[p], np.where(held[p], hourglass_0[p], 0.0))


@pytest.mark.long
@pytest.mark.parametrize("density", [0.7, 0.1, 0.01])
def test_the_last_count_is_exact(density):
    _, masks = prune_by_flow(narrow, hourglass(), UNITS, density, X, rounds=5, k_min=0)
    assert sum(counts(masks).values()) == round(density * TOTAL)


@pytest.mark.long
def test_rounds_leave_a_way_through_where_one_round_cuts_a_layer():
    """The point of the method (Tanaka et al., Theorem 3)."""
    params = hourglass()
    grads = jax.grad(lambda p: jnp.sum(jnp.square(narrow(p, X) - 1.0)))(params)
    density = 6 / TOTAL
    cut = bb.prune(params, UNITS, snip(), density, grads=grads, k_min=0)[1]
    flow = synaptic_flow(narrow, params, X)
    once = bb.prune(params, UNITS, synflow(), density, grads=flow, k_min=0)[1]
    pruned, masks = prune_by_flow(
        narrow, params, UNITS, density, X, rounds=100, k_min=0
    )
    assert min(counts(masks).values()) >= 1
    assert float(jnp.sum(narrow(jax.tree.map(jnp.abs, pruned), X))) > 0
    assert min(counts(once).values()) == 0 or min(counts(cut).values()) == 0


@pytest.mark.long
def test_the_flow_is_compiled_once():
    calls = []

    def counted(params, x):
        calls.append(1)
        return narrow(params, x)

    prune_by_flow(counted, hourglass(), UNITS, 0.1, X, rounds=9)
    assert len(calls) == 1


@pytest.mark.long
def test_every_unit_keeps_its_floor():
    _, masks = prune_by_flow(narrow, hourglass(), UNITS, 0.15, X, rounds=5, k_min=1)
    assert sum(counts(masks).values()) == round(0.15 * TOTAL)
    assert all((np.asarray(m).sum(0) >= 1).all() for m in masks.values())


@pytest.mark.long
def test_densities_of_other_kinds():
    by_path = {"a|d": 0.1, ".*": 0.5}
    _, masks = prune_by_flow(narrow, hourglass(), UNITS, by_path, X, rounds=3, k_min=0)
    assert sum(counts(masks).values()) == 36 + 15 + 90
    _, masks = prune_by_flow(narrow, hourglass(), UNITS, bb.erk(0.2), X, rounds=3)
    assert sum(counts(masks).values()) == round(0.2 * TOTAL)
    with pytest.raises(TypeError, match="expected a density as a number, got"):
        ramp = bb.ramp(0.2, 0, 10)
        prune_by_flow(narrow, hourglass(), UNITS, ramp, X, rounds=3)


@pytest.mark.long
def test_bad_rounds():
    for rounds, error in ((0, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match="rounds: expected an int in"):
            prune_by_flow(narrow, hourglass(), UNITS, 0.5, X, rounds=rounds)


@pytest.mark.long
def test_half_precision():
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), hourglass())
    pruned, masks = prune_by_flow(
        narrow, params, UNITS, 0.1, X.astype(jnp.bfloat16), rounds=4
    )
    assert all(w.dtype == jnp.bfloat16 for w in pruned.values())
    assert sum(counts(masks).values()) == round(0.1 * TOTAL)
