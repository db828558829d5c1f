"""Each law against its formula in float64, and what every law must satisfy."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax import laws

RATES = np.array([[0.02, 0.1, 0.5, 0.9], [0.4, 0.45, 0.3, 0.99]], np.float32)
LAWS = [
    laws.log_odds(),
    laws.log_odds(0.1),
    laws.log_odds(spread=0.5, limit=1.0),
    laws.threshold(),
    laws.linear(),
    laws.three_zone(middle=0.6),
    laws.quantile(),
]
BY_NAME = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)


def odds(a):
    a = np.asarray(a, np.float64)
    return np.log((1 - a) / a)


@pytest.mark.parametrize("mean", [8.0, np.array([8.0, 32.0])], ids=["one", "slices"])
@pytest.mark.parametrize("spread", [None, 0.35, -0.1])
def test_log_odds_slope_is_a_share_of_the_mean_degree(mean, spread):
    law = laws.log_odds(spread=spread)
    profile = law.profile(jnp.asarray(RATES), jnp.asarray(mean))
    apart = np.clip(odds(RATES) - odds(RATES).mean(-1, keepdims=True), -2, 2)
    want = (spread or 0.1) * apart * np.broadcast_to(mean, 2)[:, None]
    np.testing.assert_allclose(profile, want, atol=2e-3 * 32)


def test_log_odds_slope_of_each_slice():
    rates, mean = jnp.asarray(RATES), jnp.array([8.0, 32.0])
    both = laws.log_odds(spread=jnp.array([0.2, -0.3])).profile(rates, mean)
    for spread, a, m, row in zip((0.2, -0.3), rates, mean, both, strict=True):
        alone = laws.log_odds(spread=spread).profile(a, m)
        np.testing.assert_allclose(row, alone, rtol=1e-6)


def test_nearly_equal_activity_gives_nearly_equal_degrees(getkey):
    """On-rates of .50 +- .01 are equal but for noise, however wide the layer is."""
    a = jax.random.uniform(getkey(), (512,), minval=0.49, maxval=0.51)
    for fan in (64, 1024, 16384):
        k = np.asarray(bb.degrees(a, fan, 0.15))
        assert np.ptp(k) <= 1 + 0.01 * k.mean()


@pytest.mark.long
def test_degrees_stay_in_a_band_around_the_mean(getkey):
    a = jnp.concatenate([jnp.array([0.002, 1.0]), jax.random.uniform(getkey(), (62,))])
    k = np.asarray(bb.degrees(a, 1000, 0.3))
    assert k.max() - k.min() <= 0.4 * 300 + 1  # 2 nats on both sides
    wide = laws.log_odds(limit=1e3, clip=1e-6)
    k = np.asarray(bb.degrees(a, 1000, 0.3, law=wide))
    assert k.max() - k.min() > 0.4 * 300 + 1


@pytest.mark.long
def test_dead_units_have_no_claim_on_the_edges_of_others():
    """A quarter of dead units gets a quarter of the edges at most, whoever is alive."""
    alive = jnp.linspace(0.05, 0.9, 96)
    k = np.asarray(bb.degrees(jnp.concatenate([jnp.zeros(32), alive]), 1024, 0.15))
    assert np.ptp(k[:32]) <= 1
    assert abs(k[:32].sum() / k.sum() - 0.25) < 0.02
    alone = np.asarray(bb.degrees(alive, 1024, 0.15))
    assert np.abs(k[32:] - alone).max() <= 0.02 * 154  # c moves a little, no more


@pytest.mark.long
def test_a_claim_rises_from_dead_to_alive_without_a_jump():
    """An on-rate that wavers around the threshold moves degrees by little."""
    rate = jnp.full((400, 16), 0.5).at[:, 0].set(jnp.linspace(0, 0.008, 400))
    k = np.asarray(bb.degrees(rate, 1000, 0.3))[:, 0]
    assert np.abs(np.diff(k)).max() <= 1 and k[0] == 300 and k[-1] >= 350
    alive = laws.log_odds().alive(jnp.array([0.0, 0.001, 0.0025, 0.004, jnp.nan]))
    np.testing.assert_allclose(alive, [0, 0, 0.5, 1, 1], atol=1e-3)
    assert laws.log_odds(dead=0).alive(jnp.array([0.0, 1e-5])).tolist() == [0, 1]
    assert laws.log_odds(dead=-1).alive(jnp.array([0.0])).tolist() == [1]


@pytest.mark.long
@pytest.mark.parametrize("units", [49, 784, 300])
def test_compiled_floors_are_those_of_eager_code(units, getkey):
    """A mean degree that is exact stays exact where the density is traced."""
    rate = jax.random.uniform(getkey(), (units,))
    law = laws.log_odds(spread=1.0)
    for mean in (60, 70, 80, 130):
        density = jnp.float32(mean / 784)
        eager = bb.degrees(rate, 784, density, law=law)
        compiled = jax.jit(lambda d: bb.degrees(rate, 784, d, law=law))(density)
        np.testing.assert_array_equal(eager, compiled)
        assert int(eager.min()) == mean // 10


def test_a_sum_of_log_odds_in_any_order():
    rng = np.random.default_rng(4121)
    a = rng.beta(1, 2, 256).astype(np.float32).clip(0.02, 0.98)
    law = laws.log_odds()
    want = np.asarray(law.profile(jnp.asarray(a), jnp.float32(100)))
    for seed in range(40, 60):
        order = np.random.default_rng(seed).permutation(256)
        got = law.profile(jnp.asarray(a[order]), jnp.float32(100))
        np.testing.assert_array_equal(got, want[order])


@pytest.mark.long
def test_all_units_dead_are_equal():
    assert bb.degrees(jnp.zeros(4), 10, 0.5).tolist() == [5] * 4


@pytest.mark.long
def test_no_unit_falls_below_a_share_of_the_mean_degree():
    a = jnp.array([0.1] * 9 + [0.99])
    steep = laws.log_odds(spread=2.0, limit=9.0)
    assert bb.degrees(a, 1000, 0.3, law=steep)[-1] == 30
    least = laws.log_odds(spread=2.0, limit=9.0, floor=0.25)
    assert bb.degrees(a, 1000, 0.3, law=least)[-1] == 75
    none = laws.log_odds(spread=2.0, limit=9.0, floor=0.0)
    assert bb.degrees(a, 1000, 0.3, law=none)[-1] == 1
    assert bb.degrees(a, 1000, 0.3, law=least, k_min=80)[-1] == 80


def test_log_odds_given_slope():
    profile = laws.log_odds(beta=0.25).profile(jnp.asarray(RATES), jnp.float32(8))
    np.testing.assert_allclose(profile, odds(RATES) / 0.25, rtol=1e-4, atol=1e-4)


def test_log_odds_traced_slope():
    def run(beta):
        return laws.log_odds(beta).profile(jnp.asarray(RATES), jnp.float32(8))

    want = np.stack([run(0.5), run(2.0)])
    np.testing.assert_allclose(jax.vmap(run)(jnp.array([0.5, 2.0])), want, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(run)(0.5), want[0], rtol=1e-6)


@pytest.mark.long
def test_log_odds_traced_spread():
    def run(spread):
        return bb.degrees(
            jnp.asarray(RATES), 100, 0.5, law=laws.log_odds(spread=spread)
        )

    want = np.stack([run(0.1), run(-0.4)])
    assert (jax.vmap(run)(jnp.array([0.1, -0.4])) == want).all()
    assert (want[0] != want[1]).any()


def test_log_odds_clip():
    law = laws.log_odds(1.0, clip=0.01)
    profile = law.profile(jnp.array([0.0, 0.005, 0.995, 1.0]), jnp.float32(8))
    want = odds([0.01, 0.01, 0.99, 0.99])
    np.testing.assert_allclose(profile, want, rtol=1e-5)


def test_threshold_is_equal_traffic():
    profile = laws.threshold(2.0).profile(jnp.asarray(RATES), jnp.float32(8))
    np.testing.assert_allclose(profile * RATES, np.full((2, 4), 2.0), rtol=1e-4)
    dead = laws.threshold(clip=0.01).profile(jnp.array([0.0, 0.01]), jnp.float32(8))
    np.testing.assert_allclose(dead, [100, 100], rtol=1e-4)
    traced = jax.jit(lambda t: laws.threshold(t).profile(RATES, jnp.float32(8)))(2.0)
    np.testing.assert_allclose(traced, profile, rtol=1e-6)


def test_linear_and_uniform():
    a = jnp.array([0.25, 1.0])
    linear = laws.linear().profile(a, jnp.float32(8))
    np.testing.assert_allclose(linear, [0.75, 1e-6], rtol=1e-6)
    assert laws.uniform().profile(a, jnp.float32(8)).tolist() == [0, 0]
    assert laws.uniform().combine == "shift" and laws.linear().combine == "scale"


def test_three_zones_as_published():
    """Bounds belong to the middle zone, which keeps everything."""
    a = jnp.array([0.0, 0.099, 0.1, 0.5, 0.7, 0.701, 1.0], jnp.float32)
    want = np.array([0.9, 0.9, 1, 1, 1, 0.3, 0.3])
    profile = laws.three_zone().profile(a, jnp.float32(8))
    np.testing.assert_allclose(profile, want, rtol=1e-6)
    np.testing.assert_allclose(laws.three_zone().edges(a, 200), 200 * want, rtol=1e-6)
    mine = laws.three_zone(rare=0.8, busy=0.4, low=0.3, high=0.6, middle=0.5)
    np.testing.assert_allclose(mine.edges(a, 10), [8, 8, 8, 5, 4, 4, 4], rtol=1e-6)


def by_quantiles(a, rare=0.9, busy=0.5, low=0.3, high=0.7):
    """The notebook's law, in float64."""
    a = np.asarray(a, np.float64)
    ends = (np.quantile(a, q, axis=-1, keepdims=True) for q in (low, high))
    at_low, at_high = ends
    share = np.clip((a - at_low) / (at_high - at_low), 0, 1)
    return rare + (busy - rare) * share


