"""RigL and SET: what is dropped, what grows, and that the count never changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb
from bbjax.rules import rigl, set_
from bbjax.rules.parts.regrowth import drop_share
from tests.support.runs import candidates, dense, select

KERNEL = dense(12, 10)
STACKED = bb.Kernel("w", (2, 6, 9), stack=(0,), fan_in=(1,), fan_out=(2,))
CONV = bb.Kernel("w", (3, 3, 4, 5), spatial=(0, 1), fan_in=(2,), fan_out=(3,))
BOTH = pytest.mark.parametrize("make", [rigl, set_])


def first(scores, k):
    """Positions of the k largest, ties to the lowest."""
    return np.argsort(-scores, kind="stable")[:k]


def drop_and_grow(w, g, mask, budget, drop):
    """One slice by sorting, without floors: what stays, and the new mask."""
    w, g = np.abs(w).ravel(), np.abs(g).ravel()
    held = first(np.where(mask.ravel(), w, -1.0), min(mask.sum(), budget))
    stays = held[: held.size - int(np.floor(np.float32(drop) * held.size + 1e-4))]
    rest = g.copy()
    rest[stays] = -1.0
    new = np.concatenate([stays, first(rest, budget - stays.size)])
    return [np.isin(np.arange(w.size), x).reshape(mask.shape) for x in (stays, new)]


def arrays(kernel, many=None, kept=0.3):
    """Random weights, gradients and masks."""
    lead = () if many is None else (many,)
    w, g = np.random.normal(size=(2, *lead, *kernel.shape)).astype(np.float32)
    mask = np.random.uniform(size=(*lead, *kernel.edge_shape)) < kept
    return w, g, mask


def chosen(make, kernel, w, g, mask, budget, drop=0.3, **rest):
    """The masks that a rule chooses, of many kernels if the arrays have one axis more.

    `rest` holds what is the same for all of them.
    """

    def run(w, g, mask, budget, drop):
        seen = candidates(kernel, w, budget, grads=g, mask=mask, **rest)
        return make(drop=drop).select(seen)

    drop = np.float32(drop)
    if w.ndim > len(kernel.shape):
        own = [0 if np.ndim(x) else None for x in (budget, drop)]
        run = jax.vmap(run, in_axes=(0, 0, 0, *own))
    return np.asarray(jax.jit(run)(w, g, mask, budget, drop))


# The oracle ----------------------------------------------------------------------
def test_rigl_is_drop_by_weight_and_grow_by_gradient():
    """Masks of every size, above the budget (a dense start) and below it."""
    w, g, _ = arrays(KERNEL, 200)
    kept, drop = np.random.uniform(size=(2, 200)).astype(np.float32)
    kept[:20], drop[20:40], drop[40:60] = 1.0, 0.0, 1.0
    mask = np.random.uniform(size=w.shape) < kept[:, None, None]
    budget = np.random.randint(1, 120, 200)
    got = chosen(rigl, KERNEL, w, g, mask, budget, drop, k_min=0)
    for i in range(200):
        _, new = drop_and_grow(w[i], g[i], mask[i], budget[i], drop[i])
        np.testing.assert_array_equal(got[i], new)


@pytest.mark.long
def test_slices_of_a_stack_drop_and_grow_by_themselves():
    w, g, mask = arrays(STACKED)
    mask[0] = True
    got = chosen(rigl, STACKED, w, g, mask, np.array([20, 30]), k_min=0)
    for i, budget in enumerate((20, 30)):
        _, new = drop_and_grow(w[i], g[i], mask[i], budget, 0.3)
        np.testing.assert_array_equal(got[i], new)


@pytest.mark.long
def test_windows_of_a_convolution_go_and_come_whole():
    w, g, mask = arrays(CONV)
    got = chosen(rigl, CONV, w, g, mask, 8, k_min=0)
    whole = [np.abs(x).sum((0, 1)) for x in (w, g)]
    np.testing.assert_array_equal(got, drop_and_grow(*whole, mask, 8, 0.3)[1])


@pytest.mark.long
def test_a_dropped_edge_may_come_back_at_once():
    """The weakest edge has the largest gradient: it never went."""
    w, g, mask = arrays(KERNEL)
    weakest = np.unravel_index(np.where(mask, np.abs(w), 9.0).argmin(), mask.shape)
    g[weakest] = 10.0
    assert chosen(rigl, KERNEL, w, g, mask, mask.sum(), k_min=0)[weakest]


@pytest.mark.long
def test_equal_weights_and_gradients_favour_low_indices():
    ones, mask = np.ones(KERNEL.shape, np.float32), np.zeros(KERNEL.shape, bool)
    mask.flat[20:40] = True
    got = chosen(rigl, KERNEL, ones, ones, mask, 20, 0.5, k_min=0)
    assert np.flatnonzero(got).tolist() == [*range(10), *range(20, 30)]


# SET -----------------------------------------------------------------------------
@pytest.mark.long
def test_set_drops_by_weight_and_grows_at_random():
    """Each free edge is as likely to grow as any other."""
    w, g, mask = arrays(KERNEL)
    mask.flat[:40], mask.flat[40:] = True, False
    stays, _ = drop_and_grow(w, g, mask, 40, 0.5)

    def run(step, seed):
        rule = set_(drop=0.5, seed=seed)
        return rule.select(candidates(KERNEL, w, 40, mask=mask, step=step, k_min=0))

    run = jax.jit(jax.vmap(run))
    got = np.asarray(run(np.arange(400), np.zeros(400, int)))
    assert (got.sum((1, 2)) == 40).all() and got[:, stays].all()
    often = got[:, ~stays].mean(0)
    assert abs(often - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / 400)
    other = np.asarray(run(np.arange(400), np.ones(400, int)))
    assert (got != other).any((1, 2)).all()  # the seed counts,
    np.testing.assert_array_equal(got, run(np.arange(400), np.zeros(400, int)))


@pytest.mark.long
def test_set_draws_for_every_kernel_by_itself():
    w, g, mask = arrays(KERNEL)
    masks = [chosen(set_, KERNEL, w, g, mask, 40, index=index) for index in (0, 1, 0)]
    assert (masks[0] != masks[1]).any() and (masks[0] == masks[2]).all()


# Budgets, floors and patterns ----------------------------------------------------
@pytest.mark.sampled(1)
@BOTH
@pytest.mark.parametrize("sides", [("in",), ("out",), ("in", "out")], ids="+".join)
def test_no_unit_ever_falls_below_its_floor(make, sides):
    """Weights and gradients of a few units only, and masks that begin without them."""
    w, g, mask = arrays(KERNEL, 100)
    w[:, 3:], g[:, :, :7] = 1e-3 * w[:, 3:], 0.0
    mask[:50, 6:] = False
    budget = np.random.randint(44, 70, 100)
    drop = np.tile(np.float32([0.0, 0.1, 0.3, 1.0]), 25)
    got = chosen(make, KERNEL, w, g, mask, budget, drop, k_min=2, actuators=sides)
    np.testing.assert_array_equal(got.sum((1, 2)), budget)
    for side in sides:
        assert got.sum(1 if side == "in" else 2).min() >= 2


@pytest.mark.long
def test_the_largest_weights_of_a_unit_are_not_dropped():
    w, g, mask = arrays(KERNEL, 50, kept=0.5)
    got = chosen(rigl, KERNEL, w, g, mask, 60, 1.0, k_min=1)
    best = np.where(mask, np.abs(w), -1.0).argmax(1)[:, None]
    assert np.take_along_axis(got, best, 1)[mask.any(1, keepdims=True)].all()


@pytest.mark.long
@BOTH
@pytest.mark.parametrize("side", ["in", "out"])
def test_patterns_are_kept_while_edges_move(make, side):
    kernel = dense(8, 12)
    w, g, mask = arrays(kernel, 30)
    pattern = bb.n_m(2, 4)
    mask[:10] = True  # a dense start, then masks that hold the pattern, and others
    cut = (30, 2, 4, 12) if side == "in" else (30, 8, 3, 4)
    axis = 2 if side == "in" else 3
    mask[10:20] = (np.argsort(w.reshape(cut), axis) < 2).reshape(30, 8, 12)[10:20]
    got = chosen(
        make, kernel, w, g, mask, 48, pattern=pattern, actuators=(side,), k_min=0
    )
    assert (got.reshape(cut).sum(axis) == 2).all()
    moved = (got & ~mask)[10:20].sum((1, 2))
    assert (moved > 0).all() and (moved <= 14).all()


@pytest.mark.long
def test_rigl_grows_in_a_group_where_its_gradient_is_largest():
    kernel = dense(4, 3)
    w = np.array([[4, 1, 5], [3, 9, 6], [0, 0, 0], [0, 0, 0]], np.float32)
    g = np.array([[0, 0, 0], [0, 0, 0], [1, 1, 1], [2, 2, 2]], np.float32)
    rest = {"pattern": bb.n_m(2, 4), "k_min": 0}
    got = chosen(rigl, kernel, w, g, w > 0, 6, 0.4, **rest)  # two go: 1 and 3
    assert got.T.astype(int).tolist() == [[1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 0]]


@pytest.mark.long
@BOTH
def test_without_regrowth_edges_only_go(make):
    w, g, mask = arrays(KERNEL, kept=0.5)
    got = chosen(make, KERNEL, w, g, mask, 30, regrow=False, k_min=0)
    kept = np.isin(np.arange(120), first(np.where(mask, np.abs(w), -1.0).ravel(), 30))
    np.testing.assert_array_equal(got.ravel(), kept)
    got = chosen(make, KERNEL, w, g, mask, 100, regrow=False)
    np.testing.assert_array_equal(got, mask)


# The share that is dropped -------------------------------------------------------
@pytest.mark.long
def test_share_falls_by_half_a_cosine():
    shares = [drop_share(0.3, 100, jnp.int32(n)) for n in (0, 25, 50, 75, 100, 400)]
    known = [0.3, 0.256066, 0.15, 0.043934, 0, 0]
    np.testing.assert_allclose(shares, known, atol=1e-6)
    assert drop_share(0.3, 100, jnp.int32(100)) == 0
    assert drop_share(0.3, None, jnp.int32(400)) == jnp.float32(0.3)


@pytest.mark.long
def test_numbers_may_be_traced():
    w, g, mask = arrays(KERNEL)

    @jax.jit
    @jax.vmap
    def run(drop, anneal, step):
        rule = rigl(drop=drop, anneal=anneal)
        seen = candidates(KERNEL, w, 40, grads=g, mask=mask, step=step, k_min=0)
        return rule.select(seen)

    drop, anneal = np.float32([0.3, 0.3, 0.6, 0.6]), np.int32([100, 100, 100, 50])
    got = np.asarray(run(drop, anneal, np.int32([0, 100, 50, 50])))
    for mask_, share in zip(got, (0.3, 0.0, 0.3, 0.0), strict=True):
        np.testing.assert_array_equal(mask_, drop_and_grow(w, g, mask, 40, share)[1])


@pytest.mark.long
def test_a_share_that_is_whole_but_for_rounding_is_whole():
    """.3 of the way down the cosine, .15 of 100 edges are 15, not 14."""
    kernel = dense(20, 20)
    w, g = np.zeros((2, 20, 20), np.float32)
    w.flat[:100], g.flat[300:] = np.arange(100, 0, -1), 1.0
    mask = w > 0
    seen = {"step": jnp.int32(50), "k_min": 0}
    got = chosen(functools.partial(rigl, anneal=100), kernel, w, g, mask, 100, **seen)
    assert got.flat[:85].all() and not got.flat[85:100].any()


# In training ---------------------------------------------------------------------
def teacher():
    """A sparse linear map, data, and a mask of the right size in the wrong place."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=KERNEL.shape) + 2.0
    places = rng.permutation(120)
    support = np.isin(np.arange(120), places[:24]).reshape(KERNEL.shape)
    wrong = np.isin(np.arange(120), places[24:48]).reshape(KERNEL.shape)
    true = jnp.asarray(np.where(support, true, 0.0), jnp.float32)
    x = jnp.asarray(rng.normal(size=(256, 12)), jnp.float32)

    def loss(params):
        return jnp.mean(jnp.square(x @ (params["w"] - true)))

    return loss, support, {"w": jnp.asarray(wrong)}


