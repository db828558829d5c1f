"""What every rule must pass: an update without what the rule reads says so."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import bbjax as bb
from bbjax.rules.parts import selection
from tests.support.contract import (
    CASES,
    DENSITY,
    MLP,
    RULES,
    jitted,
    needs_activity,
    pruner,
)

READS_ACTIVITY = [name for name, row in RULES.items() if needs_activity(row)]


def _arguments():
    params = MLP.params()
    return params, *MLP.gradient(params, MLP.batch(0))


def _update(rule, **changes):
    """One update of the MLP with some of its arguments changed."""
    params, grads, activity = _arguments()
    tx = rule if hasattr(rule, "update") else pruner(RULES[rule])
    given = {"params": params, "activity": activity, "grads": grads} | changes
    return tx.update(grads, tx.init(params), given.pop("params"), **given)


@pytest.mark.parametrize("rule", RULES)
def test_missing_params(rule):
    with pytest.raises(ValueError, match="expected params, got None; call tx.update"):
        _update(rule, params=None)


@pytest.mark.parametrize("rule", READS_ACTIVITY)
def test_missing_activity(rule):
    name = RULES[rule].make().name
    with pytest.raises(ValueError) as error:
        _update(rule, activity=None)
    assert f"expected activity, which rule {name!r} needs, got None" in str(error.value)
    assert "activity=activity" in str(error.value)


@pytest.mark.parametrize("rule", [r for r in RULES if r not in READS_ACTIVITY])
def test_activity_may_be_left_out_by_rules_that_do_not_read_it(rule):
    params, grads, _ = _arguments()
    tx = pruner(RULES[rule])
    updates, _ = jax.eval_shape(
        lambda g, s, p: tx.update(g, s, p, grads=g), grads, tx.init(params), params
    )
    assert set(updates) == set(params)


@pytest.mark.parametrize("rule", RULES)
def test_kernel_missing_in_activity(rule):
    _, _, activity = _arguments()
    partial = {"up": activity["up"]}
    with pytest.raises(ValueError, match=r"expected activity of 'down', got \['up'\]"):
        _update(rule, activity=partial)


@pytest.mark.parametrize("rule", RULES)
def test_statistic_missing_in_activity(rule):
    _, _, activity = _arguments()
    bare = dataclasses.replace(activity["up"].outputs, on_rate=None)
    partial = activity | {"up": activity["up"]._replace(outputs=bare)}
    expected = "expected statistic 'on_rate' of the outputs of 'up', got none"
    with pytest.raises(ValueError, match=expected):
        _update(rule, activity=partial)


def _toy(*needs):
    """A rule that keeps the edges with the largest of what it reads."""

    def select(seen):
        score = seen.magnitude
        if seen.grads is not None:
            score = jnp.abs(seen.grads)
        return selection.best(seen, score, seen.budget)

    rule = bb.rules.Rule("toy", select, needs=needs)
    return bb.transform(MLP.units, rule, density=DENSITY, start=0)


def test_statistic_that_was_not_measured():
    expected = (
        "expected statistic 'mean_square' of the inputs of 'up'.*needs=rule.needs"
    )
    _, _, activity = _arguments()
    bare = dataclasses.replace(activity["up"].inputs, mean_square=None)
    partial = activity | {"up": activity["up"]._replace(inputs=bare)}
    with pytest.raises(ValueError, match=expected):
        _update(_toy("inputs.mean_square"), activity=partial)


def test_missing_gradients():
    expected = "expected dense gradients, which rule 'toy' needs, got None.*grads=grads"
    with pytest.raises(ValueError, match=expected):
        _update(_toy("grads"), grads=None)


def test_gradients_reach_the_rule():
    params, grads, activity = _arguments()
    tx = _toy("grads")
    _, state = jax.jit(lambda g: tx.update(g, tx.init(params), params, grads=g))(grads)
    kept = bb.masks(state)["up"]
    size = jnp.abs(grads["up"])
    assert float(size[kept].min()) >= float(size[~kept].max())


def test_gradient_of_a_kernel_is_missing():
    params, grads, _ = _arguments()
    with pytest.raises(ValueError, match="expected the gradient at 'down'"):
        _update(_toy("grads"), grads={"up": grads["up"]})


def test_kernel_missing_in_params():
    with pytest.raises(ValueError, match="expected the parameter at 'up'"):
        pruner(RULES["magnitude"]).init({"other": jnp.ones((2, 2))})


def test_kernel_of_another_shape():
    params = MLP.params() | {"up": jnp.ones((3, 3))}
    with pytest.raises(ValueError, match=r"expected 'up' of shape \(12, 24\)"):
        pruner(RULES["magnitude"]).init(params)


def test_activity_of_another_shape():
    _, _, activity = _arguments()
    other = CASES["conv"]
    wrong = other.gradient(other.params(), other.batch(0))[1]["conv"]
    with pytest.raises(ValueError, match="expected .* of 'up' of shape"):
        _update("log_odds", activity=activity | {"up": wrong})


@pytest.mark.long
def test_needs_are_checked_under_jit():
    params, grads, activity = _arguments()
    tx = pruner(RULES["log_odds"])
    with pytest.raises(ValueError, match="expected activity of 'down'"):
        jitted(tx)(grads, tx.init(params), params, {"up": activity["up"]})
