"""Every error of building and using a transform, by its text.

An error leaves the state as it was; the transform works after it. Activity that is not
finite is one of them outside jit; see `test_not_finite.py` for inside.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb
from bbjax.activity.statistics import Activity
from tests.support.runs import activity, dense, select

KERNEL = dense(6, 4)
UNITS = select(KERNEL)
MAGNITUDE = bb.rules.magnitude()

# Wrong arguments are what these tests are about.
pytestmark = pytest.mark.usefixtures("unchecked")


def transform(units=UNITS, rule=None, **settings):
    return bb.transform(
        units, rule, **{"density": 0.5, "start": 0, "every": 1} | settings
    )


# Building a transform ------------------------------------------------------------
@pytest.mark.parametrize(
    "kind, text, settings",
    [
        (TypeError, "units from bb.trace, got dict; call bb.trace", {"units": {}}),
        (
            TypeError,
            "rule from bb.rules, got <function magn.*; call its fac",
            {"rule": bb.rules.magnitude},
        ),
        (
            TypeError,
            "every: expected an int >= 1, got 2.5; it counts updates",
            {"every": 2.5},
        ),
        (ValueError, "every: expected an int >= 1, got 0; it", {"every": 0}),
        (TypeError, "start: expected an int >= 0, got None", {"start": None}),
        (ValueError, "start: expected an int >= 0, got -1; it", {"start": -1}),
        (TypeError, "stop: expected an int >= 0, got '9'", {"stop": "9"}),
        (ValueError, "stop: expected an int >= 0, got -1; it", {"stop": -1}),
        (ValueError, "stop > start = 5, got 5: nothing would", {"start": 5, "stop": 5}),
        (TypeError, "expected regrow to be True or False, got None", {"regrow": None}),
        (TypeError, "expected density to be a number, got 'x'", {"density": "x"}),
        (TypeError, "expected ema to be a number, got 'x'", {"ema": "x"}),
        (
            ValueError,
            "dormant_dtype to be a float dtype, got 'foo'",
            {"dormant_dtype": "foo"},
        ),
        (
            ValueError,
            r"number in \(0, 1\].*schedule gives at step 9\)",
            {"density": lambda n: 1 - n / 9, "every": 3, "stop": 11},
        ),
        (
            ValueError,
            "actuator 'in' to rescale, got none: only their",
            {"rescale": True, "units": select(KERNEL, "out")},
        ),
        (
            ValueError,
            r"fewer than 2\*\*31 edges per stack slice, got 4294967296 for 'w'",
            {"units": select(dense(2**16, 2**16))},
        ),
        (TypeError, "k_min: expected an int >= 0, got 1.0", {"k_min": 1.0}),
        (ValueError, "k_min: expected an int >= 0, got -1; it", {"k_min": -1}),
        (TypeError, "expected regrow to be True or False, got 1", {"regrow": 1}),
        (
            TypeError,
            "expected rescale to be True or False, got 'yes'",
            {"rescale": "yes"},
        ),
        (ValueError, r"ema in \[0, 1\), got 1.0; it is the decay", {"ema": 1.0}),
        (ValueError, r"ema in \[0, 1\), got -0.1; it is the decay", {"ema": -0.1}),
        (
            ValueError,
            r"ema in \[0, 1\), got nan; it is the decay",
            {"ema": float("nan")},
        ),
        (
            ValueError,
            "dormant_dtype to be a float dtype, got .*int8.*; e.g.",
            {"dormant_dtype": jnp.int8},
        ),
        (
            ValueError,
            r"density: expected a number in \(0, 1\], got 0.0; pass",
            {"density": 0.0},
        ),
        (
            ValueError,
            r"density: expected a number in \(0, 1\], got 1.5; pass",
            {"density": 1.5},
        ),
        (
            ValueError,
            r"density: expected a scalar .* got \(2,\); pass one",
            {"density": np.ones(2)},
        ),
        (
            ValueError,
            r"density: expected a number in \(0, 1\], got 70.0",
            {"density": lambda n: 70.0 + n * 0},
        ),
        (
            ValueError,
            "expected k_min <= 6, the full degree .* 'w' .*'in'.*, got 7; lower",
            {"k_min": 7},
        ),
        (
            ValueError,
            r"at least 0.1667 for 'w' \(24 edges, 4 budgeted .*k_min=1 .*got 0.1;",
            {"density": 0.1},
        ),
        (
            ValueError,
            "density of at least 0.5 for 'w' .*k_min=3 .*got 0.25",
            {"density": bb.ramp(0.25, 0, 9), "k_min": 3},
        ),
        (
            ValueError,
            "at least one kernel to prune, got none: .*out of .'w'.",
            {"units": bb.Units((KERNEL,))},
        ),
    ],
)
def test_building(kind, text, settings):
    with pytest.raises(kind, match=text):
        transform(**settings)


SPELLED = r"density.* a number.*, got '0.5'; pass"


@pytest.mark.parametrize(
    "text, make",
    [
        (SPELLED, lambda: transform(density="0.5")),
        (SPELLED, lambda: transform(density={"w": "0.5"})),
        (SPELLED, lambda: transform(density=bb.erk("0.5"))),
        (SPELLED, lambda: transform(density=lambda step: "0.5")),
        (SPELLED, lambda: bb.ramp("0.5", 0, 9)),
        (SPELLED, lambda: bb.prune({"w": W}, UNITS, MAGNITUDE, "0.5")),
        ("a number in .*, got array.'0.5'", lambda: transform(density=np.array("0.5"))),
        ("density to be a number, got True", lambda: transform(density=True)),
        ("density: .* number .*, got np.True_", lambda: transform(density=np.True_)),
        (
            r"density to be a function of the step, got ramp\(density, start, steps, ",
            lambda: transform(density=bb.ramp),
        ),
        ("density to be a number, got Erk", lambda: transform(density=bb.erk)),
        ("every: expected an int >= 1, got True", lambda: transform(every=True)),
        ("k_min: expected an int >= 0, got True", lambda: transform(k_min=True)),
        (
            "k_min: expected an int >= 0, got True",
            lambda: bb.prune({"w": W}, UNITS, MAGNITUDE, 0.5, k_min=True),
        ),
        ("ema to be a number, got '0.99'", lambda: transform(ema="0.99")),
        ("ema to be a number, got False", lambda: transform(ema=False)),
        ("hysteresis to be a number, got '0.2'", lambda: transform(hysteresis="0.2")),
        (
            "pattern from bb.n_m, got <function n_m",
            lambda: transform(pattern=bb.n_m),
        ),
        (
            "expected one of bb.laws, got <function thr.*; call its factory",
            lambda: bb.rules.budgeted_broadcast(law=bb.laws.threshold),
        ),
        (
            "expected an optimizer of Optax, got <function adam.*; call its factory",
            lambda: bb.wrap(optax.adam, UNITS),
        ),
        (
            "an array, got the factory of one; call it, e.g. bb.on.above.0.5",
            lambda: bb.value_and_grad(jnp.sum, UNITS, on=bb.on.above),
        ),
        (
            "an array, got the factory of one; call it, e.g. bb.on.soft.0.5",
            lambda: bb.calibrate(jnp.sum, UNITS, W, [], on=bb.on.soft),
        ),
        (
            r"`?on`? to be a function of an array, got <lambda>\(\); call",
            lambda: bb.observe(jnp.sum, UNITS, on=lambda: 0),
        ),
        (
            "expected has_aux to be True or False, got 'no'",
            lambda: bb.observe(jnp.sum, UNITS, has_aux="no"),
        ),
        ("threshold to be a number, got '0.5'", lambda: bb.on.above("0.5")),
        ("drop to be a number, got '0.3'", lambda: bb.rules.rigl(drop="0.3")),
        ("seed: expected an int .* got '3'", lambda: bb.rules.random(seed="3")),
        ("seed: expected an int .* got 0.5", lambda: bb.rules.set_(seed=0.5)),
    ],
)
def test_text_flags_and_what_was_not_called(text, make):
    with pytest.raises(TypeError, match=text):
        make()


def test_a_decay_that_is_1_in_float32_is_refused():
    """It would never learn: the mean of no observation, whatever is observed."""
    text = r"ema in \[0, 1\), got 0.99999999, in float32 1.0; it is the decay"
    with pytest.raises(ValueError, match=text):
        transform(ema=0.99999999)
    tx = transform(ema=0.9999999, start=9)
    _, state = use(tx, tx.init({"w": W}))
    np.testing.assert_allclose(
        bb.on_rates(state)["w"], GOOD["w"].outputs.on_rate, rtol=1e-6
    )


@pytest.mark.parametrize("name", ["every", "start", "stop", "k_min", "regrow"])
def test_static_arguments_cannot_be_traced(name):
    with pytest.raises(TypeError, match=f"{name}.*, got .*Tracer"):
        jax.jit(lambda value: transform(**{name: value}).init({"w": W}))(3)


def test_static_arguments_of_numpy_and_jax_are_those_of_python():
    """Also in the state, whose plan is compared and hashed."""
    plain = transform(every=2, start=1, stop=9, k_min=1, regrow=True)
    other = transform(
        every=np.int64(2),
        start=jnp.array(1),
        stop=np.array(9),
        k_min=jnp.array(1),
        regrow=np.True_,
    )
    trees = [jax.tree.structure(tx.init({"w": W})) for tx in (plain, other)]
    assert trees[0] == trees[1] and hash(trees[0]) == hash(trees[1])


def test_building_counts_the_units_of_both_sides():
    with pytest.raises(ValueError, match="least 0.4167 for 'w' .24 edges, 10 budgeted"):
        transform(select(KERNEL, "in", "out"), density=0.39)
    transform(select(KERNEL, "in", "out"), density=0.4)


@pytest.mark.long
def test_no_density_is_the_default_one():
    """As nothing at all; `bb.prune` has no default and asks for one."""
    params = {"w": jnp.ones((6, 4))}
    for settings in ({}, {"density": None}):
        tx = bb.transform(UNITS, MAGNITUDE, start=0, **settings)
        _, state = tx.update(params, tx.init(params), params)
        assert int(bb.masks(state)["w"].sum()) == round(0.7 * 24)
    with pytest.raises(ValueError, match="expected a density for rule 'magnitude"):
        bb.prune(params, UNITS, MAGNITUDE, density=None)


@pytest.mark.parametrize(
    "make", [transform, lambda **s: bb.wrap(optax.sgd(1.0), UNITS, **s)]
)
def test_a_wrapped_transform_checks_the_same(make):
    with pytest.raises(ValueError, match="every: expected an int >= 1, got 0"):
        make(every=0)


def test_traced_numbers_are_taken_on_trust():
    def got(density, ema):
        tx = transform(rule=MAGNITUDE, density=density, ema=ema)
        w = jnp.ones(KERNEL.shape)
        return tx.update({"w": w}, tx.init({"w": w}), {"w": w})[1].bb_density["w"]

    assert float(jax.jit(got)(0.25, 0.9)) == 0.25


# Rules ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text, make",
    [
        (
            "expected one of beta, spread and law, got beta=0.5, spread=None and law=",
            lambda: bb.rules.budgeted_broadcast(beta=0.5, law=bb.laws.linear()),
        ),
        (
            "expected one of beta, spread and law, got .* a law has a slope of its own",
            lambda: bb.rules.budgeted_broadcast(spread=0.5, law=bb.laws.linear()),
        ),
        (
            "expected one of beta, spread and law, got beta=0.5, spread='calibrated'",
            lambda: bb.rules.budgeted_broadcast(spread="calibrated", beta=0.5),
        ),
        (
            'expected a number or "calibrated" for spread, got .steep.; it is a share',
            lambda: bb.rules.budgeted_broadcast(spread="steep"),
        ),
        (
            'expected scope "layer" with spread="calibrated", got .global.: the slope',
            lambda: bb.rules.budgeted_broadcast(spread="calibrated", scope="global"),
        ),
        (
            r"expected competition in \[0, 1\], got 1.5; it is a share",
            lambda: bb.rules.budgeted_broadcast(competition=1.5),
        ),
        (
            "expected competition=0 with a law whose degrees .*, got 0.5 with 'linear'",
            lambda: bb.rules.budgeted_broadcast(law=bb.laws.linear(), competition=0.5),
        ),
        (
            r"expected competition in \[0, 1\], got -1; it is a share",
            lambda: bb.rules.sparsegpt(competition=-1),
        ),
        (
            'expected scope "layer" or "global", got .unit.; it is how far edges comp',
            lambda: bb.rules.budgeted_broadcast(scope="unit"),
        ),
        (
            'expected score "magnitude" or "wanda" or "scaled" or "ria", got .size.;',
            lambda: bb.rules.budgeted_broadcast(score="size"),
        ),
        (
            r"expected beta in \(0, inf\), got 0.0; larger",
            lambda: bb.rules.budgeted_broadcast(beta=0.0),
        ),
        ("expected scope .*, got 'planet'", lambda: bb.rules.magnitude(scope="planet")),
    ],
)
def test_rules(text, make):
    with pytest.raises(ValueError, match=text):
        make()


# Units ---------------------------------------------------------------------------
TWO = bb.Units(
    (dense(6, 4, "mlp/up"), dense(4, 2, "mlp/down")),
    problems=(("mlp/table", "it is used by gather"),),
)


@pytest.mark.parametrize(
    "text, args",
    [
        ("expected actuator .in. or .out., got 'both'; .in. limits", ("up", "both")),
        (r"expected a regular expression, got '\(' .*; escape", ("(",)),
        (
            "got 'mlp/sup', which matches none; near misses: .'mlp/up'",
            ("mlp/sup",),
        ),
        (
            "got 'mlp/table' from pattern 'mlp': it is used by gather; narrow",
            ("mlp",),
        ),
    ],
)
def test_select(text, args):
    with pytest.raises(ValueError, match=text):
        TWO.select(*args)


def test_units():
    with pytest.raises(
        KeyError, match="path of a kernel, got 'upp'; near misses: .*'mlp/up'"
    ):
        TWO["upp"]
    with pytest.raises(
        ValueError, match="of the same trace, got different kernels; call"
    ):
        TWO.select("up") + UNITS
    with pytest.raises(TypeError, match="unsupported operand"):
        TWO + "mlp"
    with pytest.raises(
        ValueError, match="got 'up', which matches none; the trace found"
    ):
        bb.Units(()).select("up")


# Using a transform ---------------------------------------------------------------
W = jnp.arange(24.0).reshape(6, 4) - 11.5
GOOD = activity(KERNEL, outputs=[0.1, 0.2, 0.6, 0.8])
NEEDY = bb.rules.Rule("needy", lambda seen: seen.mask, needs=("grads",))
LOUD = bb.rules.Rule("loud", lambda seen: seen.mask, needs=("inputs.mean_square",))
BAD_UPDATES = {
    "no params": (r"expected params, got None; call tx.update\(", {"params": None}),
    "no activity": (
        "expected activity, which rule 'budgeted_broadcast' needs, got None; call",
        {"activity": None},
    ),
    "activity of others": (
        r"expected activity of 'w', got \['v'\]; observe with the units",
        {"activity": {"v": GOOD["w"]}},
    ),
    "no dict": (
        "expected activity of 'w', got .*float.*; observe with the units",
        {"activity": 0.5},
    ),
    "half of it": (
        "expected statistic 'on_rate' of the outputs of 'w', got none; pass needs",
        {"activity": {"w": Activity(GOOD["w"].inputs, None)}},
    ),
    "another shape": (
        r"outputs.on_rate of 'w' of shape \(4,\), got \(6,\); measure it with",
        {"activity": {"w": Activity(GOOD["w"].inputs, GOOD["w"].inputs)}},
    ),
    "not finite": (
        "expected finite outputs.on_rate of 'w', got NaN or infinity; check the",
        {"activity": activity(KERNEL, outputs=[0.1, np.nan, 0.6, 0.8])},
    ),
    "params without the kernel": (
        "expected the parameter at 'w', got a tree without one .it has .'v'.*; use",
        {"params": {"v": W}},
    ),
    "params of another shape": (
        r"expected 'w' of shape \(6, 4\), got the parameter of shape \(4, 6\); trace",
        {"params": {"w": W.T}},
    ),
    "updates without the kernel": (
        "expected the update at 'w', got a tree without one",
        {"updates": {"v": W}},
    ),
    "updates of another shape": (
        r"expected 'w' of shape \(6, 4\), got the update of shape \(6,\); trace",
        {"updates": {"w": W[:, 0]}},
    ),
}


def use(tx, state, **given):
    given = {"updates": {"w": W}, "params": {"w": W}, "activity": GOOD} | given
    return tx.update(
        given["updates"], state, given["params"], activity=given["activity"]
    )


@pytest.mark.parametrize("name", BAD_UPDATES)
def test_an_error_names_the_remedy_and_changes_nothing(name):
    text, given = BAD_UPDATES[name]
    tx = transform(start=1)
    state = tx.init({"w": W})
    before = jax.tree.map(np.array, state)
    with pytest.raises(ValueError, match=text):
        use(tx, state, **given)
    chex.assert_trees_all_equal(before, state)


@pytest.mark.long
def test_a_transform_works_after_an_error():
    tx = transform()
    state = tx.init({"w": W})
    for text, given in BAD_UPDATES.values():
        with pytest.raises(ValueError, match=text):
            use(tx, state, **given)
    landed, state = use(tx, state)
    assert ((W + landed["w"]) != 0).sum() == 12 and state.bb_count == 1


@pytest.mark.parametrize(
    "rule, text",
    [
        (NEEDY, "dense gradients, which rule 'needy' needs, got None; call .* bb.wrap"),
        (LOUD, "expected statistic 'mean_square' of the inputs of 'w', got none; pass"),
    ],
    ids=["gradients", "statistics"],
)
def test_a_rule_insists_on_what_it_needs(rule, text):
    tx = transform(rule=rule)
    with pytest.raises(ValueError, match=text):
        use(tx, tx.init({"w": W}))


def test_init_checks_the_parameters():
    tx = transform()
    with pytest.raises(
        ValueError, match="expected the parameter at 'w', got a tree with"
    ):
        tx.init({"v": W})
    with pytest.raises(
        ValueError, match=r"got the parameter of shape \(24,\); trace the"
    ):
        tx.init({"w": W.ravel()})


@pytest.mark.parametrize("read", [bb.masks, bb.degrees_of, bb.on_rates, bb.metrics])
def test_reading_a_state_without_pruning(read):
    state = optax.adam(1.0).init({"w": W})
    with pytest.raises(
        ValueError, match="with bb.transform or bb.wrap inside, got tuple"
    ):
        read(state)


def test_a_schedule_counts_only_while_masks_change():
    """A line that reaches 0 after the last refresh is a valid schedule."""
    tx = transform(density=lambda n: 1 - n / 20, every=4, stop=10)
    assert float(bb.metrics(tx.init({"w": jnp.ones((6, 4))}))["w/density_got"]) == 1


def test_two_transforms_of_one_kernel_are_refused_by_the_accessors():
    tx = optax.chain(transform(rule=MAGNITUDE), transform(rule=MAGNITUDE))
    state = tx.init({"w": jnp.ones((6, 4))})
    with pytest.raises(
        ValueError, match=r"one transform, got \['w'\] in several; join"
    ):
        bb.masks(state)


def test_on_rates_outside_the_unit_interval_are_refused():
    tx, params = transform(), {"w": jnp.ones((6, 4))}
    rates = activity(KERNEL, outputs=jnp.full((4,), 7.0))
    with pytest.raises(
        ValueError, match=r"outputs.on_rate of 'w' in \[0, 1\], got val"
    ):
        tx.update(params, tx.init(params), params, activity=rates)
