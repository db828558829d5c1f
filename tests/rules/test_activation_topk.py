"""Whole units by activity: who stays, with what, and who may return."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax.rules import activation_topk
from tests.support.runs import candidates, dense, select

SIDES = pytest.mark.parametrize("actuator", ["in", "out"])
STACK = bb.Kernel("w", (2, 5, 6), stack=(0,), fan_in=(1,), fan_out=(2,))
CONV = bb.Kernel("c", (3, 3, 4, 6), fan_in=(2,), fan_out=(3,), spatial=(0, 1))


def seen_with(kernel, actuator, statistic, values, budget, **rest):
    w = jnp.ones(kernel.split)
    seen = candidates(kernel, w, budget, actuators=(actuator,), **rest)
    side = "outputs" if actuator == "in" else "inputs"
    return dataclasses.replace(seen, statistics={f"{side}.{statistic}": values})


def kept(kernel, actuator, values, budget, statistic="mean_abs", **rest):
    rule = activation_topk(statistic=statistic)

    def run(values):
        return rule.select(
            seen_with(kernel, actuator, statistic, values, budget, **rest)
        )

    return np.asarray(jax.jit(run)(jnp.asarray(values)))


def test_hand_case():
    """Half of four units, the two most active ones; of equal ones the first."""
    mask = kept(dense(3, 4), "in", [0.1, 0.7, 0.7, 0.7], budget=6)
    assert mask.astype(int).tolist() == [[0, 1, 1, 0]] * 3
    mask = kept(dense(4, 3), "out", [0.1, 0.7, 0.9, 0.2], budget=6)
    assert mask.astype(int).tolist() == [[0] * 3, [1] * 3, [1] * 3, [0] * 3]


@pytest.mark.long
@SIDES
@pytest.mark.parametrize("kernel", [STACK, CONV], ids=["stack", "conv"])
def test_density_is_a_share_of_units(kernel, actuator, getkey):
    side = "outputs" if actuator == "in" else "inputs"
    values = jax.random.uniform(getkey(), kernel.per_unit_shape(side))
    units, fan = kernel.unit_count(actuator), kernel.fan(actuator)
    for count in (1, 2, units):
        mask = kept(kernel, actuator, values, budget=count * fan)
        k = np.asarray(kernel.gather(jnp.asarray(mask, jnp.int32), side))
        assert set(np.unique(k)) <= {0, fan}
        assert ((k > 0).sum(-1) == count).all()
        least = np.where(k > 0, values, np.inf).min(-1)
        assert (least >= np.where(k > 0, -np.inf, values).max(-1)).all()


@pytest.mark.long
def test_one_unit_stays_at_the_lowest_density():
    assert kept(dense(3, 4), "in", [0.1, 0.2, 0.9, 0.3], budget=1).sum() == 3


@pytest.mark.long
def test_a_unit_that_is_gone_counts_for_none():
    """In a prune-only run the activity that is left of it, its bias, wins nothing."""
    mask = np.array([[1, 0, 1, 1]] * 3, bool)
    values = [0.5, 9.0, 0.1, 0.7]
    gone = kept(dense(3, 4), "in", values, 6, mask=mask, regrow=False)
    assert gone.astype(int).tolist() == [[1, 0, 0, 1]] * 3
    back = kept(dense(3, 4), "in", values, 6, mask=mask, regrow=True)
    assert back.astype(int).tolist() == [[0, 1, 0, 1]] * 3


@pytest.mark.long
@pytest.mark.parametrize("statistic", ["mean_abs", "mean_square", "max_abs", "on_rate"])
def test_any_measure_of_activity(statistic):
    assert activation_topk(statistic=statistic).needs == (statistic,)
    mask = kept(dense(2, 3), "in", [0.2, 0.9, 0.1], 2, statistic=statistic)
    assert mask.sum(0).tolist() == [0, 2, 0]


def test_bad_arguments():
    with pytest.raises(
        ValueError, match="expected a statistic out of .*'zero_share'; "
    ):
        activation_topk(statistic="zero_share")
    with pytest.raises(ValueError, match="one actuator for 'w' with rule 'activation_"):
        bb.transform(select(dense(3, 4), "in", "out"), activation_topk())
