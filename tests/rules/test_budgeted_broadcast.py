"""Budgeted Broadcast as law x competition x score: what each part promises.

Masks of whole runs are held against plain Python in `test_run_oracle.py`.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bbjax as bb
from bbjax import rules
from tests.support.runs import candidates, chosen, dense

FED = dataclasses.replace(dense(24, 16), reads=("before",))
RAW = dense(24, 16)
STACKED = bb.Kernel("w", (3, 12, 8), stack=(0,), fan_in=(1,), fan_out=(2,))
SIDES = pytest.mark.parametrize("actuator", ["in", "out"])
BUDGET = 96  # 6 of 24 for each of 16 units, 4 of 16 for each of 24


def degrees(mask, actuator):
    return np.asarray(mask).sum(axis=-2 if actuator == "in" else -1)


def weights(seed=0, kernel=FED):
    """Units of unlike sizes, so that competition has something to decide."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=kernel.shape) * np.exp(rng.normal(size=kernel.shape[-1:]))
    return jnp.asarray(
        w * np.exp(rng.normal(size=(*kernel.shape[:-1], 1))), jnp.float32
    )


def wins(w, budget, actuator):
    """Edges of each unit among the largest of all, by sorting."""
    order = np.argsort(-np.abs(np.asarray(w)).ravel(), kind="stable")
    kept = np.zeros(w.size, bool)
    kept[order[:budget]] = True
    return degrees(kept.reshape(w.shape), actuator)


# Ends of the scale ---------------------------------------------------------------
@pytest.mark.sampled(1)
@SIDES
@pytest.mark.parametrize("seed", range(3))
def test_competition_alone_is_layer_wide_magnitude(actuator, seed):
    w, sides = weights(seed), (actuator,)
    alone = rules.budgeted_broadcast(spread=0, competition=1)
    got = chosen(alone, FED, w, BUDGET, {}, sides, k_min=0)
    want = chosen(rules.magnitude(scope="layer"), FED, w, BUDGET, {}, sides, k_min=0)
    np.testing.assert_array_equal(got, want)


@pytest.mark.long
@SIDES
def test_neither_law_nor_competition_is_equal_degrees(actuator):
    w, rate = weights(), jnp.linspace(0.1, 0.9, 16 if actuator == "in" else 24)
    rule = rules.budgeted_broadcast(spread=0, competition=0)
    got = chosen(rule, FED, w, BUDGET, {actuator: rate}, (actuator,))
    want = chosen(rules.magnitude(), FED, w, BUDGET, {}, (actuator,))
    np.testing.assert_array_equal(got, want)


@pytest.mark.sampled(1)
@SIDES
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_between_the_ends_degrees_are_a_blend(actuator, share):
    """Where no bound is met: a share of what is won, and the same rest for all."""
    kernel = dataclasses.replace(dense(60, 40), reads=("before",))
    w = weights(3, kernel)
    rule = rules.budgeted_broadcast(spread=0, competition=share)
    mask = chosen(rule, kernel, w, 600, {}, (actuator,), k_min=0)
    k, won = degrees(mask, actuator), wins(w, 600, actuator)
    blend = share * won + (1 - share) * k.mean()
    assert k.sum() == 600 and np.ptp(won) > 8
    assert np.abs(k - blend).max() < 1


@pytest.mark.long
def test_global_competition_alone_is_global_magnitude():
    def loss(params, x):
        h = jax.nn.relu(jax.nn.relu(x @ params["a"]) @ params["b"])
        return jnp.sum(h @ params["c"])

    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"a": (10, 12), "b": (12, 14), "c": (14, 2)}
    params = {
        n: jax.random.normal(k, s) * (i + 1)
        for i, (k, (n, s)) in enumerate(zip(keys, shapes.items(), strict=True))
    }
    x = jax.random.normal(jax.random.key(5), (64, 10))
    units = bb.trace(loss, params, x)
    stats = bb.calibrate(loss, units, params, [(x,)], needs=("on_rate",))
    for density in (0.5, 0.2):
        alone = rules.budgeted_broadcast(spread=0, competition=1, scope="global")
        got = bb.prune(params, units, alone, density, stats=stats, k_min=0)[1]
        want = bb.prune(
            params, units, rules.magnitude(scope="global"), density, k_min=0
        )
        for path, mask in want[1].items():
            np.testing.assert_array_equal(got[path], mask)
        # With a law the kernels still spend what they win among all.
        whole = rules.budgeted_broadcast(scope="global")
        masks = bb.prune(params, units, whole, density, stats=stats, k_min=0)[1]
        for path, mask in want[1].items():
            assert int(masks[path].sum()) == int(mask.sum())
        assert density < 0.5 or (masks["b"] != want[1]["b"]).any()


