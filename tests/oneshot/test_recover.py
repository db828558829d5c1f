"""`bb.recover`: biases that take over means, running statistics measured again."""

import dataclasses

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bbjax as bb
from bbjax.activity.statistics import Activity, Statistics

NEEDS = ("inputs.mean",)


def normal(*shape, dtype=jnp.float32):
    return jnp.asarray(np.random.normal(size=shape), dtype)


def keep(*shape, share=0.5):
    return jnp.asarray(np.random.random(shape) < share)


def measured(fn, params, *args):
    units = bb.trace(fn, params, *args)
    return units, bb.calibrate(fn, units.only(units), params, [args], needs=NEEDS)


def close(got, want, tolerance=1e-4):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


# Layers of all forms: on a constant input, outputs are those of the dense layer -------
def matrix(p, x):
    return x @ p["w"] + p["b"][None]


def heads(p, x):
    """Inputs (batch, dim, head) against a kernel (head, dim, out, more)."""
    return jnp.einsum("bkh,hkde->bde", x, p["w"]) + p["b"][None]


def grouped(p, x):
    dims = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(
        x, p["w"], (2, 1), "VALID", dimension_numbers=dims, feature_group_count=2
    )
    return y + p["b"][None, None, None]


def scanned(p, x):
    """Layers with a norm, a gate and a residual stream."""

    def layer(h, w):
        norm = h / jnp.sqrt(jnp.mean(h * h, axis=-1, keepdims=True) + 1e-6)
        gate = jax.nn.silu(norm @ w["w"] + w["b"][None])
        return h + ((gate * (norm @ w["up"])) @ w["down"] + w["bias"][None]), None

    return lax.scan(layer, x, p)[0]


def experts(p, x):
    """A stack axis in the middle of the kernel."""
    return jnp.einsum("ebi,ieo->ebo", x, p["w"]) + p["b"][:, None]


LAYERS = {
    "matrix": (matrix, {"w": (5, 7), "b": (7,)}, (4, 5)),
    "heads": (heads, {"w": (2, 3, 4, 5), "b": (4, 5)}, (6, 3, 2)),
    "grouped": (grouped, {"w": (3, 2, 2, 6), "b": (6,)}, (2, 7, 5, 4)),
    "experts": (experts, {"w": (5, 3, 4), "b": (3, 4)}, (3, 6, 5)),
    "scanned": (
        scanned,
        {
            **{"w": (3, 4, 6), "b": (3, 6), "up": (3, 4, 6)},
            **{"down": (3, 6, 4), "bias": (3, 4)},
        },
        (5, 4),
    ),
}


def constant(name, shape):
    """The same sample again and again; positions of a convolution alike as well."""
    if name == "grouped":
        return jnp.broadcast_to(normal(shape[-1]), shape)
    if name == "experts":
        return jnp.broadcast_to(normal(shape[0], 1, shape[-1]), shape)
    return jnp.broadcast_to(normal(1, *shape[1:]), shape)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", LAYERS)
def test_of_a_constant_input_the_outputs_stay(name):
    fn, shapes, inputs = LAYERS[name]
    params = {path: normal(*shape) for path, shape in shapes.items()}
    x = constant(name, inputs)
    units, stats = measured(fn, params, x)
    assert all(units[p].bias for p in units if p != "up")
    masks = {p: units[p].full(keep(*units[p].edge_shape)) for p in units if p != "up"}
    new = bb.recover.means(params, units, masks, stats)
    dense = fn(params, x)
    close(fn(new, x), dense)
    assert np.abs(fn(bb.apply_masks(params, masks), x) - dense).max() > 0.1
    for path in masks:
        np.testing.assert_array_equal(
            new[path], jnp.where(masks[path], params[path], 0)
        )


@pytest.mark.long
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 40), st.floats(0, 1))
def test_every_unit_has_the_mean_it_had(n, m, samples, share):
    params, x = {"w": normal(n, m), "b": normal(m)}, normal(samples, n) + 1
    units, stats = measured(matrix, params, x)
    masks = {"w": keep(n, m, share=share)}
    new = bb.recover.means(params, units, masks, stats)
    close(matrix(new, x).mean(0), matrix(params, x).mean(0), 1e-3)
    lost = np.where(masks["w"], 0, np.asarray(params["w"], np.float64))
    want = params["b"] + lost.T @ np.asarray(x, np.float64).mean(0)
    close(new["b"], want, 1e-4)


