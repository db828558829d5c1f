"""Optimal brain surgery: against plain formulas, least squares, and other masks."""

import jax.numpy as jnp
import numpy as np
import pytest

from bbjax.rules.parts.brain_surgeon import operate
from tests.support.correlated import data, error


def operated(w, gram, keep, damp=0.01, block=128, m=None):
    """`(weights, mask)` as numpy; `keep` edges of every unit."""
    keep = jnp.broadcast_to(jnp.asarray(keep, jnp.int32), w.shape[1:])
    alive = jnp.ones(w.shape, bool)
    gram = jnp.asarray(gram, jnp.float32)
    done = operate(jnp.asarray(w), gram, keep, alive, damp, block=block, m=m)
    assert done.sound
    return np.asarray(done.weights), np.asarray(done.mask)


def inverse_root(gram, damp):
    """Upper U with U^T U = (gram + damp mean(diag))^-1, by the plain formulas."""
    gram = gram.astype(np.float64)
    damped = gram + damp * np.mean(np.diag(gram)) * np.eye(len(gram))
    return np.linalg.cholesky(np.linalg.inv(damped)).T


def best(cost, k):
    order = np.argsort(-cost, kind="stable")
    return np.isin(np.arange(len(cost)), order[:k])


def by_hand(w, gram, keep, damp=0.01, block=128, m=None):
    """One unit, one input after the other, in doubles: weights, mask and the cost."""
    upper, w = inverse_root(gram, damp), w.astype(np.float64)
    n, paid = len(w), 0.0
    mask = np.zeros(w.shape, bool)
    for u in range(w.shape[1]):
        for j in range(n):
            cost = w[:, u] ** 2 / np.diag(upper) ** 2
            if m is None and j % block == 0:
                left = keep[u] - mask[:j, u].sum()
                mask[j:, u] = best(cost[j:], left)  # what is ahead is ranked again
            if m is not None and j % m == 0:
                mask[j : j + m, u] = best(cost[j : j + m], keep[u])
            if not mask[j, u]:
                lost = w[j, u] / upper[j, j]
                w[j:, u] -= lost * upper[j, j:]
                paid += lost**2
    return w * mask, mask, paid


def block_threshold(w, gram, share, block, damp=0.01):
    """The authors' unstructured choice: one threshold per block, with exact counts."""
    upper, w = inverse_root(gram, damp), w.astype(np.float64)
    mask = np.zeros(w.shape, bool)
    for at in range(0, len(w), block):
        here = slice(at, at + block)
        cost = w[here] ** 2 / np.diag(upper)[here, None] ** 2
        mask[here] = best(cost.ravel(), round(share * cost.size)).reshape(cost.shape)
        for j in range(at, min(at + block, len(w))):
            lost = np.where(mask[j], 0.0, w[j] / upper[j, j])
            w[j:] -= upper[j, j:, None] * lost[None]
    return w * mask


@pytest.mark.long
@pytest.mark.parametrize("block, m", [(128, None), (1, None), (9, None), (16, 4)])
def test_equals_one_input_after_the_other(block, m):
    """Blocks only put moves off; 9 does not divide the 48 inputs."""
    gram, w = data()
    keep = np.arange(12) + 14 if m is None else np.arange(12) % 4 + 1
    new, mask = operated(w, gram, keep, block=block, m=m)
    hand, wanted, _ = by_hand(w, gram, keep, block=block, m=m)
    np.testing.assert_array_equal(mask, wanted)
    np.testing.assert_allclose(new, hand, rtol=2e-3, atol=2e-3)
    groups = mask.reshape(1 if m is None else 48 // m, -1, 12).sum(1)
    np.testing.assert_array_equal(groups, np.broadcast_to(keep, groups.shape))


def test_what_goes_costs_what_it_is_ranked_by():
    """The squares of the errors add up to the error of the outputs."""
    gram, w = data()
    gram += 0.1 * np.eye(48, dtype=np.float32)
    new, _ = operated(w, gram, 20, damp=0.0)
    _, _, paid = by_hand(w, gram, np.full(12, 20), damp=0.0)
    np.testing.assert_allclose(error(gram, w - new), paid, rtol=1e-3)


def test_what_goes_first_is_made_up_for_by_least_squares():
    """If all that goes comes before all that stays, no other weights do better."""
    gram, w = data(16, 5)
    gram += 0.1 * np.eye(16, dtype=np.float32)
    w[:6] *= 1e-6
    w[:6, 0] += 0.05  # worth making up for, and still the cheapest
    w[6:] += 20.0 * np.sign(w[6:])
    new, mask = operated(w, gram, 10, damp=0.0)
    assert not mask[:6].any() and mask[6:].all()
    inner, outer = gram[6:, 6:].astype(np.float64), gram[6:, :6]
    fit = np.linalg.solve(inner, outer @ w[:6])
    assert np.abs(fit[:, 0]).max() > 1e-3
    np.testing.assert_allclose(new[6:] - w[6:], fit, atol=1e-4)


@pytest.mark.long
def test_unrelated_inputs_leave_weights_and_norms():
    """With nothing to make up for anything, the mask is that of |w| times the norm."""
    w = np.random.normal(size=(20, 6)).astype(np.float32)
    power = np.random.uniform(0.1, 4.0, 20)
    new, mask = operated(w, np.diag(power), 8, damp=0.0, block=7)
    score = np.abs(w) * np.sqrt(power)[:, None]
    np.testing.assert_array_equal(mask, most_of_each(score, 0.4))
    np.testing.assert_allclose(new, w * mask, rtol=1e-5)


def most_of_each(scores, share):
    """Each unit's best edges."""
    k = round(share * len(scores))
    return np.stack([best(column, k) for column in scores.T], axis=1)


@pytest.mark.long
def test_output_error_is_less_than_that_of_others():
    """Than with other masks, than without the moves, than with the authors' choice."""
    for share in (0.5, 0.25, 0.125):
        errors = dict.fromkeys(("new", "mask", "magnitude", "wanda", "block"), 0.0)
        for _ in range(8):
            gram, w = data()
            new, mask = operated(w, gram, round(48 * share), block=12)
            size, norm = np.abs(w), np.sqrt(np.diag(gram))[:, None]
            others = {
                "new": new,
                "mask": w * mask,
                "magnitude": w * most_of_each(size, share),
                "wanda": w * most_of_each(size * norm, share),
                "block": block_threshold(w, gram, share, 12),
            }
            for name, other in others.items():
                errors[name] += error(gram, w - other) / error(gram, w)
        least = min(errors[name] for name in ("mask", "magnitude", "wanda"))
        assert errors["new"] < 0.95 * least and errors["new"] < errors["block"]
