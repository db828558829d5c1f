"""What is found and measured in small networks of the forms that published ones have.

Their hidden units are worked out by hand in `tests.support.networks`.
"""

import jax
import numpy as np
import pytest
from flax import nnx

import bbjax as bb
from tests.support.networks import NETWORKS
from tests.support.networks.network import rate

pytestmark = pytest.mark.usefixtures("lenient")


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", NETWORKS)
def test_measures_the_hidden_units_of_a_network(name):
    network = NETWORKS[name]()
    units = bb.trace(network.fn, network.params, *network.args)
    jit = nnx.jit if isinstance(network.params, nnx.Module) else jax.jit
    observed = jit(bb.observe(network.fn, units))
    result, activity = observed(network.params, *network.args)
    expected, hidden = jit(network.hand)(network.params, *network.args)
    for got, want in zip(
        jax.tree.leaves(result), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    for path, units_of in hidden.items():
        kernel = units[path]
        assert kernel.nonlinearity == units_of.after, path
        found = activity[path].outputs.on_rate
        wanted = rate(units_of.value, len(kernel.stack_shape), len(kernel.out_units))
        np.testing.assert_allclose(found, wanted, atol=1e-6, err_msg=path)
    assert set(units.budgeted) == set(network.selected)
    reasons = dict(units.problems) | dict(units.others)
    for path, why in network.refused.items():
        assert why in reasons[path], path
