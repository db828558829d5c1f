"""The promises of `degrees`, its edge cases and its errors.

The solver inside is held against exact arithmetic in `test_solve.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bbjax import laws
from bbjax.budgets.degrees import degrees

UNITS = 6
# XLA takes subnormal numbers for 0.
ANY_RATE = st.floats(0, 1, width=32, allow_subnormal=False)
RATE = st.one_of(ANY_RATE, st.sampled_from([0.0, 0.25, 0.5, 1.0]))
RATES = st.lists(RATE, min_size=UNITS, max_size=UNITS)
DENSITY = st.one_of(st.floats(1e-6, 1), st.sampled_from([0.1, 0.5, 1.0]))
SIZES = st.sampled_from([(1, 0), (1, 1), (7, 0), (7, 7), (64, 1), (64, 8), (999, 2)])
LAWS = [laws.log_odds(), laws.threshold(), laws.linear(), laws.uniform()]
BY_NAME = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
SHIFT_AND_SCALE = pytest.mark.parametrize("law", LAWS[:2], ids=lambda law: law.name)


@given(RATES, SIZES, DENSITY, st.sampled_from(LAWS))
def test_promises(rate, sizes, density, law):
    fan, k_min = sizes
    k = degrees(jnp.array(rate), fan, density, law=law, k_min=k_min)
    assert k.dtype == jnp.int32 and k.shape == (UNITS,)
    assert sum(k.tolist()) == max(round(density * fan * UNITS), k_min * UNITS)
    assert k_min <= k.min() and k.max() <= fan
    falling = np.asarray(k)[np.argsort(rate, kind="stable")]
    falling = falling[np.asarray(law.alive(np.sort(rate))) == 1]
    assert (np.diff(falling) <= 0).all()


@pytest.mark.long
@given(
    st.lists(RATE, min_size=UNITS, max_size=UNITS, unique=True),
    st.permutations(range(UNITS)),
    DENSITY,
    SIZES,
)
def test_permuting_units_permutes_degrees(rate, order, density, sizes):
    order = np.array(order)
    rate, (fan, k_min) = jnp.array(rate), sizes
    for law in LAWS[:3]:
        k = degrees(rate, fan, density, law=law, k_min=k_min)
        again = degrees(rate[order], fan, density, law=law, k_min=k_min)
        assert again.tolist() == k[order].tolist()


@pytest.mark.long
@SHIFT_AND_SCALE
def test_compiled_mapped_and_scanned_alike(law, getkey):
    rate = jax.random.uniform(getkey(), (3, 5, 40))
    densities = jnp.array([0.01, 0.3, 0.7, 1.0])

    def run(density):
        return degrees(rate, 50, density, law=law)

    want = np.stack([run(d) for d in densities])
    totals = np.round(np.float64(densities) * 2000).astype(int)
    assert (want.sum(-1) == np.maximum(totals, 40)[:, None, None]).all()
    assert (np.stack([jax.jit(run)(d) for d in densities]) == want).all()
    assert (jax.vmap(run)(densities) == want).all()
    scanned = jax.lax.scan(lambda n, d: (n + 1, run(d)), 0, densities)[1]
    assert (scanned == want).all()


@pytest.mark.long
@SHIFT_AND_SCALE
def test_slices_are_independent(law, getkey):
    rate = jax.random.uniform(getkey(), (3, 40))
    densities = jnp.array([0.1, 0.5, 0.9])
    both = degrees(rate, 50, densities, law=law)
    for row, density, k in zip(rate, densities, both, strict=True):
        assert (degrees(row, 50, density, law=law) == k).all()


@pytest.mark.long
@pytest.mark.parametrize("kind", list(AxisType)[:2], ids=str)
@pytest.mark.parametrize("spec", [P(None, "x"), P("y", "x")], ids=str)
def test_sharded_like_unsharded(kind, spec, getkey):
    mesh = jax.make_mesh((2, 4), ("y", "x"), axis_types=(kind, kind))
    rate = jax.random.uniform(getkey(), (4, 16))
    want = np.asarray(degrees(rate, 50, 0.3))
    with jax.set_mesh(mesh):
        k = degrees(jax.device_put(rate, NamedSharding(mesh, spec)), 50, 0.3)
    assert (np.asarray(k) == want).all()


@pytest.mark.long
def test_the_rare_get_more_and_the_budget_is_spread_as_promised(getkey):
    rate = jax.nn.sigmoid(jax.random.normal(getkey(), (512,)))
    k = np.asarray(degrees(rate, 4096, 0.1, k_min=0))
    assert k.sum() == round(0.1 * 4096 * 512)
    # Two nats on both sides, a tenth of the mean degree for each.
    assert k[np.argmin(rate)] > 1.17 * 409 and k[np.argmax(rate)] < 0.83 * 409
    assert 0.08 * k.mean() < k.std() < 0.1 * k.mean()  # one nat of standard deviation


@pytest.mark.long
def test_a_small_change_of_density_is_a_small_change_of_degrees(getkey):
    rate = jax.random.uniform(getkey(), (64,))
    k = [degrees(rate, 64, d) for d in (0.5, 0.501)]
    assert np.abs(k[1] - k[0]).max() <= 2


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0, float("nan")])
@BY_NAME
def test_equal_units_get_equal_degrees_remainder_first(law, value):
    k = degrees(jnp.full(UNITS, value), 10, 32 / 60, law=law)
    assert k.tolist() == [6, 6, 5, 5, 5, 5]


@BY_NAME
def test_ends_of_the_density(law):
    rate = jnp.array([0.0, 0.2, 0.5, 0.7, 1.0, jnp.nan])
    assert degrees(rate, 9, 1.0, law=law).tolist() == [9] * UNITS
    assert degrees(rate, 9, 1e-30, law=law).tolist() == [1] * UNITS
    assert degrees(rate, 9, 1e-30, law=law, k_min=0).tolist() == [0] * UNITS
    assert degrees(rate, 9, 1.0, law=law, k_min=9).tolist() == [9] * UNITS
    first = degrees(rate, 9, 1 / 54, law=law, k_min=0).tolist().index(1)
    assert first == (1 if law.dead >= 0 else 0)  # the quietest one that is alive
    assert degrees(rate, 1, 0.5, law=law, k_min=0).tolist()[first : first + 2] == [1, 1]


@BY_NAME
def test_one_unit(law):
    for fan, density, k in [(1, 1.0, 1), (1, 0.4, 1), (10, 0.5, 5), (2**30, 0.3, None)]:
        want = round(density * fan) if k is None else k
        assert degrees(jnp.array([0.2]), fan, density, law=law).tolist() == [want]


@pytest.mark.long
def test_never_observed_counts_as_one_half():
    rate = jnp.array([0.1, 0.5, 0.9])
    with_nan = degrees(rate.at[1].set(jnp.nan), 20, 0.4)
    assert with_nan.tolist() == degrees(rate, 20, 0.4).tolist()


@pytest.mark.sampled(2)
@SHIFT_AND_SCALE
@pytest.mark.parametrize("units, fan", [(1000, 2**20), (100_000, 64), (3, 715_827_882)])
def test_large(law, units, fan, getkey):
    rate = jax.random.uniform(getkey(), (units,))
    for density in (0.37, jnp.float32(0.37)):
        k = np.asarray(degrees(rate, fan, density, law=law), np.int64)
        assert k.sum() == round(float(density) * (fan * units))
        assert k.min() >= 1 and k.max() <= fan
        alive = np.asarray(law.alive(np.sort(rate))) == 1
        assert (np.diff(k[np.argsort(rate)][alive]) <= 0).all()


def test_a_tiny_slope_is_all_or_nothing():
    rate = jnp.array([0.5, 0.1, 0.9])
    for beta in (1e-6, 1e-38):
        k = degrees(rate, 10, 17 / 30, law=laws.log_odds(beta))
        assert k.tolist() == [6, 10, 1]


@pytest.mark.long
def test_slope_may_be_traced():
    rate, betas = jnp.array([0.2, 0.5, 0.8]), jnp.array([0.2, 2.0])
    k = jax.vmap(lambda b: degrees(rate, 20, 0.5, law=laws.log_odds(b)))(betas)
    assert k.tolist() == [[17, 10, 3], [11, 10, 9]]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.float32, np.float64])
def test_any_float_dtype(dtype):
    rate = np.array([0.125, 0.5, 0.75]).astype(dtype)
    want = degrees(jnp.array([0.125, 0.5, 0.75]), 20, 0.5)
    assert degrees(rate, 20, 0.5).tolist() == want.tolist()


@pytest.mark.long
def test_with_64_bit_types_on():
    rate = np.array([[0.125, 0.5, 0.75], [0.1, 0.1, 0.9]])
    want = degrees(jnp.asarray(rate, jnp.float32), 20, 0.5)
    with jax.enable_x64(True):
        k = jax.jit(lambda a, d: degrees(a, 20, d))(jnp.asarray(rate), 0.5)
    assert k.dtype == jnp.int32 and k.tolist() == want.tolist()


ONES = np.ones(3, np.float32)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "kind, text, args",
    [
        (TypeError, "on_rate: expected floats, got int32; pass", ([1, 0], 4, 0.5)),
        (TypeError, "on_rate: expected floats, got bool; pass", ([True], 4, 0.5)),
        (ValueError, r"on_rate: expected shape .*got \(\); the", (0.5, 4, 0.5)),
        (ValueError, r"on_rate: expected shape .*got \(0,\); the", (ONES[:0], 4, 0.5)),
        (ValueError, r"in \[0, 1\], got 2.0 \(3 such .*; div", (ONES * 2, 4, 0.5)),
        (ValueError, r"in \[0, 1\], got -1.0 \(3 such .*; div", (-ONES, 4, 0.5)),
        (ValueError, r"density: expected .*got 0\.0; pass", (ONES, 4, 0.0)),
        (ValueError, r"density: expected .*got 1\.5; pass", (ONES, 4, 1.5)),
        (TypeError, r"density: expected a number .*got '0.5'; pass", (ONES, 4, "0.5")),
        (TypeError, r"density: expected a number .*got True; pass", (ONES, 4, True)),
        (ValueError, r"density: .* shape \(\), got \(3,\); pass", (ONES, 4, ONES)),
        (ValueError, r"fan: expected .*, got 0; it counts", (ONES, 0, 0.5)),
        (TypeError, r"fan: expected an int .*, got 4\.0; it", (ONES, 4.0, 0.5)),
        (ValueError, r"fan \* units <= .*, got 1073741824 \* 3;", (ONES, 2**30, 0.5)),
    ],
)
def test_bad_arguments(kind, text, args):
    with pytest.raises(kind, match=text):
        degrees(*args)


@pytest.mark.parametrize("k_min", [-1, 5])
def test_bad_k_min(k_min):
    text = rf"k_min: expected an int in \[0, 4\], got {k_min}; no unit"
    with pytest.raises(ValueError, match=text):
        degrees(ONES, 4, 0.5, k_min=k_min)


def test_bad_law():
    with pytest.raises(
        TypeError, match=r"law: expected one of bb.laws, got .*; call its fact"
    ):
        degrees(ONES, 4, 0.5, law=laws.log_odds)
    short = laws.Law("short", lambda a, mean: a[:1], "shift")
    with pytest.raises(ValueError, match=r"law 'short': .* \(3,\), got \(1,\); return"):
        degrees(ONES, 4, 0.5, law=short)


@pytest.mark.long
@pytest.mark.parametrize("law", LAWS)
def test_rates_below_the_smallest_normal_float_keep_their_order(law):
    """Degrees are those of rates as far apart that every backend tells apart."""
    rng = np.random.default_rng(3)
    for _ in range(10):
        rate = rng.choice([0, 1e-40, 3e-40, 5e-39, 0.1, 0.5], 7)
        normal = np.where((rate > 0) & (rate < 1e-30), rate * 1e10, rate)
        pair = jnp.asarray(np.stack([rate, normal]), jnp.float32)
        for density in (0.3, 0.6, 0.97):
            tiny, same = degrees(pair, 9, density, law=law)
            np.testing.assert_array_equal(tiny, same)


@pytest.mark.long
def test_of_dead_units_the_busier_one_gives_way():
    rate = jnp.asarray(np.array([3e-40, 1e-40, 0.0, 0.6], np.float32))
    assert degrees(rate, 8, 0.97).tolist() == [7, 8, 8, 8]


@pytest.mark.long
def test_traced_values_are_clipped_instead():
    k = jax.jit(lambda a, d: degrees(a, 4, d))(ONES * 7, 9.0)
    assert k.tolist() == [4, 4, 4]