def train(tx, loss, masks, steps, **extra):
    """Masks and weights after every update."""
    params = {"w": jnp.where(masks["w"], 0.5, 0.0)}

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(params)
        also = {name: grads for name in extra}
        updates, state = tx.update(grads, state, params, **also)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
        yield np.asarray(bb.masks(state)["w"]), np.asarray(params["w"])


SETTINGS = {"density": 0.2, "every": 10, "start": 10, "k_min": 0}


@pytest.mark.long
def test_growth_follows_the_dense_gradient_to_what_matters():
    """Gradients of kept weights alone would say nothing of the 24 edges that matter.

    SET comes upon them by chance, RigL at once.
    """
    loss, support, masks = teacher()
    options = SETTINGS | {"every": 5}
    found = {}
    for make in (rigl, set_):
        rule = make(anneal=80)
        tx = bb.wrap(optax.sgd(2.0), select(KERNEL), rule, masks=masks, **options)
        history = list(train(tx, loss, masks, 100))
        for mask, w in history:
            assert mask.sum() == 24
            assert (w[~mask] == 0).all()
        found[make] = [(mask & support).sum() for mask, _ in history]
    # floor(.289 * 24) edges grow at the first refresh, all of them where they matter.
    assert found[rigl][9] == 0 and found[rigl][10] == 6
    assert found[rigl][-1] == 24 > found[set_][-1]


