"""What is removed, what stays and why: every rule of shrinking on a net made for it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bbjax as bb
from tests.support.smaller import close, cut, drawn, masked, same
from tests.support.zoo_shrink import add, conv

X = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)
IMAGE = jnp.asarray(np.random.default_rng(1).standard_normal((2, 6, 6, 3)), jnp.float32)


def mlp(p, x):
    h = jnp.tanh(add(x @ p["up"], p["b"]))
    return add(h @ p["down"], p["c"])


MLP = drawn(up=(3, 6), b=(6,), down=(6, 4), c=(4,))


# What is removed -----------------------------------------------------------------
def test_an_unused_unit_is_removed_with_all_its_parameters():
    small = bb.shrink(mlp, MLP, cut(MLP, down=[1, 4]), X)
    kept = np.array([0, 2, 3, 5])
    own = {"up": MLP["up"][:, kept], "b": MLP["b"][kept], "down": MLP["down"][kept]}
    chex.assert_trees_all_equal(small.params, MLP | own)
    assert small.widths == {"up": (6, 4), "down": (4, 4)}


def test_a_unit_without_input_is_a_constant_which_moves_into_the_bias():
    masks = cut(MLP, up=np.s_[:, 2])
    small = bb.shrink(mlp, MLP, masks, X)
    assert small.widths["up"] == (6, 5)
    added = np.tanh(np.float64(MLP["b"][2])) * np.float64(MLP["down"][2])
    np.testing.assert_allclose(small.params["c"], MLP["c"] + added, rtol=1e-6)
    same(mlp, MLP, masks, small, X)


def test_a_constant_zero_needs_no_bias():
    def fn(p, x):
        return jax.nn.relu(add(x @ p["up"], p["b"])) @ p["down"]

    params = drawn(up=(3, 6), b=(6,), down=(6, 4))
    params["b"] = -jnp.abs(params["b"])  # ReLU makes 0 of it
    small = bb.shrink(fn, params, cut(params, up=np.s_[:, [2, 5]]), X)
    assert small.widths["up"] == (6, 4)


def test_without_a_bias_a_constant_keeps_its_unit():
    def fn(p, x):
        return jnp.tanh(add(x @ p["up"], p["b"])) @ p["down"]

    params = drawn(up=(3, 6), b=(6,), down=(6, 4))
    small = bb.shrink(fn, params, cut(params, up=np.s_[:, 2]), X)
    (change,) = small.report.changes
    assert (change.before, change.after, change.idle) == (6, 6, 1)
    assert change.why == "no bias is added to the product that reads them"


def test_a_unit_without_input_and_bias_is_zero():
    def fn(p, x):
        return jnp.tanh(add(x @ p["up"], p["b"])) @ p["down"]

    params = drawn(up=(3, 6), b=(6,), down=(6, 4))
    masks = cut(params, up=np.s_[:, 2], b=2)
    small = bb.shrink(fn, params, masks, X)
    assert small.widths["up"] == (6, 5)


def deep(p, x):
    for i in range(4):
        x = jnp.tanh(x @ p[f"w{i}"])
    return x @ p["w4"]


def test_units_that_removed_units_alone_used_are_removed():
    params = drawn(w0=(3, 5), w1=(5, 5), w2=(5, 5), w3=(5, 5), w4=(5, 2))
    masks = cut(params, w4=[0, 1], w3=np.s_[2:, 2:])
    # Units 2, 3, 4 of w3 read 0 and 1 of w2 alone, so 2, 3, 4 of w2 are unused.
    small = bb.shrink(deep, params, masks, X)
    widths = {n: after for n, (_, after) in small.widths.items()}
    assert widths == {"w0": 5, "w1": 5, "w2": 2, "w3": 3, "w4": 2}
    same(deep, params, masks, small, X)


def test_a_unit_that_reads_removed_units_alone_is_a_constant_too():
    def fn(p, x):
        h = jnp.tanh(add(x @ p["w0"], p["b0"]))
        h = jnp.tanh(add(h @ p["w1"], p["b1"]))
        return add(h @ p["w2"], p["b2"])

    params = drawn(w0=(3, 4), b0=(4,), w1=(4, 4), b1=(4,), w2=(4, 2), b2=(2,))
    # Unit 0 of w0 has no input; unit 3 of w1 reads it alone.
    masks = cut(params, w0=np.s_[:, 0], w1=np.s_[1:, 3])
    small = bb.shrink(fn, params, masks, X)
    assert small.widths == {"w0": (4, 3), "w1": (4, 3), "w2": (2, 2)}
    same(fn, params, masks, small, X)


def test_one_unit_stays_where_all_could_be_removed():
    small = bb.shrink(mlp, MLP, cut(MLP, down=np.s_[:]), X)
    assert small.widths["up"] == (6, 1)
    (change,) = small.report.changes
    assert (change.idle, change.why) == (1, "one unit has to stay")
    same(mlp, MLP, cut(MLP, down=np.s_[:]), small, X)


def test_a_scale_that_is_zero_now_can_learn_and_stays():
    def fn(p, x):
        return jnp.tanh((x @ p["up"]) * p["scale"][None]) @ p["down"]

    params = drawn(up=(3, 6), scale=(6,), down=(6, 4))
    params["scale"] = params["scale"].at[1].set(0.0)
    assert bb.shrink(fn, params, {}, X).widths["up"] == (6, 6)
    small = bb.shrink(fn, params, cut(params, scale=1), X)  # pruned: it cannot
    assert small.widths["up"] == (6, 5)


def test_weights_that_are_zero_now_can_learn_and_stay():
    params = {**MLP, "down": MLP["down"].at[1].set(0.0)}
    assert bb.shrink(mlp, params, {}, X).widths["up"] == (6, 6)


def test_masks_apply_to_parameters_that_were_not_pruned_yet():
    masks = cut(MLP, down=[1], up=np.s_[0, 3])
    small = bb.shrink(mlp, MLP, masks, X)
    assert small.params["up"][0, 2] == 0.0  # unit 3 is the third that is left
    assert not small.masks["up"][0, 2]
    same(mlp, MLP, masks, small, X)


# Convolutions --------------------------------------------------------------------
def two(p, x, padding):
    x = jax.nn.sigmoid(add(conv(x, p["a"]), p["b"]))
    x = jax.nn.relu(add(conv(x, p["c"], padding=padding), p["d"]))
    return jnp.mean(x, axis=(1, 2)) @ p["e"]


CONV = drawn(a=(3, 3, 3, 4), b=(4,), c=(3, 3, 4, 5), d=(5,), e=(5, 2))


@pytest.mark.long
def test_a_constant_passes_a_convolution_without_padding():
    def fn(p, x):
        return two(p, x, "VALID")

    masks = cut(CONV, a=np.s_[..., 2])
    small = bb.shrink(fn, CONV, masks, IMAGE)
    assert small.widths["a"] == (4, 3)
    added = jax.nn.sigmoid(CONV["b"][2]) * CONV["c"][:, :, 2].sum(axis=(0, 1))
    np.testing.assert_allclose(small.params["d"], CONV["d"] + added, rtol=1e-5)
    same(fn, CONV, masks, small, IMAGE)


def test_a_constant_does_not_pass_padding():
    def fn(p, x):
        return two(p, x, "SAME")

    small = bb.shrink(fn, CONV, cut(CONV, a=np.s_[..., 2]), IMAGE)
    (change,) = small.report.changes
    assert change.after == 4 and change.why == (
        "the reading convolution pads, so that they add less at the border"
    )


def test_average_pooling_keeps_a_constant_where_no_window_is_padded():
    def fn(p, x):
        x = jax.nn.sigmoid(add(conv(x, p["a"]), p["b"]))
        x = lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
        return add(x.reshape(2, -1) @ p["f"], p["g"])

    params = drawn(a=(3, 3, 3, 4), b=(4,), f=(36, 2), g=(2,))
    masks = cut(params, a=np.s_[..., 1])
    small = bb.shrink(fn, params, masks, IMAGE)
    assert small.widths["a"] == (4, 3) and small.params["f"].shape == (27, 2)
    same(fn, params, masks, small, IMAGE)


@pytest.mark.long
def test_weights_that_are_put_together_from_parameters_are_followed():
    """As S5 makes complex weights of two real ones, and an LSTM joins four kernels."""

    def fn(p, x):
        one, two = p["into"].astype(jnp.complex64).transpose(2, 0, 1)
        into = one + two * np.complex64(1j)
        out = lax.complex(p["real"], p["imag"])
        turn = jnp.exp(p["phase"].astype(jnp.complex64) * np.complex64(1j))
        h = x.astype(jnp.complex64) @ into * turn[None]
        both = jnp.concatenate([p["one"], p["two"]], axis=1)
        first, second = jnp.split((h @ out).real @ both, 2, axis=1)
        return jnp.tanh(first) * second @ p["read"]

    params = drawn(
        into=(3, 6, 2), phase=(6,), real=(6, 5), imag=(6, 5), one=(5, 4), two=(5, 4)
    ) | drawn(read=(4, 2))
    masks = cut(
        params,
        into=np.s_[:, 2:],
        phase=np.s_[2:],
        real=np.s_[2:],
        imag=np.s_[2:],
        one=np.s_[:, 3:],
        two=np.s_[:, 3:],
        read=np.s_[3:],
    )
    small = bb.shrink(fn, params, masks, X)
    shapes = jax.tree.map(jnp.shape, small.params)
    assert shapes["into"] == (3, 2, 2) and shapes["phase"] == (2,)
    assert shapes["real"] == shapes["imag"] == (2, 5) and shapes["read"] == (3, 2)
    assert shapes["one"] == shapes["two"] == (5, 3)
    same(fn, params, masks, small, X)


def test_masked_units_that_stay_are_in_the_report():
    def fn(p, x):  # a unit of zeros adds exp(0) to the product of the exponentials
        h = jnp.tanh(x @ p["up"])
        pairs = jnp.exp(h.T @ h)
        return h @ (pairs @ pairs) @ p["down"]

    params = drawn(up=(3, 4), down=(4, 2))
    masks = cut(params, up=np.s_[:, 3], down=np.s_[3:])
    (change,) = bb.shrink(fn, params, masks, X).report.changes
    assert (change.group, change.after, change.idle) == ("up[1]", 4, 1)
    assert change.why.startswith("a sum over them is not known to get 0")


NORM = {
    "norm of columns": lambda w: w / jnp.sqrt((w**2).sum(0, keepdims=True) + 1e-6),
    "by a function": lambda w: w / (jnp.linalg.norm(w, axis=0, keepdims=True) + 1e-6),
    "norm of all": lambda w: w / jnp.sqrt(jnp.sum(w * w) + jnp.float32(1e-6)),
}


@pytest.mark.long
@pytest.mark.parametrize("name", NORM)
def test_units_of_normed_weights_are_removed(name):
    def fn(p, x):
        h = jnp.tanh(x @ (NORM[name](p["up"]) * p["gain"][None]))
        decay = sum(jnp.sum(w**2) for w in p.values()) * jnp.float32(0.1)
        return h @ NORM[name](p["down"]), decay

    params = drawn(up=(3, 6), gain=(6,), down=(6, 4))
    masks = cut(params, up=np.s_[:, 4:], gain=np.s_[4:], down=np.s_[4:])
    small = bb.shrink(fn, params, masks, X)
    assert small.params["down"].shape == (4, 4)
    same(fn, params, masks, small, X)
    # Rows alone: the norm of columns counts what is left of the unit.
    alone = bb.shrink(fn, params, cut(params, down=np.s_[4:]), X)
    assert alone.params["down"].shape == (6, 4)
    same(fn, params, cut(params, down=np.s_[4:]), alone, X)


def test_a_mean_of_weights_keeps_their_number():
    def fn(p, x):
        return jnp.tanh(x @ p["up"]) @ (p["down"] - p["down"].mean(0, keepdims=True))

    params = drawn(up=(3, 6), down=(6, 4))
    why = {g.name: g.fixed for g in bb.trace(fn, params, X).graph}
    assert why["up[1]"] == "a mean of weights runs over its units"


# What has to stay ----------------------------------------------------------------
def test_a_mean_over_units_keeps_them():
    def fn(p, x):
        h = jnp.tanh(x @ p["up"])
        return (h - jnp.mean(h, axis=-1, keepdims=True)) @ p["down"]

    params = drawn(up=(3, 6), down=(6, 4))
    group = bb.trace(fn, params, X).graph.of("up")[0]
    assert group.fixed == "reduce_sum runs over its units"
    small = bb.shrink(fn, params, cut(params, down=1, up=np.s_[:, 1]), X)
    assert small.widths["up"] == (6, 6)
    assert small.report.changes[0].why == "reduce_sum runs over its units"


def test_a_number_that_follows_from_the_size_keeps_it():
    def fn(p, x):
        return jnp.tanh(x @ p["up"]) @ p["down"] / p["down"].shape[0] ** 0.5

    params = drawn(up=(3, 6), down=(6, 4))
    small = bb.shrink(fn, params, cut(params, down=[1, 2]), X)
    (change,) = small.report.changes
    assert (change.after, change.idle) == (6, 2)
    assert change.why == "div takes the number 2 where it took 2.44949"


def test_a_size_that_is_written_into_the_function_keeps_its_group_alone():
    def fn(p, x):
        h = jnp.tanh(x @ p["a"]).reshape(5, 2, 3)
        h = jnp.tanh(jnp.einsum("bhk,hkd->bd", h, p["b"]))
        return h @ p["c"]

    params = drawn(a=(3, 6), b=(2, 3, 4), c=(4, 2))
    masks = cut(params, b=np.s_[:, 1], c=[2])
    small = bb.shrink(fn, params, masks, X)
    assert small.widths == {"a": (6, 6), "b": (4, 3), "c": (2, 2)}
    whys = {c.group: c.why for c in small.report.changes}
    assert whys["a[1]#2"].startswith("the function cannot take fewer: TypeError")
    same(fn, params, masks, small, X)


def test_other_steps_for_another_size_are_noticed():
    def fn(p, x):
        h = x @ p["up"]
        h = jnp.tanh(h) if h.shape[-1] == 6 else jnp.sin(h)
        return h @ p["down"]

    params = drawn(up=(3, 6), down=(6, 4))
    small = bb.shrink(fn, params, cut(params, down=1), X)
    assert small.widths["up"] == (6, 6)
    assert small.report.changes[0].why == "the function does sin where it did tanh"


def test_the_same_steps_on_other_operands_are_noticed():
    def fn(p, x):
        a, b = jnp.tanh(x @ p["up"]), jnp.sin(x @ p["up"])
        one, two = (a, b) if a.shape[-1] == 6 else (b, a)
        return (one - two) @ p["down"]

    params = drawn(up=(3, 6), down=(6, 4))
    small = bb.shrink(fn, params, cut(params, down=1), X)
    assert small.report.changes[0].why == "sub takes other operands"


def attention(p, x):
    q, k = x @ p["q"], x @ p["k"]
    scores = jax.nn.softmax(q @ k.T / k.shape[-1] ** 0.5)
    return x + jnp.tanh(scores @ x @ p["up"]) @ p["down"]


def test_what_makes_a_difference_is_found_among_many_layers():
    def fn(p, x):
        for layer in p:
            x = attention(layer, x)
        return x

    params = [drawn(q=(3, 6), k=(3, 6), up=(3, 8), down=(8, 3)) for _ in range(4)]
    mask = np.arange(6)[None] < np.full((3, 1), 4)
    used = np.broadcast_to(np.arange(8)[:, None] < 5, (8, 3))
    masks = {f"{i}/q": mask for i in range(4)} | {f"{i}/down": used for i in range(4)}
    small = bb.shrink(fn, params, masks, X)
    assert {c.group: c.after for c in small.report.changes} == {
        f"{i}/{name}[1]": after
        for i in range(4)
        for name, after in (("q", 6), ("up", 5))
    }
    whys = {c.why for c in small.report.changes if c.idle}
    assert whys == {"div takes the number 2 where it took 2.44949"}


def test_long_sequences_shifted_against_themselves_are_followed():
    def fn(p, x):
        h = jnp.tanh(x[:, :-1] @ p["up"]) @ p["down"]
        return jnp.sum((h - x[:, 1:]) ** 2)

    params = drawn(up=(3, 6), down=(6, 3))
    long = jax.ShapeDtypeStruct((2, 3000, 3), jnp.float32)
    assert bb.shrink(fn, params, cut(params, down=[1]), long).widths["up"] == (6, 5)


def test_units_shifted_against_themselves_stay():
    def fn(p, x):
        h = x @ p["up"]
        return jnp.tanh(h[:, 1:] - h[:, :-1]) @ p["down"]

    params = drawn(up=(3, 200), down=(199, 2))
    small = bb.shrink(fn, params, cut(params, up=np.s_[:, 50:60]), X)
    assert small.widths["up"] == (200, 200)


def test_numbered_units_stay():
    def fn(p, x):
        h = x @ p["up"]
        return (h * jnp.arange(h.shape[-1], dtype=h.dtype)[None]) @ p["down"]

    params = drawn(up=(3, 6), down=(6, 4))
    small = bb.shrink(fn, params, cut(params, down=1), X)
    assert small.report.changes[0].why == "iota numbers them"


def test_constants_of_the_function_keep_their_size():
    table = jnp.arange(6.0)

    def fn(p, x):
        return ((x @ p["up"]) * table[None]) @ p["down"]

    params = drawn(up=(3, 6), down=(6, 4))
    small = bb.shrink(fn, params, cut(params, down=1), X)
    why = "a constant of the function has this size"
    assert small.report.changes[0].why == why


def test_noise_is_drawn_anew_and_the_report_lists_it():
    def fn(p, x):
        h = jnp.tanh(x @ p["up"])
        keep = jax.random.bernoulli(jax.random.key(0), 0.5, h.shape)
        return jnp.where(keep, h, 0.0) @ p["down"]

    params = drawn(up=(3, 6), down=(6, 4))
    small = bb.shrink(fn, params, cut(params, down=1), X)
    assert small.widths["up"] == (6, 5) and small.report.draws == ("up[1]",)
    assert "other random numbers are drawn for up[1]" in str(small.report)


# Stacks --------------------------------------------------------------------------
def layer(p, x):
    return x + add(jnp.tanh(add(x @ p["up"], p["b"])) @ p["down"], p["c"])


def scanned(p, x):
    return lax.scan(lambda x, p: (layer(p, x), None), x, p["layers"])[0]


def looped(p, x):
    for one in p["layers"]:
        x = layer(one, x)
    return x


STACK = {"layers": drawn(up=(3, 3, 6), b=(3, 6), down=(3, 6, 3), c=(3, 3))}
UNEVEN = {0: [1, 3], 1: [0, 2, 5], 2: [4, 5]}


def uneven_masks():
    mask = np.ones((3, 6, 3), bool)
    for number, gone in UNEVEN.items():
        mask[number, gone] = False
    return {"layers/down": mask}


@pytest.mark.long
def test_layers_of_a_scan_lose_units_of_their_own_as_many_in_each():
    masks = uneven_masks()
    small = bb.shrink(scanned, STACK, masks, X)
    assert small.params["layers"]["up"].shape == (3, 3, 4)
    for number, gone in UNEVEN.items():
        kept = [j for j in range(6) if j not in gone[:2]]
        old, new = STACK["layers"], small.params["layers"]
        np.testing.assert_array_equal(new["up"][number], old["up"][number][:, kept])
    change = small.report.changes[0]
    assert (change.after, change.idle) == (4, 1)
    assert change.why == "layers of a scan have one shape"
    close(scanned(masked(STACK, masks), X), scanned(small.params, X))


@pytest.mark.long
def test_a_loop_over_the_same_layers_loses_all():
    params, masks = bb.unstack(STACK, uneven_masks(), "layers")
    close(looped(params, X), scanned(STACK, X))
    small = bb.shrink(looped, params, masks, X)
    widths = [p["up"].shape[1] for p in small.params["layers"]]
    assert widths == [4, 3, 4]
    close(scanned(masked(STACK, uneven_masks()), X), looped(small.params, X))


def test_a_constant_of_one_layer_goes_into_the_bias_of_that_layer():
    mask = np.ones((3, 3, 6), bool)
    mask[0, :, 1] = mask[1, :, 4] = mask[2, :, 0] = False
    masks = {"layers/up": mask}
    small = bb.shrink(scanned, STACK, masks, X)
    assert small.params["layers"]["up"].shape == (3, 3, 5)
    old, new = STACK["layers"], small.params["layers"]
    for number, gone in enumerate([1, 4, 0]):
        added = jnp.tanh(old["b"][number, gone]) * old["down"][number, gone]
        want = old["c"][number] + added
        np.testing.assert_allclose(new["c"][number], want, rtol=1e-5)
    close(scanned(masked(STACK, masks), X), scanned(small.params, X))


def test_unstacking_nothing_is_refused():
    with pytest.raises(ValueError, match="expected a stack of layers at 'layer', got"):
        bb.unstack(STACK, {}, "layer")
    with pytest.raises(ValueError, match=r"one number of layers at 'a', got \[2, 3\]"):
        bb.unstack({"a": {"b": jnp.ones(2), "c": jnp.ones(3)}}, {}, "a")
    layers = {"a": {"b": jnp.ones((2, 3))}}
    with pytest.raises(ValueError, match=r"layers along axis 2 .* shape \(2, 3\)"):
        bb.unstack(layers, {}, "a", axis=2)
    with pytest.raises(ValueError, match="nested dicts are expected, not list"):
        bb.unstack([layers], {}, "0/a")
    with pytest.raises(ValueError, match=r"a mask with 2 layers for 'a/b', .*\(3, 3\)"):
        bb.unstack(layers, {"a/b": np.ones((3, 3), bool)}, "a")
    with pytest.raises(TypeError, match="masks by path, got NoneType"):
        bb.unstack(layers, None, "a")


# Results -------------------------------------------------------------------------
def test_the_report_counts_parameters_bytes_and_operations():
    small = bb.shrink(mlp, MLP, cut(MLP, down=[1, 4]), X)
    assert small.report.params == (3 * 6 + 6 + 6 * 4 + 4, 3 * 4 + 4 + 4 * 4 + 4)
    assert small.report.bytes == (52 * 4, 36 * 4)
    assert small.report.flops == (2 * 5 * (3 * 6 + 6 * 4), 2 * 5 * (3 * 4 + 4 * 4))
    lines = str(small.report).split("\n")
    assert lines[0].split() == ["parameters", "52", "->", "36", "(69.2%)"]
    assert lines[-1] == "up[1]: 6 -> 4 units"


def test_the_report_repeats_why_no_group_can_shrink():
    def fn(p, x):
        return x @ p["w"]

    params = drawn(w=(3, 4))
    report = bb.shrink(fn, params, {}, X).report
    assert "no group of units can get smaller:" in str(report)
    assert "w[1]: the function returns them" in str(report)
    assert "unitwise.cut" not in str(report)
    assert not bb.shrink(mlp, MLP, {}, X).report.fixed


def test_the_report_has_the_reason_why_nothing_got_smaller():
    half = np.arange(24).reshape(6, 4) % 2 == 0  # no unit loses all
    small = bb.shrink(mlp, MLP, {"down": half}, X)
    assert "nothing got smaller: every removable unit has edges, in" in str(
        small.report
    )
    assert small.params["down"].shape == (6, 4)


def test_operations_of_convolutions_scans_and_branches():
    def fn(p, x):
        y = conv(x, p["a"], stride=2, groups=3)
        y = lax.cond(jnp.sum(x) > 0, lambda y: y @ p["b"], lambda y: y, y)
        return scanned(p["s"], y.reshape(-1, 3))

    params = drawn(a=(3, 3, 1, 3), b=(3, 3)) | {"s": STACK}
    flops = bb.shrink(fn, params, {}, IMAGE).report.flops[0]
    rows = 2 * 3 * 3
    assert flops == 2 * rows * 3 * 9 + 2 * rows * 9 + 3 * 2 * rows * (18 + 18)


def test_nothing_to_remove_gives_the_parameters_back():
    small = bb.shrink(mlp, MLP, {}, X)
    chex.assert_trees_all_equal_shapes(small.params, MLP)
    assert small.cuts == {} and small.report.changes == ()


def test_the_smaller_model_has_its_units_and_can_shrink_again():
    small = bb.shrink(mlp, MLP, cut(MLP, down=[1, 4]), X)
    assert small.units["up"].shape == (3, 4) and small.units.graph[0].size == 4
    again = bb.shrink(mlp, small.params, cut(small.params, down=[0]), X)
    assert again.widths["up"] == (4, 3)


def test_dtypes_and_arrays_of_numpy_stay():
    params = {n: np.asarray(a) for n, a in MLP.items()}
    params["up"] = params["up"].astype(jnp.bfloat16)

    def fn(p, x):
        return mlp({**p, "up": p["up"].astype(jnp.float32)}, x)

    small = bb.shrink(fn, params, cut(params, down=[1]), X)
    assert small.params["up"].dtype == jnp.bfloat16
    assert small.widths["up"] == (6, 5)


def test_examples_may_be_shapes():
    shape = jax.ShapeDtypeStruct((5, 3), jnp.float32)
    assert bb.shrink(mlp, MLP, cut(MLP, down=[1]), shape).widths["up"] == (6, 5)


@pytest.mark.parametrize(
    ("masks", "error", "text"),
    [
        ({"w": np.ones(3, bool)}, ValueError, "got one for 'w', which is none"),
        ({"up": np.ones((3, 5), bool)}, ValueError, r"mask of shape \(3, 6\) for 'up'"),
        ({"up": np.ones((3, 6))}, TypeError, "expected a bool mask at 'up', got floa"),
        (None, TypeError, "expected masks by path, got NoneType"),
        (X, TypeError, "expected masks by path, got ArrayImpl"),
        (
            {"up": jax.ShapeDtypeStruct((3, 6), bool)},
            TypeError,
            "expected masks with values, got a shape at 'up'",
        ),
    ],
)
def test_wrong_masks_are_refused(masks, error, text):
    with pytest.raises(error, match=text):
        bb.shrink(mlp, MLP, masks, X)


def test_parameters_without_values_are_refused():
    masks = cut(MLP, down=[1])
    with pytest.raises(TypeError, match="parameters with values, got a shape at "):
        bb.shrink(mlp, jax.eval_shape(lambda: MLP), masks, X)
    with pytest.raises(TypeError, match="got a traced one at .*outside jax.jit"):
        jax.jit(lambda params: bb.shrink(mlp, params, masks, X).params)(MLP)
    with pytest.raises(TypeError, match="masks with values, got a traced one at "):
        jax.jit(lambda masks: bb.shrink(mlp, MLP, masks, X).params)(masks)


@pytest.mark.long
def test_a_tree_without_what_was_cut_is_refused():
    small = bb.shrink(mlp, MLP, cut(MLP, down=[1]), X)
    with pytest.raises(ValueError, match="expected a tree with the parameters that w"):
        small.cut({"up": MLP["up"]})


@pytest.mark.long
def test_units_of_a_result_are_not_called_idle():
    def fn(p, x):
        return jax.value_and_grad(lambda p: mlp(p, x).sum())(p)[0]

    def both(p, x):
        loss, grads = jax.value_and_grad(lambda p: mlp(p, x).sum())(p)
        return loss, sum(jnp.sum(g) for g in jax.tree.leaves(grads))

    for one in (fn, both):
        assert not bb.shrink(one, MLP, {}, X).report.changes
