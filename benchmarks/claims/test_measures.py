"""What claims measure after the nets are trained, against oracles."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

measure = pytest.importorskip("benchmarks.claims.information.measure")
response = pytest.importorskip("benchmarks.claims.response.judge")
churn = pytest.importorskip("benchmarks.claims.settle.churn")
shock = pytest.importorskip("benchmarks.claims.shock.judge")

# Benchmarks are run under JAX's own settings.
pytestmark = pytest.mark.usefixtures("lenient")


# Shock, response, churn ----------------------------------------------------------
def test_recovery_is_the_first_look_within_a_tenth():
    loss = np.array([[[1.0, 3.0, 2.0, 1.05, 1.2], [1.0, 1.05, 2.0, 2.0, 2.0]]])
    found = shock.outcome({"loss": loss, "accuracy": loss}, look=10)
    assert found["jump"].tolist() == [[2.0, pytest.approx(0.05)]]
    assert found["steps"].tolist() == [[21.0, 1.0]]
    never = np.array([[[1.0, 3.0, 3.0]]])
    assert shock.outcome({"loss": never, "accuracy": never}, 10)["steps"] == [[21.0]]
    assert found["final"].tolist() == [[1.2, 2.0]]


def test_responses_are_slopes_through_the_origin():
    shares = np.array([0.0, 0.1, 0.2])
    base = np.full((1, 2, 3, 4), 0.5)
    hit = np.array([True, False, True, False])
    change = shares[:, None, None, None] * np.where(hit, -2.0, 0.5)
    side = {
        "rate": base + change,
        "degree": 10 * (base + change),
        "hit": np.broadcast_to(hit, (3, 2, 4)),
    }
    found = response.responses({"in": side, "out": side}, shares)
    a, k = found["in"]["a"], found["in"]["k"]
    np.testing.assert_allclose(a["shocked"], np.full((2, 3), 2.0))
    np.testing.assert_allclose(a["signed"], np.full((2, 3), -2.0))
    np.testing.assert_allclose(a["spared"], np.full((2, 3), 0.5))
    np.testing.assert_allclose(k["shocked"], np.full((2, 3), 4.0))  # of a mean of 5


def bits(*masks):
    return np.packbits(np.array(masks, bool), axis=-1)[None]


def test_masks_that_go_back_and_forth_undo_all():
    one, other = [1, 1, 0, 0, 1, 0, 0, 0], [1, 0, 1, 0, 1, 0, 0, 0]
    found = churn.follow(bits(one, other, one, other), np.array([3]))
    np.testing.assert_allclose(found["churn"][0, 1:], 1 / 3)
    np.testing.assert_allclose(found["undone"][0, 2:], 1)
    np.testing.assert_allclose(found["overlap"][0], [2 / 3, 1, 2 / 3, 1])


def test_masks_that_wander_undo_nothing_and_settled_ones_rest():
    moves = [[1, 0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]]
    wander = churn.follow(bits(*moves, [0, 0, 1, 0, 0, 0, 0, 0]), np.array([1]))
    assert wander["churn"][0, 1:].tolist() == [1, 1]
    assert wander["undone"][0, 2] == 0.5  # the edge that came went again
    assert wander["overlap"][0].tolist() == [0, 0, 1]
    still = churn.follow(bits(moves[0], moves[0], moves[0]), np.array([1]))
    assert still["churn"][0, 1:].tolist() == [0, 0]
    assert np.isnan(still["undone"]).all()
    assert churn.last_quarter(still["churn"]).tolist() == [0]
    assert np.isnan(churn.last_quarter(still["undone"])).all()


# Information ---------------------------------------------------------------------
@pytest.mark.long
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_information_of_a_gaussian_channel_is_bracketed(getkey, size, sigma):
    z = jax.random.normal(getkey(), (4096, size))
    low, high = measure.information(getkey(), z, sigma)
    exact = size / 2 * math.log(1 + 1 / sigma**2)
    assert low <= high + 1e-4
    assert float(low) == pytest.approx(exact, abs=0.08)
    assert float(high) == pytest.approx(exact, abs=0.08)


def test_information_without_noise_is_that_of_the_samples(getkey):
    z = 100.0 * jnp.arange(64.0)[:, None]
    low, _ = measure.information(getkey(), z, 1.0)
    assert float(low) == pytest.approx(math.log(64), abs=1e-3)
    low, high = measure.information(getkey(), jnp.ones((64, 3)), 1.0)
    assert abs(low) < 1e-3 and abs(high) < 1e-3


@pytest.mark.long
def test_codes_are_described_as_in_numpy(getkey):
    z = jax.nn.relu(jax.random.normal(getkey(), (500, 6)) @ jnp.eye(6).at[0, 1].set(2))
    z = z.at[:, 5].set(0)  # a dead unit
    found = {k: float(v) for k, v in measure.code(z).items()}
    x = np.asarray(z)
    a = (x > 0).mean(0)[:5]
    entropy = -(a * np.log2(a) + (1 - a) * np.log2(1 - a))
    assert found["entropy"] == pytest.approx(entropy.sum() / 6, abs=1e-4)
    r = np.abs(np.corrcoef(x[:, :5].T))
    assert found["correlation"] == pytest.approx((r.sum() - 5) / 20, rel=1e-4)
    eigen = np.linalg.eigvalsh(np.cov(x.T))
    assert found["dimension"] == pytest.approx(
        eigen.sum() ** 2 / (eigen**2).sum(), rel=1e-3
    )
    assert found["alive"] == 5


@pytest.mark.long
def test_channels_count_traffic_and_power(getkey):
    z = jax.nn.relu(jax.random.normal(getkey(), (300, 5)))
    w = jax.random.normal(getkey(), (5, 4)).at[0].set(0).at[1, :2].set(0)
    found = measure.channel(getkey(), z, w, 1.0)
    a, k = (np.asarray(z) > 0).mean(0), (np.asarray(w) != 0).sum(1)
    assert float(found["traffic"]) == pytest.approx((a * k).sum(), rel=1e-5)
    sigma = np.cov(np.asarray(z).T, bias=True)
    trace = np.trace(np.asarray(w).T @ sigma @ np.asarray(w))
    assert float(found["power"]) == pytest.approx(trace, rel=1e-4)
    units = measure.per_unit(getkey(), z, w, 1.0)
    assert float(units["information"][0]) == pytest.approx(0, abs=1e-3)
    assert (np.asarray(units["traffic"]) == np.asarray(units["rate"]) * k).all()
