"""Every metric against numpy, the line fit on planted lines, and overall values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb
from bbjax.activity.statistics import Activity
from tests.support.runs import dense, packed, select, statistics

UP = dense(10, 8, "up")
STACK = bb.Kernel("stack", (2, 6, 9), stack=(0,), fan_in=(1,), fan_out=(2,))
NAMES = {
    "density_asked",
    "density_got",
    "degree_mean",
    "degree_min",
    "degree_max",
    "dead_units",
    "traffic",
    "coding_entropy",
    "churn",
    "pruned_nonzero",
    "balance_slope",
    "balance_r2",
}


def measured(state):
    values = jax.jit(bb.metrics)(state)
    assert all(v.shape == () and v.dtype == jnp.float32 for v in values.values())
    return {name: float(value) for name, value in values.items()}


def line(k, a, low, high):
    """Slope and R2 of the log-odds on the degree, over the units off their bounds."""
    free = (k > low) & (k < high) & (a > 1e-2) & (a < 1 - 1e-2)
    k, odds = k[free], np.log((1 - a[free]) / a[free])
    return np.polyfit(k, odds, 1)[0], np.corrcoef(k, odds)[0, 1] ** 2


def expected(k, a, edges, asked, flipped, bounds):
    k, a = k.ravel().astype(np.float64), a.ravel().astype(np.float64)
    slope, r2 = line(k, a, *bounds)
    entropy = -(a * np.log2(a) + (1 - a) * np.log2(1 - a))
    return {
        "density_asked": asked,
        "density_got": k.sum() / edges,
        "degree_mean": k.mean(),
        "degree_min": k.min(),
        "degree_max": k.max(),
        "dead_units": ((k == 0) | (a <= 1e-3)).sum(),
        "traffic": (a * k).sum(),
        "coding_entropy": entropy.mean(),
        "churn": flipped / edges,
        "pruned_nonzero": 0,
        "balance_slope": slope,
        "balance_r2": r2,
    }


def check(values, name, want):
    got = {n: values[f"{name}/{n}"] for n in NAMES}
    assert want.keys() == NAMES
    for metric in NAMES:
        np.testing.assert_allclose(
            got[metric], want[metric], rtol=2e-4, atol=1e-6, err_msg=metric
        )


@pytest.fixture(scope="module")
def run():
    """Two refreshes of two kernels, one of them with both actuators."""
    rng = np.random.default_rng(5)
    units = bb.Units((UP, STACK))
    units = (
        units.select("up") + units.select("stack", "in") + units.select("stack", "out")
    )
    tx = bb.transform(
        units, bb.rules.budgeted_broadcast(beta=0.7), density=0.5, start=0, every=1
    )
    step = jax.jit(tx.update)

    def draw(kernel):
        return jnp.asarray(rng.normal(size=kernel.shape), jnp.float32)

    def rates(*shape):
        return statistics(rng.uniform(0.05, 0.95, shape))

    params = {"up": draw(UP), "stack": draw(STACK)}
    states = [tx.init(params)]
    for _ in range(2):
        seen = {
            "up": Activity(rates(10), rates(8)),
            "stack": Activity(rates(2, 6), rates(2, 9)),
        }
        updates = {"up": draw(UP), "stack": draw(STACK)}
        landed, state = step(updates, states[-1], params, activity=seen)
        params = jax.tree.map(jnp.add, params, landed)
        states.append(state)
    return states


@pytest.mark.long
def test_every_metric_against_numpy(run):
    _, before, state = run
    values = measured(state)
    names = {"up", "stack:in", "stack:out", "overall"}
    assert values.keys() == {f"{name}/{metric}" for name in names for metric in NAMES}
    masks = [jax.tree.map(np.asarray, bb.masks(s)) for s in (before, state)]
    flips = {path: (masks[0][path] ^ masks[1][path]).sum() for path in masks[0]}
    assert min(flips.values()) > 0
    for name, fan in (("up", 10), ("stack:in", 6), ("stack:out", 9)):
        path = name.split(":")[0]
        k, a = (np.asarray(f(state)[name]) for f in (bb.degrees_of, bb.on_rates))
        edges = masks[1][path].size
        check(values, name, expected(k, a, edges, 0.5, flips[path], (1, fan)))


@pytest.mark.long
def test_overall_pools_units_and_edges(run):
    _, _, state = run
    values = measured(state)
    sides = {"up": 80, "stack:in": 108, "stack:out": 108}
    units = {"up": 8, "stack:in": 18, "stack:out": 12}
    for metric, weights in (
        ("density_got", sides),
        ("churn", sides),
        ("degree_mean", units),
        ("coding_entropy", units),
    ):
        parts = [values[f"{n}/{metric}"] for n in sides]
        want = np.average(parts, weights=list(weights.values()))
        np.testing.assert_allclose(values[f"overall/{metric}"], want, rtol=1e-5)
    for metric, pool in (
        ("degree_min", min),
        ("degree_max", max),
        ("dead_units", sum),
        ("traffic", sum),
    ):
        want = pool(values[f"{n}/{metric}"] for n in sides)
        np.testing.assert_allclose(values[f"overall/{metric}"], want, rtol=1e-5)


@pytest.mark.long
def test_before_the_first_update(run):
    values = measured(run[0])
    assert values["overall/density_asked"] == values["overall/density_got"] == 1
    assert values["overall/churn"] == values["overall/dead_units"] == 0
    assert values["up/traffic"] == 0.5 * 80 and values["up/coding_entropy"] == 1
    assert np.isnan(values["overall/balance_slope"])


@pytest.mark.long
def test_in_and_out_of_jit_and_at_any_depth(run):
    inside = measured(run[-1])
    outside = bb.metrics((optax.EmptyState(), {"deep": run[-1]}))
    assert outside.keys() == inside.keys()
    for name, value in outside.items():
        np.testing.assert_allclose(value, inside[name], rtol=1e-5)


# States by hand ------------------------------------------------------------------
def by_hand(degrees, rates, fan=20, k_min=1):
    """A state whose units have these degrees and on-rates."""
    kernel = dense(fan, len(degrees))
    tx = bb.transform(select(kernel), k_min=k_min, density=0.9)
    state = tx.init({"w": jnp.zeros(kernel.shape)})
    mask = np.arange(fan)[:, None] < np.asarray(degrees)
    means = dict(state.bb_means["w"])
    means["outputs.on_rate"] = jnp.asarray(rates, jnp.float32)
    means["outputs.weight"] = jnp.ones(len(degrees))
    return state._replace(bb_masks={"w": packed(kernel, mask)}, bb_means={"w": means})


def balanced(k, beta, offset=0.0):
    return 1 / (1 + np.exp(beta * np.asarray(k) + offset))


@pytest.mark.long
@pytest.mark.parametrize("beta, offset", [(0.25, 0.0), (0.1, -1.0), (-0.3, 2.0)])
def test_a_planted_line_is_found(beta, offset):
    k = [3, 4, 7, 9, 12, 15]
    values = measured(by_hand(k, balanced(k, beta, offset)))
    np.testing.assert_allclose(values["w/balance_slope"], beta, rtol=1e-4)
    np.testing.assert_allclose(values["w/balance_r2"], 1, rtol=1e-4)


@pytest.mark.long
def test_units_on_a_bound_are_left_out_of_the_line():
    """At k_min, at the full fan, never on, or always on: the balance cannot hold."""
    k = [3, 4, 7, 9, 2, 20, 10, 11]
    rates = balanced(k, 0.2)
    rates[4:] = 0.9, 0.9, 0.0, 1.0
    values = measured(by_hand(k, rates, k_min=2))
    np.testing.assert_allclose(values["w/balance_slope"], 0.2, rtol=1e-4)
    np.testing.assert_allclose(values["w/balance_r2"], 1, rtol=1e-4)


@pytest.mark.long
def test_scatter_lowers_r2_only():
    k = np.array([4, 4, 8, 8, 12, 12])
    rates = balanced(k, 0.2, np.array([0.5, -0.5] * 3))
    values = measured(by_hand(k, rates))
    np.testing.assert_allclose(values["w/balance_slope"], 0.2, rtol=1e-4)
    assert 0.5 < values["w/balance_r2"] < 0.9


@pytest.mark.long
@pytest.mark.parametrize(
    "k, rates",
    [
        ([5, 5, 5, 5], [0.1, 0.2, 0.3, 0.4]),
        ([5, 6, 7, 8], [0.5] * 4),
        (list(range(3, 10)), [0.3] * 7),
        ([5, 6, 20, 1], [0.1, 0.2, 0.3, 0.4]),
    ],
    ids=["one degree", "one on-rate", "its mean rounds", "two free units"],
)
def test_a_line_that_cannot_be_fitted_is_nan(k, rates):
    values = measured(by_hand(k, rates))
    assert np.isnan(values["w/balance_slope"]) and np.isnan(values["w/balance_r2"])
    assert np.isfinite(values["w/traffic"])


@pytest.mark.long
def test_dead_units_lack_edges_or_activity():
    values = measured(by_hand([0, 4, 4, 4], [0.5, 0.0, 1e-4, 0.5], k_min=0))
    assert values["w/dead_units"] == 3
    assert values["w/degree_min"] == 0 and values["w/degree_max"] == 4


@pytest.mark.long
def test_coding_entropy_is_finite_at_the_ends():
    values = measured(by_hand([4, 4, 4, 4], [0.0, 1.0, 0.5, 0.5]))
    np.testing.assert_allclose(values["w/coding_entropy"], 0.5, atol=1e-5)


def test_a_state_without_pruning():
    with pytest.raises(ValueError, match="expected an optimizer state with bb.transf"):
        bb.metrics(optax.EmptyState())
