"""The unit graph of the zoo: links are reads, and removed units have no effect."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from bbjax import graph
from bbjax.model.leaves import Leaves
from tests.support import zoo


@pytest.fixture(params=zoo.CASES, ids=lambda case: case.name)
def case(request):
    if request.param.lenient:
        request.getfixturevalue("lenient")
    return request.param


# Kernels of the zoo whose units can be removed.
CLOSED = {
    "mlp": {"up"},
    "gated": {"gate", "up"},
    "tied": set(),
    "attention": {"v"},
    "experts": {"up"},
    "ensemble": {"up"},
    "nested_scan": {"up"},
    "recurrent": set(),
    "cond": set(),
    "custom_jvp": {"up"},
    "conv2d": {"a"},
    "linen_norms": {"Conv_0/kernel"},
    "linen_general": {"up/kernel"},
    "linen_transposed_conv": {"a/kernel"},
    "linen_transformer_axis0": {"layers/attend/value/kernel", "layers/up/kernel"},
    "linen_transformer_axis1": {"layers/attend/value/kernel", "layers/up/kernel"},
    "linen_tied_head": set(),  # its reader is also an embedding
    "nnx": {"conv/kernel", "mid/kernel"},
    "nnx_layers": set(),
    "equinox": {"mlp/layers/0/weight"},
    "haiku": {"conv2_d/w", "linear/w"},
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_kernels(name, lenient):
    _, units = zoo.built(name)
    assert {k.path for k in units.kernels if k.closed} == CLOSED[name]
    assert all(bool(k.why_not) != k.closed for k in units.kernels)


def test_links_are_among_what_is_read(case):
    _, units = zoo.built(case.name)
    for kernel in units.kernels:
        streams = {p for path in kernel.reads for p in units[path].stream}
        assert {link.path for link in kernel.links} <= {*kernel.reads} | streams


@pytest.mark.parametrize(
    "name", [n for n, closed in CLOSED.items() if closed and n != "nnx"]
)
def test_a_unit_without_readers_may_have_any_value(name, lenient):
    """What closed means: other weights of a removed unit are the same function."""
    model, units = zoo.built(name)
    closed = [units[path] for path in sorted(CLOSED[name])]
    rng = np.random.default_rng(0)
    keep = {k.path: rng.random(k.per_unit_shape("outputs")) < 0.5 for k in closed}
    pruned, masks = graph.remove_units(model.params, units, keep)
    changed, readers = Leaves.of(pruned), graph.consumers(units)
    read = {path for k in closed for path, _ in readers[k.path]}
    own = {path for k in closed for path in (k.path, *k.companions)} - read
    for path in own:
        noise = jnp.asarray(rng.normal(size=masks[path].shape), jnp.float32)
        leaf = changed.at(path)
        changed.put_at(path, jnp.where(masks[path], leaf, noise.astype(leaf.dtype)))
    assert own
    same = outcome(model, changed.tree()), outcome(model, pruned)
    np.testing.assert_allclose(*same, rtol=2e-5, atol=1e-6)
    assert np.any(np.asarray(same[1]) != np.asarray(outcome(model, model.params)))


@eqx.filter_jit
def outcome(model, params):
    """The result of a model, without the statistics it updates."""
    result = model.fn(params, *model.args)
    return result[0] if model.has_aux else result
