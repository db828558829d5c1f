"""The slope chosen on calibration data: what it minimises, and what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax import rules
from bbjax.rules.parts.calibrated import SPREADS, output_error
from tests.support.contract import compilations
from tests.support.runs import candidates, chosen, dense

STACKED = bb.Kernel("w", (3, 12, 8), stack=(0,), fan_in=(1,), fan_out=(2,))
RULE = rules.budgeted_broadcast(spread="calibrated", competition=0)


def seen_with(kernel, w, budget, rates, gram, actuators=("in",), **rest):
    seen = candidates(kernel, w, budget, rates, actuators, **rest)
    seen.statistics["inputs.gram"] = jnp.asarray(gram, jnp.float32)
    return seen


def problem(seed, kernel):
    """Weights, correlated inputs and on-rates, as numpy in float64."""
    rng = np.random.default_rng(seed)
    *stack, n, units = kernel.shape
    x = rng.normal(size=(*stack, 200, n)) @ rng.normal(size=(*stack, n, n))
    gram = np.swapaxes(x, -1, -2) @ x / 200
    w = rng.normal(size=kernel.shape) * np.exp(rng.normal(size=(*stack, 1, units)))
    return w, x, gram, rng.uniform(0.02, 0.98, (*stack, units))


@pytest.mark.parametrize("actuator", ["in", "out"])
@pytest.mark.parametrize("kernel", [dense(12, 8), STACKED], ids=["plain", "stacked"])
def test_the_error_is_that_of_the_outputs(kernel, actuator):
    w, x, gram, _ = problem(0, kernel)
    mask = np.random.default_rng(1).random(kernel.shape) < 0.5
    want = np.mean(np.sum((x @ np.where(mask, 0, w)) ** 2, -1), -1)
    seen = seen_with(kernel, jnp.asarray(w, jnp.float32), 48, {}, gram, (actuator,))
    got = output_error(seen, jnp.asarray(mask))
    assert got.shape == kernel.stack_shape
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("score", ["magnitude", "wanda"])
@pytest.mark.parametrize("competition", [0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_every_slice_takes_the_slope_of_least_error(score, competition, seed):
    w, x, gram, rate = problem(seed, STACKED)
    w = jnp.asarray(w, jnp.float32)
    square = jnp.asarray(np.mean(x**2, -2), jnp.float32)
    seen = seen_with(STACKED, w, 40, {"in": jnp.asarray(rate, jnp.float32)}, gram)
    seen.statistics["inputs.mean_square"] = square
    options = {"score": score, "competition": competition}
    errors, masks = [], []
    for spread in SPREADS:
        rule = rules.budgeted_broadcast(spread=spread, **options)
        masks.append(np.asarray(rule.select(seen)))
        lost = np.where(masks[-1], 0, np.asarray(w, np.float64))
        errors.append(np.mean(np.sum((x @ lost) ** 2, -1), -1))
    errors = np.array(errors)
    rule = rules.budgeted_broadcast(spread="calibrated", **options)
    choice = rule.select(seen)
    for s in range(3):
        best = errors[:, s].argmin()
        assert choice.fitted.spread[s] == np.float32(SPREADS[best])
        np.testing.assert_array_equal(choice.mask[s], masks[best][s])
        np.testing.assert_allclose(choice.fitted.error[s], errors[best, s], rtol=1e-4)
        np.testing.assert_allclose(choice.fitted.level[s], errors[0, s], rtol=1e-4)
    assert (choice.fitted.error <= choice.fitted.level).all()


@pytest.mark.long
@pytest.mark.parametrize("sign", [1, -1])
def test_the_sign_follows_the_data(sign):
    """Units whose weights are all alike need edges; others can do with few.

    Where the quiet units are the needy ones the balance is chosen, and its reverse
    where the busy ones are.
    """
    kernel = dense(40, 20)
    rng = np.random.default_rng(0)
    w = rng.normal(size=(40, 20))
    w[:, :10] *= np.exp(-0.3 * np.arange(40))[:, None]  # few edges carry all
    w[:, 10:] = np.sign(w[:, 10:])  # every edge counts
    needy_is_quiet = np.where(np.arange(20) < 10, 0.8, 0.2)
    rate = needy_is_quiet if sign > 0 else 1 - needy_is_quiet
    seen = seen_with(
        kernel,
        jnp.asarray(w, jnp.float32),
        400,
        {"in": jnp.asarray(rate, jnp.float32)},
        np.eye(40),
    )
    fitted = RULE.select(seen).fitted
    assert np.sign(fitted.spread) == sign and fitted.error < 0.9 * fitted.level


@pytest.mark.long
def test_equal_errors_choose_no_slope():
    """Without a difference in activity no slope changes anything."""
    w, _, gram, _ = problem(0, dense(12, 8))
    seen = seen_with(dense(12, 8), jnp.asarray(w, jnp.float32), 48, {}, gram)
    assert RULE.select(seen).fitted.spread == 0


@pytest.mark.long
def test_patterns_are_kept():
    w, _, gram, rate = problem(2, dense(12, 8))
    rates = {"in": jnp.asarray(rate, jnp.float32)}
    seen = seen_with(
        dense(12, 8), jnp.asarray(w, jnp.float32), 48, rates, gram, pattern=bb.n_m(2, 4)
    )
    groups = np.asarray(RULE.select(seen).mask).reshape(3, 4, 8).sum(1)
    assert groups.sum() == 48 and (groups == groups[:1]).all()


# The model ------------------------------------------------------------------------
def fn(params, x):
    def layer(h, w):
        return h + jax.nn.relu(h @ w["up"]) @ w["down"], None

    return jax.lax.scan(layer, x, params["layers"])[0] @ params["head"]


def model():
    keys = jax.random.split(jax.random.key(0), 4)
    layers = {
        "up": jax.random.normal(keys[0], (3, 8, 24)),
        "down": jax.random.normal(keys[1], (3, 24, 8)) / 5,
    }
    params = {"layers": layers, "head": jax.random.normal(keys[2], (8, 2))}
    return params, jax.random.normal(keys[3], (200, 8))


@pytest.mark.long
def test_spreads_are_those_that_prune_takes():
    params, x = model()
    units = bb.trace(fn, params, x).select("up|down")
    stats = bb.calibrate(fn, units, params, [(x,)], needs=RULE.needs)
    found = bb.spreads(params, units, RULE, 0.4, stats=stats)
    assert set(found) == {"layers/up", "layers/down"}
    _, masks = bb.prune(params, units, RULE, 0.4, stats=stats)
    for path, fitted in found.items():
        assert fitted.spread.shape == fitted.error.shape == (3,)
        assert (fitted.error <= fitted.level).all()
        only = units.only([path])
        law = bb.laws.log_odds(spread=fitted.spread)
        again = bb.prune(
            params, only, rules.budgeted_broadcast(law=law), 0.4, stats=stats
        )[1]
        np.testing.assert_array_equal(again[path], masks[path])


@pytest.mark.long
def test_in_the_order_of_layers():
    params, x = model()
    units = bb.trace(fn, params, x).select("up|down")
    _, masks = bb.prune_in_order(fn, params, units, RULE, [(x,)], 0.4)
    assert {p: int(m.sum()) for p, m in masks.items()} == {
        "layers/up": 3 * round(0.4 * 192),
        "layers/down": 3 * round(0.4 * 192),
    }


# Errors ---------------------------------------------------------------------------
def test_convolutions_are_refused():
    kernel = bb.Kernel("c", (3, 4, 6), spatial=(0,), fan_in=(1,), fan_out=(2,))
    seen = candidates(kernel, jnp.ones(kernel.shape), 12)
    with pytest.raises(ValueError, match="1x1 conv.*'c' with window .3,..*a number"):
        RULE.select(seen)
    grouped = bb.Kernel(
        "g",
        (4, 6),
        groups=2,
        split=(4, 2, 3),
        roles=("in", "group", "out"),
    )
    seen = candidates(grouped, jnp.ones(grouped.split), 12)
    with pytest.raises(ValueError, match="'g' with 2 groups; leave"):
        RULE.select(seen)


def test_other_rules_choose_no_slope():
    params, x = model()
    units = bb.trace(fn, params, x).select("up")
    stats = bb.calibrate(fn, units, params, [(x,)])
    rule = rules.budgeted_broadcast()
    with pytest.raises(ValueError, match="expected a rule that chooses its slope, got"):
        bb.spreads(params, units, rule, 0.4, stats=stats)
    with pytest.raises(ValueError, match="expected stats, which rule .*bb.calibrate"):
        bb.spreads(params, units, RULE, 0.4, stats=None)


def test_training_refuses_it():
    params, x = model()
    units = bb.trace(fn, params, x).select("up")
    with pytest.raises(ValueError, match="can refresh masks while training.*bb.prune"):
        bb.transform(units, RULE, density=0.4)


@pytest.mark.long
def test_masks_equal_those_chosen_alone():
    """The rule as a function of candidates gives a choice, its mask is exact."""
    w, _, gram, rate = problem(1, dense(12, 8))
    rates = {"in": jnp.asarray(rate, jnp.float32)}
    seen = seen_with(dense(12, 8), jnp.asarray(w, jnp.float32), 48, rates, gram)
    choice = jax.jit(lambda: RULE.select(seen))()
    rule = rules.budgeted_broadcast(spread=choice.fitted.spread, competition=0)
    want = chosen(rule, dense(12, 8), jnp.asarray(w, jnp.float32), 48, rates)
    np.testing.assert_array_equal(choice.mask, want)


def test_compiled_once_and_for_all():
    """Eager calls do not compile the loop over slopes anew."""
    params, x = model()
    units = bb.trace(fn, params, x).select("up|down")
    stats = bb.calibrate(fn, units, params, [(x,)], needs=RULE.needs)
    bb.prune(params, units, RULE, 0.4, stats=stats)
    with compilations() as made:
        bb.prune(params, units, RULE, 0.4, stats=stats)
    assert made.count == 0


@pytest.mark.long
def test_a_weight_that_is_not_finite_counts_as_0():
    w, _, gram, rate = problem(1, dense(12, 8))
    rates = {"in": jnp.asarray(rate, jnp.float32)}
    broken, mended = (jnp.asarray(w, jnp.float32).at[3, 2].set(v) for v in (jnp.nan, 0))
    found = [
        RULE.select(seen_with(dense(12, 8), v, 48, rates, gram)).fitted
        for v in (broken, mended)
    ]
    assert np.isfinite(found[0].error)
    np.testing.assert_allclose(found[0].error, found[1].error, rtol=1e-6)
