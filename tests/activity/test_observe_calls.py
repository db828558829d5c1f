"""`bb.observe` under transformations, and around all kinds of functions and calls."""

import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bbjax as bb
from tests.support.zoo_case import normal, rate, relu, weights

X = normal(1, 8, 4)
P = weights(w=(4, 6), o=(6, 2))


def fn(p, x):
    return jnp.mean(jnp.square(relu(x @ p["w"]) @ p["o"]))


UNITS = bb.trace(fn, P, X)
OBSERVED = bb.observe(fn, UNITS)


def rates(activity):
    return {n: (a.inputs.on_rate, a.outputs.on_rate) for n, a in activity.items()}


def assert_same(got, want, rtol=1e-6):
    # Entries of 1e-6 are sums of terms of 1e-2: to rounding, they are 0.
    chex.assert_trees_all_close(got, want, rtol=rtol, atol=1e-8)


@pytest.mark.long
def test_under_vmap_over_seeds():
    many = jax.vmap(
        lambda k: jax.tree.map(lambda v: v + jax.random.normal(k, v.shape), P)
    )
    params = many(jax.random.split(jax.random.key(2), 3))
    out, activity = jax.vmap(OBSERVED, (0, None))(params, X)
    for i in range(3):
        one = jax.tree.map(lambda v, i=i: v[i], params)
        want, seen = OBSERVED(one, X)
        assert_same(
            (out[i], jax.tree.map(lambda v, i=i: v[i], rates(activity))),
            (want, rates(seen)),
        )


def test_under_grad_of_both_kinds():
    (out, activity), grads = jax.value_and_grad(OBSERVED, has_aux=True)(P, X)
    assert_same((out, grads), jax.value_and_grad(fn)(P, X))
    assert_same(rates(activity), rates(OBSERVED(P, X)[1]))
    assert_same(jax.grad(lambda p: OBSERVED(p, X)[0])(P), jax.grad(fn)(P, X))
    forward = jax.jvp(lambda p: OBSERVED(p, X)[0], (P,), (P,))
    assert_same(forward, jax.jvp(lambda p: fn(p, X), (P,), (P,)))


def test_no_gradient_flows_out_of_the_statistics():
    def measured(p):
        return jnp.sum(
            bb.observe(fn, UNITS, on=bb.on.soft(1.0))(p, X)[1]["w"].outputs.on_rate
        )

    assert all(not np.any(g) for g in jax.tree.leaves(jax.grad(measured)(P)))


@pytest.mark.long
def test_in_a_training_loop_under_scan():
    def step(p, x):
        (out, activity), grads = jax.value_and_grad(OBSERVED, has_aux=True)(p, x)
        p = jax.tree.map(lambda v, g: v - 0.1 * g, p, grads)
        return p, (out, activity["w"].outputs.on_rate)

    batches = X.reshape(4, 2, 4)
    _, (outs, seen) = jax.lax.scan(step, P, batches)
    p = P
    for i in range(4):
        want, activity = OBSERVED(p, batches[i])
        assert_same((outs[i], seen[i]), (want, activity["w"].outputs.on_rate), 1e-5)
        grads = jax.grad(fn)(p, batches[i])
        p = jax.tree.map(lambda v, g: v - 0.1 * g, p, grads)


def test_selected_kernels_alone_are_measured():
    chosen = UNITS.select("w")
    assert set(bb.observe(fn, chosen)(P, X)[1]) == {"w"}
    assert set(OBSERVED(P, X)[1]) == {"w", "o"}


CALLS = {
    "nested_jit": lambda h: jax.jit(jax.jit(relu))(h),
    "remat": lambda h: jax.checkpoint(relu)(h),
    "cond": lambda h: jax.lax.cond(jnp.sum(h) > 1e9, jnp.tanh, relu, h),
    "vmap": lambda h: jax.vmap(relu)(h),
}


@pytest.mark.parametrize("name", CALLS)
def test_kernels_inside_calls(name):
    def inner(p, x):
        return CALLS[name](x @ p["w"]) @ p["o"]

    def wrapped(p, x):
        return jnp.sum(jax.jit(jax.checkpoint(inner))(p, x))

    out, activity = bb.observe(wrapped, bb.trace(wrapped, P, X))(P, X)
    assert_same(out, wrapped(P, X))
    np.testing.assert_allclose(activity["o"].inputs.on_rate, rate(relu(X @ P["w"])))