@pytest.mark.long
def test_means_are_over_all_batches_without_padding():
    params, x = {"w": normal(4, 3), "b": normal(3)}, normal(10, 5, 4) + 2
    real = keep(10, 5, share=0.6)
    x = jnp.where(real[..., None], x, jnp.nan)

    def fn(p, x, real):
        return x @ p["w"] + p["b"][None, None]

    batches = [(x[:7], real[:7]), (x[7:], real[7:])]
    units = bb.trace(fn, params, *batches[0]).only(["w"])
    stats = bb.calibrate(
        fn, units, params, batches, needs=NEEDS, where=lambda x, real: real
    )
    close(stats["w"].inputs.mean, np.asarray(x)[np.asarray(real)].mean(0))
    masks = {"w": jnp.zeros((4, 3), bool)}
    new = bb.recover.means(params, units, masks, stats)
    rows = np.asarray(x)[np.asarray(real)]
    close(new["b"], params["b"] + (rows @ np.asarray(params["w"])).mean(0))


def same_padding(p, x):
    dims = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=dims)
    return y + p["b"][None, None, None]


@pytest.mark.long
def test_a_padded_convolution_is_exact_up_to_its_borders():
    params, x = {"w": normal(3, 3, 2, 4), "b": normal(4)}, jnp.ones((2, 6, 6, 2))
    units, stats = measured(same_padding, params, x)
    masks = {"w": units["w"].full(keep(2, 4))}
    new = bb.recover.means(params, units, masks, stats)
    dense, found = same_padding(params, x), same_padding(new, x)
    close(found[:, 1:-1, 1:-1], dense[:, 1:-1, 1:-1])
    assert np.abs(found[:, 0] - dense[:, 0]).max() > 0.1


# Whole units ------------------------------------------------------------------------
def mlp(p, x):
    hidden = jax.nn.relu(x @ p["up"] + p["bias"][None])
    return hidden @ p["down"] + p["out"][None]


def problem(dtype=jnp.float32):
    shapes = {"up": (6, 16), "bias": (16,), "down": (16, 3), "out": (3,)}
    return {k: normal(*shape, dtype=dtype) for k, shape in shapes.items()}


@pytest.mark.long
def test_units_that_are_cut_leave_their_mean_to_the_next_bias():
    params, x = problem(), normal(64, 6)
    units, stats = measured(mlp, params, x)
    scores = bb.unitwise.group_magnitude(units, params)
    masks = bb.unitwise.cut(units, scores, density=0.5)
    new = bb.recover.means(params, units, masks, stats)
    gone = ~masks["bias"]
    assert gone.sum() == 8
    hidden = np.maximum(np.asarray(x @ params["up"] + params["bias"][None]), 0)
    flap = params["out"] + np.asarray(params["down"])[gone].T @ hidden[:, gone].mean(0)
    close(new["out"], flap)
    np.testing.assert_array_equal(new["bias"], jnp.where(gone, 0, params["bias"]))
    assert not np.asarray(new["up"])[:, gone].any()
    plain = bb.apply_masks(params, masks)
    true = mlp(params, x)
    errors = [float(jnp.mean((mlp(p, x) - true) ** 2)) for p in (new, plain)]
    assert errors[0] < errors[1]
    small = bb.shrink(mlp, new, masks, x)
    assert small.params["up"].shape == (6, 8)
    close(mlp(small.params, x), mlp(new, x))


def test_masks_of_biases_and_norms_are_applied():
    params, x = problem() | {"scale": normal(16)}, normal(20, 6)

    def fn(p, x):
        hidden = jax.nn.relu((x @ p["up"] + p["bias"][None]) * p["scale"][None])
        return hidden @ p["down"] + p["out"][None]

    units, stats = measured(fn, params, x)
    masks = {"up": keep(6, 16), "bias": keep(16), "scale": keep(16)}
    new = bb.recover.means(params, units, masks, stats)
    for path in ("bias", "scale"):
        off = ~np.asarray(masks[path])
        assert off.any() and not np.asarray(new[path])[off].any()
    on = np.asarray(masks["bias"])
    assert (np.asarray(new["bias"])[on] != np.asarray(params["bias"])[on]).all()


