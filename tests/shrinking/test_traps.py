"""Where what looks constant or useless is not, and where one thing is read twice.

Each of these functions was once read wrongly. `checked` compares the smaller model with
the masked one; `widths["u"]` is how many units of `u` there were and must be left.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bbjax as bb
from bbjax.shrinking.constants import Known, Parameter, derived
from tests.support.smaller import close, cut, drawn, masked

X = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)


def checked(fn, params, masks, *args):
    small = bb.shrink(fn, params, masks, *args)
    close(fn(masked(params, masks), *args), small.fn(small.params, *args))
    return small


# Programs ------------------------------------------------------------------------
NO_PARAMETERS = {
    "constants": lambda p, x: (
        jnp.tanh(x @ p["u"]) @ p["d"] + jnp.zeros((5, 4)) @ jnp.ones((4, 2))
    ),
    "inner product": lambda p, x: (
        jnp.tanh(x @ p["u"]) @ p["d"] * jnp.vdot(jnp.zeros(4), jnp.ones(4))
    ),
    "padded units": lambda p, x: (
        jnp.pad(jnp.tanh(x @ p["u"]), ((0, 0), (0, 2)))
        @ jnp.pad(p["d"], ((0, 2), (0, 0)))
    ),
    "padded heads": lambda p, x: (lambda q, v: (
        jnp.tanh((jax.nn.softmax(q @ q.T) @ v)[:, :6]) @ p["d"]
    ))(jnp.pad(jnp.tanh(x @ p["u"]), ((0, 0), (0, 4))),
       jnp.pad(x @ p["u"], ((0, 0), (0, 4)))),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(NO_PARAMETERS))
def test_products_over_axes_of_no_parameter_are_left_alone(name):
    params = drawn(u=(3, 6), d=(6, 2))
    for masks in ({}, cut(params, d=[1]), cut(params, u=np.s_[:, 1], d=[1])):
        checked(NO_PARAMETERS[name], params, masks, X)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_parameter_is_reshaped_in_the_order_of_the_function(order):
    value = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    program = jax.make_jaxpr(lambda b: jnp.reshape(b, (1, 6), order=order))(value)
    known = Parameter(lambda: value, value < 4)
    for eqn in program.eqns:
        (known,) = derived(eqn, [Known(parameter=known)])
    expected = value.reshape((1, 6), order=order)
    np.testing.assert_array_equal(known.value(), expected)
    np.testing.assert_array_equal(known.mask, expected < 4)


@pytest.mark.long
def test_a_number_that_is_none_is_the_same_number():
    def fn(p, x):
        h = jnp.tanh(x @ p["u"])
        h = h - h.mean(0, keepdims=True)
        h = h / jnp.sqrt(jnp.var(h, axis=0, keepdims=True) + 1e-5)
        return jnp.where(jnp.sum(x) > 1e9, jnp.nan, h @ p["d"])

    params = drawn(u=(3, 6), d=(6, 2))
    assert checked(fn, params, cut(params, d=[1, 4]), X).widths["u"] == (6, 4)


# Constants -----------------------------------------------------------------------
@pytest.mark.long
def test_a_carry_that_starts_at_zero_does_not_stay_there():
    def fn(p, x):
        def step(c, x):
            return jnp.tanh(x @ p["w"] + c @ p["r"]), c @ p["head"]

        return lax.scan(step, jnp.zeros(p["r"].shape[0]), x)[1]

    params = drawn(w=(3, 6), r=(6, 6), head=(6, 2))
    assert checked(fn, params, {}, X).widths["w"] == (6, 6)
    masks = cut(params, head=[1], r=np.s_[1])
    assert checked(fn, params, masks, X).widths["w"] == (6, 5)


@pytest.mark.long
def test_units_that_were_removed_first_stay_removed():
    def fn(p, x):
        z = jnp.tanh(x @ p["z"])
        h = jnp.tanh(z @ p["u"] + p["b"][None])
        r = jnp.tanh(jnp.tanh(x @ p["r0"]) @ p["r1"])
        return h @ p["d"] + p["c"][None] + jnp.tanh(r @ p["r2"]) @ p["r3"]

    params = drawn(
        z=(3, 2), u=(2, 2), b=(2,), d=(2, 3), c=(3,),
        r0=(3, 3), r1=(3, 3), r2=(3, 3), r3=(3, 3),
    )  # fmt: skip
    one = (np.array([1, 0, 1]), np.array([0, 1, 1]))
    masks = cut(params, z=np.s_[:, 0], u=one, r2=np.s_[0, 1:], r1=np.s_[0, 1:], r3=[0])
    checked(fn, params, masks, X)


def hidden(p, x):
    return jnp.tanh(x @ p["u"] + p["b"][None])


ODD_BIASES = {
    "negated": lambda p, h: -(h @ p["d"]) + p["c"][None],
    "twice": lambda p, h: h @ p["d"] + p["c"][None] + p["c"][None],
    "read before": lambda p, h: (h @ p["d"] + p["c"][None], h @ p["d"]),
    "returned before": lambda p, h: (lambda y: (y + p["c"][None], y))(h @ p["d"]),
    "used elsewhere": lambda p, h: (h @ p["d"] + p["c"][None], jnp.tanh(p["c"])),
    "cast": lambda p, h: (
        h @ p["d"] + p["c"].astype(jnp.int32).astype(jnp.float32)[None]
    ),
    "in a branch": lambda p, h: (lambda y: (
        lax.cond(X[0, 0] > 0, lambda y: y, lambda y: -y, y), y + p["c"][None]
    ))(h @ p["d"]),
    "scaled": lambda p, h: (h @ p["d"]) * 2.0 + p["c"][None],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ODD_BIASES))
def test_a_constant_moves_only_into_a_bias_that_is_added_and_nothing_else(name):
    def fn(p, x):
        return ODD_BIASES[name](p, hidden(p, x))

    params = drawn(u=(3, 6), b=(6,), d=(6, 2), c=(2,))
    small = checked(fn, params, cut(params, u=np.s_[:, 1]), X)
    assert small.widths["u"] == (6, 6)
    assert (
        small.report.changes[0].why == "no bias is added to the product that reads them"
    )


SUMS = {
    "stream + product + bias": lambda x, h, c: x + h + c,
    "product + bias + stream": lambda x, h, c: h + c + x,
    "stream + (product + bias)": lambda x, h, c: x + (h + c),
    "bias + (product + stream)": lambda x, h, c: c + (h + x),
}


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(SUMS))
def test_a_bias_may_come_after_the_residual_stream(name):
    def block(x, p):
        h = jnp.tanh(x @ p["u"] + p["b"][None])
        return SUMS[name](x, h @ p["d"], p["c"][None])

    params = drawn(u=(3, 6), b=(6,), d=(6, 3), c=(3,))
    two = {"one": params, "two": params}
    masks = {"one/u": cut(params, u=np.s_[:, 1])["u"]}
    masks["two/u"] = masks["one/u"]

    def net(p, x):
        return jnp.tanh(block(block(x, p["one"]), p["two"]))

    small = checked(net, two, masks, X)
    assert small.widths["one/u"] == small.widths["two/u"] == (6, 5)

    stack = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)

    def scanned(p, x):
        return lax.scan(lambda x, p: (block(x, p), None), x, p)[0]

    masks = {"u": np.stack([masks["one/u"]] * 2)}
    assert checked(scanned, stack, masks, X).widths["u"] == (6, 5)


ODD_SUMS = {
    "read before": lambda p, y: (y + p["c"][None], y),
    "used twice": lambda p, y: (y + p["c"][None]) * (y + p["c"][None]),
    "negated": lambda p, y: p["c"][None] - y,
    "per row": lambda p, y: y + p["rows"],
    "two products": lambda p, y: y + jnp.tanh(X @ p["v"]) @ p["w"] + p["c"][None],
}


@pytest.mark.parametrize("name", sorted(ODD_SUMS))
def test_a_bias_that_is_not_the_products_alone_takes_no_constants(name):
    def fn(p, x):
        return ODD_SUMS[name](p, x + hidden(p, x) @ p["d"])

    params = drawn(u=(3, 6), b=(6,), d=(6, 3), c=(3,), rows=(5, 3), v=(3, 4), w=(4, 3))
    assert checked(fn, params, cut(params, u=np.s_[:, 1]), X).widths["u"] == (6, 6)


@pytest.mark.long
def test_a_kernel_read_twice_alike_has_one_bias_for_both():
    def fn(p, x):
        def read(x):
            return hidden(p, x) @ p["d"] + p["c"][None]

        return read(x) - read(2 * x)

    params = drawn(u=(3, 6), b=(6,), d=(6, 2), c=(2,))
    assert checked(fn, params, cut(params, u=np.s_[:, 1]), X).widths["u"] == (6, 5)


def test_a_kernel_that_reads_other_constants_at_its_second_use_keeps_its_units():
    def fn(p, x):
        h = hidden(p, x)
        return (h @ p["d"] + p["c"][None]) - (jnp.cos(h) @ p["d"] + p["c"][None])

    params = drawn(u=(3, 6), b=(6,), d=(6, 2), c=(2,))
    small = checked(fn, params, cut(params, u=np.s_[:, 1]), X)
    why = "the reading kernel is used twice, and they add different values"
    assert small.report.changes[0].why == why


def test_the_constant_of_a_unit_stays_in_a_bias_that_was_pruned():
    def fn(p, x):
        return hidden(p, x) @ p["d"] + p["c"][None]

    params = drawn(u=(3, 6), b=(6,), d=(6, 2), c=(2,))
    masks = cut(params, u=np.s_[:, 1], c=[0])
    small = checked(fn, params, masks, X)
    held = masked(small.params, small.masks)
    np.testing.assert_array_equal(held["c"], small.params["c"])


@pytest.mark.long
def test_complex_constants_are_left_alone():
    def fn(p, x):
        h = jnp.exp(1j * (x @ p["u"] + p["b"][None]).astype(jnp.complex64))
        y = h @ p["d"].astype(jnp.complex64) + p["c"].astype(jnp.complex64)[None]
        return jnp.real(y), jnp.imag(y)

    params = drawn(u=(3, 6), b=(6,), d=(6, 2), c=(2,))
    checked(fn, params, cut(params, u=np.s_[:, 1]), X)
    assert checked(fn, params, cut(params, d=[1]), X).widths["u"] == (6, 5)


def test_rows_that_are_filled_in_have_other_values():
    def fn(p, x):
        h = jnp.exp(x @ p["u"] + p["b"][None])
        h = jnp.take(h, jnp.array([0, 7]), axis=0, mode="fill", fill_value=0.0)
        return h @ p["d"] + p["c"][None]

    params = drawn(u=(3, 6), b=(6,), d=(6, 2), c=(2,))
    small = checked(fn, params, cut(params, u=np.s_[:, 1]), X)
    assert small.widths["u"] == (6, 6)


def test_windows_with_holes_sum_fewer_entries():
    def fn(p, x):
        h = jax.nn.sigmoid(x @ p["u"])
        h = lax.reduce_window(
            h, 0.0, lax.add, (2, 1), (1, 1), "VALID", base_dilation=(2, 1)
        )
        return h @ p["d"] + p["c"][None]

    params = drawn(u=(3, 6), d=(6, 2), c=(2,))
    checked(fn, params, cut(params, u=np.s_[:, 1]), X)


def test_ranks_of_zeros_are_not_zeros():
    def fn(p, x):
        order = jnp.argsort(jax.nn.relu(x @ p["u"]), axis=0)
        return order.astype(jnp.float32) @ p["d"]

    params = drawn(u=(3, 6), d=(6, 2))
    assert checked(fn, params, cut(params, u=np.s_[:, 1]), X).widths["u"] == (6, 6)


# Axes ----------------------------------------------------------------------------
def test_pairs_of_units_with_themselves_stay():
    def fn(p, x):
        h = jnp.tanh(x @ p["u"])
        return (h[:, :, None] * h[:, None, :]).reshape(5, -1) @ p["d"]

    params = drawn(u=(3, 4), d=(16, 2))
    small = checked(fn, params, cut(params, d=[0]), X)
    assert small.widths["u"] == (4, 4)
    group = small.units.graph.of("u")[0]
    assert group.fixed == "one axis has them in pairs with themselves"


@pytest.mark.parametrize("how", ["set", "add", "max"])
def test_units_that_are_used_as_indices_stay(how):
    def fn(p, x):
        h = jnp.floor(jnp.abs(x @ p["u"]) * 3).astype(int)
        places = getattr(jnp.zeros(30).at[h], how)(1.0)
        return h.astype(jnp.float32) @ p["d"], places

    params = drawn(u=(3, 6), d=(6, 2))
    small = checked(fn, params, cut(params, d=[1]), X)
    assert small.widths["u"] == (6, 6)


def test_adding_at_places_is_no_call():
    def fn(p, x):
        x = jnp.zeros((7, 3)).at[:5].add(x)
        return jnp.tanh(x @ p["u"]) @ p["d"]

    params = drawn(u=(3, 6), d=(6, 2))
    assert checked(fn, params, cut(params, d=[1]), X).widths["u"] == (6, 5)


def test_layers_that_share_a_parameter_lose_the_same_units():
    def fn(p, x):
        def step(x, layer):
            return x + jnp.tanh(x @ layer["u"] + p["b"][None]) @ layer["d"], None

        return lax.scan(step, x, p["layers"])[0]

    params = {"layers": drawn(u=(2, 3, 6), d=(2, 6, 3)), **drawn(b=(6,))}
    mask = np.ones((2, 6, 3), bool)
    mask[0, [1, 3]] = mask[1, [3, 4]] = False
    small = checked(fn, params, {"layers/d": mask}, X)
    assert small.params["b"].shape == (5,)
    units = bb.trace(fn, params, X)
    scores = bb.unitwise.group_magnitude(units, params)
    assert [s.shape for s in scores.values()] == [(6,)]


def test_stacks_tiles_and_barriers_pass_units_on():
    def fn(p, x):
        h = lax.optimization_barrier(jnp.tanh(x @ p["u"]))
        h = jnp.stack([h, 2 * h], axis=1)
        return jnp.tile(h, (2, 1, 1)) @ p["d"]

    params = drawn(u=(3, 6), d=(6, 2))
    assert checked(fn, params, cut(params, d=[1]), X).widths["u"] == (6, 5)
    masks = cut(params, u=np.s_[:, 2])
    assert checked(fn, params, masks, X).widths["u"] == (6, 5)


def test_as_many_operands_as_units_are_noticed():
    def fn(p, x):
        h = jnp.tanh(x @ p["u"])
        return jnp.concatenate([x] * h.shape[-1]), h @ p["d"]

    params = drawn(u=(3, 6), d=(6, 2))
    assert bb.shrink(fn, params, cut(params, d=[1]), X).widths["u"] == (6, 6)


def test_arrays_without_entries_are_no_trouble():
    def fn(p, x):
        empty = p["none"].reshape(0, 2, 2).sum() + p["none"].sum()
        h = jnp.concatenate([jnp.tanh(x @ p["u"]), jnp.zeros((5, 0))], axis=1)
        return h @ p["d"] + empty

    params = drawn(u=(3, 6), d=(6, 2), none=(0, 4))
    assert checked(fn, params, cut(params, d=[1]), X).widths["u"] == (6, 5)


@pytest.mark.long
@pytest.mark.parametrize("branch", [0, 1])
def test_both_branches_are_read(branch):
    def fn(p, x):
        h = jnp.tanh(x @ p["u"])
        ways = [lambda h: h @ p["d"], lambda h: h @ p["e"]]
        return lax.cond(jnp.sum(x) > 100 * (branch * 2 - 1), *ways, h)

    params = drawn(u=(3, 6), d=(6, 2), e=(6, 2))
    name = "de"[branch]
    one = checked(fn, params, cut(params, **{name: [1]}), X)
    assert one.widths["u"] == (6, 6)  # the other branch reads it
    both = checked(fn, params, cut(params, d=[1, 2], e=[1, 3]), X)
    assert both.widths["u"] == (6, 5)


def test_a_scan_backwards_meets_its_layers_in_their_order():
    def fn(p, x):
        def step(x, layer):
            return jnp.tanh(x @ layer["u"] + layer["b"][None]) @ layer["d"], None

        return lax.scan(step, x, p, reverse=True)[0]

    params = drawn(u=(2, 3, 6), b=(2, 6), d=(2, 6, 3))
    mask = np.ones((2, 6, 3), bool)
    mask[0, 1] = mask[1, 4] = False
    assert checked(fn, params, {"d": mask}, X).params["u"].shape == (2, 3, 5)


def test_a_slice_that_begins_elsewhere_is_noticed():
    def fn(p, x):
        h = jnp.tanh(x @ p["u"])
        half = h.shape[-1] // 2
        return h[:, half:] @ p["d"] + h[:, :half].sum(1, keepdims=True) * p["e"][None]

    params = drawn(u=(3, 6), d=(3, 2), e=(2,))
    checked(fn, params, cut(params, d=[1]), X)


# Libraries and devices -----------------------------------------------------------
@pytest.mark.long
def test_modules_that_share_a_layer_go_on_sharing(lenient):
    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.a = nnx.Linear(3, 8, rngs=rngs)
            self.b = nnx.Linear(8, 8, rngs=rngs)
            self.c = self.b
            self.out = nnx.Linear(8, 2, rngs=rngs)

        def __call__(self, x):
            return self.out(jnp.tanh(self.c(jnp.tanh(self.b(jnp.tanh(self.a(x)))))))

    def call(net, x):
        return net(x)

    net = Net()
    units = bb.trace(call, net, X)
    masks = bb.unitwise.cut(units, bb.unitwise.group_magnitude(units, net), 0.5)
    small = bb.shrink(call, net, masks, X)
    assert small.params.b is small.params.c
    assert small.params.b.kernel.shape == (4, 4)
    pruned = bb.apply_masks(net, masks)
    assert pruned.b is pruned.c
    close(pruned(X), small.params(X))
    state = nnx.split(net)[1]
    assert nnx.state(small.cut(net))["b"]["kernel"].shape == (4, 4)
    assert jax.tree.leaves(state)  # the module that was given is as it was
    assert net.b.kernel.shape == (8, 8)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_parameters_are_cut_where_they_are(kind):
    mesh = jax.make_mesh(
        (2,), ("model",), axis_types=(kind,), devices=jax.devices()[:2]
    )
    params = drawn(u=(3, 8), d=(8, 2))
    specs = {"u": PartitionSpec(None, "model"), "d": PartitionSpec("model", None)}
    placed = {
        n: jax.device_put(a, NamedSharding(mesh, specs[n])) for n, a in params.items()
    }

    def fn(p, x):
        h = jnp.tanh(jnp.matmul(x, p["u"]))
        return jnp.einsum("bh,hd->bd", h, p["d"], out_sharding=PartitionSpec())

    def plain(p, x):
        return jnp.tanh(x @ p["u"]) @ p["d"]

    masks = cut(params, d=[1, 6])
    with jax.set_mesh(mesh):
        fn = plain if kind == AxisType.Auto else fn
        small = bb.shrink(fn, placed, masks, X)
        assert small.params["u"].shape == (3, 6)
        assert small.params["u"].sharding.spec == specs["u"]
        close(fn(small.params, X), plain(masked(params, masks), X))


def test_optimizers_that_remember_in_other_shapes_are_refused_by_name():
    params = drawn(u=(160, 200), d=(200, 150))
    shape = jax.ShapeDtypeStruct((5, 160), jnp.float32)

    def fn(p, x):
        return jnp.tanh(x @ p["u"]) @ p["d"]

    small = bb.shrink(fn, params, cut(params, d=[1]), shape)
    with pytest.raises(ValueError, match="make the state of this optimizer anew"):
        small.cut_state(optax.adafactor(0.1).init(params))


def test_a_memory_of_several_steps_is_cut_step_by_step(lenient):
    params = drawn(u=(3, 6), d=(6, 2))

    def fn(p, x):
        return jnp.tanh(x @ p["u"]) @ p["d"]

    small = bb.shrink(fn, params, cut(params, d=[1]), X)
    tx = optax.scale_by_lbfgs(memory_size=4)
    found = small.cut_state(tx.init(params))
    chex.assert_trees_all_equal_shapes(found, tx.init(small.params))


def test_a_name_inside_a_longer_one_is_another_parameter():
    params = {"w": jnp.ones((3, 6)), "a": {"w": jnp.ones((6, 2))}}

    def fn(p, x):
        return jnp.tanh(x @ p["w"]) @ p["a"]["w"]

    small = bb.shrink(fn, params, {"a/w": np.arange(12).reshape(6, 2) > 1}, X)
    state = small.cut_state(optax.adam(0.1).init(params))
    assert jax.tree.map(jnp.shape, state[0].mu) == {"w": (3, 5), "a": {"w": (5, 2)}}


@pytest.mark.long
def test_weakly_typed_parameters_stay_so(lenient):
    def fn(p, x):
        return jnp.tanh(x.astype(jnp.bfloat16) @ p["u"] + p["b"]) @ p["d"]

    half = {n: a.astype(jnp.bfloat16) for n, a in drawn(u=(3, 6), d=(6, 2)).items()}
    params = half | {"b": jnp.full(6, 0.1)}
    small = bb.shrink(fn, params, cut(params, d=[1, 4]), X)
    assert small.widths["u"] == (6, 4) and small.params["b"].weak_type
    assert fn(small.params, X).dtype == fn(params, X).dtype == jnp.bfloat16