# Competition ---------------------------------------------------------------------
@pytest.mark.long
@SIDES
def test_units_that_are_alike_win_alike(actuator):
    """Ties at the threshold are shared by all, not taken by the first."""
    rule = rules.budgeted_broadcast()
    mask = chosen(rule, FED, jnp.ones(FED.shape), BUDGET, {}, (actuator,))
    k = degrees(mask, actuator)
    assert k.min() == k.max()


@pytest.mark.long
@given(st.integers(0, 2**31), st.integers(0, 24 * 16), st.integers(0, 1))
@settings(max_examples=10, deadline=None)
def test_any_budget_is_met_on_weights_full_of_ties(seed, budget, k_min):
    rng = np.random.default_rng(seed)
    w = jnp.asarray(rng.integers(-2, 3, FED.shape), jnp.float32)
    for sides, floor in ((("in",), 16), (("out",), 24)):
        mask = chosen(
            rules.budgeted_broadcast(), FED, w, budget, {}, sides, k_min=k_min
        )
        assert mask.sum() == max(budget, k_min * floor)


@pytest.mark.sampled(1)
@SIDES
@pytest.mark.parametrize("share", [0.25, 0.75, 1.0])
def test_dead_units_take_no_edges_from_the_living(actuator, share):
    """However large the weights of dead units are: the living win the whole budget."""
    kernel = dataclasses.replace(dense(200, 16), reads=("before",))
    if actuator == "out":
        kernel = dataclasses.replace(dense(16, 200), reads=("before",))
    w = np.random.default_rng(0).normal(size=kernel.shape)
    half = np.arange(16) < 8
    w = np.where(half if actuator == "in" else half[:, None], 20 * w, w)
    w = jnp.asarray(w, jnp.float32)
    rate = jnp.where(half, 0.0, 0.5)
    rule = rules.budgeted_broadcast(competition=share)
    mask = chosen(rule, kernel, w, 800, {actuator: rate}, (actuator,))
    k = degrees(mask, actuator)
    rest = (1 - share) * 50  # what every unit gets besides its wins
    assert k.sum() == 800 and np.abs(k[half] - max(rest, 5)).max() <= 1
    assert k[~half].min() > 50
    alive = chosen(rule, kernel, w, 800, {}, (actuator,))
    assert degrees(alive, actuator)[half].min() > 50


@pytest.mark.long
def test_noise_around_the_threshold_of_dead_units_moves_little():
    kernel = dataclasses.replace(dense(40, 16), reads=("before",))
    w = np.random.default_rng(1).normal(size=(40, 16))
    w[:, 0] *= 20
    at = np.linspace(0.0005, 0.005, 46)
    rates = jnp.full((46, 16), 0.5).at[:, 0].set(jnp.asarray(at, jnp.float32))
    rule = rules.budgeted_broadcast()

    def degree(rate):
        seen = candidates(kernel, jnp.asarray(w, jnp.float32), 160, {"in": rate})
        return rule.select(seen).sum(0)[0]

    k = np.asarray(jax.jit(jax.vmap(degree))(rates))
    assert k[0] <= 5 and k[-1] >= 25 and np.abs(np.diff(k)).max() <= 3


@pytest.mark.long
def test_where_all_units_are_dead_degrees_are_equal():
    mask = chosen(
        rules.budgeted_broadcast(), FED, weights(), BUDGET, {"in": jnp.zeros(16)}
    )
    assert (degrees(mask, "in") == 6).all()


