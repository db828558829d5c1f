"""A smaller model computes what the masked one does: outputs and gradients.

Every model of the zoo and every hard one, under masks that cut whole rows and columns
at random, single edges beside them, and the companions of some units as well.
Tolerance: sums of float32 in another order, 1e-5 of the largest entry.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax.model.leaves import Leaves
from tests.support import zoo, zoo_shrink
from tests.support.smaller import close, masked

SEEDS = [0, 1, *(pytest.param(s, marks=pytest.mark.slow) for s in range(2, 5))]
# Draws of dropout are of other shapes, and so others: compared without.
NOISY = {"nnx"}


def random_masks(units, seed, rate=0.4):
    """Whole rows and columns, single edges, and the companions of some units."""
    rng = np.random.default_rng(seed)
    masks = {}
    for kernel in units.kernels:
        mask = rng.random(kernel.shape) > 0.1
        for axis in (*kernel.fan_in, *kernel.fan_out):
            if rng.random() < 0.5:
                continue
            lead = [n if a in kernel.stack else 1 for a, n in enumerate(kernel.shape)]
            lead[axis] = kernel.shape[axis]
            mask &= rng.random(lead) > rate
        masks[kernel.path] = mask
        made = [s for s, _ in units.graph.made_by(kernel.path)]
        companions = [c for s in made for c in s.companions]
        for companion in companions:
            if rng.random() < 0.5 and len(companion.shape) == 1:
                masks[companion.path] = rng.random(companion.shape) > rate
    return masks


def with_gradients(fn, params, args):
    leaves, tree = jax.tree.flatten(params)
    given = {i: a for i, a in enumerate(leaves) if isinstance(a, jax.Array)}

    def rebuilt(arrays):  # Equinox modules hold functions beside arrays
        return jax.tree.unflatten(
            tree, [arrays.get(i, a) for i, a in enumerate(leaves)]
        )

    def run(arrays):
        out = fn(rebuilt(arrays), *args)
        return scalar(out), out

    run = jax.value_and_grad(run, has_aux=True, allow_int=True)
    (_, out), grads = jax.jit(run)(given)
    return out, rebuilt(grads)


def scalar(out):
    """A sum of sines of outputs of size one: large ones would be mostly rounding."""
    total = 0.0
    for leaf in jax.tree.leaves(out):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            leaf = leaf.astype(jnp.float32)
            size = jax.lax.stop_gradient(jnp.max(jnp.abs(leaf), initial=1.0))
            total += jnp.sum(jnp.sin(leaf / size))
    return total


def check(fn, params, args, seed):
    """Outputs and gradients of the masked model and of the smaller one."""
    masks = random_masks(bb.trace(fn, params, *args), seed)
    small = bb.shrink(fn, params, masks, *args)
    out, old = with_gradients(fn, masked(params, masks), args)
    small_out, new = with_gradients(small.fn, small.params, args)
    close(out, small_out)
    close(masked(small.cut(old), small.masks), masked(new, small.masks))
    for path, mask in small.masks.items():
        assert mask.shape == Leaves.of(small.params).at(path).shape
    return small


@pytest.mark.sampled(2)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("model", zoo_shrink.HARD, ids=lambda m: m.name)
def test_hard_models_compute_the_same_when_they_are_smaller(model, seed):
    check(model.fn, model.made(), model.args, seed)


@pytest.mark.parametrize("model", zoo_shrink.HARD, ids=lambda m: m.name)
def test_the_graph_lists_what_can_shrink(model):
    graph = bb.trace(model.fn, model.made(), *model.args).graph
    assert {str(g.first) for g in graph if not g.fixed} == model.free
    assert all(g.fixed for g in graph if str(g.first) not in model.free)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", [c.name for c in zoo.CASES if c.name not in NOISY])
def test_models_of_the_zoo_compute_the_same_when_they_are_smaller(name, request):
    if zoo.named(name).lenient:
        request.getfixturevalue("lenient")
    model = zoo.named(name).make()
    check(model.fn, model.params, model.args, seed=0)
