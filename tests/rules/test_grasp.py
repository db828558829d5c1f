"""GraSP: w * (H g), signs kept, for one budget over all kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax.oneshot.saliency import hessian_gradient
from bbjax.rules import grasp
from tests.support.runs import dense

UNITS = bb.Units((dense(6, 4, "up"), dense(4, 3, "down"))).select("up|down")


def loss(params, x):
    h = jnp.tanh(x @ params["up"])
    return jnp.mean(jnp.square(h @ params["down"] - 1.0))


def case():
    shapes = {"up": (6, 4), "down": (4, 3)}
    params = {
        k: jnp.asarray(np.random.normal(size=s), jnp.float32) for k, s in shapes.items()
    }
    return params, jnp.asarray(np.random.normal(size=(16, 6)), jnp.float32)


def best(score, k):
    return np.isin(np.arange(score.size), np.argsort(-score, kind="stable")[:k])


def flat(tree):
    return np.concatenate([np.asarray(tree[k]).ravel() for k in ("up", "down")])


def test_hand_case_keeps_the_signs():
    """Scores 5, -9, -6, 2.5: the largest stay, not those of the largest size."""
    params = {"w": jnp.array([[1.0, 9.0], [-2.0, 5.0]])}
    units = bb.Units((dense(2, 2),)).select("w")
    product = {"w": jnp.array([[5.0, -1.0], [3.0, 0.5]])}
    pruned, _ = bb.prune(params, units, grasp(), density=0.5, grads=product, k_min=0)
    np.testing.assert_array_equal(pruned["w"], [[1, 0], [0, 5]])


@pytest.mark.long
def test_a_score_is_how_much_gradient_flow_rests_on_the_edge():
    """Minus half of what gating the weight off does to |g|^2, to first order."""
    params, x = case()

    def flow(gates):
        gated = jax.tree.map(jnp.multiply, params, gates)
        _, g = jax.value_and_grad(loss)(gated, x)
        return sum(jnp.sum(jnp.square(leaf)) for leaf in g.values())

    off = jax.grad(flow)(jax.tree.map(jnp.ones_like, params))
    product = hessian_gradient(loss, params, x)
    score = flat(jax.tree.map(jnp.multiply, params, product))
    np.testing.assert_allclose(score, flat(off) / 2, rtol=1e-3, atol=1e-4)
    _, masks = bb.prune(params, UNITS, grasp(), 0.5, grads=product, k_min=0)
    np.testing.assert_array_equal(flat(masks), best(score, 18))


@pytest.mark.long
@pytest.mark.parametrize("density", [0.1, 0.4, 0.75, 1.0])
def test_one_budget_over_all_kernels_is_exact(density):
    params, x = case()
    product = hessian_gradient(loss, params, x)
    for k_min in (0, 1):
        if round(density * 36) < 7 * k_min:
            continue
        _, masks = bb.prune(params, UNITS, grasp(), density, grads=product, k_min=k_min)
        assert flat(masks).sum() == round(density * 36)
        assert all((np.asarray(m).sum(0) >= k_min).all() for m in masks.values())


@pytest.mark.long
def test_layer_scope_and_jit():
    params, x = case()
    product = hessian_gradient(loss, params, x)

    def run(params, product):
        return bb.prune(params, UNITS, grasp(scope="layer"), 0.5, grads=product)[1]

    masks = jax.jit(run)(params, product)
    assert masks["up"].sum() == 12 and masks["down"].sum() == 6
    np.testing.assert_array_equal(flat(masks), flat(run(params, product)))


@pytest.mark.long
def test_scores_of_a_convolution_are_summed_with_their_signs():
    kernel = bb.Kernel("w", (3, 2, 5), spatial=(0,), fan_in=(1,), fan_out=(2,))
    w, product = np.random.normal(size=(2, *kernel.shape)).astype(np.float32)
    units = bb.Units((kernel,)).select("w")
    params, grads = {"w": jnp.asarray(w)}, {"w": jnp.asarray(product)}
    _, masks = bb.prune(params, units, grasp(), 0.5, grads=grads, k_min=0)
    wanted = best((w * product).sum(0).ravel(), 5)
    np.testing.assert_array_equal(np.asarray(masks["w"])[1].ravel(), wanted)


@pytest.mark.long
def test_bfloat16_and_what_is_not_a_number():
    params, x = case()
    product = hessian_gradient(loss, params, x)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, product))
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), half)
    masks = [
        bb.prune(p, UNITS, grasp(), 0.5, grads=g, k_min=0)[1] for p, g in (half, wide)
    ]
    np.testing.assert_array_equal(flat(masks[0]), flat(masks[1]))
    product["up"] = product["up"].at[2, 2].set(jnp.nan)
    _, masks = bb.prune(params, UNITS, grasp(), 35 / 36, grads=product, k_min=0)
    assert flat(masks).sum() == 35 and not masks["up"][2, 2]


def test_it_is_not_for_training():
    """There, what comes as gradients is not H g."""
    with pytest.raises(ValueError, match="got 'grasp', which prunes once"):
        bb.transform(UNITS, grasp(), density=0.5)
    with pytest.raises(ValueError, match='expected scope "layer" or "global", got'):
        grasp(scope="all")
