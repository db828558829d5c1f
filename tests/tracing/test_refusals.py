"""What cannot be measured is listed with the reason, and refused when selected."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AxisType, PartitionSpec

import bbjax as bb
from tests.support.zoo_case import normal, relu, weights

X = normal(1, 4, 4)
P = weights(w=(4, 4), q=(4, 4), o=(4, 2))


@jax.custom_vjp
def straight(x, w):
    return relu(x @ w)


straight.defvjp(
    lambda x, w: (relu(x @ w), (x, w)), lambda held, g: (g @ held[1].T, held[0].T @ g)
)


def kernel_body(x_ref, w_ref, out_ref):
    out_ref[...] = x_ref[...] @ w_ref[...]


def in_pallas(x, w):
    shape = jax.ShapeDtypeStruct((x.shape[0], w.shape[1]), x.dtype)
    return pl.pallas_call(kernel_body, out_shape=shape, interpret=True)(x, w)


def in_while(x, w):
    def body(state):
        return state[0] + 1, jnp.tanh(state[1] @ w)

    return jax.lax.while_loop(lambda state: state[0] < 2, body, (0, x))[1]


def in_shard_map(x, w):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    split = PartitionSpec("data")

    def local(x, w):
        return relu(x @ w)

    specs = {"in_specs": (split, PartitionSpec()), "out_specs": split}
    return jax.shard_map(local, mesh=mesh, **specs)(x, w)


def in_carry(x, w):
    def step(w, _):
        return w * 0.5, None

    return relu(x @ jax.lax.scan(step, w, length=2)[0])


REFUSED = {
    "custom_vjp": (straight, "used inside custom_vjp_call 'straight'"),
    "pallas": (in_pallas, "inside pallas_call 'kernel_body'"),
    "while": (in_while, "used inside while 'body'"),
    "shard_map": (in_shard_map, "used inside shard_map 'local'"),
    "carry": (in_carry, "is the carry of a scan, whose body may change it"),
    "both_ways": (
        lambda x, w: relu(x @ w) @ w.T,
        r"used 2 times with different axes: fan_in=(0,) and (1,)",
    ),
    "slice": (lambda x, w: x[:, :2] @ w[:2], "reaches dot_general through slice"),
    "rows": (
        lambda x, w: x[:, :2] @ w[jnp.array([0, 2])],
        "reaches dot_general through gather",
    ),
    "exponential": (lambda x, w: x @ jnp.exp(w), "reaches dot_general through exp"),
    "concatenation": (
        lambda x, w: x @ jnp.concatenate([w, w], 1)[:, :4],
        "reaches dot_general through",
    ),
    "of_parameters": (
        lambda x, w: x @ (w @ w),
        "multiplies another parameter, not an activation",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_listed_with_the_reason_and_refused_when_selected(name):
    use, reason = REFUSED[name]

    def fn(p, x):
        return jnp.sum(use(relu(x @ p["w"]), p["q"]) @ p["o"])

    units = bb.trace(fn, P, X)
    assert "q" not in units.paths
    assert {"w", "o"} <= set(units.paths)
    assert f"cannot be used: q: {reason}" in str(units)
    with pytest.raises(ValueError, match="expected kernels whose use can be measured"):
        units.select("^q$")
    assert [s.path for s in units.select("^w$").selected] == ["w"]


@pytest.mark.parametrize("name", ["custom_vjp", "while", "shard_map"])
def test_functions_with_opaque_bodies_are_observed_around_them(name):
    use, _ = REFUSED[name]

    def fn(p, x):
        return jnp.sum(use(relu(x @ p["w"]), p["q"]) @ p["o"])

    out, activity = bb.observe(fn, bb.trace(fn, P, X))(P, X)
    assert out == pytest.approx(float(fn(P, X)), rel=1e-6)
    want = jnp.mean(relu(X @ P["w"]) > 0, axis=0)
    assert activity["w"].outputs.on_rate.tolist() == pytest.approx(want.tolist())


def test_learned_queries_are_refused_with_the_kernel_that_reads_them():
    params = weights(tokens=(3, 4), q=(4, 4), k=(4, 4), v=(4, 4))

    def fn(p, x):
        tokens = p["tokens"] - jnp.mean(p["tokens"], 1, keepdims=True)
        scores = jax.nn.softmax((tokens @ p["q"]) @ (x @ p["k"]).T)
        return jnp.sum(scores @ (x @ p["v"]))

    units = bb.trace(fn, params, X)
    assert units.paths == ("k", "v")
    assert "cannot be used: q: multiplies another parameter" in str(units)


def test_merged_low_rank_updates_leave_the_base_kernel():
    params = weights(w=(4, 6), a=(4, 2), b=(2, 6))
    units = bb.trace(lambda p, x: jnp.sum(x @ (p["w"] + p["a"] @ p["b"])), params, X)
    assert units.paths == ("w",)
    assert [path for path, _ in units.problems] == ["a", "b"]


def test_lookups_in_an_embedding_are_no_use_of_it():
    params = weights(e=(7, 4), w=(4, 3))
    tokens = jnp.array([1, 2])
    units = bb.trace(lambda p, i: jnp.sum(relu(p["e"][i] @ p["w"])), params, tokens)
    assert units.paths == ("w",) and units.problems == ()


def test_unknown_kernels_and_wrong_arguments_raise():
    units = bb.trace(lambda p, x: jnp.sum(x @ p["w"]), P, X)
    with pytest.raises(KeyError, match="expected the path of a kernel, got 'wx'"):
        units["wx"]
    with pytest.raises(TypeError, match=r"expected a function of \(params, \*args\)"):
        bb.trace(3, P, X)
    with pytest.raises(ValueError, match="expected parameters with at least one array"):
        bb.trace(lambda p, x: x, {}, X)
    with pytest.raises(TypeError, match="expected units from bb.trace, got dict"):
        bb.observe(lambda p: p, {})
    with pytest.raises(TypeError, match="expected `on` to be a function of an array"):
        bb.observe(lambda p: p, units, on=0.5)
    with pytest.raises(ValueError, match="expected statistics out of"):
        bb.observe(lambda p: p, units, needs=("median",))


def test_another_function_than_the_traced_one_raises():
    units = bb.trace(lambda p, x: jnp.sum(x @ p["w"]), P, X)
    with pytest.raises(
        ValueError, match="with kernel 'w', got one without: this funct"
    ):
        bb.observe(lambda p, x: jnp.sum(x @ p["q"]), units)(P, X)
    with pytest.raises(ValueError, match="expected kernel 'w' with axes"):
        bb.observe(lambda p, x: jnp.sum(x @ p["w"].T), units)(P, X)


def test_two_parameters_with_one_path_are_refused():
    params = {"a": {"b": jnp.ones((2, 2))}, "a/b": jnp.ones((2, 2))}
    with pytest.raises(
        ValueError, match=r"distinct paths, got \['a/b'\] twice; rename"
    ):
        bb.trace(lambda p, x: x @ p["a"]["b"] @ p["a/b"], params, jnp.ones((1, 2)))