@pytest.mark.long
def test_raw_inputs_are_no_units():
    """Outgoing edges of raw inputs follow competition alone, whatever is 'on' there."""
    w, rate = weights(), jnp.linspace(0.02, 0.98, 24)
    rule = rules.budgeted_broadcast(spread=0.5, competition=0.5)
    flat = rules.budgeted_broadcast(spread=0, competition=1)
    got = chosen(rule, RAW, w, BUDGET, {"out": rate}, ("out",))
    np.testing.assert_array_equal(got, chosen(flat, RAW, w, BUDGET, {}, ("out",)))
    fed = chosen(rule, FED, w, BUDGET, {"out": rate}, ("out",))
    assert (got != fed).any()
    # The law alone is what was asked for, on raw inputs as well, whatever 0 it is.
    law = rules.budgeted_broadcast(spread=0.5, competition=0)
    alone = chosen(law, RAW, w, BUDGET, {"out": rate}, ("out",))
    assert (np.diff(degrees(alone, "out")) <= 0).all()
    for zero in (0.0, np.float32(0), jnp.float32(0)):
        same = rules.budgeted_broadcast(spread=0.5, competition=zero)
        np.testing.assert_array_equal(
            chosen(same, RAW, w, BUDGET, {"out": rate}, ("out",)), alone
        )

    def traced(share):
        rule = rules.budgeted_broadcast(spread=0.5, competition=share)
        return rule.select(candidates(RAW, w, BUDGET, {"out": rate}, ("out",)))

    none, some = jax.jit(jax.vmap(traced))(jnp.array([0.0, 0.5]))
    np.testing.assert_array_equal(none, alone)
    np.testing.assert_array_equal(some, got)


@pytest.mark.long
def test_busier_units_still_get_fewer_edges():
    """Of two units that win alike, the busier one keeps fewer."""
    w = jnp.tile(jax.random.normal(jax.random.key(0), (24, 1)), (1, 16))
    rate = jnp.linspace(0.05, 0.95, 16)
    rule = rules.budgeted_broadcast(spread=0.3)
    k = degrees(chosen(rule, FED, w, BUDGET, {"in": rate}, ("in",)), "in")
    assert (np.diff(k) <= 0).all() and k[0] > k[-1] + 2


@pytest.mark.long
@pytest.mark.parametrize("budget", [24, 96, 200])
def test_slices_compete_by_themselves(budget):
    w = weights(1, STACKED)
    rates = jax.random.uniform(jax.random.key(1), (3, 8))
    budget = min(budget, 90)
    mask = chosen(rules.budgeted_broadcast(), STACKED, w, budget, {"in": rates})
    flat = bb.Kernel("w", (12, 8), fan_in=(0,), fan_out=(1,))
    for s in range(3):
        alone = chosen(rules.budgeted_broadcast(), flat, w[s], budget, {"in": rates[s]})
        np.testing.assert_array_equal(mask[s], alone)


# Law x score x pattern ------------------------------------------------------------
LAWS = {
    "spread": {"spread": 0.3, "competition": 0},
    "blend": {},
    "beta": {"beta": 0.5},
    "threshold": {"law": bb.laws.threshold()},
    "quantile": {"law": bb.laws.quantile()},
    "uniform": {"law": bb.laws.uniform(), "competition": 0.5},
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "law, score, pattern, actuator",
    [
        *itertools.product(LAWS, ("magnitude", "wanda"), (None,), ("in", "out")),
        *itertools.product(LAWS, ("magnitude", "wanda"), (bb.n_m(2, 4),), ("in",)),
    ],
    ids=str,
)
def test_every_law_goes_with_every_score(law, score, pattern, actuator):
    w = weights()
    rng = np.random.default_rng(0)
    seen = candidates(
        FED,
        w,
        192 if pattern else BUDGET,
        {actuator: jnp.asarray(rng.uniform(size=16 if actuator == "in" else 24))},
        (actuator,),
        pattern=pattern,
    )
    square = jnp.asarray(rng.uniform(size=24), jnp.float32)
    seen.statistics["inputs.mean_square"] = square
    rule = rules.budgeted_broadcast(**LAWS[law], score=score)
    mask = np.asarray(jax.jit(lambda: rule.select(seen))())
    assert mask.sum() == (192 if pattern else BUDGET)
    value = np.abs(np.asarray(w))
    if score == "wanda":
        value = value * np.sqrt(np.asarray(square))[:, None]
    rows = mask.T if actuator == "in" else mask
    scores = value.T if actuator == "in" else value
    if pattern is None:
        for kept, row in zip(rows, scores, strict=True):
            assert set(np.flatnonzero(kept)) == set(np.argsort(-row)[: kept.sum()])
        return
    for kept, row in zip(rows.reshape(16, 6, 4), scores.reshape(16, 6, 4), strict=True):
        n = kept.sum(1)
        assert (n == n[0]).all()  # every group of a unit alike
        for group, size in zip(kept, row, strict=True):
            assert set(np.flatnonzero(group)) == set(np.argsort(-size)[: n[0]])