@pytest.mark.long
def test_a_chain_takes_the_gradients_as_an_argument():
    loss, support, masks = teacher()
    pruner = bb.transform(select(KERNEL), rigl(), masks=masks, **SETTINGS)
    chained = train(optax.chain(optax.sgd(2.0), pruner), loss, masks, 40, grads=True)
    wrapped = bb.wrap(optax.sgd(2.0), select(KERNEL), rigl(), masks=masks, **SETTINGS)
    for (a, w), (b, v) in zip(chained, train(wrapped, loss, masks, 40), strict=True):
        np.testing.assert_array_equal(a, b)  # plain SGD remembers nothing to hide
        np.testing.assert_allclose(w, v, rtol=1e-6)
    with pytest.raises(ValueError, match="expected dense gradients, which rule 'rigl'"):
        list(train(optax.chain(optax.sgd(2.0), pruner), loss, masks, 1))


@pytest.mark.long
@BOTH
def test_edges_come_back_as_zero_and_move_from_there(make):
    """Their old values are forgotten; those that stay keep theirs."""
    loss, _, masks = teacher()
    tx = bb.wrap(optax.sgd(0.1), select(KERNEL), make(), masks=masks, **SETTINGS)
    before = np.asarray(masks["w"])
    for n, (mask, w) in enumerate(train(tx, loss, masks, 40)):
        came = mask & ~before
        assert (w[came] == 0).all() and w[mask & before].all()
        assert came.any() == (n in (10, 20, 30))
        before = mask
    assert not jax.tree.leaves(tx.init({"w": jnp.ones(KERNEL.shape)}).prune.bb_dormant)


