"""Updates of kept weights: least squares and ADMM against numpy, never worse."""

import jax.numpy as jnp
import numpy as np
import pytest

from bbjax.rules.parts.refit import refit
from tests.support.correlated import data, error

METHODS = ("admm", "least_squares")


def case(n=24, units=9, density=0.5):
    """A Gram matrix, weights `(in, out)`, and a mask with unlike degrees."""
    gram, w = data(n, units)
    return gram, w, np.random.uniform(size=w.shape) < density


def updated(gram, w, mask, method, *, start=None, damp=0.1, rounds=20, width=None):
    """One kernel: the new weights as numpy, and the record."""
    start = jnp.where(mask, w, 0) if start is None else start
    done = refit(
        jnp.asarray(w)[None], jnp.asarray(start)[None], jnp.asarray(gram)[None],
        jnp.asarray(mask)[None], damp, rounds, method=method,
        width=len(w) if width is None else width,
    )  # fmt: skip
    return np.asarray(done.weights[0].astype(jnp.float32)), done


def damped(gram, damp):
    """The matrix of the problem, in float64."""
    gram = gram.astype(np.float64)
    return gram + damp * np.diag(np.diag(gram))


def solution(gram, w, mask, damp):
    """Unit by unit, `lstsq` on the kept inputs of a square root of the matrix."""
    values, vectors = np.linalg.eigh(damped(gram, damp))
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    found = np.zeros(w.shape)
    for j, keep in enumerate(mask.T):
        found[keep, j] = np.linalg.lstsq(root[:, keep], root @ w[:, j], rcond=None)[0]
    return found


def per_unit(gram, change):
    return np.array([error(gram, column[:, None]) for column in change.T])


