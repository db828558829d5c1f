"""A smaller model beside the masked one that it was made from."""

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.model.leaves import Leaves


def drawn(**shapes):
    rng = np.random.default_rng(2)
    return {
        n: jnp.asarray(rng.standard_normal(s), jnp.float32) for n, s in shapes.items()
    }


def cut(params, **where):
    """Masks that are False at some indices."""
    masks = {}
    for name, index in where.items():
        mask = np.ones(params[name].shape, bool)
        mask[index] = False
        masks[name] = mask
    return masks


def masked(params, masks):
    leaves = Leaves.of(params)
    for path, mask in masks.items():
        leaves.keep_at(path, mask)
    return leaves.tree()


def close(one, two):
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))
    pairs = [(a, b) for a, b in pairs if isinstance(a, jax.Array)]
    pairs = [(a, b) for a, b in pairs if jnp.issubdtype(a.dtype, jnp.floating)]
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    most = max(np.abs(a).max(initial=0) for a, _ in pairs)
    for a, b in pairs:
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * most)


def same(fn, params, masks, small, *args):
    close(fn(masked(params, masks), *args), small.fn(small.params, *args))
