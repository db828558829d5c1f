"""Depth: scores against plain loops over layers, and smaller stacks that run."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

import bbjax as bb
from tests.support.smaller import close, drawn, masked

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 6)), jnp.float32)
Y = jnp.asarray(np.random.default_rng(1).standard_normal((7, 5, 6)), jnp.float32)


def norm(x, scale):
    lead = (None,) * (x.ndim - 1)
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * scale[lead]


def layer(p, x):
    """A gated MLP behind a norm, on a residual stream."""
    h = norm(x, p["norm"])
    return x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]


def net(p, x):
    x = x @ p["in"]
    x, _ = lax.scan(lambda x, p: (jax.checkpoint(layer)(p, x), None), x, p["layers"])
    return norm(x, p["norm"]) @ p["out"]


def layers_of(count):
    shapes = {"norm": (6,), "gate": (6, 8), "up": (6, 8), "down": (8, 6)}
    arrays = drawn(**{name: (count, *shape) for name, shape in shapes.items()})
    arrays = {name: 0.5 * array for name, array in arrays.items()}
    return arrays | {"norm": 1 + arrays["norm"] ** 2}


def made(count=4):
    ends = drawn(**{"in": (6, 6), "norm": (6,), "out": (6, 3)})
    return {**ends, "layers": layers_of(count)}


PARAMS = made()
UNITS = bb.trace(net, PARAMS, X)
NAME = "layers/down[0]"


def change(before, after):
    """1 minus the cosine of every pair of vectors, by the formula, in float64."""
    x, y = (np.asarray(a, np.float64).reshape(-1, a.shape[-1]) for a in (before, after))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return 1 - (x * y).sum(1) / norms


def looped(one, layers, x, axis=0):
    """The change at every position, layer by layer, of a plain loop; and the result."""
    rows = []
    for i in range(jax.tree.leaves(layers)[0].shape[axis]):
        p = jax.tree.map(lambda a, i=i: jnp.take(a, i, axis), layers)
        after = one(p, x)
        rows.append(change(x, after))
        x = after
    return np.array(rows), x


def near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


# Scores --------------------------------------------------------------------------
def test_scores_are_those_of_a_plain_loop_over_the_layers():
    found = bb.depth.scores(net, UNITS, PARAMS, [(X,)])
    rows, _ = looped(layer, PARAMS["layers"], X @ PARAMS["in"])
    assert list(found) == [NAME] and found[NAME].dtype == np.float64
    near(found[NAME], rows.mean(1))
    assert found[NAME].min() > 0.001 and np.ptp(found[NAME]) > 0.1


@pytest.mark.long
def test_samples_count_the_same_in_whatever_batch_they_are():
    apart = bb.depth.scores(net, UNITS, PARAMS, ((x,) for x in (X, Y)))[NAME]
    both = jnp.concatenate([X, Y])
    near(apart, bb.depth.scores(net, UNITS, PARAMS, [(both,)])[NAME])
    rows, _ = looped(layer, PARAMS["layers"], both @ PARAMS["in"])
    near(apart, rows.mean(1))


def test_every_kind_of_batch_is_traced_once():
    traces = []

    def counted(p, x):
        traces.append(x.shape)
        return net(p, x)

    bb.depth.scores(counted, UNITS, PARAMS, [(X,), (Y,), (X + 1,), (Y + 1,), (X,)])
    assert traces == [X.shape, Y.shape]


def test_padding_does_not_count():
    lengths = np.array([2, 4])
    real = np.arange(5)[None] < lengths[:, None]
    rows, _ = looped(layer, PARAMS["layers"], X @ PARAMS["in"])
    expected = rows[:, real.ravel()].mean(1)
    near(bb.depth.scores(net, UNITS, PARAMS, [(X,)], where=real)[NAME], expected)

    def padded(p, x, real):
        return jnp.where(real[..., None], net(p, x), 0.0)

    units = bb.trace(padded, PARAMS, X, real)
    found = bb.depth.scores(
        padded, units, PARAMS, [(X, real)], where=lambda x, real: real
    )
    near(found[NAME], expected)
    assert not np.allclose(expected, rows.mean(1), rtol=0.01)


def test_scores_are_for_low_precision_too():
    small = jax.tree.map(lambda a: a.astype(jnp.bfloat16), PARAMS)
    x = X.astype(jnp.bfloat16)
    found = bb.depth.scores(net, bb.trace(net, small, x), small, [(x,)])[NAME]
    rows, _ = looped(layer, PARAMS["layers"], X @ PARAMS["in"])
    np.testing.assert_allclose(found, rows.mean(1), rtol=0.2)


def test_large_and_small_activities_are_compared_as_others_are():
    """Their squares are no finite numbers, or zero."""

    def turn(p, x):
        return lax.scan(lambda x, w: (x @ w, None), x, p["turns"])[0]

    params = {"turns": drawn(turns=(3, 6, 6))["turns"]}
    units = bb.trace(turn, params, X)
    rows, _ = looped(lambda w, x: x @ w, params["turns"], X)
    for factor in (1e-30, 1.0, 1e30):
        found = bb.depth.scores(turn, units, params, [(factor * X,)])
        near(found["turns[0]"], rows.mean(1))


def test_zero_vectors_are_at_right_angles_to_others():
    def net(p, x):
        return lax.scan(lambda x, b: (jax.nn.relu(x + b[None]), None), x, p["b"])[0]

    params = {"b": jnp.array([[0.0, 0], [-9, -9], [0, 0], [2, 3]])}
    x = jnp.array([[1.0, 2.0]])
    found = bb.depth.scores(net, bb.trace(net, params, x), params, [(x,)])["b[0]"]
    assert found.tolist() == [0.0, 1.0, 0.0, 1.0]


# Structures ------------------------------------------------------------------------
def once(p, x):
    """Behind `jit`, and layers in the reverse order."""
    run = jax.jit(lambda x, p: lax.scan(lambda x, p: (layer(p, x), None), x, p))
    return run(x, p["layers"])[0]


def backward(p, x):
    step = lax.scan(lambda x, p: (layer(p, x), x), x, p["layers"], reverse=True)
    return step[0]


def masked_before(p, x):
    """The parameters of the scan are computed from those of the function."""
    kept = jax.tree.map(lambda w: w * (w > -1.0).astype(w.dtype), p["layers"])
    return lax.scan(lambda x, p: (layer(p, x), None), x, kept)[0]


def branched(p, x):
    def run(x):
        return lax.scan(lambda x, p: (layer(p, x), None), x, p["layers"])[0]

    return lax.cond(jnp.sum(x) > jnp.inf, lambda x: x, run, x)


@jax.custom_jvp
def owned(layers, x):
    return lax.scan(lambda x, p: (layer(p, x), None), x, layers)[0]


owned.defjvp(lambda given, tangents: (owned(*given), tangents[1]))


def own_rule(p, x):
    return owned(p["layers"], x)


def flipped(layers):
    return jax.tree.map(lambda a: a[::-1], layers)


@pytest.mark.parametrize(
    "fn", [once, backward, masked_before, branched, own_rule], ids=lambda f: f.__name__
)
def test_scans_are_found_wherever_they_are(fn):
    params = {"layers": PARAMS["layers"]}
    layers = params["layers"]
    if fn is masked_before:
        layers = jax.tree.map(lambda w: jnp.where(w > -1, w, 0), layers)
    if fn is backward:
        layers = flipped(layers)
    rows, _ = looped(layer, layers, X)
    expected = rows.mean(1)[:: -1 if fn is backward else 1]
    units = bb.trace(fn, params, X)
    found = bb.depth.scores(fn, units, params, [(X,)])
    near(found[NAME], expected)


def nested(p, x):
    """Blocks of two kinds of layers: a scan in a scan over the same parameters."""

    def block(x, p):
        return lax.scan(lambda x, p: (layer(p, x), None), x, p)[0], None

    return lax.scan(block, x, p["blocks"])[0]


def test_scans_inside_of_scans_are_stacks_of_their_own():
    blocks = jax.tree.map(lambda a: a.reshape(2, 2, *a.shape[1:]), PARAMS["layers"])
    params = {"blocks": blocks}
    units = bb.trace(nested, params, X)
    rows, _ = looped(layer, PARAMS["layers"], X)
    outer, x = [], X
    for i in range(2):
        p = jax.tree.map(lambda a, i=i: a[i], blocks)
        after = looped(layer, p, x)[1]
        outer.append(change(x, after).mean())
        x = after
    found = bb.depth.scores(nested, units, params, [(X,)])
    near(found["blocks/down[0]"], outer)
    near(found["blocks/down[1]"], rows.mean(1).reshape(2, 2).mean(0))
    small, kept = bb.depth.drop(
        params, units, found, keep={"blocks/down[0]": 1, "blocks/down[1]": 1}
    )
    assert small["blocks"]["up"].shape == (1, 1, 6, 8) and len(kept) == 2
    i, j = (int(kept[f"blocks/down[{axis}]"][0]) for axis in (0, 1))
    one = jax.tree.map(lambda a: a[i, j], blocks)
    close(nested(small, X), layer(one, X))


def test_layers_that_two_scans_run_over_have_the_mean_score():
    def twice(p, x):
        for _ in range(2):
            x, _ = lax.scan(lambda x, p: (layer(p, x), None), x, p["layers"])
        return x

    params = {"layers": PARAMS["layers"]}
    first, x = looped(layer, params["layers"], X)
    second, _ = looped(layer, params["layers"], x)
    units = bb.trace(twice, params, X)
    assert len(units.graph.stacks) == 1
    found = bb.depth.scores(twice, units, params, [(X,)])
    near(found[NAME], np.concatenate([first, second], axis=1).mean(1))


def two_stacks(p, x):
    for name in ("encoder", "decoder"):
        x, _ = lax.scan(lambda x, p: (layer(p, x), None), x, p[name])
    return x


def test_stacks_are_scored_and_dropped_by_name():
    params = {"encoder": layers_of(3), "decoder": layers_of(5)}
    units = bb.trace(two_stacks, params, X)
    found = bb.depth.scores(two_stacks, units, params, [(X,)])
    one, two = "encoder/down[0]", "decoder/down[0]"
    assert {n: len(s) for n, s in found.items()} == {one: 3, two: 5}
    small, kept = bb.depth.drop(
        params, units, found, keep={one: 2, two: 3}, protect={two: (0, -1)}
    )
    assert small["encoder"]["up"].shape[0] == 2 and small["decoder"]["up"].shape[0] == 3
    assert {0, 4} < set(kept[two].tolist())
    small, kept = bb.depth.drop(params, units, {two: found[two]}, density=0.5)
    assert (
        small["encoder"] is not None
        and small["encoder"]["up"] is params["encoder"]["up"]
    )
    assert len(kept[two]) == 2 and list(kept) == [two]


# Carries ---------------------------------------------------------------------------
def beside(p, x, bias):
    """A stream, a bias that passes, losses that are added to, a count."""

    @jax.checkpoint  # JAX itself hands on what passes, unless it is in such a call
    def step(carry, p):
        x, bias, losses, count = carry
        losses = losses + jnp.mean(x, axis=(0, 1))[:3]
        return (layer(p, x + bias), bias, losses, count + 1), None

    start = (x, bias, jnp.zeros(3), jnp.zeros((), jnp.int32))
    (x, _, losses, _), _ = lax.scan(step, start, p["layers"])
    return x, losses


def test_the_stream_is_told_from_what_is_carried_beside_it():
    params, bias = {"layers": PARAMS["layers"]}, Y[:2]
    units = bb.trace(beside, params, X, bias)
    rows, _ = looped(lambda p, x: layer(p, x + bias), params["layers"], X)
    found = bb.depth.scores(beside, units, params, [(X, bias)])
    near(found[NAME], rows.mean(1))
    again = bb.depth.scores(beside, units, params, [(X, bias)], carry=0)
    np.testing.assert_array_equal(found[NAME], again[NAME])


def test_a_carry_can_be_chosen():
    def streams(p, x, y):
        def step(carry, p):
            x, y = carry
            return (x + jnp.tanh(y @ p["up"]), y + jnp.tanh(x @ p["up"])), None

        return lax.scan(step, (x, y), p)[0]

    params = drawn(up=(3, 6, 6))
    units = bb.trace(streams, params, X, Y[:2])
    batches = [(X, Y[:2])]
    with pytest.raises(ValueError) as error:
        bb.depth.scores(streams, units, params, batches)
    text = (
        "hand on one activity, got 0: float32 of shape (2, 5, 6); 1: float32 of shape"
    )
    assert text in str(error.value) and "choose one: carry=0" in str(error.value)
    x, y, rows = X, Y[:2], []
    for w in params["up"]:
        before = y
        x, y = x + jnp.tanh(y @ w), y + jnp.tanh(x @ w)
        rows.append(change(before, y).mean())
    for carry in (1, {"up[0]": 1}):
        found = bb.depth.scores(streams, units, params, batches, carry=carry)
        near(found["up[0]"], rows)
    for carry, error, text in (
        (
            2,
            ValueError,
            r"number of an activity .* of 'up\[0\]' hand on, got carry=2; th",
        ),
        ({"up": 1}, ValueError, r"names of stacks in carry, got 'up'.*\['up\[0\]'\]"),
        (0.5, TypeError, "carry: expected an int >= 0, got 0.5"),
    ):
        with pytest.raises(error, match=text):
            bb.depth.scores(streams, units, params, batches, carry=carry)


# Dropping --------------------------------------------------------------------------
@pytest.mark.long
def test_a_layer_that_changes_nothing_can_go_without_a_trace():
    layers = PARAMS["layers"]
    params = PARAMS | {"layers": layers | {"down": layers["down"].at[2].set(0)}}
    found = bb.depth.scores(net, UNITS, params, [(X,), (Y,)])
    assert found[NAME][2] == 0.0 and (np.delete(found[NAME], 2) > 0).all()
    small, kept = bb.depth.drop(params, UNITS, found, keep=3)
    assert kept[NAME].tolist() == [0, 1, 3]
    for x in (X, Y):
        np.testing.assert_array_equal(net(small, x), net(params, x))


def test_everything_with_an_entry_for_each_layer_is_dropped_in_order():
    """Also numbers, what is on another axis, and what is no kernel."""

    def fn(p, x):
        def step(x, p):
            h = jnp.tanh(norm(x, p["norm"]) @ p["up"].T + p["b"][None, None])
            return x + p["gain"] * (h @ p["down"]), None

        stacked = {n: a for n, a in p.items() if n != "up"}
        stacked["up"] = jnp.moveaxis(p["up"], 2, 0).astype(jnp.float32)
        return lax.scan(step, x, stacked)[0]

    params = drawn(up=(8, 6, 4), norm=(4, 6), b=(4, 8), gain=(4,), down=(4, 8, 6))
    units = bb.trace(fn, params, X)
    (stack,) = units.graph.stacks
    assert stack.layers == 4
    assert set(stack.members) == {
        ("up", 2), ("norm", 0), ("b", 0), ("gain", 0), ("down", 0)
    }  # fmt: skip
    found = {stack.name: np.array([4.0, 1.0, 3.0, 2.0])}
    small, kept = bb.depth.drop(params, units, found, keep=2)
    assert kept[stack.name].tolist() == [0, 2]
    for name, axis in stack.members:
        expected = np.take(np.asarray(params[name]), [0, 2], axis)
        np.testing.assert_array_equal(small[name], expected)
    assert fn(small, X).shape == X.shape


@given(st.lists(st.integers(0, 4), min_size=4, max_size=4), st.integers(1, 4))
def test_the_lowest_scores_go_and_the_first_of_ties_stay(score, keep):
    params = {"layers": PARAMS["layers"]}
    scores = {NAME: np.array(score)}
    small, kept = bb.depth.drop(params, UNITS_OF_LAYERS, scores, keep=keep)
    best = sorted(range(4), key=lambda i: (-score[i], i))[:keep]
    assert kept[NAME].tolist() == sorted(best)
    np.testing.assert_array_equal(
        small["layers"]["up"], np.asarray(params["layers"]["up"])[sorted(best)]
    )


UNITS_OF_LAYERS = bb.trace(once, {"layers": PARAMS["layers"]}, X)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"keep": 2}, [2, 3]),
        ({"keep": {NAME: 1}}, [3]),
        ({"keep": 2, "protect": (0,)}, [0, 3]),
        ({"keep": 2, "protect": {NAME: (0, -3)}}, [0, 1]),
        ({"keep": 2, "protect": np.array([0, 0])}, [0, 3]),
        ({"density": 0.5}, [2, 3]),
        ({"density": 0.01}, [3]),
        ({"density": {NAME: 0.75}, "protect": ()}, [1, 2, 3]),
        ({"density": np.float32(1.0)}, [0, 1, 2, 3]),
    ],
)
def test_numbers_of_layers(settings, kept):
    scores = {NAME: np.arange(4.0)}
    params, found = bb.depth.drop(PARAMS, UNITS, scores, **settings)
    assert found[NAME].tolist() == kept
    assert params["layers"]["norm"].shape == (len(kept), 6)
    assert params["out"] is PARAMS["out"]


@pytest.mark.long
def test_masks_and_shrinking_go_on_with_fewer_layers():
    found = bb.depth.scores(net, UNITS, PARAMS, [(X,)])
    params, _ = bb.depth.drop(PARAMS, UNITS, found, keep=2)
    units = bb.trace(net, params, X)
    assert units["layers/up"].shape == (2, 6, 8)
    masks = bb.unitwise.cut(units, bb.unitwise.group_magnitude(units, params), 0.5)
    small = bb.shrink(net, params, masks, X)
    assert small.params["layers"]["up"].shape == (2, 6, 4)
    close(net(masked(params, masks), X), net(small.params, X))
    pruned, masks = bb.prune(params, units, bb.rules.magnitude(), density=0.5)
    assert masks["layers/up"].shape == (2, 6, 8)
    with pytest.raises(
        ValueError, match=r"expected 'layers/down' of shape \(4, 8, 6\)"
    ):
        bb.depth.drop(params, UNITS, found, keep=2)


@pytest.mark.long
def test_trees_of_the_same_structure_are_cut_alike():
    scores = {NAME: np.array([1.0, 3, 0, 2])}
    grads = jax.grad(lambda p: jnp.sum(net(p, X) ** 2))(PARAMS)
    small, kept = bb.depth.drop(grads, UNITS, scores, keep=2)
    np.testing.assert_array_equal(
        small["layers"]["gate"], np.asarray(grads["layers"]["gate"])[kept[NAME]]
    )
    host = jax.tree.map(np.asarray, PARAMS)
    small, _ = bb.depth.drop(host, UNITS, scores, keep=2)
    assert isinstance(small["layers"]["up"], np.ndarray)
    traced = jax.jit(lambda p: bb.depth.drop(p, UNITS, scores, keep=2)[0])(PARAMS)
    for one, two in zip(jax.tree.leaves(small), jax.tree.leaves(traced), strict=True):
        np.testing.assert_array_equal(one, two)


def test_keys_of_random_numbers_are_dropped_with_their_layers():
    def noisy(p, x):
        def step(x, p):
            noise = jax.random.normal(p["key"], x.shape)
            return layer(p["layer"], x + 0.1 * noise), None

        return lax.scan(step, x, p)[0]

    params = {"layer": PARAMS["layers"], "key": jax.random.split(jax.random.key(0), 4)}
    units = bb.trace(noisy, params, X)
    found = bb.depth.scores(noisy, units, params, [(X,)])
    small, kept = bb.depth.drop(params, units, found, keep=2)
    (indices,) = kept.values()
    np.testing.assert_array_equal(
        jax.random.key_data(small["key"]),
        np.asarray(jax.random.key_data(params["key"]))[indices],
    )
    assert noisy(small, X).shape == X.shape


def test_arrays_stay_on_their_devices():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    layers = NamedSharding(mesh, PartitionSpec("data"))
    columns = NamedSharding(mesh, PartitionSpec(None, None, "data"))
    placed = jax.device_put(PARAMS["layers"], layers)
    placed["up"] = jax.device_put(placed["up"], columns)
    params = PARAMS | {"layers": placed}
    found = bb.depth.scores(net, UNITS, params, [(jax.device_put(X, layers),)])
    near(found[NAME], bb.depth.scores(net, UNITS, PARAMS, [(X,)])[NAME])
    for keep in (2, 3):
        small, _ = bb.depth.drop(params, UNITS, found, keep=keep)
        spec = small["layers"]["down"].sharding.spec
        assert spec == PartitionSpec("data" if keep == 2 else None, None, None)
        assert small["layers"]["up"].sharding.spec == columns.spec


# Libraries -------------------------------------------------------------------------
class Block(nn.Module):
    """Attention and a feed-forward net on a residual stream."""

    @nn.compact
    def __call__(self, x, _):
        h = nn.LayerNorm(name="norm_a")(x)
        x = x + nn.MultiHeadDotProductAttention(2, name="attend")(h)
        h = nn.gelu(nn.Dense(8, name="up")(nn.LayerNorm(name="norm_b")(x)))
        return x + nn.Dense(6, name="down")(h), None


class Transformer(nn.Module):
    layers: int
    axis: int = 0

    @nn.compact
    def __call__(self, x):
        stack = nn.scan(
            nn.remat(Block, prevent_cse=False),
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=self.layers,
        )
        x, _ = stack(name="layers")(x, None)
        return nn.Dense(2, name="head")(x)


@pytest.mark.long
@pytest.mark.parametrize("axis", [0, 1])
def test_a_linen_transformer_is_built_with_fewer_layers(axis, lenient):
    module = Transformer(4, axis)
    params = module.init(jax.random.key(0), X)
    units = bb.trace(module.apply, params, X)
    found = bb.depth.scores(module.apply, units, params, [(X,)])

    def one(p, x):
        return Block().apply({"params": p}, x, None)[0]

    rows, _ = looped(one, params["params"]["layers"], X, axis)
    ((name, score),) = found.items()
    near(score, rows.mean(1))
    small, kept = bb.depth.drop(params, units, found, keep=2)
    sizes = {a.shape[axis] for a in jax.tree.leaves(small["params"]["layers"])}
    assert sizes == {2}
    x = X
    for i in kept[name]:
        p = jax.tree.map(
            lambda a, i=i: jnp.take(a, i, axis), params["params"]["layers"]
        )
        x = one(p, x)
    head = params["params"]["head"]
    close(
        Transformer(2, axis).apply(small, X),
        x @ head["kernel"] + head["bias"][None, None],
    )


class Residual(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.RMSNorm(6, rngs=rngs)
        self.up = nnx.Linear(6, 8, rngs=rngs)
        self.down = nnx.Linear(8, 6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(self.down(nnx.relu(self.up(self.norm(x)))))


class Deep(nnx.Module):
    def __init__(self, layers, rngs):
        @nnx.split_rngs(splits=layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def made(rngs):
            return Residual(rngs)

        self.layers = made(rngs)
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def through(layer, x):
            return nnx.remat(lambda layer, x: layer(x))(layer, x)

        return self.head(through(self.layers, x))


@pytest.mark.long
def test_an_nnx_module_has_fewer_layers(lenient):
    model = Deep(4, nnx.Rngs(0))
    model.eval()
    model.layers.down.kernel[...] = model.layers.down.kernel[...].at[1].set(0.0)

    def fn(model, x):
        return model(x)

    units = bb.trace(fn, model, X)
    found = bb.depth.scores(fn, units, model, [(X,)])
    ((name, score),) = found.items()
    assert score.argmin() == 1 and score[1] < 1e-6
    small, kept = bb.depth.drop(model, units, found, keep=3)
    assert kept[name].tolist() == [0, 2, 3]
    assert small.layers.up.kernel.shape == (3, 6, 8)
    assert model.layers.up.kernel.shape == (4, 6, 8)
    close(small(X), model(X))
    small.train()
    assert small(X).shape == (2, 5, 2)  # every layer has its stream of random numbers


# Errors ----------------------------------------------------------------------------
def test_models_without_a_scan_are_told_what_to_do():
    def loop(p, x):
        for i in range(2):
            x = layer(p[f"layer_{i}"], x)
        return x

    params = {f"layer_{i}": jax.tree.map(lambda a: a[0], layers_of(1)) for i in (0, 1)}
    units = bb.trace(loop, params, X)
    text = (
        "a scan over stacked layers .* got a function without one; layers in a Python l"
    )
    with pytest.raises(ValueError, match=text):
        bb.depth.scores(loop, units, params, [(X,)])
    with pytest.raises(
        ValueError, match="skip the block, and leave out its parameters"
    ):
        bb.depth.drop(params, units, {}, keep=1)
    with pytest.raises(
        TypeError, match="expected units as bb.trace makes them, got di"
    ):
        bb.depth.scores(net, PARAMS, UNITS, [(X,)])


def test_a_map_over_experts_is_no_depth():
    def experts(p, x):
        outs = lax.map(lambda w: jax.nn.relu(x @ w), p["w"])
        return jnp.sum(outs, axis=0)

    params = drawn(w=(3, 6, 6))
    units = bb.trace(experts, params, X)
    with pytest.raises(
        ValueError, match=r"hands on an activity .* got \['w\[0\]'\], who"
    ):
        bb.depth.scores(experts, units, params, [(X,)])


def test_layers_in_a_while_loop_are_not_measured():
    def looping(p, x):
        def more(x):
            return jnp.sum(x) > 0

        def step(x):
            return lax.scan(lambda x, p: (layer(p, x), None), x, p["layers"])[0]

        return lax.while_loop(more, step, x)

    params = {"layers": PARAMS["layers"]}
    units = bb.trace(looping, params, X)
    with pytest.raises(
        ValueError, match=r"got 'layers/down\[0\]' inside of a while loo"
    ):
        bb.depth.scores(looping, units, params, [(X,)])


@pytest.mark.long
def test_bad_batches_are_refused():
    with pytest.raises(ValueError, match="expected at least one batch, got none"):
        bb.depth.scores(net, UNITS, PARAMS, [])
    with pytest.raises(
        TypeError, match="a tuple of the arguments after params, got a b"
    ):
        bb.depth.scores(net, UNITS, PARAMS, [X])
    with pytest.raises(
        ValueError, match=r"finite values .* got NaN or infinity in \[0, 1"
    ):
        bb.depth.scores(net, UNITS, PARAMS, [(X.at[0, 0].set(jnp.nan),)])
    with pytest.raises(
        ValueError, match=r"real positions in every layer of 'layers/down"
    ):
        bb.depth.scores(net, UNITS, PARAMS, [(X,)], where=jnp.zeros((2, 5), bool))
    with pytest.raises(ValueError, match="expected `where` to match the leading batch"):
        bb.depth.scores(net, UNITS, PARAMS, [(X,)], where=jnp.ones((3, 5), bool))
    with pytest.raises(
        ValueError, match=r"the function that was traced, with the stack"
    ):
        bb.depth.scores(net, UNITS, made(3), [(X,)])


GOOD = {"scores": {NAME: np.arange(4.0)}, "keep": 2}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"keep": None},
            ValueError,
            "a number of layers or a density, got keep=None and",
        ),
        (
            {"density": 0.5},
            ValueError,
            "a number of layers or a density, got keep=2 and",
        ),
        (
            {"keep": 0},
            ValueError,
            r"keep: expected an int in \[1, 4\], got 0; 'layers/do",
        ),
        (
            {"keep": 5},
            ValueError,
            r"keep: expected an int in \[1, 4\], got 5; .* 4 layers",
        ),
        ({"keep": 2.0}, TypeError, r"keep: expected an int in \[1, 4\], got 2.0"),
        (
            {"keep": {}},
            ValueError,
            r"numbers to keep of every stack .*'layers/down\[0\]'",
        ),
        (
            {"keep": {"x": 1}},
            ValueError,
            "numbers to keep by name of stack, got one for 'x",
        ),
        (
            {"keep": None, "density": 0.0},
            ValueError,
            r"density in \(0, 1\], got 0.0; it is the share of the 4 layers of",
        ),
        ({"keep": None, "density": "a"}, TypeError, "expected density to be a number"),
        (
            {"scores": [1, 2]},
            TypeError,
            "scores by name of stack, got list; pass what bb",
        ),
        (
            {"scores": {"x": np.ones(4)}},
            ValueError,
            "scores of stacks by name of stack, g",
        ),
        (
            {"scores": {NAME: np.ones(3)}},
            ValueError,
            r"expected 4 scores for .* \(3,\)",
        ),
        (
            {"scores": {NAME: ["a"] * 4}},
            ValueError,
            r"expected 4 scores for .* got <U1 of",
        ),
        (
            {"scores": {NAME: np.full(4, np.nan)}},
            ValueError,
            "scores that are numbers for",
        ),
        (
            {"protect": 0},
            TypeError,
            "numbers of layers to protect in .* got 0; pass a seq",
        ),
        (
            {"protect": "0"},
            TypeError,
            "numbers of layers to protect in .* got '0'; pass",
        ),
        (
            {"protect": (4,)},
            ValueError,
            r"protect: expected an int in \[-4, 3\], got 4; it",
        ),
        (
            {"protect": (0.5,)},
            TypeError,
            r"protect: expected an int in \[-4, 3\], got 0.5",
        ),
        (
            {"protect": (0, 1, 2)},
            ValueError,
            "keep the 3 layers of .* protect, got 2 to k",
        ),
    ],
)
def test_bad_settings_are_refused(change, error, text):
    given = GOOD | change
    scores = given.pop("scores")
    with pytest.raises(error, match=text):
        bb.depth.drop(PARAMS, UNITS, scores, **given)


def test_other_parameters_are_refused():
    scores = GOOD["scores"]
    with pytest.raises(
        ValueError, match="'layers/down' of shape .* got no such path; pa"
    ):
        bb.depth.drop({"out": jnp.ones(3)}, UNITS, scores, keep=2)
    shapes = jax.eval_shape(lambda: PARAMS)
    with pytest.raises(TypeError, match="expected parameters with values, got a shape"):
        bb.depth.drop(shapes, UNITS, scores, keep=2)
    with pytest.raises(
        TypeError, match="expected scores with values, got a traced one"
    ):
        jax.jit(lambda s: bb.depth.drop(PARAMS, UNITS, {NAME: s}, keep=2))(jnp.ones(4))