@pytest.mark.parametrize("damp", [0.0, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("density", [0.2, 0.7])
def test_least_squares_is_that_of_numpy(damp, density):
    gram, w, mask = case(density=density)
    new, done = updated(gram, w, mask, "least_squares", damp=damp)
    wanted = solution(gram, w, mask, damp)
    np.testing.assert_allclose(new, wanted, rtol=2e-3, atol=2e-3)
    assert (new[~mask] == 0).all()
    np.testing.assert_allclose(done.before[0], error(gram, w * ~mask), rtol=1e-4)
    np.testing.assert_allclose(done.after[0], error(gram, new - w), rtol=1e-3)
    np.testing.assert_allclose(done.total[0], error(gram, w), rtol=1e-4)


def test_the_gradient_is_0_at_kept_weights():
    """The condition of Karush, Kuhn and Tucker."""
    gram, w, mask = case()
    new, _ = updated(gram, w, mask, "least_squares")
    pull = damped(gram, 0.1) @ (new - w.astype(np.float64))
    before = damped(gram, 0.1) @ (w * ~mask).astype(np.float64)
    assert np.abs(pull[mask]).max() < 1e-4 * np.abs(before[mask]).max()


@pytest.mark.parametrize("rounds", [1, 3, 20])
def test_admm_is_the_published_loop(rounds):
    gram, w, mask = case()
    size = np.sqrt(np.diag(gram).astype(np.float64))
    matrix = gram / size / size[:, None]
    matrix += 0.1 * np.mean(np.diag(matrix)) * np.eye(len(gram))
    dense = w * size[:, None]
    inverse = np.linalg.inv(matrix + np.eye(len(gram)))
    free, dual = dense, np.zeros_like(dense)
    for _ in range(rounds):
        held = (free + dual) * mask
        dual = dual + free - held
        free = inverse @ (matrix @ dense + held - dual)
    wanted = (free + dual) * mask / size[:, None]
    new, done = updated(gram, w, mask, "admm", rounds=rounds)
    better = per_unit(gram, wanted - w) < per_unit(gram, w * ~mask)
    assert better.any()
    np.testing.assert_allclose(new[:, better], wanted[:, better], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(new[:, ~better], (w * mask)[:, ~better])


def test_admm_goes_to_least_squares():
    gram, w, mask = case()
    exact, best = updated(gram, w, mask, "least_squares")
    lost = []
    for rounds in (5, 20, 2000):
        new, done = updated(gram, w, mask, "admm", rounds=rounds)
        problem = damped(gram, 0.1)
        lost.append(error(problem, new - w) / error(problem, exact - w) - 1)
    assert lost[0] > lost[1] > lost[2] > -1e-4 and lost[2] < 1e-3
    np.testing.assert_allclose(new, exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_no_unit_is_worse_than_before(method, dtype):
    for density in (0.1, 0.5, 0.95):
        gram, w, mask = case(density=density)
        w = jnp.asarray(w, dtype)
        new, done = updated(gram, w, mask, method)
        assert done.weights.dtype == dtype
        w = np.asarray(w.astype(jnp.float32))
        before, after = (per_unit(gram, c) for c in (w * ~mask, new - w))
        assert (after <= before * (1 + 1e-5) + 1e-6).all()
        assert after.sum() < before.sum()
        assert density != 0.5 or after.sum() < 0.8 * before.sum()


@pytest.mark.parametrize("method", METHODS)
def test_no_unit_is_worse_than_where_it_starts(method):
    """One unit starts at the solution without damping."""
    gram, w, mask = case()
    start = np.where(mask, w, 0)
    start[:, 4] = solution(gram, w, mask, 0.0)[:, 4]
    new, _ = updated(gram, w, mask, method, start=jnp.asarray(start, jnp.float32))
    np.testing.assert_array_equal(new[:, 4], start[:, 4].astype(np.float32))
    after, before = (per_unit(gram, c - w) for c in (new, start))
    assert (after <= before * (1 + 1e-5)).all() and after.sum() < before.sum()


@pytest.mark.parametrize("method", METHODS)
def test_inputs_of_independent_channels_leave_weights_alone(method):
    _, w, mask = case()
    gram = np.diag(np.random.uniform(0.1, 9.0, 24)).astype(np.float32)
    new, done = updated(gram, w, mask, method)
    np.testing.assert_array_equal(new, np.where(mask, w, 0))
    np.testing.assert_allclose(done.after, done.before, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_sizes_of_inputs_do_not_matter(method):
    gram, w, mask = case()
    new, _ = updated(gram, w, mask, method)
    size = np.exp(3 * np.random.normal(size=24)).astype(np.float32)
    other = gram * size * size[:, None]
    scaled, _ = updated(other, w / size[:, None], mask, method)
    np.testing.assert_allclose(scaled * size[:, None], new, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_that_are_always_0_keep_their_weights(method):
    gram, w, mask = case()
    dead = [2, 7, 20]
    gram[dead], gram[:, dead] = 0, 0
    new, _ = updated(gram, w, mask, method)
    np.testing.assert_allclose(new[dead], np.where(mask, w, 0)[dead], rtol=1e-5)
    mask[dead] = True  # their edges change nothing for the others
    other, _ = updated(gram, w, mask, method)
    live = np.setdiff1d(np.arange(24), dead)
    np.testing.assert_allclose(other[live], new[live], rtol=1e-3, atol=1e-4)
    nothing, _ = updated(0 * gram, w, mask, method)
    np.testing.assert_array_equal(nothing, np.where(mask, w, 0))


@pytest.mark.parametrize("method", METHODS)
def test_units_that_keep_all_or_nothing(method):
    gram, w, mask = case()
    mask[:, 3], mask[:, 6] = True, False
    new, done = updated(gram, w, mask, method)
    np.testing.assert_array_equal(new[:, 3], w[:, 3])
    np.testing.assert_array_equal(new[:, 6], 0)
    assert np.isfinite(new).all() and done.sound.all()


def test_systems_are_as_wide_as_the_largest_degree():
    gram, w, mask = case(density=0.3)
    most = mask.sum(0).max()
    one, _ = updated(gram, w, mask, "least_squares", width=int(most))
    other, _ = updated(gram, w, mask, "least_squares")
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_system_that_cannot_be_solved_leaves_the_weights():
    _, w, mask = case()
    bad = (-np.ones((24, 24)) + 1.5 * np.eye(24)).astype(np.float32)
    new, done = updated(bad, w, mask, "least_squares", damp=0.0)
    np.testing.assert_array_equal(new, np.where(mask, w, 0))
    assert not done.sound[0]


@pytest.mark.parametrize("method", METHODS)
def test_slices_do_not_meet(method):
    cases = [case() for _ in range(3)]
    gram, w, mask = (jnp.asarray(np.stack(part)) for part in zip(*cases, strict=True))
    done = refit(w, jnp.where(mask, w, 0), gram, mask, 0.1, 20, method=method, width=24)
    for at, (gram, w, mask) in enumerate(cases):
        alone, record = updated(gram, w, mask, method)
        np.testing.assert_allclose(done.weights[at], alone, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(done.after[at], record.after[0], rtol=1e-4)
