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


TRANSFORMER = {
    *(f"layers/attend/{name}/kernel" for name in ("query", "key", "value")),
    "layers/up/kernel",
}
# Kernels of the zoo whose units can be removed.
CLOSED = {
    "mlp": {"up"},
    "gated": {"gate", "up"},
    "tied": set(),
    "attention": {"q", "k", "v"},
    "experts": {"up"},
    "ensemble": {"up"},
    "nested_scan": {"up"},
    "recurrent": set(),
    "cond": {"a", "b"},
    "custom_jvp": {"up"},
    "conv2d": {"a"},
    "linen_norms": {"Conv_0/kernel"},
    "linen_general": {"up/kernel"},
    "linen_transposed_conv": {"a/kernel"},
    "linen_transformer_axis0": TRANSFORMER,
    "linen_transformer_axis1": TRANSFORMER,
    "linen_tied_head": {"mix/kernel"},  # its reader is also an embedding
    "nnx": {"conv/kernel", "mid/kernel"},
    "nnx_layers": set(),
    "equinox": {"mlp/layers/0/weight"},
    "haiku": {"conv2_d/w", "linear/w"},
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CLOSED)
def test_closed_kernels(name, lenient):
    _, units = zoo.built(name)
    assert {k.path for k in units.kernels if k.closed} == CLOSED[name]
    assert all(bool(k.why_not) != k.closed for k in units.kernels)


@pytest.mark.sampled(7)
def test_kernels_have_rows_for_what_they_read(case):
    _, units = zoo.built(case.name)
    for kernel in units.kernels:
        made = {p.path for s, _ in units.graph.read_by(kernel.path) for p in s.makers}
        assert {path for path in kernel.reads if units[path].closed} <= made


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "name",  # every array of the tied head makes or reads its units
    [
        n
        for n, closed in CLOSED.items()
        if closed and n not in ("nnx", "linen_tied_head")
    ],
)
def test_a_unit_without_readers_may_have_any_value(name, lenient):
    """What closed means: other weights of a removed unit are the same function."""
    model, units = zoo.built(name)
    rng, keep = np.random.default_rng(0), {}
    sets = [s for s in units.graph.sets if {p.path for p in s.makers} <= CLOSED[name]]
    for made in sets:
        kept = rng.random(made.size) < 0.5
        for place in made.makers:
            shape = units[place.path].per_unit_shape("outputs")
            keep[place.path] = kept[place.units].reshape(shape)
    assert set(keep) == CLOSED[name]
    pruned, masks = graph.remove_units(model.params, units, keep)
    changed = Leaves.of(pruned)
    read = {place.path for made in sets for place in made.readers}
    apart = [made for made in sets if made.apart]
    own = {p.path for s in apart for p in (*s.makers, *s.companions)} - read
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