@pytest.mark.long
@pytest.mark.parametrize("units", [2, 11])
def test_quantile_is_linear_between_two_quantiles(units, getkey):
    a = np.asarray(jax.random.uniform(getkey(), (2, units)))
    law, mine = laws.quantile(), dict(rare=0.8, busy=0.1, low=0.0, high=0.5)
    np.testing.assert_allclose(law.edges(a, 64), 64 * by_quantiles(a), atol=2e-3)
    np.testing.assert_allclose(
        laws.quantile(**mine).profile(a, jnp.float32(1)),
        by_quantiles(a, **mine),
        atol=5e-5,
    )


@pytest.mark.long
def test_quantile_of_equal_rates_counts_all_as_rare():
    """As published: without two different quantiles there is no line between them."""
    rates = jnp.array([0.1, 0.4, 0.4, 0.4, 0.4, 0.8])
    assert laws.quantile().edges(rates, 10).round().tolist() == [9] * 6
    assert laws.quantile().edges(jnp.array([0.5]), 10).round().tolist() == [9]


def test_degrees_of_the_threshold():
    law = laws.threshold(8.0, clip=0.01)
    a = jnp.array([0.0, 0.01, 0.25, 1.0])
    np.testing.assert_allclose(law.edges(a, 100), [800, 800, 32, 8], rtol=1e-4)


