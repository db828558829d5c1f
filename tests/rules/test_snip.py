"""SNIP: |w g| for one budget over all kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax.rules import snip
from bbjax.rules.base import Candidates, Group
from tests.support.runs import dense

KERNELS = (
    dense(6, 8, "up"),
    bb.Kernel("layers", (3, 4, 5), stack=(0,), fan_in=(1,), fan_out=(2,)),
    bb.Kernel("conv", (3, 3, 4, 5), spatial=(0, 1), fan_in=(2,), fan_out=(3,)),
)
RULE, LAYER = snip(), snip(scope="layer")


def arrays():
    made = [np.random.normal(size=(2, *k.shape)).astype(np.float32) for k in KERNELS]
    return [m[0] for m in made], [m[1] for m in made]


def summed(kernel, score):
    return score.sum((0, 1)) if kernel.spatial else score


def choose(rule, weights, grads, budget, masks, k_min):
    members = tuple(
        Candidates(
            kernel=k,
            actuators=("in",),
            weights=w,
            mask=jnp.ones(k.edge_shape, bool) if m is None else m,
            statistics={},
            budget=jnp.full(k.stack_shape, k.edge_count // 2, jnp.int32),
            k_min=k_min,
            regrow=m is None,
            step=jnp.int32(0),
            grads=g,
        )
        for k, w, g, m in zip(KERNELS, weights, grads, masks, strict=True)
    )
    group = Group(members, lambda which: jnp.asarray(budget, jnp.int32))
    return [choice.mask for choice in rule.choose(group)]


compiled = jax.jit(choose, static_argnames=("rule", "k_min"))


def chosen(rule, weights, grads, budget, k_min=0, jit=True, masks=None):
    """The masks that a rule chooses of all kernels; `budget` edges together."""
    weights, grads = ([jnp.asarray(a) for a in each] for each in (weights, grads))
    made = (compiled if jit else choose)(
        rule, weights, grads, budget, masks or [None] * 3, k_min=k_min
    )
    return [np.asarray(m) for m in made]


def best(score, k):
    """The k best of all entries, as one flat mask."""
    return np.isin(np.arange(score.size), np.argsort(-score, kind="stable")[:k])


def flat(masks):
    return np.concatenate([m.ravel() for m in masks])


def test_hand_case():
    """Scores 5, 9, 6 and 2.5; halves go."""
    params = {"w": jnp.array([[1.0, 9.0], [-2.0, 5.0]])}
    units = bb.Units((dense(2, 2),)).select("w")
    grads = {"w": jnp.array([[5.0, -1.0], [3.0, 0.5]])}
    pruned, _ = bb.prune(params, units, snip(), density=0.5, grads=grads, k_min=0)
    np.testing.assert_array_equal(pruned["w"], [[0, 9], [-2, 0]])


@pytest.mark.sampled(1)
@pytest.mark.parametrize("budget", [0, 1, 13, 64, 127, 128])
def test_keeps_the_largest_of_all_kernels(budget):
    weights, grads = arrays()
    masks = chosen(RULE, weights, grads, budget)
    score = [
        summed(k, np.abs(w * g))
        for k, w, g in zip(KERNELS, weights, grads, strict=True)
    ]
    np.testing.assert_array_equal(flat(masks), best(flat(score), budget))


@pytest.mark.long
def test_a_score_is_what_a_gate_on_the_weight_is_worth():
    """|w g| = |d loss / d gate|, the mean over the batch before the modulus."""
    w = jnp.asarray(np.random.normal(size=(6, 4)), jnp.float32)
    x = jnp.asarray(np.random.normal(size=(32, 6)), jnp.float32)

    def loss(params, gate):
        return jnp.mean(jnp.tanh(x @ (params["w"] * gate)) ** 3)

    units = bb.Units((dense(6, 4),)).select("w")
    ones = jnp.ones_like(w)
    grads = jax.grad(loss)({"w": w}, ones)
    _, masks = bb.prune({"w": w}, units, snip(), 0.25, grads=grads, k_min=0)
    by_gate = np.abs(jax.grad(loss, argnums=1)({"w": w}, ones)).ravel()
    np.testing.assert_array_equal(np.asarray(masks["w"]).ravel(), best(by_gate, 6))


@pytest.mark.long
def test_layer_scope_gives_every_slice_its_own_budget():
    weights, grads = arrays()
    masks = chosen(LAYER, weights, grads, 99)
    assert masks[0].sum() == 24 and masks[2].sum() == 10
    np.testing.assert_array_equal(masks[1].sum((1, 2)), 10)
    score = np.abs(weights[0] * grads[0]).ravel()
    np.testing.assert_array_equal(masks[0].ravel(), best(score, 24))


@pytest.mark.long
def test_every_unit_keeps_its_floor():
    weights, grads = arrays()
    grads[0][:, 2] = 0.0
    assert chosen(RULE, weights, grads, 64)[0][:, 2].sum() == 0
    masks = chosen(RULE, weights, grads, 64, k_min=2)
    assert flat(masks).sum() == 64
    assert all((m.sum(-2) >= 2).all() for m in masks)


@pytest.mark.long
def test_jit_changes_nothing():
    weights, grads = arrays()
    for rule in (RULE, LAYER):
        one, other = (chosen(rule, weights, grads, 50, jit=j) for j in (True, False))
        np.testing.assert_array_equal(flat(one), flat(other))


@pytest.mark.long
def test_permuting_units_permutes_masks():
    weights, grads = arrays()
    masks = chosen(RULE, weights, grads, 50)
    order = np.random.permutation(5)
    mixed = chosen(
        RULE,
        [weights[0], *(w[..., order] for w in weights[1:])],
        [grads[0], *(g[..., order] for g in grads[1:])],
        50,
    )
    for got, mask in zip(mixed[1:], masks[1:], strict=True):
        np.testing.assert_array_equal(got, mask[..., order])


@pytest.mark.long
def test_bfloat16_is_scored_in_float32():
    weights, grads = ([jnp.asarray(a, jnp.bfloat16) for a in each] for each in arrays())
    wide = [[a.astype(jnp.float32) for a in each] for each in (weights, grads)]
    np.testing.assert_array_equal(
        flat(chosen(RULE, weights, grads, 50)), flat(chosen(RULE, *wide, 50))
    )


@pytest.mark.long
def test_what_is_not_a_number_goes_first():
    weights, grads = arrays()
    grads[0][1, 1], weights[2][0, 0, 2, 3] = np.nan, np.nan
    masks = chosen(RULE, weights, grads, 126)
    assert flat(masks).sum() == 126
    assert not masks[0][1, 1] and not masks[2][2, 3]


@pytest.mark.long
def test_edges_that_are_gone_stay_gone():
    weights, grads = arrays()
    earlier = [jnp.asarray(m) for m in chosen(RULE, weights, grads, 60)]
    weights, grads = arrays()
    later = chosen(RULE, weights, grads, 40, masks=earlier)
    assert flat(later).sum() == 40 and not (flat(later) & ~flat(earlier)).any()


@pytest.mark.long
def test_works_while_training():
    """With the gradients that `bb.wrap` sees."""
    import optax

    w = jnp.asarray(np.random.normal(size=(6, 8)), jnp.float32)
    g = jnp.asarray(np.random.normal(size=(6, 8)), jnp.float32)
    units = bb.Units((KERNELS[0],)).select("up")
    tx = bb.wrap(optax.sgd(0.0), units, snip(), density=0.25, start=0, k_min=0)
    state = tx.init({"up": w})
    _, state = jax.jit(tx.update)({"up": g}, state, {"up": w})
    wanted = best(np.abs(np.asarray(w) * np.asarray(g)).ravel(), 12)
    np.testing.assert_array_equal(np.asarray(bb.masks(state)["up"]).ravel(), wanted)


@pytest.mark.long
def test_bad_input():
    with pytest.raises(ValueError, match='expected scope "layer" or "global", got'):
        snip(scope="unit")
    units = bb.Units((dense(2, 2),)).select("w")
    with pytest.raises(ValueError, match="expected gradients, which rule 'snip' needs"):
        bb.prune({"w": jnp.ones((2, 2))}, units, snip(), density=0.5)