def test_remat_policies_are_kept():
    """As much is computed again in the backward pass as without the taps."""
    for policy in (
        jax.checkpoint_policies.save_only_these_names("hidden"),
        jax.checkpoint_policies.nothing_saveable,
    ):

        @functools.partial(jax.checkpoint, policy=policy)
        def named(p, x):
            return jnp.mean((checkpoint_name(relu(x @ p["w"]), "hidden") @ p["o"]) ** 2)

        units = bb.trace(named, P, X)
        assert units["w"].nonlinearity == "relu"
        plain = str(jax.make_jaxpr(jax.grad(named))(P, X))
        seen = bb.observe(named, units)
        taken = str(jax.make_jaxpr(jax.grad(lambda p, s=seen: s(p, X)[0]))(P))
        assert taken.count("dot_general") == plain.count("dot_general")


def test_effects_happen_once(capfd):
    def loud(p, x):
        @jax.jit
        def inner(x):
            h = relu(x @ p["w"])
            jax.debug.print("here {}", h.shape[0])
            return h

        return jnp.sum(inner(x) @ p["o"])

    units = bb.trace(loud, P, X)
    capfd.readouterr()
    jax.block_until_ready(bb.observe(loud, units)(P, X))
    jax.effects_barrier()
    assert capfd.readouterr().out.count("here 8") == 1


def test_arguments_and_results_that_are_no_arrays():
    def odd(p, x, flag, none, name, config, *, curve):
        assert flag is True and none is None and name == "a"
        h = curve(x @ p["w"]) * config["scale"]
        return jnp.sum(h @ p["o"]), {
            "n": 3,
            "name": name,
            "none": None,
            "f": curve,
            "h": h,
        }

    args = (X, True, None, "a", {"scale": 2.0})
    units = bb.trace(odd, P, *args, curve=relu)
    observed = bb.observe(odd, units, has_aux=True)
    out, (aux, activity) = observed(P, *args, curve=relu)
    want, want_aux = odd(P, *args, curve=relu)
    assert_same((out, aux["h"]), (want, want_aux["h"]))
    assert aux == want_aux | {"h": aux["h"]}
    assert set(activity) == {"w", "o"}


def test_closures_numbers_keys_and_integers():
    data = np.arange(8, dtype=np.int32).reshape(2, 4)

    def closed(p):
        return jnp.sum(relu(jnp.asarray(data, jnp.float32) @ p["w"]) @ p["o"])

    activity = bb.observe(closed, bb.trace(closed, P))(P)[1]
    np.testing.assert_allclose(activity["w"].inputs.on_rate, (data > 0).mean(0))
    assert bb.observe(lambda p: 3.0, bb.trace(lambda p: 3.0, P))(P) == (3.0, {})

    def noisy(p, key, x):
        h = x.astype(jnp.float32) @ p["w"]
        return jnp.sum(relu(h + jax.random.normal(key, h.shape)) @ p["o"])

    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        units = bb.trace(noisy, P, key, data)
        assert units["w"].nonlinearity == "relu"  # noise is nobody's unit
        assert_same(bb.observe(noisy, units)(P, key, data)[0], noisy(P, key, data))


@pytest.mark.long
def test_equinox_modules_with_functions_in_them(lenient):
    net = eqx.nn.MLP(4, 2, 6, 1, key=jax.random.key(4))
    loss = lambda net, x: jnp.mean(jax.vmap(net)(x) ** 2)  # noqa: E731
    units = bb.trace(loss, net, X)
    observed = eqx.filter_jit(
        eqx.filter_value_and_grad(bb.observe(loss, units), has_aux=True)
    )
    (out, activity), grads = observed(net, X)
    want, want_grads = eqx.filter_value_and_grad(loss)(net, X)
    assert_same(
        (out, eqx.filter(grads, eqx.is_array)),
        (want, eqx.filter(want_grads, eqx.is_array)),
        1e-5,
    )
    assert set(activity) == {"layers/0/weight", "layers/1/weight"}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_batches_give_the_same_statistics(kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
        params = jax.device_put(P, NamedSharding(mesh, PartitionSpec()))
        out, activity = jax.jit(bb.observe(fn, bb.trace(fn, params, x)))(params, x)
    want, seen = OBSERVED(P, X)
    assert_same(out, want, 1e-5)
    assert_same(rates(activity), rates(seen), 0)


@pytest.mark.long
def test_inner_shardings_are_kept():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    hidden = jax.jit(lambda x, w: relu(x @ w), out_shardings=split)

    def sharded(p, x):
        h = hidden(x, p["w"])
        return jnp.sum(h @ p["o"]), h

    units = bb.trace(sharded, P, X)
    _, (h, _) = jax.jit(bb.observe(sharded, units, has_aux=True))(P, X)
    assert h.sharding.is_equivalent_to(split, 2)