@pytest.mark.long
def test_terms_of_kernels_that_share_a_bias_add():
    def fn(p, x, y):
        return x @ p["a"] + y @ p["c"] + p["b"][None]

    params = {"a": normal(4, 3), "c": normal(5, 3), "b": normal(3)}
    x, y = normal(9, 4) + 1, normal(9, 5) - 1
    units, stats = measured(fn, params, x, y)
    kernels = (dataclasses.replace(kernel, bias="b") for kernel in units.kernels)
    units = dataclasses.replace(units, kernels=tuple(kernels))
    masks = {"a": keep(4, 3), "c": keep(5, 3)}
    new = bb.recover.means(params, units, masks, stats)
    close(fn(new, x, y).mean(0), fn(params, x, y).mean(0))
    one = bb.recover.means(params, units, {"a": masks["a"]}, stats)
    pruned = params | {"a": jnp.where(masks["a"], params["a"], 0), "b": one["b"]}
    close(fn(pruned, x, y).mean(0), fn(params, x, y).mean(0))


@pytest.mark.long
def test_after_a_rule_with_new_weights():
    params, x = problem(), normal(64, 6) + 1
    units = bb.trace(mlp, params, x).select("up|down")
    rule = bb.rules.sparsegpt()
    stats = bb.calibrate(mlp, units, params, [(x,)], needs=(*rule.needs, *NEEDS))
    pruned, masks = bb.prune(params, units, rule, density=0.5, stats=stats)
    new = bb.recover.means(params, units, masks, stats, start=pruned)
    np.testing.assert_array_equal(new["up"], pruned["up"])
    first = [(x @ p["up"] + p["bias"][None]).mean(0) for p in (new, params)]
    close(*first)
    assert np.abs(np.asarray(new["bias"] - params["bias"])).max() > 1e-3


# Trees and arrays of all kinds ------------------------------------------------------
@pytest.mark.long
def test_bfloat16_stays_and_is_computed_in_float32():
    params, x = problem(jnp.bfloat16), normal(64, 6, dtype=jnp.bfloat16) + 1
    units, stats = measured(mlp, params, x)
    masks = {"up": keep(6, 16), "down": keep(16, 3)}
    new = bb.recover.means(params, units, masks, stats)
    assert {leaf.dtype for leaf in new.values()} == {jnp.dtype(jnp.bfloat16)}
    wide = {k: v.astype(jnp.float32) for k, v in params.items()}
    want = bb.recover.means(wide, units, masks, stats)
    for path in ("bias", "out"):
        close(new[path].astype(jnp.float32), want[path], 2**-8)


@pytest.mark.long
def test_nnx_modules_come_back_as_modules():
    rngs = nnx.Rngs(0)
    net = nnx.Sequential(
        nnx.Linear(6, 16, rngs=rngs), nnx.relu, nnx.Linear(16, 3, rngs=rngs)
    )
    x = jnp.broadcast_to(normal(1, 6), (4, 6))

    def fn(net, x):
        return net(x)

    units, stats = measured(fn, net, x)
    masks = {path: keep(*units[path].shape) for path in units}
    dense = net(x)
    new = bb.recover.means(net, units, masks, stats)
    assert isinstance(new, nnx.Sequential)
    close(new(x), dense)
    close(net(x), dense)  # what was passed is as before


def test_under_jit_as_without():
    params, x = problem(), normal(32, 6)
    units, stats = measured(mlp, params, x)
    masks = {"up": keep(6, 16), "down": keep(16, 3)}
    run = jax.jit(lambda *args: bb.recover.means(args[0], units, *args[1:]))
    for path, leaf in run(params, masks, stats).items():
        close(leaf, bb.recover.means(params, units, masks, stats)[path], 1e-5)


@pytest.mark.long
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_arrays_that_are_sharded_over_devices(kind):
    params, x = problem(), normal(32, 6)
    units, stats = measured(mlp, params, x)
    masks = {"up": keep(6, 16), "down": keep(16, 3)}
    want = bb.recover.means(params, units, masks, stats)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    specs = {"up": (None, "model"), "bias": ("model",), "down": ("model",), "out": ()}
    with jax.set_mesh(mesh):
        sharded = {
            k: jax.device_put(v, NamedSharding(mesh, PartitionSpec(*specs[k])))
            for k, v in params.items()
        }
        new = bb.recover.means(sharded, units, masks, stats)
        for path, leaf in new.items():
            assert leaf.sharding.is_equivalent_to(sharded[path].sharding, leaf.ndim)
            close(leaf, want[path], 1e-5)


