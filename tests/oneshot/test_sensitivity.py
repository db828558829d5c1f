"""`bb.sensitivity`: losses with one row pruned at a time, and budgets from them."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bbjax as bb
from bbjax.budgets.allocation import Uneven, budgets
from bbjax.oneshot.sensitivity import Row, Sensitivity

MAGNITUDE, WANDA = bb.rules.magnitude(), bb.rules.wanda()


def normal(*shape):
    return jnp.asarray(np.random.normal(size=shape), jnp.float32)


def mlp(p, x, y):
    hidden = jax.nn.relu(x @ p["up"])
    return jnp.mean((hidden @ p["down"] - y) ** 2)


def problem(samples=40):
    params = {"up": normal(8, 12), "down": normal(12, 5) / 4}
    x = normal(samples, 8)
    y = jax.nn.relu(x @ params["up"]) @ params["down"] + 0.1 * normal(samples, 5)
    return params, x, y, bb.trace(mlp, params, x, y).select("up|down")


def mlp_by_hand(params, x, y):
    up, down, x, y = (np.asarray(a, np.float64) for a in (*params.values(), x, y))
    return np.mean((np.maximum(x @ up, 0) @ down - y) ** 2)


def test_losses_are_those_with_one_kernel_pruned():
    params, x, y, units = problem()
    batches = [(x[:10], y[:10]), (x[10:], y[10:])]
    found = bb.sensitivity(
        mlp, units, params, iter(batches), MAGNITUDE, densities=(0.3, 0.7)
    )
    assert found.densities == (0.7, 0.3) and found.edges == {"up": 96, "down": 60}

    def loss(params):
        return np.mean([mlp_by_hand(params, *batch) for batch in batches])

    assert found.dense == pytest.approx(loss(params), rel=1e-5)
    for path in ("up", "down"):
        for density, got in zip((0.7, 0.3), found.losses[path], strict=True):
            w = np.asarray(params[path])
            rank = np.argsort(np.argsort(-np.abs(w), axis=0), axis=0)
            _, masks = bb.prune(params, units.only([path]), MAGNITUDE, density)
            mask = np.asarray(masks[path])
            assert mask.sum() == round(density * w.size)
            assert (mask == (rank < mask.sum(0))).all()
            want = loss(params | {path: np.where(mask, w, 0)})
            assert got == pytest.approx(want, rel=1e-5)


def block(h, w):
    norm = h / jnp.sqrt(jnp.mean(h * h, axis=-1, keepdims=True) + 1e-6)
    gated = jax.nn.silu(norm @ w["gate"]) * (norm @ w["up"])
    return h + gated @ w["down"]


def gated_stack(p, x):
    out = lax.scan(lambda h, w: (block(h, w), None), x, p["layers"])[0]
    return jnp.mean((out @ p["out"] - 1) ** 2)


def stacked():
    shapes = {"gate": (3, 6, 10), "up": (3, 6, 10), "down": (3, 10, 6)}
    params = {
        "layers": {k: normal(*s) / 2 for k, s in shapes.items()},
        "out": normal(6, 1),
    }
    x = normal(16, 6)
    return params, x, bb.trace(gated_stack, params, x).select("layers")


@pytest.mark.long
def test_every_slice_of_a_stack_is_a_row():
    params, x, units = stacked()
    found = bb.sensitivity(
        gated_stack, units, params, [(x,)], WANDA, densities=(0.5, 0.25)
    )
    names = [f"layers/{n}[{i}]" for n in ("gate", "up", "down") for i in range(3)]
    assert sorted(found.losses) == sorted(names)
    assert set(found.edges.values()) == {60}
    stats = bb.calibrate(gated_stack, units, params, [(x,)], needs=WANDA.needs)
    for name in ("gate", "down"):
        path = f"layers/{name}"
        for n, density in enumerate((0.5, 0.25)):
            pruned, _ = bb.prune(
                params, units.only([path]), WANDA, density, stats=stats
            )
            for at in range(3):
                w = params["layers"][name].at[at].set(pruned["layers"][name][at])
                h = x
                for i in range(3):
                    mine = {k: v[i] for k, v in params["layers"].items()}
                    h = block(h, mine | {name: w[i]})
                want = jnp.mean((h @ params["out"] - 1) ** 2)
                got = found.losses[f"{path}[{at}]"][n]
                assert got == pytest.approx(float(want), rel=1e-4)


@pytest.mark.long
def test_kernels_of_a_layer_are_pruned_together():
    params, x, units = stacked()
    found = bb.sensitivity(
        gated_stack, units, params, [(x,)], MAGNITUDE, densities=[0.5], by="layers"
    )
    assert list(found.edges.items()) == [(f"layers[{i}]", 180) for i in range(3)]
    pruned, _ = bb.prune(params, units, MAGNITUDE, 0.5)
    both = jax.tree.map(
        lambda a, b: a.at[1].set(b[1]), params["layers"], pruned["layers"]
    )
    want = gated_stack(params | {"layers": both}, x)
    assert found.losses["layers[1]"][0] == pytest.approx(float(want), rel=1e-5)
    density = found.allocate(0.6)
    _, masks = bb.prune(params, units, MAGNITUDE, density)
    kept = np.array([mask.sum((1, 2)) for mask in masks.values()])
    assert kept.sum() == round(0.6 * 540)
    assert np.ptp(kept, axis=0).max() <= 1  # each kernel of a layer alike


def test_all_kernels_as_one_row():
    params, x, y, units = problem()
    found = bb.sensitivity(
        mlp, units, params, [(x, y)], MAGNITUDE, densities=[0.5], by=""
    )
    pruned, _ = bb.prune(params, units, MAGNITUDE, 0.5)
    assert found.edges == {"all": 156}
    assert found.losses["all"][0] == pytest.approx(float(mlp(pruned, x, y)), rel=1e-5)


@pytest.mark.long
def test_a_rule_across_kernels_competes_within_a_row():
    params, x, y, units = problem()
    rule = bb.rules.magnitude(scope="global")
    found = bb.sensitivity(mlp, units, params, [(x, y)], rule, densities=[0.4], by="")
    pruned, _ = bb.prune(params, units, rule, 0.4)
    assert found.losses["all"][0] == pytest.approx(float(mlp(pruned, x, y)), rel=1e-5)


@pytest.mark.long
def test_rules_with_new_weights_and_with_gradients():
    params, x, y, units = problem()
    params = params | {"bias": normal(12)}

    def fn(p, x, y):
        hidden = jax.nn.relu(x @ p["up"] + p["bias"][None])
        return jnp.mean((hidden @ p["down"] - y) ** 2)

    units = bb.trace(fn, params, x, y).select("up")
    grads = jax.grad(fn)(params, x, y)
    for rule in (bb.rules.sparsegpt(), bb.rules.snip()):
        stats = bb.calibrate(fn, units, params, [(x, y)], needs=rule.needs)
        given = {"grads": grads} if "grads" in rule.needs else {}
        pruned, _ = bb.prune(params, units, rule, 0.5, stats=stats, **given)
        found = bb.sensitivity(
            fn, units, params, [(x, y)], rule, densities=[0.5], **given
        )
        want = float(fn(pruned, x, y))
        assert found.losses["up"][0] == pytest.approx(want, rel=1e-4), rule.name


@pytest.mark.long
def test_statistics_are_measured_once_if_they_are_not_given():
    params, x, y, units = problem()
    calls = {"batches": [(x, y)], "rule": WANDA, "densities": (0.6, 0.3)}
    stats = bb.calibrate(mlp, units, params, [(x, y)], needs=WANDA.needs)
    given, alone = (
        bb.sensitivity(mlp, units, params, stats=s, **calls) for s in (stats, None)
    )
    for name, losses in given.losses.items():
        np.testing.assert_array_equal(losses, alone.losses[name])
    other = dict(stats)
    other["up"] = stats["up"]._replace(
        inputs=dataclasses.replace(
            stats["up"].inputs, mean_square=jnp.arange(8.0)[::-1] ** 4
        )
    )
    changed = bb.sensitivity(mlp, units, params, stats=other, **calls)
    assert (changed.losses["up"] != given.losses["up"]).any()


@pytest.mark.long
@pytest.mark.parametrize("framework", ["dict", "nnx", "linen"])
def test_one_compilation_for_all_rows(framework, lenient):
    params, x, y, _ = problem()
    if framework == "dict":
        fn = mlp
    elif framework == "nnx":
        rngs = nnx.Rngs(0)
        params = nnx.Sequential(
            nnx.Linear(8, 12, rngs=rngs), nnx.relu, nnx.Linear(12, 5, rngs=rngs)
        )

        def fn(net, x, y):
            return jnp.mean((net(x) - y) ** 2)
    else:
        net = nn.Sequential([nn.Dense(12), nn.relu, nn.Dense(5)])
        params = net.init(jax.random.key(0), x)

        def fn(params, x, y):
            return jnp.mean((net.apply(params, x) - y) ** 2)

    units = bb.trace(fn, params, x, y).select("kernel|up|down")
    before = (
        [np.array(leaf) for leaf in jax.tree.leaves(nnx.state(params))]
        if (framework == "nnx")
        else []
    )
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(fn, n=1)
    halves = [(x[:20], y[:20]), (x[20:], y[20:])]
    found = bb.sensitivity(counted, units, params, halves, MAGNITUDE)
    assert len(found.rows) == 2 and found.losses[found.rows[0].name].shape == (4,)
    for path, losses in found.losses.items():
        pruned, _ = bb.prune(params, units.only([path]), MAGNITUDE, 0.2)
        want = np.mean([fn(pruned, *half) for half in halves])
        assert losses[-1] == pytest.approx(float(want), rel=1e-5)
    after = jax.tree.leaves(nnx.state(params)) if framework == "nnx" else []
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


@pytest.mark.long
def test_convolutions_and_patterns():
    params = {"conv": normal(3, 3, 4, 8) / 4, "out": normal(8, 4)}
    x = normal(6, 5, 5, 4)

    def fn(p, x):
        dims = ("NHWC", "HWIO", "NHWC")
        h = lax.conv_general_dilated(
            x, p["conv"], (1, 1), "SAME", dimension_numbers=dims
        )
        return jnp.mean((jax.nn.relu(h).mean((1, 2)) @ p["out"]) ** 2)

    units = bb.trace(fn, params, x).select("conv|out")
    pattern = bb.n_m(2, 4)
    found = bb.sensitivity(
        fn, units, params, [(x,)], MAGNITUDE, densities=[0.5], pattern=pattern
    )
    for path in ("conv", "out"):
        only = units.only([path])
        pruned, _ = bb.prune(params, only, MAGNITUDE, pattern=pattern)
        got, want = found.losses[path][0], float(fn(pruned, x))
        assert got == pytest.approx(want, rel=1e-5)
    assert found.edges == {"conv": 32, "out": 32}
    with pytest.raises(
        ValueError, match=r"densities=\(0.5,\) with the pattern 2:4, go"
    ):
        bb.sensitivity(fn, units, params, [(x,)], MAGNITUDE, pattern=pattern)


@pytest.mark.long
def test_bfloat16_parameters():
    params, x, y, units = problem()
    half = {k: v.astype(jnp.bfloat16) for k, v in params.items()}

    def fn(p, x, y):
        return mlp(jax.tree.map(lambda w: w.astype(jnp.float32), p), x, y)

    units = bb.trace(fn, half, x, y).select("up|down")
    found = bb.sensitivity(fn, units, half, [(x, y)], MAGNITUDE, densities=[0.5])
    for path in ("up", "down"):
        pruned, _ = bb.prune(half, units.only([path]), MAGNITUDE, 0.5)
        assert found.losses[path][0] == pytest.approx(float(fn(pruned, x, y)), rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_parameters_that_are_sharded_over_devices(kind):
    params, x, units = stacked()
    given = {"densities": (0.5, 0.2), "rule": MAGNITUDE}
    want = bb.sensitivity(gated_stack, units, params, [(x,)], **given)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
    specs = {"gate": (None, None, "model"), "up": (None, None, "model")}

    def put(path, leaf):
        spec = PartitionSpec(*specs.get(path[-1].key, ()))
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    def loss(p, x):
        if kind is AxisType.Explicit:  # products over a sharded axis have to say where
            p = jax.tree.map(lambda w: jax.sharding.reshard(w, PartitionSpec()), p)
        return gated_stack(p, x)

    with jax.set_mesh(mesh):
        sharded = jax.tree_util.tree_map_with_path(put, params)
        units = bb.trace(loss, sharded, x).select("layers")
        found = bb.sensitivity(loss, units, sharded, [(x,)], **given)
    assert found.losses.keys() == want.losses.keys()
    for name, losses in want.losses.items():
        np.testing.assert_allclose(found.losses[name], losses, rtol=1e-4)


# Budgets ----------------------------------------------------------------------------
KERNELS = (
    bb.Kernel("a", (10, 12), fan_in=(0,), fan_out=(1,)),
    bb.Kernel("s", (4, 7, 9), stack=(0,), fan_in=(1,), fan_out=(2,)),
    bb.Kernel("b", (31, 5), fan_in=(0,), fan_out=(1,)),
)
LEVELS = (0.8, 0.6, 0.4, 0.2)


def made(losses, dense=1.0):
    """A sensitivity from an array of losses, one line for each slice."""
    rows, lines = [], iter(losses)
    for kernel in KERNELS:
        for at in range(int(np.prod(kernel.stack_shape))):
            index = (at,) if kernel.stack_shape else ()
            part = (kernel.path, at, kernel.edge_count)
            line = np.asarray(next(lines), np.float64)
            rows.append(Row(kernel.path, index, kernel.edge_count, line, (part,)))
    return Sensitivity(dense, LEVELS, tuple(rows))


LINES = st.lists(
    st.lists(st.floats(0, 9), min_size=4, max_size=4), min_size=6, max_size=6
)


@pytest.mark.long
@given(LINES, st.floats(0.21, 1))
def test_budgets_add_up_and_are_what_was_allocated(lines, density):
    found = made(lines)
    given = found.allocate(density)
    assert isinstance(given, Uneven)
    spent = budgets(given, KERNELS, jnp.int32(0), 1)
    total = sum(int(edges.sum()) for edges in spent.edges)
    assert total == round(density * 527)
    for kernel, edges in zip(KERNELS, spent.edges, strict=True):
        shares = np.reshape(dict(given.raised)[kernel.path], kernel.stack_shape)
        np.testing.assert_array_equal(edges, np.rint(shares * kernel.edge_count))
        assert (edges >= round(0.2 * kernel.edge_count)).all()


@pytest.mark.parametrize("part", [-0.49, 0.0, 0.3])
def test_a_budget_that_is_rounded_takes_no_edge_from_the_sparsest_row(part):
    """The density that is passed on is the one that is met."""
    kernels = [
        bb.Kernel(n, (k, k), fan_in=(0,), fan_out=(1,))
        for n, k in (("a", 40), ("b", 10))
    ]
    rows = (
        Row("a", (), 1600, np.array([1.0, 9.0]), (("a", 0, 1600),)),
        Row("b", (), 100, np.array([0.0, 0.001]), (("b", 0, 100),)),
    )
    density = Sensitivity(0.0, (0.9, 0.05), rows).allocate((1285 + part) / 1700)
    spent = budgets(density, kernels, jnp.int32(0))
    assert [int(edges) for edges in spent.edges] == [1280, 5]


@pytest.mark.parametrize("side, off", [(1400, 0), (20000, 100)])
def test_budgets_of_large_kernels(side, off):
    shapes = {"a": (side, side), "b": (side, side // 3)}
    kernels = [bb.Kernel(n, s, fan_in=(0,), fan_out=(1,)) for n, s in shapes.items()]
    rows = tuple(
        Row(k.path, (), k.edge_count, np.array([w]), ((k.path, 0, k.edge_count),))
        for k, w in zip(kernels, (2.0, 1.0), strict=True)
    )
    given = Sensitivity(0.0, (0.3,), rows).allocate(0.777)
    edges = [int(n) for n in budgets(given, kernels, jnp.int32(0)).edges]
    sizes = [row.edges for row in rows]
    assert sum(edges) == round(0.777 * sum(sizes))
    for got, size, (_, (share,)) in zip(edges, sizes, given.raised, strict=True):
        assert abs(got - share * size) <= off + 0.5


@pytest.mark.long
@given(LINES, st.floats(0.21, 0.99), st.floats(0, 0.5))
def test_with_a_larger_density_or_floor_rows_obey(lines, density, floor):
    found = made(lines)
    low, high = (
        np.concatenate([s for _, s in found.allocate(d).raised])
        for d in (density, min(density + 0.01, 1.0))
    )
    assert (high >= low).all()
    if floor < density - 0.01:
        held = found.allocate(density, floor=floor).raised
        assert min(min(shares) for _, shares in held) >= floor


def test_the_least_increase_of_the_loss_against_a_grid():
    """Rows of one size at the measured densities: all ways to give 0.5 on average."""
    curves = np.array([[0.0, 0.1, 0.3, 0.9], [0.1, 0.2, 0.4, 0.9], [1, 3, 6, 10]])
    rows = tuple(
        Row(name, (), 100, line, ((name, 0, 100),))
        for name, line in zip("abc", curves, strict=True)
    )
    found = Sensitivity(0.0, LEVELS, rows)
    shares = {path: s for path, (s,) in found.allocate(0.6).raised}
    points = [(1.0, 0.0), *zip(LEVELS, range(4), strict=True)]
    losses = [{1.0: 0.0} | dict(zip(LEVELS, line, strict=True)) for line in curves]
    ways = [
        (a, b, c)
        for a, _ in points
        for b, _ in points
        for c, _ in points
        if a + b + c == pytest.approx(1.8)
    ]
    best = min(sum(t[d] for t, d in zip(losses, way, strict=True)) for way in ways)
    mine = sum(t[shares[n]] for t, n in zip(losses, "abc", strict=True))
    assert mine == pytest.approx(best) and shares["c"] == 1.0


@pytest.mark.long
def test_a_layer_that_matters_less_pays_for_the_others():
    params, x, y, units = problem(200)
    params["up"] = params["up"].at[:, 3:].multiply(0.01)  # most units hardly matter
    y = jax.nn.relu(x @ params["up"]) @ params["down"]
    found = bb.sensitivity(mlp, units, params, [(x, y)], MAGNITUDE)
    even, uneven = (
        float(mlp(bb.prune(params, units, MAGNITUDE, d)[0], x, y))
        for d in (0.5, found.allocate(0.5))
    )
    assert uneven < even


@pytest.mark.long
def test_as_a_density_of_transform():
    params, x, units = stacked()
    found = bb.sensitivity(gated_stack, units, params, [(x,)], MAGNITUDE)
    density = found.allocate(0.5, floor=0.3)
    tx = bb.transform(units, MAGNITUDE, density=density, start=0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = jax.jit(tx.update)(zeros, tx.init(params), params)
    _, masks = bb.prune(params, units, MAGNITUDE, density)
    kept = bb.masks(state)
    assert sum(int(mask.sum()) for mask in kept.values()) == round(0.5 * 540)
    for path, mask in masks.items():
        np.testing.assert_array_equal(kept[path], mask)
        assert (np.asarray(mask).sum((1, 2)) >= 18).all()


def test_the_table():
    text = str(made([[0.5 * i, 1, 1.25, 2] for i in range(6)]))
    lines = text.splitlines()
    assert lines[0] == "dense loss 1; increases with one row pruned at a time:"
    assert lines[1].split() == "row edges at 0.8 at 0.6 at 0.4 at 0.2".split()
    assert lines[4].split() == "s[0] 63 -0.5 +0 +0.25 +1".split()
    assert len(lines) == 3 + 6


# Bad input ------------------------------------------------------------------------
@pytest.mark.parametrize(
    "error, match, given",
    [
        (TypeError, "expected units from bb.trace, got dict", {"units": {}}),
        (TypeError, "expected a rule from bb.rules, got 'wanda'", {"rule": "wanda"}),
        (TypeError, "densities as a sequence of numbers, got 0.5", {"densities": 0.5}),
        (TypeError, "densities as a sequence of numbers, got '0", {"densities": "0.5"}),
        (ValueError, "at least one density, and none twice, got", {"densities": []}),
        (ValueError, "and none twice, got", {"densities": [0.5, 0.5]}),
        (ValueError, r"expected a density in \(0, 1\), got 1", {"densities": [1]}),
        (TypeError, "expected a density to be a number, got '1'", {"densities": ["1"]}),
        (ValueError, "expected at least one batch, got none", {"batches": []}),
        (TypeError, "expected a tuple of the arguments after", {"batches": [1]}),
        (
            ValueError,
            "rule that takes a density, got 'unbudgeted.*whose density is an outcome",
            {"rule": bb.rules.unbudgeted(bb.laws.threshold(0.3))},
        ),
        (ValueError, "expected by to be a regular expression, got '", {"by": "("}),
        (ValueError, "expected by='up' to match every kernel, got no", {"by": "up"}),
        (
            ValueError,
            r"expected gradients, which rule 'snip' needs.*bb.sensitivity\(..., grads",
            {"rule": bb.rules.snip()},
        ),
        (ValueError, "a density of at least 0.125 for 'up'", {"densities": [0.1]}),
        (TypeError, "expected a function of .params, .args., got int", {"fn": 1}),
        (
            TypeError,
            r"to return a loss, one number, got shape \(2,\); return the mean",
            {"fn": lambda p, x, y: jnp.stack([mlp(p, x, y)] * 2)},
        ),
        (
            TypeError,
            "to return a loss, one number, got <class 'tuple'>; return the mean",
            {"fn": lambda p, x, y: (mlp(p, x, y), 0)},
        ),
        (
            ValueError,
            "expected a finite loss of the dense model, got inf",
            {"fn": lambda p, x, y: jnp.inf * mlp(p, x, y)},
        ),
        (
            ValueError,
            "expected a finite loss with 'up' at density 0.5, got inf .slice 0.; leave",
            {"fn": lambda p, x, y: mlp(p, x, y) / jnp.all(p["up"] != 0)},
        ),
    ],
)
def test_bad_arguments(error, match, given, lenient):
    params, x, y, units = problem()
    good = {"fn": mlp, "units": units, "params": params, "batches": [(x, y)]}
    with pytest.raises(error, match=match):
        bb.sensitivity(**{**good, "rule": MAGNITUDE, "densities": [0.5], **given})


def test_traced_parameters_are_refused():
    params, x, y, units = problem()
    with pytest.raises(
        TypeError, match="expected parameters with values, got a traced"
    ):
        jax.jit(lambda p: bb.sensitivity(mlp, units, p, [(x, y)], MAGNITUDE).dense)(
            params
        )


@pytest.mark.long
def test_a_rule_across_the_slices_of_a_stack_is_refused():
    params, x, units = stacked()
    rule = bb.rules.magnitude(scope="global")
    with pytest.raises(ValueError, match="slice by slice for 'layers/.*compete across"):
        bb.sensitivity(gated_stack, units, params, [(x,)], rule)


@pytest.mark.long
def test_bad_densities_of_an_allocation():
    found = made([[0.5, 1, 2, 3]] * 6)
    for density in (0, 1.1):
        with pytest.raises(ValueError, match=r"expected density in \(0, 1\], got"):
            found.allocate(density)
    with pytest.raises(TypeError, match="expected density to be a number, got <func"):
        found.allocate(bb.ramp(0.5, 0, 10))
    with pytest.raises(ValueError, match=r"expected floor in \[0, 1\), got 1"):
        found.allocate(0.5, floor=1)
    text = "at least 0.203, which the rows get at least .the lowest that was measured, "
    with pytest.raises(ValueError, match=text + "0.2, or floor=0.0., got 0.1; measure"):
        found.allocate(0.1)
    with pytest.raises(ValueError, match="or floor=0.7., got 0.5"):
        found.allocate(0.5, floor=0.7)
    with pytest.raises(TypeError, match="expected density with a value, got a traced"):
        jax.jit(lambda d: len(found.allocate(d).raised))(0.5)