@pytest.mark.long
@BOTH
def test_masks_settle_once_annealed(make):
    loss, _, masks = teacher()
    tx = bb.wrap(
        optax.sgd(0.5), select(KERNEL), make(anneal=40), masks=masks, **SETTINGS
    )
    seen = [mask for mask, _ in train(tx, loss, masks, 80)]
    assert (seen[20] != seen[10]).any()
    for mask in seen[40:]:
        np.testing.assert_array_equal(mask, seen[40])


@pytest.mark.long
@BOTH
@pytest.mark.parametrize("end", [0.1, 0.4])
def test_the_count_follows_a_schedule_of_the_density(make, end):
    loss, _, masks = teacher()
    density = optax.linear_schedule(0.2, end, 40)
    options = SETTINGS | {"density": density}
    tx = bb.wrap(optax.sgd(0.1), select(KERNEL), make(), masks=masks, **options)
    counts = [mask.sum() for mask, _ in train(tx, loss, masks, 61)]
    wanted = [round(float(density(n)) * 120) for n in (10, 20, 30, 40, 50, 60)]
    assert counts[10::10] == wanted


@pytest.mark.long
def test_a_random_topology_by_shape_is_kept_in_size():
    """The published start: densities and first masks by shape."""
    kernels = (dense(12, 10, "a"), dense(10, 4, "b"))
    units = bb.Units(kernels).select(".")
    params = {k.path: jnp.asarray(arrays(k)[0]) for k in kernels}
    density = bb.erk(0.3)
    pruned, masks = bb.prune(params, units, bb.rules.random(), density=density)
    tx = bb.wrap(
        optax.sgd(0.1), units, rigl(anneal=50), density=density, masks=masks, start=0
    )
    grads = {k.path: jnp.asarray(arrays(k)[1]) for k in kernels}
    update = jax.jit(tx.update)
    _, state = update(grads, tx.init(pruned), pruned)
    counts = {path: int(mask.sum()) for path, mask in masks.items()}
    assert sum(counts.values()) == 48 and counts["b"] / 40 > counts["a"] / 120
    for path, mask in bb.masks(state).items():
        assert mask.sum() == counts[path] and (mask != masks[path]).any()


# Bad input -----------------------------------------------------------------------
@BOTH
def test_numbers_out_of_range(make):
    for drop in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"expected drop in \[0, 1\], got .*; it"):
            make(drop=drop)
    for anneal in (0, -5, float("inf")):
        with pytest.raises(ValueError, match=r"expected anneal in \[1, inf\), got "):
            make(anneal=anneal)


@pytest.mark.usefixtures("unchecked")
@BOTH
def test_what_is_no_number(make):
    with pytest.raises(TypeError, match="expected drop to be a number, got 'many'"):
        make(drop="many")
    with pytest.raises(TypeError, match="expected anneal to be a number, got <fun"):
        make(anneal=lambda n: n)