# Bad input ------------------------------------------------------------------------
@pytest.fixture
def pruning():
    params, x = problem(), normal(32, 6)
    units, stats = measured(mlp, params, x)
    masks = {"up": keep(6, 16), "down": keep(16, 3)}
    return {"params": params, "units": units, "masks": masks, "stats": stats}


@pytest.mark.long
def test_kernels_without_a_bias_are_named(pruning):
    def bare(p, x):
        return jax.nn.relu(x @ p["up"]) @ p["down"] + p["out"][None]

    params, x = pruning["params"], normal(8, 6)
    units, stats = measured(bare, params, x)
    masks = pruning["masks"] | {"up": keep(6, 16).at[0].set(True).at[1].set(False)}
    text = r"kernels without a bias keep the shift of their means: \['up'\]; bb.recon"
    with pytest.warns(UserWarning, match=text):
        new = bb.recover.means(params, units, masks, stats)
    assert (new["out"] != params["out"]).all()
    cut = bb.unitwise.cut(units, bb.unitwise.group_magnitude(units, params), 0.5)
    bb.recover.means(params, units, cut, stats)  # `up` loses whole units: no warning
    with pytest.raises(ValueError, match=r"expected a kernel with a bias, got none am"):
        bb.recover.means(params, units, {"up": masks["up"]}, stats)


def test_bad_arguments_of_means(pruning):
    with pytest.raises(TypeError, match="expected units from bb.trace, got dict"):
        bb.recover.means(**pruning | {"units": {}})
    with pytest.raises(TypeError, match="expected masks by path, got list"):
        bb.recover.means(**pruning | {"masks": []})
    for masks, got in (({}, "none"), ({"upp": keep(3)}, r"\['upp'\] \(did you mean")):
        with pytest.raises(
            ValueError, match=f"expected masks of kernels .*, got {got}"
        ):
            bb.recover.means(**pruning | {"masks": masks})
    with pytest.raises(ValueError, match="expected a parameter of the same shape for"):
        bb.recover.means(**pruning | {"masks": {"up": keep(6, 15)}})
    for stats in (None, {}, {"up": Activity(Statistics(), Statistics())}):
        with pytest.raises(ValueError, match="expected the mean of the inputs of 'up'"):
            bb.recover.means(**pruning | {"stats": stats})
    pruned = bb.apply_masks(pruning["params"], pruning["masks"])
    with pytest.raises(ValueError, match="expected the parameters before pruning"):
        bb.recover.means(**pruning | {"params": pruned})
    kernel = bb.Kernel("w", (3, 4), "complex64", fan_in=(0,), fan_out=(1,))
    params = {"w": jnp.ones((3, 4), jnp.complex64)}
    with pytest.raises(ValueError, match="expected real weights for 'w', got complex"):
        bb.recover.means(params, bb.Units((kernel,)), {"w": keep(3, 4)}, {})


# Norms ------------------------------------------------------------------------------
class ConvNet(nn.Module):
    """Two convolutions with norms, and a head."""

    momentum: float = 0.99

    @nn.compact
    def __call__(self, x, train):
        for features in (8, 8):
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=self.momentum)(x))
        return nn.Dense(4)(x.mean((1, 2)))