def test_some_laws_say_degrees_only_up_to_a_budget():
    for law in (laws.log_odds(), laws.uniform(), laws.linear()):
        assert law.edges is None


@pytest.mark.long
@pytest.mark.parametrize("name", ["three_zone", "quantile"])
def test_relative_densities_under_a_budget(name):
    """A budget rescales them: degrees keep their ratios, as far as bounds allow."""
    law = getattr(laws, name)()
    a = jnp.array([0.05, 0.05, 0.05, 0.95, 0.95, 0.95])
    busy = {"three_zone": 0.3, "quantile": 0.5}[name]
    k = bb.degrees(a, fan=1000, density=0.3, law=law)
    assert int(k.sum()) == 1800
    assert int(k[0]) / int(k[-1]) == pytest.approx(0.9 / busy, rel=0.01)


@BY_NAME
def test_profile_never_rises_with_activity(law):
    """But for dead units, which stand in the middle."""
    # Neighbouring floats at both ends and in the middle, where `log` is least safe.
    near = [np.float32(x) + np.arange(-99, 99) * 6e-8 for x in (0.002, 0.3, 0.5, 0.99)]
    a = np.sort(np.concatenate([np.linspace(0, 1, 20001), *near])).astype(np.float32)
    profile = np.asarray(law.profile(jnp.asarray(a), jnp.float32(100)))
    profile = profile[np.asarray(law.alive(a)) == 1]
    assert (np.diff(profile) <= 0).all() and profile[0] > profile[-1]


@BY_NAME
def test_profile_is_finite_float32_of_the_same_shape(law):
    wild = jnp.array([[0.0, 1.0, jnp.nan], [jnp.inf, -1.0, 0.5]])
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        profile = law.profile(wild.astype(dtype), jnp.ones(2, dtype))
        assert profile.dtype == jnp.float32 and profile.shape == (2, 3)
        chex.assert_tree_all_finite(profile)
        assert law.combine == "shift" or (np.asarray(profile) > 0).all()


@BY_NAME
def test_never_observed_counts_as_one_half(law):
    never, half = (jnp.array([0.1, x, 0.9]) for x in (jnp.nan, 0.5))
    one = jnp.float32(1)
    assert law.profile(never, one).tolist() == law.profile(half, one).tolist()


