"""Whole runs of `bb.transform` against an oracle, over a table of settings.

Both get the same initial weights, updates and activity. Masks and degrees must be
equal after every update; the oracle reports the smallest gap by which it decided, so
that a float64 oracle is known to be beyond the reach of float32 rounding. On integers
everything is exact, and ties are everywhere.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax.activity.statistics import Activity, Statistics
from bbjax.rules.base import side_of
from tests.support import oracle

UPDATES = 12
ROLES = ("spatial", "spatial", "in", "group", "out")
MODELS = {
    "dense": (oracle.dense(8, 11), {"fan_in": (0,), "fan_out": (1,)}),
    "transposed": (oracle.transposed(9, 6), {"fan_in": (1,), "fan_out": (0,)}),
    "stacked": (
        oracle.stacked(3, 6, 7),
        {"stack": (0,), "fan_in": (1,), "fan_out": (2,)},
    ),
    "heads": (oracle.heads(7, 2, 5), {"fan_in": (0,), "fan_out": (1, 2)}),
    "conv": (
        oracle.conv(3, 2, 5, 8),
        {"spatial": (0, 1), "fan_in": (2,), "fan_out": (3,)},
    ),
    "grouped": (
        oracle.conv(3, 3, 8, 6, groups=2),
        {"groups": 2, "split": (3, 3, 4, 2, 3), "roles": ROLES},
    ),
}
# What the oracle is told, and the rule that must do the same.
LAWS = {
    "default": (
        {"law": oracle.log_odds(), "competition": 0.75},
        bb.rules.budgeted_broadcast(),
    ),
    "log_odds": (
        {"law": oracle.log_odds()},
        bb.rules.budgeted_broadcast(competition=0),
    ),
    "steep": (
        {"law": oracle.log_odds(spread=0.6, limit=3.0, dead=0.2, floor=0.3)},
        bb.rules.budgeted_broadcast(
            law=bb.laws.log_odds(spread=0.6, limit=3.0, dead=0.2, floor=0.3)
        ),
    ),
    "half": (
        {"law": oracle.log_odds(spread=-0.2), "competition": 0.5},
        bb.rules.budgeted_broadcast(spread=-0.2, competition=0.5),
    ),
    "dead": (
        {"law": oracle.log_odds(dead=0.4), "competition": 0.9},
        bb.rules.budgeted_broadcast(law=bb.laws.log_odds(dead=0.4), competition=0.9),
    ),
    "beta": ({"law": oracle.log_odds(0.4)}, bb.rules.budgeted_broadcast(beta=0.4)),
    "uniform": ({"law": oracle.uniform()}, bb.rules.magnitude()),
    "linear": ({"law": oracle.linear()}, bb.rules.activity_only()),
    "threshold": (
        {"law": oracle.threshold()},
        bb.rules.budgeted_broadcast(law=bb.laws.threshold()),
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    model: str = "dense"
    law: str = "log_odds"
    actuators: tuple = ("in",)
    integers: bool = False
    raw: bool = False
    ramp: tuple = ()
    options: Any = dataclasses.field(default_factory=dict)


def case(model="dense", law="log_odds", actuators=("in",), ramp=(), **options):
    integers, raw = options.pop("integers", False), options.pop("raw", False)
    defaults = {"density": 0.52, "every": 1, "start": 0, "ema": 0.8}
    return Case(model, law, actuators, integers, raw, ramp, defaults | options)


OUT, BOTH = ("out",), ("in", "out")
CASES = {
    # Every law, refreshed at every update: weights come and go.
    "default": case(law="default"),
    "log odds": case(),
    "steep": case(law="steep", density=0.4),
    "half competition": case(law="half", density=0.3),
    "dead units do not compete": case(law="dead", density=0.3),
    "slope given": case(law="beta"),
    "uniform": case(law="uniform"),
    "linear": case(law="linear", density=0.3),
    "threshold": case(law="threshold", density=0.4),
    # When.
    "late, and not often": case(every=3, start=2, stop=8),
    "linear ramp": case(ramp=(0.31, 1, 7, 1)),
    "cubic ramp": case(law="beta", every=2, ramp=(0.21, 2, 9, 3)),
    "running mean of one": case(ema=0.0),
    # What comes back, and how large.
    "nothing comes back": case(regrow=False, ramp=(0.31, 0, 9, 1)),
    "nothing comes back, out": case(
        "transposed", actuators=OUT, regrow=False, ramp=(0.41, 0, 9, 1)
    ),
    "rescaled": case(rescale=True, ramp=(0.34, 0, 6, 1)),
    "rescaled, nothing comes back": case(
        rescale=True, regrow=False, ramp=(0.43, 0, 9, 1)
    ),
    "units may lose all": case(k_min=0, density=0.11, rescale=True),
    "a floor of three": case(k_min=3, density=0.44),
    "default, nothing comes back": case(
        law="default", regrow=False, ramp=(0.31, 0, 9, 1)
    ),
    # Which side.
    "default, out": case(law="default", actuators=OUT, density=0.3),
    "default, out, raw inputs": case(law="default", actuators=OUT, raw=True),
    "default, both": case("stacked", law="default", actuators=BOTH, density=0.61),
    "default, both, raw inputs": case(
        law="default", actuators=BOTH, raw=True, density=0.61
    ),
    "out": case(actuators=OUT),
    "both": case(actuators=BOTH, density=0.61),
    "both, sparse": case("transposed", actuators=BOTH, density=0.37),
    "both, rescaled": case(actuators=BOTH, rescale=True, ramp=(0.38, 0, 6, 1)),
    "both, nothing comes back": case(
        actuators=BOTH, regrow=False, k_min=2, ramp=(0.47, 0, 9, 1)
    ),
    # Where.
    "transposed": case("transposed", law="beta"),
    "stacked": case("stacked", rescale=True),
    "stacked, out": case("stacked", actuators=OUT, law="beta"),
    "stacked, both": case("stacked", actuators=BOTH),
    "heads": case("heads", law="linear"),
    "conv": case("conv", rescale=True, density=0.33),
    "conv, both": case("conv", actuators=BOTH),
    "grouped": case("grouped", rescale=True, density=0.38),
    "grouped, out": case("grouped", actuators=OUT),
    "default, conv": case("conv", law="default", rescale=True, density=0.33),
    "default, grouped, out": case("grouped", law="default", actuators=OUT),
    "grouped, both": case("grouped", actuators=BOTH, density=0.63),
    # Integers: ties everywhere, and no rounding.
    "ties": case(integers=True),
    "ties, default": case(law="default", integers=True, ema=0.0, density=0.4),
    "ties, default, stacked": case("stacked", law="default", integers=True, ema=0.0),
    "ties, uniform, out": case(law="uniform", actuators=OUT, integers=True),
    "ties, linear": case("transposed", law="linear", integers=True, ema=0.0),
    "ties, threshold": case(law="threshold", integers=True, ema=0.0, k_min=0),
    "ties, conv": case("conv", integers=True, density=0.3),
    "ties, nothing comes back": case(
        integers=True, regrow=False, k_min=3, ramp=(0.42, 0, 30, 1)
    ),
    "ties, both": case("heads", actuators=BOTH, integers=True, density=0.6),
}


def run_inputs(case, layout, rng):
    """Initial weights, then updates and activity of every step."""
    shape = layout.shape
    if case.integers:
        first = rng.integers(-3, 4, shape)
        updates = rng.integers(-1, 2, (UPDATES, *shape))
    else:
        first = rng.normal(size=shape)
        updates = 0.5 * rng.normal(size=(UPDATES, *shape))
    activity = [
        {a: measured(case, layout, a, rng) for a in ("in", "out")}
        for _ in range(UPDATES)
    ]
    return np.float32(first), np.float32(updates), activity


def measured(case, layout, actuator, rng):
    """On-rates and counts, some of them missing."""
    size = (len(layout.slices), layout.units(actuator))
    if case.integers:
        rate = rng.choice(np.float32([0.25, 0.5, 1.0]), size)
    else:
        rate = np.float32(rng.uniform(0.02, 0.98, size))
    count = np.float32(rng.choice([0.0, 32.0], size, p=[0.2, 0.8]))
    return np.where(rng.random(size) < 0.05, np.float32(np.nan), rate), count


def as_activity(kernel, activity):
    sides = {}
    for actuator, (rate, count) in activity.items():
        units = kernel.out_units if actuator == "in" else kernel.in_units
        shape = kernel.stack_shape + units
        on_rate, count = jnp.reshape(rate, shape), jnp.reshape(count, shape)
        sides[side_of(actuator)] = Statistics(on_rate=on_rate, count=count)
    return {kernel.path: Activity(**sides)}


def build(case):
    layout, axes = MODELS[case.model]
    reads = () if case.raw else ("before",)
    kernel = bb.Kernel("w", layout.shape, reads=reads, **axes)
    picks = [bb.Units((kernel,)).select("w", a) for a in case.actuators]
    units = sum(picks[1:], picks[0])
    told, rule = LAWS[case.law]
    densities = {}, {}
    if case.ramp:
        densities = (
            {"density": oracle.ramp(*case.ramp)},
            {"density": bb.ramp(*case.ramp)},
        )
    tx = bb.transform(units, rule, **(case.options | densities[1]))

    def start(params):
        options = case.options | densities[0]
        options |= {"actuators": case.actuators, "raw": case.raw}
        return oracle.Oracle(layout, params, **told, **options)

    return kernel, tx, start


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", CASES)
def test_run(name):
    case = CASES[name]
    kernel, tx, start = build(case)
    rng = np.random.default_rng(sum(map(ord, name)))
    first, updates, activity = run_inputs(case, MODELS[case.model][0], rng)
    want = start(first)
    params = {"w": jnp.asarray(first)}
    state = tx.init(params)

    @jax.jit
    def step(params, state, u, seen):
        landed, state = tx.update({"w": u}, state, params, activity=seen)
        return jax.tree.map(jnp.add, params, landed), state

    flips = 0
    for u, seen in zip(updates, activity, strict=True):
        before = want.full_mask()
        want.update(u, seen)
        params, state = step(params, state, u, as_activity(kernel, seen))
        agree(case, kernel, want, params, state)
        flips += (before != want.full_mask()).sum()
    assert flips > 0 and want.margin > (0 if case.integers else 1e-5), want.margin


def agree(case, kernel, want, params, state):
    mask = np.asarray(bb.masks(state)["w"])
    np.testing.assert_array_equal(mask, want.full_mask())
    got = np.asarray(params["w"])
    assert (got[~mask] == 0).all()
    tolerance = {"rtol": 1e-5, "atol": 2e-6}
    if case.integers:
        tolerance = {"rtol": 0, "atol": 0}
    np.testing.assert_allclose(got, want.params, **tolerance)
    if case.options.get("regrow", True):
        dormant = np.asarray(state.bb_dormant["w"])
        np.testing.assert_allclose(dormant[~mask], want.dormant[~mask], **tolerance)
    degrees, rates = bb.degrees_of(state), bb.on_rates(state)
    for actuator in case.actuators:
        key = "w" if len(case.actuators) == 1 else f"w:{actuator}"
        slices = range(len(want.layout.slices))
        count = np.array([want.degrees(actuator, s) for s in slices])
        np.testing.assert_array_equal(degrees[key].reshape(count.shape), count)
        rate = want.on_rates(actuator)
        np.testing.assert_allclose(rates[key].reshape(rate.shape), rate, atol=1e-6)
