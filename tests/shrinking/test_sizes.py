"""Units whose constant depends on the size of an argument stay: the smaller model is
right on shorter and longer arguments than those it was made with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bbjax as bb
from tests.support.smaller import close, drawn, masked

WHY = "what they add depends on the sizes of the arguments"
PARAMS = drawn(u=(6, 8), b=(8,), d=(8, 4), e=(4,))
MASKS = {"u": np.broadcast_to(np.arange(8) < 4, (6, 8))}  # units 4 to 7 have no input
ZERO = int((np.asarray(PARAMS["b"])[4:] <= 0).sum())  # of these are 0 after a ReLU


def drawn_x(*shape):
    return jnp.asarray(np.random.default_rng(3).standard_normal(shape), jnp.float32)


def hidden(p, x):
    return jax.nn.relu(x @ p["u"] + p["b"])


def read(p, h):
    return h @ p["d"] + p["e"]


def looped(p, x):
    return read(p, sum(hidden(p, x[:, i]) for i in range(x.shape[1])))


DEPENDING = {
    "sum over the sequence": lambda p, x: read(p, hidden(p, x).sum(1)),
    "sum over the batch": lambda p, x: read(p, hidden(p, x).sum(0)),
    "einsum": lambda p, x: read(p, jnp.einsum("btu->bu", hidden(p, x))),
    "root of the length": lambda p, x: read(
        p, hidden(p, x).sum(1) / np.sqrt(x.shape[1])
    ),
    "length as a factor": lambda p, x: read(p, hidden(p, x) * x.shape[1]),
    "logarithm of the length": lambda p, x: read(p, hidden(p, x) * np.log(x.shape[1])),
    "loop over the length": looped,
    "batch as a factor": lambda p, x: read(p, hidden(p, x) * float(x.shape[0])),
}
FREE = {
    "each by itself": lambda p, x: read(p, hidden(p, x)),
    "mean": lambda p, x: read(p, hidden(p, x).mean(1)),
    "largest": lambda p, x: read(p, hidden(p, x).max(1)),
    "scan": lambda p, x: jax.lax.scan(
        lambda c, x: (c, read(p, hidden(p, x))), 0.0, x.swapaxes(0, 1)
    )[1],
    "masked mean": lambda p, x: read(
        p, (hidden(p, x) * (jnp.arange(x.shape[1]) < 3)[:, None]).sum(1) / 3
    ),
}


def right_everywhere(fn, small, params, masks, lengths=(1, 2, 5, 9), batches=(1, 2, 3)):
    for length in lengths:
        for batch in batches:
            x = drawn_x(batch, length, 6)
            close(fn(masked(params, masks), x), fn(small.params, x))


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("name", DEPENDING)
def test_constants_that_depend_on_a_size_keep_their_units(name, length):
    fn = DEPENDING[name]
    small = bb.shrink(fn, PARAMS, MASKS, drawn_x(2, length, 6))
    right_everywhere(fn, small, PARAMS, MASKS)
    left = small.widths["u"][1]
    zero = name == "logarithm of the length" and length == 1  # 0 at this length alone
    assert left == (8 if zero else 8 - ZERO)
    assert [c.why for c in small.report.changes] == [WHY]


@pytest.mark.sampled(1)
@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("name", FREE)
def test_other_constants_move_into_the_bias(name, length):
    fn = FREE[name]
    small = bb.shrink(fn, PARAMS, MASKS, drawn_x(2, length, 6))
    right_everywhere(fn, small, PARAMS, MASKS)
    if name != "masked mean":
        assert small.widths["u"] == (8, 4)


@pytest.mark.long
@pytest.mark.usefixtures("lenient")
def test_unused_units_are_removed_whatever_their_constant():
    fn = DEPENDING["sum over the sequence"]
    masks = MASKS | {"d": np.broadcast_to(np.arange(8)[:, None] != 5, (8, 4))}
    small = bb.shrink(fn, PARAMS, masks, drawn_x(2, 5, 6))
    right_everywhere(fn, small, PARAMS, masks)
    zero = {4, 5, 6, 7} & {5, *np.flatnonzero(np.asarray(PARAMS["b"]) <= 0)}
    assert small.widths["u"] == (8, 8 - len(zero))


@pytest.mark.usefixtures("lenient")
def test_a_size_that_the_function_cannot_change_is_no_hindrance():
    def fn(p, x):  # always 5 steps
        return read(p, hidden(p, x.reshape(-1, 5, 6)).sum(1))

    small = bb.shrink(fn, PARAMS, MASKS, drawn_x(2, 5, 6))
    assert small.widths["u"] == (8, 4)
    right_everywhere(fn, small, PARAMS, MASKS, lengths=[5])


@pytest.mark.long
@pytest.mark.usefixtures("lenient")
def test_sequences_may_only_be_shorter():
    params = PARAMS | {"at": drawn_x(5, 6)}

    def fn(p, x):  # positions for 5 steps at most
        return read(p, hidden(p, x + p["at"][: x.shape[1]]).sum(1))

    small = bb.shrink(fn, params, MASKS, drawn_x(2, 5, 6))
    right_everywhere(fn, small, params, MASKS, lengths=[1, 3, 5])
    assert small.widths["u"] == (8, 8 - ZERO)


@pytest.mark.long
@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_shorter_sequences_may_not_divide_over_devices(kind):
    params = PARAMS | {"at": drawn_x(6, 6)}

    def fn(p, x):  # positions for 6 steps at most, of which half are on each device
        return read(p, hidden(p, x + p["at"][: x.shape[1]]).sum(1))

    mesh = jax.make_mesh((2,), ("time",), axis_types=(kind,))
    over = NamedSharding(mesh, PartitionSpec(None, "time"))
    with jax.set_mesh(mesh):
        x = jax.device_put(drawn_x(2, 6, 6), over)
        small = bb.shrink(fn, params, MASKS, x)
    right_everywhere(fn, small, params, MASKS, lengths=[1, 3, 6])
    assert small.widths["u"] == (8, 8 - ZERO)


@pytest.mark.long
@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("width", [1, 2])
def test_axes_that_only_change_together(width):
    """Square images, and those that are twice as wide as they are high."""

    def fn(p, x):
        if x.shape[2] != width * x.shape[1]:
            raise ValueError(f"expected another shape than {x.shape}")
        return read(p, hidden(p, x).sum((1, 2)))

    small = bb.shrink(fn, PARAMS, MASKS, drawn_x(2, 4, 4 * width, 6))
    assert small.widths["u"] == (8, 8 - ZERO)
    for size in (2, 4, 6):
        x = drawn_x(3, size, size * width, 6)
        close(fn(masked(PARAMS, MASKS), x), fn(small.params, x))


@pytest.mark.long
@pytest.mark.usefixtures("lenient")
def test_arguments_of_one_size_change_together():
    def fn(p, x, weights):
        return read(p, (hidden(p, x) * weights[:, None]).sum(0))

    def loss(p, x, y):
        return jnp.mean((read(p, hidden(p, x).mean(1)) - y) ** 2)

    x, y = drawn_x(3, 6), drawn_x(3)
    assert bb.shrink(fn, PARAMS, MASKS, x, y).widths["u"][1] >= 8 - ZERO
    small = bb.shrink(loss, PARAMS, MASKS, drawn_x(3, 5, 6), drawn_x(3, 4))
    assert small.widths["u"] == (8, 4)


@pytest.mark.long
@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_rounding_of_means_is_no_dependence(dtype):
    params = jax.tree.map(lambda a: a.astype(dtype), PARAMS)
    x = drawn_x(2, 7, 6).astype(dtype)
    assert bb.shrink(FREE["mean"], params, MASKS, x).widths["u"] == (8, 4)
