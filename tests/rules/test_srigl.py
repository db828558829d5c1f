"""SRigL: one degree for all units but those that are starved, and an exact budget."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb
from bbjax.rules import srigl
from tests.support.runs import candidates, dense, select

KERNEL, SMALL = dense(12, 10), dense(4, 3)
STACKED = bb.Kernel("w", (2, 6, 9), stack=(0,), fan_in=(1,), fan_out=(2,))
HEADS = bb.Kernel("w", (3, 8, 2, 5), stack=(2,), fan_in=(1,), fan_out=(0, 3))
GROUPED = bb.Kernel(
    "w",
    (3, 4, 10),
    spatial=(0,),
    fan_in=(1,),
    fan_out=(2,),
    groups=2,
    split=(3, 4, 2, 5),
    roles=("spatial", "in", "group", "out"),
)
SIDE = {"in": "outputs", "out": "inputs"}  # whose units an actuator counts


def first(scores, k):
    """Marks the k largest, ties to the lowest index; -1 is never one of them."""
    order = np.argsort(-scores.ravel(), kind="stable")[:k]
    return np.isin(np.arange(scores.size), order).reshape(scores.shape) & (scores > -1)


def oracle(w, g, mask, budget, drop, gamma):
    """One slice of a dense kernel by sorting, units in columns: survivors, mask."""
    w, g, (fan, units) = np.abs(w), np.abs(g), w.shape
    n = min(mask.sum(), budget)
    down = int(np.floor(np.float32(drop) * n + 1e-4))
    salient = first(np.where(mask, w, -1.0), n - down) | first(g, down)
    count = salient.sum(0)
    least = max(1, np.floor(np.float32(gamma) * (budget // units) + 1e-4))
    fits = np.sort(count)[::-1][min(budget // fan, units - 1)]
    alive = count >= min(least if gamma > 0 else 0, fits)
    degree = np.where(alive, budget // alive.sum(), 0)
    strongest = np.argsort(-np.where(alive, (w * mask).sum(0), -1.0), kind="stable")
    degree[strongest[: budget - degree.sum()]] += 1
    stays = first(np.where(mask & alive, w, -1.0), n - down)
    new = np.zeros_like(mask)
    for j, k in enumerate(degree):
        own = first(np.where(stays[:, j], w[:, j], -1.0), k)
        new[:, j] = first(np.where(own, np.inf, g[:, j]), k)
    return alive, new


def arrays(shape, edges=None):
    w, g = np.random.normal(size=(2, *shape)).astype(np.float32)
    mask = np.random.uniform(size=edges or shape) < 0.3
    return w, g, mask


@functools.cache
def compiled(kernel, many, rest):
    """The rule as a compiled function; `many` says what has an axis of examples."""

    def run(w, g, mask, budget, drop, gamma):
        seen = candidates(kernel, w, budget, grads=g, mask=mask, **dict(rest))
        return srigl(drop=drop, gamma=gamma).select(seen)

    if any(many):
        run = jax.vmap(run, in_axes=[0 if one else None for one in many])
    return jax.jit(run)


def chosen(kernel, w, g, mask, budget, drop=0.3, gamma=0.3, **rest):
    """The mask that the rule chooses; all arguments may have an axis of examples."""
    given = (w, g, mask, np.int32(budget), np.float32(drop), np.float32(gamma))
    many = w.ndim > len(kernel.split)
    own = (many,) * 3 + tuple(many and x.ndim > 0 for x in given[3:])
    run = compiled(kernel, own, tuple(sorted(rest.items())))
    return np.asarray(run(*given))


def even(degrees):
    """Degrees of survivors differ by one edge at most."""
    alive = degrees[degrees > 0]
    return alive.max() - alive.min() <= 1


# By hand -------------------------------------------------------------------------
WEIGHTS = np.array([[9, 7, 2], [8, 1, 6], [0, 0, 0], [0, 0, 0]], np.float32)
FALLOW = np.array([[0, 0, 1], [0, 0, 1], [5, 0, 1], [0, 4, 1]], np.float32)


def test_a_starved_unit_gives_its_edges_to_the_others():
    """Two of six edges are dropped: 9, 8, 7, 6 would stay, gradients 5 and 4 grow.

    Of these the units have 3, 2 and 1; with gamma = 1 each has to have 6 / 3.
    """
    hyper = {"drop": 0.34, "gamma": 1.0}
    mask = chosen(SMALL, WEIGHTS, FALLOW, WEIGHTS > 0, 6, **hyper)
    assert mask.T.astype(int).tolist() == [[1, 1, 1, 0], [1, 1, 0, 1], [0, 0, 0, 0]]

    # Large gradients bring it back: each has two salient edges again.
    w = np.where(mask, WEIGHTS, 0)
    g = np.array([[0, 0, 0], [0, 0, 0], [1, 1, 9], [1, 1, 8]], np.float32)
    mask = chosen(SMALL, w, g, mask, 6, **hyper)
    assert mask.T.astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]]


def test_gamma_0_starves_nobody():
    hyper = {"drop": 0.34, "gamma": 0.0}
    mask = chosen(SMALL, WEIGHTS, 0 * FALLOW, WEIGHTS > 0, 6, **hyper)
    assert mask.sum(0).tolist() == [2, 2, 2]


@pytest.mark.long
def test_an_overfull_unit_loses_its_weakest():
    """Published code sorts booleans here, and an arbitrary edge goes."""
    w = np.array([[1, 0], [2, 0], [3, 0], [4, 9]], np.float32)
    mask = chosen(dense(4, 2), w, np.ones_like(w), w > 0, 4, drop=0.0, gamma=0.0)
    assert mask.T.astype(int).tolist() == [[0, 0, 1, 1], [1, 0, 0, 1]]


def test_left_over_edges_go_to_the_strongest_units():
    w = np.array([[1, 3, 2], [1, 3, 2], [0, 0, 0], [0, 0, 0]], np.float32)
    g = np.ones_like(w)
    for budget, degrees in ((7, [2, 3, 2]), (8, [2, 3, 3])):
        mask = chosen(SMALL, w, g, w > 0, budget, drop=0.0, gamma=0.0)
        assert mask.sum(0).tolist() == degrees


# The oracle ----------------------------------------------------------------------
@pytest.fixture(scope="module")
def many():
    """Masks of random kernels, from a dense start to a nearly empty one."""
    rng = np.random.default_rng(0)
    w, g = rng.normal(size=(2, 200, 12, 10)).astype(np.float32)
    w *= rng.uniform(size=(200, 1, 10)).astype(np.float32) ** 3
    g *= rng.uniform(size=(200, 1, 10)).astype(np.float32) ** 3
    mask = rng.uniform(size=w.shape) < rng.uniform(0.1, 1.1, (200, 1, 1))
    budget = rng.integers(10, 120, 200)
    drop, gamma = rng.uniform(size=(2, 200)).astype(np.float32)
    gamma[:20] = 0.0
    given = (w, g, mask, budget, drop, gamma)
    return given, chosen(KERNEL, *given)


@pytest.mark.long
def test_srigl_by_sorting(many):
    given, got = many
    starved = 0
    for mask, *one in zip(got, *given, strict=True):
        alive, new = oracle(*one)
        np.testing.assert_array_equal(mask, new)
        starved += (~alive).sum()
    assert starved > 200


@pytest.mark.long
def test_the_budget_is_exact_and_survivors_are_alike(many):
    (*_, budget, _, _), got = many
    np.testing.assert_array_equal(got.sum((1, 2)), budget)
    assert all(even(degrees) for degrees in got.sum(1))


@pytest.mark.long
def test_all_equal_starves_nobody():
    ones = np.ones(KERNEL.shape, np.float32)
    for budget in (30, 35):
        mask = chosen(KERNEL, ones, ones, ones > 0, budget, drop=0.0)
        assert mask.sum() == budget and even(mask.sum(0)) and mask.sum(0).all()


# Other kernels -------------------------------------------------------------------
@pytest.mark.long
def test_constant_fan_out_is_constant_fan_in_of_the_transpose():
    w, g, mask = arrays((12, 10))
    turned = chosen(dense(10, 12), w.T, g.T, mask.T, 40, actuators=("out",))
    np.testing.assert_array_equal(turned.T, chosen(KERNEL, w, g, mask, 40))


@pytest.mark.long
def test_slices_of_a_stack_are_judged_by_themselves():
    w, g, mask = arrays(STACKED.shape)
    got = chosen(STACKED, w, g, mask, np.int32([15, 25]), gamma=0.9)
    for i, budget in enumerate((15, 25)):
        np.testing.assert_array_equal(
            got[i], oracle(w[i], g[i], mask[i], budget, 0.3, 0.9)[1]
        )


@pytest.mark.long
@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("kernel", [HEADS, GROUPED], ids=["heads", "grouped"])
def test_any_order_of_axes(kernel, side):
    """Units over several axes, and stacks and groups between them."""
    w, g, mask = arrays(kernel.split, kernel.edge_shape)
    got = chosen(kernel, w, g, mask, 20, gamma=1.0, actuators=(side,))
    degrees = np.asarray(kernel.gather(jnp.asarray(got, jnp.int32), SIDE[side]))
    degrees = degrees.reshape(-1, kernel.unit_count(side))
    assert (degrees.sum(1) == 20).all()
    assert all(even(own) for own in degrees)


@pytest.mark.long
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_survivors_share_the_groups_of_a_pattern(gamma):
    kernel = dense(8, 10)
    w, g, mask = arrays((20, 8, 10))
    pattern = bb.n_m(2, 4)
    got = chosen(kernel, w, g, mask, 40, gamma=gamma, pattern=pattern)
    per_group = got.reshape(20, 2, 4, 10).sum(2)
    assert (per_group[:, 0] == per_group[:, 1]).all()
    assert (got.sum((1, 2)) == 40).all()
    assert all(even(own) for own in per_group[:, 0])
    assert (per_group == 2).all() == (gamma == 0.0)


@pytest.mark.long
def test_without_regrowth_each_unit_keeps_its_largest():
    w, g, mask = arrays((12, 10))
    mask[:4] = True
    got = chosen(KERNEL, w, g, mask, 30, regrow=False)
    strong = np.where(mask, np.abs(w), -1.0)
    for j in range(10):
        np.testing.assert_array_equal(got[:, j], first(strong[:, j], 3))


# In training ---------------------------------------------------------------------
@pytest.mark.long
def test_a_wide_net_becomes_a_narrow_one_with_the_same_budget():
    """Four of ten outputs depend on nothing: they starve, and the rest is found."""
    rng = np.random.default_rng(0)
    true = np.zeros((12, 10), np.float32)
    for j in range(6):
        true[rng.permutation(12)[:5], j] = rng.uniform(1, 2, 5)
    x = jnp.asarray(rng.normal(size=(256, 12)), jnp.float32)
    start = np.stack([rng.permutation(12) < 3 for _ in range(10)], 1)
    masks = {"w": jnp.asarray(start)}

    def loss(params):
        return jnp.mean(jnp.square(x @ (params["w"] - true)))

    rule = srigl(anneal=200, gamma=0.3)
    options = {"density": 0.25, "every": 10, "start": 10, "masks": masks}
    tx = bb.wrap(optax.sgd(2.0), select(KERNEL), rule, **options)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = {"w": jnp.where(start, 0.1, 0.0)}
    state = tx.init(params)
    for n in range(220):
        params, state = step(params, state)
        assert bb.masks(state)["w"].sum() == 30 or n < 10
    np.testing.assert_array_equal(bb.degrees_of(state)["w"], [5] * 6 + [0] * 4)
    np.testing.assert_array_equal(bb.masks(state)["w"], true != 0)
    np.testing.assert_allclose(params["w"], true, atol=0.1)


# Bad input -----------------------------------------------------------------------
def test_both_actuators_are_refused():
    units = select(dense(12, 10), "in", "out")
    with pytest.raises(ValueError, match="expected one actuator for 'w' with rule 'sr"):
        bb.transform(units, bb.rules.srigl())


@pytest.mark.long
@pytest.mark.usefixtures("unchecked")
def test_numbers_out_of_range():
    for name, inside in {
        "drop": "[0, 1]",
        "gamma": "[0, 1]",
        "anneal": "[1, inf)",
    }.items():
        text = re.escape(f"expected {name} in {inside}, got -0.5; it is the")
        with pytest.raises(ValueError, match=text):
            srigl(**{name: -0.5})
    with pytest.raises(TypeError, match="expected gamma to be a number, got None"):
        srigl(gamma=None)
