"""Mixtures of experts by `lax.ragged_dot`, against loops over experts in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.nn import silu, softmax

import bbjax as bb
from tests.support.zoo_case import normal, weights

pytestmark = pytest.mark.usefixtures("lenient")

EXPERTS, DIM, HIDDEN, TOP = 4, 3, 5, 2
P = weights(
    router=(DIM, EXPERTS),
    gate=(EXPERTS, DIM, HIDDEN),
    up=(EXPERTS, DIM, HIDDEN),
    down=(EXPERTS, HIDDEN, DIM),
)
P["router"] = P["router"].at[:, 2].set(0).at[0, 2].set(-50.0)  # the third is empty
X = jnp.abs(normal(1, 12, DIM))
NEEDS = (
    "mean",
    "mean_abs",
    "mean_square",
    "max_abs",
    "zero_share",
    "inputs.gram",
    "inputs.l1",
)


def routed(p, x):
    """Which experts a token goes to, and with what weight."""
    return lax.top_k(softmax(x @ p["router"]), TOP)


def sort(x, experts, count):
    order = jnp.argsort(experts.reshape(-1))
    return x[order // TOP], jnp.bincount(experts.reshape(-1), length=count), order


def moe(p, x):
    share, experts = routed(p, x)
    rows, sizes, order = sort(x, experts, p["up"].shape[0])
    hidden = silu(lax.ragged_dot(rows, p["gate"], sizes))
    hidden *= lax.ragged_dot(rows, p["up"], sizes)
    out = lax.ragged_dot(hidden, p["down"], sizes)
    out = out[jnp.argsort(order)].reshape(*experts.shape, -1)
    return jnp.sum(out * share[..., None], axis=1)


jitted = jax.jit(moe)


def by_hand(p, x, keep=None):
    """By expert, the values of `x`, of the hidden units and of the result."""
    experts = np.asarray(routed(p, x)[1])
    x = np.asarray(x, np.float64)
    found = []
    for e in range(len(p["up"])):
        seen = x[[t for t, es in enumerate(experts) if e in es and _kept(keep, t)]]
        gate, up, down = (np.asarray(p[n][e], np.float64) for n in W)
        hidden = (seen @ gate) / (1 + np.exp(-seen @ gate)) * (seen @ up)
        found.append((seen, hidden, hidden @ down))
    return found


W = ("gate", "up", "down")


def _kept(keep, token):
    return keep is None or bool(keep[token])


def check(activity, want, names=NEEDS):
    """Statistics of the three kernels, expert by expert."""
    sides = {"gate": (0, 1), "up": (0, 1), "down": (1, 2)}
    for path, ends in sides.items():
        for side, end in zip(activity[path], ends, strict=True):
            for e, values in enumerate(v[end] for v in want):
                n = max(len(values), 1)
                close(side.count[e], np.full(values.shape[1], len(values)))
                close(side.on_rate[e], (values > 0).sum(0) / n)
                if "mean" in names:
                    close(side.mean[e], values.sum(0) / n)
                if "mean_abs" in names:
                    close(side.mean_abs[e], np.abs(values).sum(0) / n)
                    close(side.mean_square[e], np.square(values).sum(0) / n)
                    close(side.zero_share[e], (values == 0).sum(0) / n)
                    close(side.max_abs[e], np.abs(values).max(0, initial=0))
                if side.gram is not None:
                    close(side.gram[e], values.T @ values / n)
                if side.l1 is not None:
                    size = np.abs(values).sum(0)[:, None] / n
                    close(side.l1[e], np.abs(P[path][e]) * size)


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)


UNITS = bb.trace(moe, P, X)


def test_experts_are_a_stack_axis():
    for path, reads in (("gate", ()), ("up", ()), ("down", ("gate", "up"))):
        kernel = UNITS[path]
        assert (kernel.stack, kernel.fan_in, kernel.fan_out) == ((0,), (1,), (2,))
        assert kernel.op == "ragged_dot_general" and kernel.reads == reads
    assert UNITS["up"].nonlinearity == "silu product"
    assert tuple(UNITS.budgeted) == ("gate", "up")


def test_each_expert_is_measured_on_its_own_tokens():
    want = by_hand(P, X)
    assert [len(v[0]) for v in want].count(0) == 1
    activity = bb.calibrate(moe, UNITS.select("gate|up|down"), P, [(X,)], needs=NEEDS)
    check(activity, want)


@pytest.mark.long
def test_batches_of_different_routing_add_up():
    units = UNITS.select("gate|up|down")
    batches = [(X[:5],), (X[5:],)]
    check(bb.calibrate(moe, units, P, batches, needs=NEEDS), by_hand(P, X))


@pytest.mark.long
def test_gradients_are_those_of_the_function():
    def loss(p, x):
        return jnp.mean(jnp.square(moe(p, x)))

    got, grads, activity = jax.jit(bb.value_and_grad(loss, UNITS))(P, X)
    want = jax.jit(jax.value_and_grad(loss))(P, X)
    np.testing.assert_allclose(got, want[0], rtol=1e-6)
    for path in P:
        np.testing.assert_allclose(grads[path], want[1][path], rtol=1e-5, atol=1e-6)
    close(activity["up"].outputs.on_rate[0], (by_hand(P, X)[0][1] > 0).mean(0))


@pytest.mark.long
def test_a_mask_of_tokens_follows_them_to_their_experts():
    keep = jnp.arange(12) % 3 > 0
    junk = jnp.where(keep[:, None], X, 7.0)
    units = UNITS.select("gate|up|down")
    observed = jax.jit(bb.observe(moe, units, where=keep, needs=NEEDS[:-1]))
    check(observed(P, junk)[1], by_hand(P, junk, keep))


@pytest.mark.long
def test_a_mask_over_batch_and_time_fits_what_is_flattened_before_routing():
    def net(p, x):
        return moe(p, x.reshape(-1, DIM)).reshape(x.shape)

    keep = jnp.arange(4)[None] < jnp.array([4, 1, 2])[:, None]
    x = X.reshape(3, 4, DIM)
    units = bb.trace(net, P, x).select("gate|up|down")
    activity = jax.jit(bb.observe(net, units, where=keep))(P, x)[1]
    check(activity, by_hand(P, X, keep.reshape(-1)), ())


@pytest.mark.long
def test_a_mask_follows_a_dispatch_by_scatter_and_a_scale():
    def net(p, x):
        expert = jnp.argmax(x @ p["router"], axis=-1)
        place = jnp.argsort(jnp.argsort(expert))
        rows = jnp.zeros_like(x).at[place].set(x)
        rows = rows * jnp.sort(expert)[:, None].astype(x.dtype)
        sizes = jnp.bincount(expert, length=EXPERTS)
        return jnp.sum(lax.ragged_dot(rows, p["up"], sizes))

    keep = np.arange(12) < 9
    units = bb.trace(net, P, X).select("up")
    activity = bb.observe(net, units, where=jnp.asarray(keep))(P, X)[1]
    expert = np.argmax(X @ P["router"], axis=-1)
    want = [(expert[keep] == e).sum() for e in range(EXPERTS)]
    assert activity["up"].outputs.count[:, 0].tolist() == want


@pytest.mark.long
def test_a_mask_follows_into_functions_that_multiply():
    """Sorted outside of the jitted functions that multiply; one fused, split gate."""

    @jax.jit
    def product(x, w, sizes):
        return lax.ragged_dot(x, w, sizes)

    def net(p, x):
        _, experts = routed(p, x)
        order = jnp.argsort(experts.reshape(-1))
        sizes = jnp.bincount(experts.reshape(-1), length=EXPERTS)
        rows = jnp.take(jnp.repeat(x, TOP, axis=0), order, axis=0)
        gate, up = jnp.split(product(rows, p["both"], sizes), 2, axis=-1)
        return jnp.sum(jax.checkpoint(product)(silu(gate) * up, p["down"], sizes))

    keep = jnp.arange(12) % 3 > 0
    p = P | {"both": jnp.concatenate([P["gate"], P["up"]], axis=-1)}
    units = bb.trace(net, p, X).select("both|down")
    activity = jax.jit(bb.observe(net, units, where=keep))(p, X)[1]
    want = by_hand(P, X, keep)
    count = [len(seen) for seen, _, _ in want]
    assert activity["both"].inputs.count[:, 0].tolist() == count
    assert activity["both"].outputs.count[:, 0].tolist() == count
    for e, (_, hidden, out) in enumerate(want):
        n = max(count[e], 1)
        close(activity["down"].inputs.on_rate[e], (hidden > 0).sum(0) / n)
        close(activity["down"].outputs.on_rate[e], (out > 0).sum(0) / n)


@pytest.mark.long
def test_rows_that_are_given_in_order_take_a_mask_in_that_order():
    def net(p, x, sizes):
        return silu(lax.ragged_dot(x, p["up"], sizes)) @ jnp.ones((HIDDEN, 1))

    sizes, keep = jnp.array([2, 0, 5, 3]), jnp.arange(12) % 2 == 0
    units = bb.trace(net, P, X, sizes)
    activity = bb.observe(net, units, where=keep)(P, X, sizes)[1]
    # the last two rows are in no group
    assert activity["up"].outputs.count[:, 0].tolist() == [1, 0, 3, 1]


@pytest.mark.long
def test_a_mask_that_cannot_follow_is_refused():
    def mixed(p, x):
        rows = jnp.einsum("rt,td->rd", p["mix"], x)
        return lax.ragged_dot(rows, p["up"], jnp.array([3, 3, 3, 3]))

    p = P | {"mix": jnp.eye(12)}
    units, keep = bb.trace(mixed, p, X).select("up"), jnp.ones(12, bool)
    text = "'up' that `where` can follow from the tokens, got rows sorted by expert"
    with pytest.raises(ValueError, match=text):
        bb.observe(mixed, units, where=keep)(p, X)
    text = r"of the tokens at 'gate' \(array of shape \(12, 3\)\); pass a mask"
    with pytest.raises(ValueError, match=text):
        bb.observe(moe, UNITS.select("gate"), where=keep[:7])(P, X)


@pytest.mark.long
def test_units_with_a_bias_of_their_expert_are_measured_after_the_nonlinearity():
    bias = normal(5, EXPERTS, HIDDEN)

    def net(p, x):
        _, experts = routed(p, x)
        rows, sizes, order = sort(x, experts, EXPERTS)
        owner = experts.reshape(-1)[order]
        hidden = silu(lax.ragged_dot(rows, p["up"], sizes) + p["bias"][owner])
        return jnp.sum(lax.ragged_dot(hidden, p["down"], sizes))

    p = P | {"bias": bias}
    units = bb.trace(net, p, X)
    assert units["up"].nonlinearity == "silu"
    activity = jax.jit(bb.observe(net, units))(p, X)[1]
    for e, (seen, _, _) in enumerate(by_hand(P, X)):
        hidden = seen @ np.asarray(P["up"][e]) + np.asarray(bias[e])
        rate = (hidden > 0).sum(0) / max(len(seen), 1)
        close(activity["up"].outputs.on_rate[e], rate)
    group = units.graph.groups[1]
    assert {m.path for m in group.members} == {"up", "bias", "down"} and not group.fixed


@pytest.mark.long
def test_layers_of_a_scan_have_experts_each():
    def net(p, x):
        def layer(x, w):
            return x + jax.checkpoint(moe)(w, x), None

        return jnp.sum(lax.scan(layer, x, p)[0])

    stacked = jax.tree.map(lambda w: jnp.stack([w, 0.5 * w[..., ::-1]]), P)
    units = bb.trace(net, stacked, X)
    assert units["up"].stack_shape == (2, EXPERTS)
    needs = ("mean", "mean_abs", "mean_square", "max_abs", "zero_share", "inputs.gram")
    observed = jax.jit(bb.observe(net, units.select(".*"), needs=needs))
    activity = observed(stacked, X)[1]
    x = X
    for n in range(2):
        layer, here = jax.tree.map(lambda v, n=n: v[n], (stacked, activity))
        check(here, by_hand(layer, x))
        x = x + jitted(layer, x)


@pytest.mark.long
def test_an_ensemble_of_mixtures():
    """`vmap`: the group sizes have an axis of members."""

    def one(w, x, sizes):
        return silu(lax.ragged_dot(x, w, sizes))

    def net(p, x, sizes):
        return jnp.sum(jax.vmap(one)(p["w"], x, sizes) @ p["o"])

    p = weights(w=(2, EXPERTS, DIM, HIDDEN), o=(HIDDEN, 2))
    x = normal(2, 2, 6, DIM)
    sizes = jnp.array([[2, 1, 0, 3], [0, 4, 1, 1]])
    units = bb.trace(net, p, x, sizes).select("w")
    assert units["w"].stack_shape == (2, EXPERTS)
    needs = ("max_abs", "inputs.gram")
    seen = bb.observe(net, units, needs=needs)(p, x, sizes)[1]["w"]
    for m, e in np.ndindex(2, EXPERTS):
        start = int(sizes[m, :e].sum())
        rows = np.asarray(x[m, start : start + int(sizes[m, e])])
        made = rows @ np.asarray(p["w"][m, e])
        made = made / (1 + np.exp(-made))
        n = max(len(rows), 1)
        close(seen.outputs.on_rate[m, e], (made > 0).sum(0) / n)
        close(seen.outputs.max_abs[m, e], np.abs(made).max(0, initial=0))
        close(seen.inputs.gram[m, e], rows.T @ rows / n)


@pytest.mark.long
def test_a_value_that_is_not_finite_spoils_its_own_expert_alone():
    def net(p, x, sizes):
        return lax.ragged_dot(x, p["up"], sizes)

    sizes = jnp.array([2, 1, 6, 3])
    units = bb.trace(net, P, X, sizes).select("up")
    needs = ("mean_abs", "inputs.gram")
    observed = jax.jit(bb.observe(net, units, needs=needs))
    bad = X.at[2, 0].set(jnp.nan)
    clean, dirty = (observed(P, x, sizes)[1] for x in (X, bad))
    for one, two in zip(clean["up"], dirty["up"], strict=True):
        for name in ("on_rate", "mean_abs", "gram"):
            a, b = getattr(one, name), getattr(two, name)
            if a is not None:
                assert np.isnan(b[1]).any()
                np.testing.assert_array_equal(np.delete(a, 1, 0), np.delete(b, 1, 0))


@pytest.mark.long
def test_hidden_units_of_all_experts_shrink_to_one_size():
    scores = bb.unitwise.group_magnitude(UNITS, P)
    masks = bb.unitwise.cut(UNITS, scores, density=0.6)
    small = bb.shrink(moe, P, masks, X)
    assert small.params["down"].shape == (EXPERTS, 3, DIM)
    assert small.params["up"].shape == (EXPERTS, DIM, 3)
    want = moe(bb.apply_masks(P, masks), X)
    np.testing.assert_allclose(moe(small.params, X), want, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_a_budget_of_its_own_for_every_expert():
    def loss(p, x):
        return jnp.mean(jnp.square(moe(p, x)))

    units = UNITS.select("up")
    tx = bb.transform(units, density=0.4, start=0)

    @jax.jit
    def step(p, x):
        _, grads, activity = bb.value_and_grad(loss, units)(p, x)
        return tx.update(grads, tx.init(p), p, activity=activity)[1]

    mask = bb.masks(step(P, X))["up"]
    assert mask.sum((1, 2)).tolist() == [round(0.4 * DIM * HIDDEN)] * EXPERTS


@pytest.mark.long
def test_sparsegpt_prunes_each_expert_as_a_layer_of_its_own():
    def net(p, x, sizes):
        return lax.ragged_dot(x, p["up"], sizes)

    def alone(p, x):
        return x @ p["up"]

    sizes, rule = jnp.array([3, 1, 5, 3]), bb.rules.sparsegpt()
    units = bb.trace(net, P, X, sizes).select("up")
    stats = bb.calibrate(net, units, P, [(X, sizes)], needs=rule.needs)
    pruned, _ = bb.prune(P, units, rule, density=1 / 3, stats=stats)
    units = bb.trace(alone, {"up": P["up"][0]}, X[:3]).select("up")
    for e, rows in ((0, X[:3]), (3, X[9:])):
        one = {"up": P["up"][e]}
        stats = bb.calibrate(alone, units, one, [(rows,)], needs=rule.needs)
        want, _ = bb.prune(one, units, rule, density=1 / 3, stats=stats)
        close(pruned["up"][e], want["up"])


@pytest.mark.long
def test_while_training_an_expert_without_tokens_keeps_its_largest_weights():
    def loss(p, x):
        return jnp.mean(jnp.square(moe(p, x)))

    units = UNITS.select("up")
    tx = bb.transform(units, bb.rules.wanda(), density=1 / 3, start=0)

    @jax.jit
    def step(p, x):
        needs = bb.rules.wanda().needs
        _, grads, activity = bb.value_and_grad(loss, units, needs=needs)(p, x)
        return tx.update(grads, tx.init(p), p, activity=activity)[1]

    empty = [len(seen) for seen, _, _ in by_hand(P, X)].index(0)
    size, mask = np.abs(P["up"][empty]), bb.masks(step(P, X))["up"][empty]
    np.testing.assert_array_equal(mask, size == size.max(0))


def test_what_is_no_product_with_a_matrix_per_group_is_listed():
    def shared(p, x):
        numbers = lax.RaggedDotDimensionNumbers(
            (((0,), (0,)), ((), ())),
            lhs_ragged_dimensions=[0],
            rhs_group_dimensions=[],
        )
        return lax.ragged_dot_general(x, p["w"], jnp.array([5, 7]), numbers)

    def rows(p, x):
        return lax.ragged_dot(p["w"], x.reshape(3, DIM, 4), jnp.array([5, 3, 4]))

    for fn, why in (
        (shared, "meets groups of a ragged product that share one matrix"),
        (rows, "is the operand of a ragged product that holds the rows"),
    ):
        units = bb.trace(fn, {"w": normal(3, 12, DIM)}, X)
        assert dict(units.problems) == {"w": why}


ROWS, SIZES = normal(40, 9, DIM), np.array([4, 0, 5])
OF_EXPERT = np.repeat(np.arange(3), SIZES)
SMALL = {
    "up": normal(41, 3, DIM, 6),
    "left": normal(42, 3, 3, 2),
    "right": normal(43, 3, 3, 2),
}
RAW = np.einsum("td,tdf->tf", ROWS, np.asarray(SMALL["up"])[OF_EXPERT])
BESIDE = normal(44, 9, 6)


def ragged(x, w):
    return lax.ragged_dot(x, w, jnp.asarray(SIZES))


def expert_rates(values):
    """Share of values above 0, by expert; 0 for an expert without rows."""
    each = (np.asarray(values)[OF_EXPERT == e] for e in range(3))
    return np.stack([(v > 0).sum(0) / max(len(v), 1) for v in each])


@pytest.mark.long
def test_halves_of_fused_experts_are_measured_after_nonlinearities_of_their_own():
    def fn(p, x):
        a, b = jnp.split(ragged(x, p["up"]), 2, -1)
        left = ragged(jnp.tanh(jax.nn.relu(a) - 0.2), p["left"])
        return left + ragged(silu(b - 0.5), p["right"])

    units = bb.trace(fn, SMALL, ROWS)
    assert units["up"].nonlinearity == "tanh/silu"
    _, activity = bb.observe(fn, units, where=jnp.ones(9, bool))(SMALL, ROWS)
    curved = np.maximum(RAW[:, :3], 0) - 0.2, RAW[:, 3:] - 0.5
    expected = expert_rates(np.concatenate(curved, 1))
    close(activity["up"].outputs.on_rate, expected)


@pytest.mark.long
def test_a_range_of_fused_experts_without_a_nonlinearity_counts_as_the_raw_output():
    def fn(p, x):
        a, b = jnp.split(ragged(x, p["up"]), 2, -1)
        return ragged(jax.nn.relu(a - 0.3), p["left"]) + ragged(b, p["right"])

    units = bb.trace(fn, SMALL, ROWS)
    assert units["up"].nonlinearity == "relu/raw"
    _, activity = bb.observe(fn, units)(SMALL, ROWS)
    expected = expert_rates(np.concatenate([RAW[:, :3] - 0.3, RAW[:, 3:]], 1))
    close(activity["up"].outputs.on_rate, expected)


def test_units_of_experts_that_are_added_to_data_count_as_the_sum():
    def fn(p, x):
        hidden = jax.nn.relu(ragged(x, p["up"]) + BESIDE)
        return ragged(hidden[:, :3], p["left"]) + ragged(hidden[:, 3:], p["right"])

    units = bb.trace(fn, SMALL, ROWS)
    _, activity = bb.observe(fn, units)(SMALL, ROWS)
    close(activity["up"].outputs.on_rate, expert_rates(RAW + BESIDE))


@pytest.mark.parametrize("move", ["shift", "window", "reverse"])
def test_rows_that_are_moved_among_experts_are_measured_before(move):
    """A row that holds another's values belongs to no expert any more."""
    shift = [(-1, 1, 0), (0, 0, 0)]
    moved = {
        "shift": lambda h: lax.pad(h, 0.0, shift),
        "window": lambda h: lax.reduce_window(
            h, -jnp.inf, lax.max, (2, 1), (1, 1), ((1, 0), (0, 0))
        ),
        "reverse": lambda h: h[::-1],
    }[move]

    def fn(p, x):
        return jax.nn.relu(moved(ragged(x, p["up"]) - 0.2))[:, :3] @ p["left"][0]

    units = bb.trace(fn, SMALL, ROWS)
    _, activity = bb.observe(fn, units.select("up"))(SMALL, ROWS)
    close(activity["up"].outputs.on_rate, expert_rates(RAW - 0.2))
