"""N:M patterns: groups along a unit's own edges, exact, with N of its own per unit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb
from tests.support.runs import candidates, chosen, dense, refreshed, select

KERNEL = dense(12, 10)
TWO_FOUR = bb.n_m(2, 4)
STACKED = bb.Kernel("w", (2, 8, 12), stack=(0,), fan_in=(1,), fan_out=(2,))
HEADS = bb.Kernel("w", (3, 8, 10), fan_in=(0, 1), fan_out=(2,))
TURNED = bb.Kernel("w", (10, 12), fan_in=(1,), fan_out=(0,))
CONV = bb.Kernel("w", (3, 3, 8, 6), spatial=(0, 1), fan_in=(2,), fan_out=(3,))
UNIFORM = [
    bb.rules.magnitude(),
    bb.rules.magnitude(scope="layer"),
    bb.rules.random(seed=3),
]


def groups(mask, kernel, actuator="in", m=4):
    """Edges kept per group: every other axis first, groups last."""
    axes = kernel.axes("in" if actuator == "in" else "out")
    rest = [a for a in range(mask.ndim) if a not in axes]
    rows = np.transpose(mask, [*rest, *axes])
    return rows.reshape(*rows.shape[: len(rest)], -1, m).sum(-1)


def choose(rule, kernel, budget, actuator="in", rates=None, pattern=TWO_FOUR, **rest):
    w = jax.random.normal(jax.random.key(0), kernel.split)

    @jax.jit
    def run(w, rates):
        rates = {} if rates is None else {actuator: rates}
        seen = candidates(
            kernel, w, budget, rates, (actuator,), pattern=pattern, **rest
        )
        return rule.select(seen)

    return np.asarray(run(w, rates)), np.asarray(w)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("rule", UNIFORM, ids=["unit", "layer", "random"])
@pytest.mark.parametrize(
    "kernel, actuator",
    [
        (KERNEL, "in"),
        (STACKED, "in"),
        (STACKED, "out"),
        (HEADS, "in"),
        (TURNED, "in"),
        (CONV, "in"),
    ],
    ids=["dense", "stack", "stack-out", "heads", "turned", "conv"],
)
def test_equal_degrees_give_exactly_n_of_every_group(rule, kernel, actuator):
    mask, _ = choose(rule, kernel, kernel.edge_count // 2, actuator)
    assert (groups(mask, kernel, actuator) == 2).all()


def test_the_best_of_every_group_stay():
    mask, w = choose(bb.rules.magnitude(), KERNEL, 60)
    size = np.abs(w).reshape(3, 4, 10)
    kept = mask.reshape(3, 4, 10)
    for g in range(3):
        for unit in range(10):
            best = set(np.argsort(-size[g, :, unit])[:2])
            assert set(np.flatnonzero(kept[g, :, unit])) == best


def test_equal_scores_keep_the_lowest_index():
    seen = candidates(KERNEL, jnp.ones((12, 10)), 60, pattern=TWO_FOUR)
    mask = np.asarray(bb.rules.magnitude().select(seen))
    assert mask[:, 0].tolist() == [True, True, False, False] * 3


def test_units_have_n_of_their_own_and_the_budget_is_exact():
    rate = jnp.linspace(0.05, 0.95, 10)
    rule = bb.rules.budgeted_broadcast(spread=0.4, competition=0)
    mask, _ = choose(rule, KERNEL, 60, rates=rate)
    n = groups(mask, KERNEL)
    assert (n == n[:, :1]).all()  # every group of a unit alike
    assert (np.diff(n[:, 0]) <= 0).all() and n[0, 0] > n[-1, 0]
    assert mask.sum() == 60 and n.min() >= 1


@pytest.mark.parametrize("density", [0.25, 0.5, 0.75, 0.3])
def test_budget_while_a_ramp_falls(density):
    """Between multiples of 1/4, the budget rounds to edges per group over all units."""
    rate = jnp.linspace(0.05, 0.95, 10)
    mask, _ = choose(
        bb.rules.budgeted_broadcast(), KERNEL, round(density * 120), rates=rate
    )
    assert mask.sum() == round(density * 40) * 3


@pytest.mark.long
def test_prune_only_runs_shrink_within_their_groups():
    first, _ = choose(bb.rules.magnitude(), KERNEL, 90, pattern=bb.n_m(3, 4))
    second, _ = choose(
        bb.rules.budgeted_broadcast(),
        KERNEL,
        60,
        rates=jnp.linspace(0.05, 0.95, 10),
        mask=jnp.asarray(first),
        regrow=False,
    )
    assert (second <= first).all() and second.sum() == 60


def test_training_keeps_the_pattern():
    """The density follows from the pattern, and the zeros hold after every step."""
    w = jax.random.normal(jax.random.key(1), KERNEL.shape)
    tx = optax.chain(
        optax.sgd(0.1),
        bb.transform(
            select(KERNEL),
            bb.rules.magnitude(),
            start=0,
            every=1,
            pattern=TWO_FOUR,
        ),
    )
    update = jax.jit(tx.update)
    params = {"w": w}
    state = tx.init(params)
    for _ in range(3):
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
        mask = np.asarray(bb.masks(state)["w"])
        assert (groups(mask, KERNEL) == 2).all()
        np.testing.assert_array_equal(np.asarray(params["w"]) != 0, mask)


@pytest.mark.long
def test_metrics_report_the_density_of_the_pattern():
    w = jax.random.normal(jax.random.key(1), KERNEL.shape)
    _, state = refreshed(KERNEL, bb.rules.magnitude(), w, None, pattern=TWO_FOUR)
    seen = bb.metrics(state)
    assert float(seen["overall/density_got"]) == 0.5
    assert float(seen["w/density_asked"]) == 0.5


@pytest.mark.parametrize(
    "kind, text, options",
    [
        (TypeError, "pattern from bb.n_m, got '2:4'; e.g.", {"pattern": "2:4"}),
        (
            ValueError,
            "multiple of 5 for the pattern 2:5, got size 12",
            {"pattern": bb.n_m(2, 5)},
        ),
        (
            ValueError,
            "density 0.5 with the pattern 2:4, got 0.7; leave density out",
            {"pattern": TWO_FOUR, "density": 0.7},
        ),
        (
            ValueError,
            "one actuator for 'w' with the pattern 2:4, got in and out",
            {"pattern": TWO_FOUR, "units": select(KERNEL, "in", "out")},
        ),
        (
            ValueError,
            "density of at least 0.5 for 'w' .*k_min=5",
            {"pattern": bb.n_m(1, 4), "k_min": 5},
        ),
    ],
)
def test_refusals(kind, text, options):
    with pytest.raises(kind, match=text):
        bb.transform(
            **{"units": select(KERNEL), "rule": bb.rules.magnitude()} | options
        )


@pytest.mark.parametrize(
    "kind, text, n, m",
    [
        (ValueError, r"n: expected an int in \[1, 4\], got 5; it is how many", 5, 4),
        (ValueError, r"n: expected an int in \[1, 4\], got 0", 0, 4),
        (TypeError, r"m: expected an int in .*got 4.0; it is the number", 2, 4.0),
    ],
)
def test_patterns_that_are_none(kind, text, n, m):
    with pytest.raises(kind, match=text):
        bb.n_m(n, m)


@pytest.mark.long
def test_a_pattern_says_what_it_is():
    assert str(TWO_FOUR) == "2:4" and TWO_FOUR.density == 0.5
    assert (chosen(bb.rules.magnitude(), KERNEL, jnp.ones((12, 10)), 60)).sum() == 60