@BY_NAME
def test_slices_do_not_see_each_other(law):
    both = law.profile(jnp.asarray(RATES), jnp.array([3.0, 5.0]))
    for rates, mean, row in zip(RATES, (3.0, 5.0), both, strict=True):
        alone = law.profile(jnp.asarray(rates), jnp.float32(mean))
        np.testing.assert_allclose(row, alone, rtol=1e-6)


@pytest.mark.long
def test_profile_does_not_depend_on_the_order_of_units(getkey):
    a = jax.random.uniform(getkey(), (1000,))
    order = jax.random.permutation(getkey(), 1000)
    law, mean = laws.log_odds(), jnp.float32(300)
    assert (law.profile(a, mean)[order] == law.profile(a[order], mean)).all()


def test_a_law_is_frozen_data():
    law = laws.log_odds()
    with pytest.raises(dataclasses.FrozenInstanceError):
        law.name = "mine"
    assert repr(law).startswith("Law(name='log_odds', combine='shift'")
    assert {law: 1}[law] == 1


def test_a_law_of_your_own_is_checked():
    with pytest.raises(ValueError, match="expected floor in .*, 0.9.*, got 2.0; it is"):
        laws.Law("mine", lambda a, mean: a, "shift", floor=2.0)


def test_bad_combine():
    with pytest.raises(ValueError, match="Law 'mine': expected combine .*got 'add'; u"):
        laws.Law("mine", lambda a, mean: a, "add")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf")])
def test_bad_slope_and_threshold(bad):
    with pytest.raises(ValueError, match=r"expected beta in \(0, inf\), got .*; lar"):
        laws.log_odds(bad)
    with pytest.raises(ValueError, match=r"expected tau in \(0, inf\), got .*; a bu"):
        laws.threshold(bad)
    for factory in (laws.log_odds, laws.threshold):
        with pytest.raises(TypeError, match=r"expected (beta|tau) to be a number, got"):
            factory(np.full(2, bad))


@pytest.mark.usefixtures("unchecked")
def test_bad_spread():
    bad_ones = (float("nan"), float("inf"), "steep", object(), jnp.array([jnp.nan]))
    for bad in bad_ones:
        with pytest.raises(
            ValueError, match="spread: expected finite numbers, got .*0.1"
        ):
            laws.log_odds(spread=bad)
    with pytest.raises(
        ValueError, match="expected beta or spread, got both .*; beta is"
    ):
        laws.log_odds(0.5, spread=0.1)
    two = laws.log_odds(spread=jnp.array([0.1, 0.2]))
    with pytest.raises(
        ValueError, match=r"a number or shape \(\), got shape \(2,\); pas"
    ):
        bb.degrees(jnp.full(4, 0.5), 10, 0.5, law=two)


@pytest.mark.parametrize(
    "name, bad, kind, text",
    [
        ("limit", 0.0, ValueError, "in (0, inf), got 0.0; it is a number of nats"),
        ("limit", float("nan"), ValueError, "in (0, inf), got nan"),
        ("dead", 0.5, ValueError, "in (-inf, 0.5), got 0.5; it is an on-rate"),
        ("dead", "few", TypeError, "to be a number, got 'few'"),
        ("floor", 1.0, ValueError, "in [0, 0.9], got 1.0; it is a share"),
        ("floor", np.ones(2), TypeError, "to be a number, got array([1., 1.])"),
    ],
)
def test_bad_numbers_of_the_band(name, bad, kind, text):
    with pytest.raises(kind, match=re.escape(f"expected {name} {text}")):
        laws.log_odds(**{name: bad})


@pytest.mark.parametrize("clip", [0.0, 1e-9, 0.5, float("nan")])
@pytest.mark.parametrize("factory", [laws.log_odds, laws.threshold])
def test_bad_clip(factory, clip):
    with pytest.raises(ValueError, match=r"expected clip in .*0\.5\), got .*; it is"):
        factory(clip=clip)


@pytest.mark.parametrize("factory", [laws.three_zone, laws.quantile])
def test_bad_zones(factory):
    for bad in (0.0, 1.5, float("nan"), -1):
        with pytest.raises(ValueError, match="expected busy in .*, got .*; it is"):
            factory(busy=bad)
    with pytest.raises(ValueError, match=r"expected rare in \(0, 1\], got 2"):
        factory(rare=2)
    for low, high in ((0.5, 0.4), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5)):
        text = r"(low, high: expected 0 <= low.*|expected (low|high) in \[0, 1\]), got"
        with pytest.raises(ValueError, match=text):
            factory(low=low, high=high)
    with pytest.raises(TypeError, match="expected low to be a number, got '0.1'"):
        factory(low="0.1")
    with pytest.raises(ValueError, match=r"expected middle in \(0, 1\], got 0"):
        laws.three_zone(middle=0)