def conv_by_hand(kernel, x):
    """A convolution with zero padding, as float64."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    high, wide = x.shape[1:3]
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        x[:, i : i + high, j : j + wide] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    )


@pytest.mark.long
@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999])
def test_norms_of_a_pruned_conv_net_are_those_by_hand(momentum, lenient):
    net, sizes = ConvNet(momentum), (12, 12, 6)
    batches = [(normal(n, 6, 5, 3) + 1,) for n in sizes]
    variables = net.init(jax.random.key(0), batches[0][0], False)
    params, old = variables["params"], variables["batch_stats"]

    def fn(params, x):
        return net.apply({"params": params, "batch_stats": old}, x, False)

    units = bb.trace(fn, params, batches[0][0]).select("Conv")
    params, _ = bb.prune(params, units, bb.rules.magnitude(), density=0.5, k_min=0)

    @jax.jit
    def update(norms, x):
        variables = {"params": params, "batch_stats": norms}
        return net.apply(variables, x, True, mutable=["batch_stats"])[1]["batch_stats"]

    new = bb.recover.norms(update, old, iter(batches))
    want = {f"BatchNorm_{i}": {"mean": 0.0, "var": 0.0} for i in (0, 1)}
    for (x,) in batches:
        for i in (0, 1):
            x = conv_by_hand(params[f"Conv_{i}"]["kernel"], x)
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            share = len(x) / sum(sizes)
            want[f"BatchNorm_{i}"]["mean"] += share * mean
            want[f"BatchNorm_{i}"]["var"] += share * var
            x = np.maximum((x - mean) / np.sqrt(var + 1e-5), 0)
    assert jax.tree.structure(new) == jax.tree.structure(old)
    jax.tree.map(lambda a, b: close(a, b, 1e-3), new, want)


def test_norms_of_nnx_modules():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(5, 7, rngs=rngs)
            self.norm = nnx.BatchNorm(7, momentum=0.9, rngs=rngs)
            self.drop = nnx.Dropout(0.2, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.drop(self.up(x)))

    net = Net(nnx.Rngs(0))
    net.drop.deterministic = True
    graph, stats, rest = nnx.split(net, nnx.BatchStat, ...)

    @jax.jit
    def update(stats, x):
        net = nnx.merge(graph, stats, rest)
        net(x)
        return nnx.state(net, nnx.BatchStat)

    batches = [(normal(16, 5),), (2 * normal(16, 5) + 1,)]
    new = bb.recover.norms(update, stats, batches)
    nnx.update(net, new)
    kernel, bias = np.asarray(net.up.kernel[...]), np.asarray(net.up.bias[...])
    outs = [np.asarray(x) @ kernel + bias for (x,) in batches]
    close(net.norm.mean[...], np.mean([out.mean(0) for out in outs], 0))
    close(net.norm.var[...], np.mean([out.var(0) for out in outs], 0))


@pytest.mark.parametrize("mode", ["ema", "batch"])
def test_norms_of_equinox(mode, lenient):
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(5, "batch", mode=mode)

    @jax.jit
    def update(state, x):
        run = jax.vmap(norm, in_axes=(0, None), out_axes=(0, None), axis_name="batch")
        return run(x, state)[1]

    for _ in range(3):
        state = update(state, normal(32, 5) - 3)
    batches = [(normal(16, 5),), (2 * normal(16, 5) + 1,)]
    new = bb.recover.norms(update, state, batches)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    first, *found = jax.tree.leaves(new)  # a flag or a counter, the mean, the variance
    assert first == jax.tree.leaves(state)[0]
    close(found[0], np.mean([np.asarray(x).mean(0) for (x,) in batches], 0))
    close(found[1], np.mean([np.asarray(x).var(0) for (x,) in batches], 0))


def test_norms_that_are_sharded_over_devices():
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec("model"))
    old = {"mean": jax.device_put(jnp.ones(8), place)}
    x = normal(6, 8)

    @jax.jit
    def update(norms, x):
        return {"mean": 0.9 * norms["mean"] + 0.1 * x.mean(0)}

    new = bb.recover.norms(update, old, [(x,)])
    close(new["mean"], np.asarray(x).mean(0))
    assert new["mean"].sharding.is_equivalent_to(place, 1)


def moving(norms, x, weight=0.9):
    """Running statistics of a layer, a counter, and a leaf that stays."""
    mean = jnp.mean(x, axis=0)
    return norms | {
        "mean": (weight * norms["mean"] + (1 - weight) * mean).astype(jnp.float32),
        "steps": norms["steps"] + 1,
    }


OLD = {
    "mean": jnp.array([7.0, 8.0]),
    "steps": jnp.array(41),
    "scale": jnp.array([3.0]),
}


@pytest.mark.long
@settings(max_examples=30)
@given(
    st.floats(0, 0.999),
    st.floats(-6, 6),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_any_momentum_and_size_of_values(weight, decade, sizes):
    scale = 10.0**decade
    batches = [(normal(n, 2) * scale + 3 * scale,) for n in sizes]
    new = bb.recover.norms(lambda s, x: moving(s, x, weight), OLD, batches)
    rows = np.concatenate([np.asarray(x, np.float64) for (x,) in batches])
    np.testing.assert_allclose(new["mean"], rows.mean(0), rtol=2e-3, atol=2e-3 * scale)
    assert new["steps"] == 41 and new["scale"].tolist() == [3.0]


def test_entries_that_only_some_batches_change():
    """As the norms of experts: a batch that does not reach one does not count."""

    def update(norms, x, at):
        new = 0.5 * norms["mean"] + 0.5 * jnp.mean(x)
        return {"mean": jnp.where(jnp.arange(3) == at, new, norms["mean"])}

    batches = [(jnp.full(4, v), at) for v, at in ((1.0, 0), (5.0, 0), (2.0, 1))]
    new = bb.recover.norms(update, {"mean": jnp.full(3, 9.0)}, batches)
    close(new["mean"], [3.0, 2.0, 9.0])


def test_statistics_in_bfloat16_are_measured_in_float32():
    old = {"mean": jnp.full(4, 7, jnp.bfloat16)}
    x = 100 * normal(64, 4)

    def update(norms, x):
        return {"mean": norms["mean"] * jnp.float32(0.99) + 0.01 * x.mean(0)}

    new = bb.recover.norms(update, old, [(x,)])
    assert new["mean"].dtype == jnp.bfloat16
    np.testing.assert_allclose(
        new["mean"].astype(jnp.float32), np.asarray(x).mean(0), rtol=2**-8
    )


@pytest.mark.long
def test_a_trained_net_that_is_pruned_by_half_gets_better(lenient):
    net = ConvNet(0.99)
    key = jax.random.key(1)
    y = jnp.arange(128) % 4
    patterns = jax.random.normal(key, (4, 6, 6, 3))
    x = patterns[y] + 0.5 * jax.random.normal(
        jax.random.fold_in(key, 1), (128, 6, 6, 3)
    )
    variables = net.init(key, x, False)
    params, stats = variables["params"], variables["batch_stats"]

    def loss(params, stats, train):
        variables = {"params": params, "batch_stats": stats}
        out, new = net.apply(variables, x, train, mutable=["batch_stats"])
        cost = optax.softmax_cross_entropy_with_integer_labels(out, y).mean()
        return cost, new["batch_stats"]

    tx = optax.adam(3e-3)

    @jax.jit
    def step(params, stats, state):
        grads, stats = jax.grad(loss, has_aux=True)(params, stats, True)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), stats, state

    state = tx.init(params)
    for _ in range(60):
        params, stats, state = step(params, stats, state)
    update = jax.jit(lambda stats, params: loss(params, stats, True)[1])
    stats = bb.recover.norms(update, stats, [(params,)])
    units = bb.trace(lambda p: loss(p, stats, False)[0], params).select("Conv")
    pruned, _ = bb.prune(params, units, bb.rules.magnitude(), density=0.5)
    new = bb.recover.norms(update, stats, [(pruned,)])
    dense, before, after = (
        float(loss(p, s, False)[0])
        for p, s in ((params, stats), (pruned, stats), (pruned, new))
    )
    assert dense < after < before


# Bad input ------------------------------------------------------------------------
X = (jnp.ones((4, 2)),)


@pytest.mark.parametrize(
    "error, match, update, norms, batches",
    [
        (TypeError, "expected update to be a function of", {}, OLD, [X]),
        (ValueError, "expected running statistics of floats", moving, {"n": 1}, [X]),
        (ValueError, "expected at least one batch, got none", moving, OLD, []),
        (TypeError, "expected a tuple of the arguments after", moving, OLD, [X[0]]),
        (
            ValueError,
            "expected update to change running statistics, got all of them back",
            lambda s, x: s,
            OLD,
            [X],
        ),
        (
            ValueError,
            r"a tree like norms, \{'mean'.*got another: \{'mean': \(2,\)\}; return all",
            lambda s, x: {"mean": s["mean"]},
            OLD,
            [X],
        ),
        (
            ValueError,
            "got another: its containers; return all",
            lambda s, x: tuple(s),
            [jnp.ones(2)],
            [X],
        ),
        (
            ValueError,
            "expected finite running statistics, got NaN or infinity at 'mean'",
            moving,
            OLD,
            [(jnp.full((4, 2), jnp.nan),)],
        ),
        (
            ValueError,
            r"w old \+ \(1 - w\) new with 0 <= w < 1, got something else at 'scale'",
            lambda s, x: moving(s, x) | {"scale": s["scale"] ** 2},
            OLD,
            [X],
        ),
        (
            ValueError,
            "got something else at 'scale'; run all norms in training mode",
            lambda s, x: moving(s, x) | {"scale": s["scale"] + 1},
            OLD,
            [X],
        ),
        (
            ValueError,
            "got something else at 'mean'",
            lambda s, x: moving(s, x, -0.5),
            OLD,
            [X],
        ),
    ],
)
def test_bad_arguments_of_norms(error, match, update, norms, batches):
    with pytest.raises(error, match=match):
        bb.recover.norms(update, norms, batches)