@pytest.mark.long
def test_without_a_law_it_is_wanda():
    def fn(params, x):
        return jax.nn.relu(x @ params["w"]) @ params["out"]

    params = {"w": weights(), "out": jnp.ones((16, 2))}
    x = jax.random.normal(jax.random.key(3), (50, 24)) * jnp.arange(24.0)[None]
    units = bb.trace(fn, params, x).select("w")
    rule = rules.budgeted_broadcast(law=bb.laws.uniform(), score="wanda")
    stats = bb.calibrate(fn, units, params, [(x,)], needs=rule.needs)
    masks = [
        bb.prune(params, units, r, 0.4, stats=stats)[1]["w"]
        for r in (rule, rules.wanda())
    ]
    np.testing.assert_array_equal(*masks)


@pytest.mark.long
def test_with_64_bit_types_on():
    w = np.asarray(weights())
    with jax.enable_x64(True):
        seen = candidates(FED, jnp.asarray(w), BUDGET, {"in": jnp.full(16, 0.3)})
        mask = rules.budgeted_broadcast().select(seen)
        everywhere = rules.budgeted_broadcast(scope="global")
        (other,) = everywhere.select(rules.Group((seen,), lambda which: BUDGET))
    assert mask.sum() == other.sum() == BUDGET


def test_names_say_what_differs():
    made = {
        "budgeted_broadcast": {},
        "budgeted_broadcast[threshold]": {"law": bb.laws.threshold()},
        "budgeted_broadcast[wanda]": {"score": "wanda"},
        "budgeted_broadcast[quantile, wanda, global]": {
            "law": bb.laws.quantile(),
            "score": "wanda",
            "scope": "global",
        },
        "budgeted_broadcast[wanda, calibrated]": {
            "score": "wanda",
            "spread": "calibrated",
        },
    }
    for name, options in made.items():
        assert rules.budgeted_broadcast(**options).name == name


# SparseGPT ------------------------------------------------------------------------
@pytest.mark.long
def test_sparsegpt_competes_by_its_own_cost():
    """Without a law and with competition alone, degrees are what the costs say."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 24)) @ rng.normal(size=(24, 24))
    gram = x.T @ x / len(x)
    w = np.asarray(weights(), np.float64)
    damp = 0.05
    damped = gram + damp * np.diag(gram).mean() * np.eye(24)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    cost = (w / np.diag(upper)[:, None]) ** 2
    order = np.argsort(-cost.ravel())[:BUDGET]
    want = np.bincount(order % 16, minlength=16)
    seen = candidates(FED, jnp.asarray(w, jnp.float32), BUDGET, {}, k_min=0)
    seen.statistics["inputs.gram"] = jnp.asarray(gram, jnp.float32)
    rule = rules.sparsegpt(competition=1.0, damp=damp)
    assert rule.needs == ("inputs.gram",)
    mask = np.asarray(rule.select(seen).mask)
    np.testing.assert_array_equal(mask.sum(0), want)
    assert np.ptp(want) > 4
