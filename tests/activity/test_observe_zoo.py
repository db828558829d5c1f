"""`bb.observe` on the zoo: right statistics, and the function is left as it was."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bbjax as bb
from tests.support import zoo


@pytest.fixture(params=zoo.CASES, ids=lambda case: case.name)
def case(request):
    if request.param.lenient:
        request.getfixturevalue("lenient")
    return request.param


def close(got, want, context="", rtol=1e-5, atol=1e-6):
    got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
    assert got.shape == want.shape, context
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=context)


def same_tree(got, want, rtol=1e-6):
    """Equal up to fusion: a few ulp of each array's own largest entry.

    An array of sums that cancel, like the gradient of what a softmax takes no notice
    of, is the rounding of larger ones.
    """
    chex.assert_trees_all_equal_structs(got, want)
    numbers = [a for a in jax.tree.leaves(want) if _is_number(a)]
    least = 0.01 * max([_largest(a) for a in numbers], default=0.0)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if jax.dtypes.issubdtype(getattr(a, "dtype", np.float32), jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).dtype == np.asarray(b).dtype
        close(a, b, rtol=rtol, atol=10 * rtol * max(least, _largest(b)))


def _is_number(a):
    return jnp.issubdtype(jnp.result_type(a), jnp.floating)


def _largest(a):
    return float(np.max(np.abs(np.asarray(a, np.float32)), initial=0.0))


def gradient(model):
    """`value_and_grad` that takes modules and trees with functions in them alike."""
    if isinstance(model.params, nnx.Module):
        return nnx.value_and_grad

    def transform(fn, has_aux):
        def run(params, *args):
            arrays, rest = _split(params)
            back = jax.tree.structure(params)

            def of_arrays(arrays, *args):
                leaves = [
                    a if r is None else r for a, r in zip(arrays, rest, strict=True)
                ]
                return fn(jax.tree.unflatten(back, leaves), *args)

            return jax.value_and_grad(of_arrays, has_aux=has_aux)(arrays, *args)

        return run

    return transform


def _split(params):
    leaves = jax.tree.leaves(params)
    arrays = [v if isinstance(v, jax.Array) else None for v in leaves]
    return arrays, [None if isinstance(v, jax.Array) else v for v in leaves]


@pytest.mark.sampled(2)
def test_measures_what_the_oracle_says(case):
    expected = zoo.expected(case.name)
    model, units = zoo.built(case.name)
    params = model.params
    params = nnx.clone(params) if isinstance(params, nnx.Module) else params
    observed = bb.observe(model.fn, units, has_aux=model.has_aux)
    _, activity = observed(params, *model.args)
    activity = activity[1] if model.has_aux else activity
    assert set(activity) == set(expected)
    for path, (inputs, outputs) in expected.items():
        close(activity[path].inputs.on_rate, inputs, f"{path} inputs")
        close(activity[path].outputs.on_rate, outputs, f"{path} outputs")
        assert activity[path].inputs.on_rate.dtype == jnp.float32


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "compiled",
    [
        pytest.param(False, id="eager", marks=pytest.mark.slow),
        pytest.param(True, id="jit"),
    ],
)
def test_leaves_loss_aux_gradients_and_state_alone(case, compiled):
    model, units = zoo.built(case.name)
    stateful = isinstance(model.params, nnx.Module)
    grad, jit = gradient(model), nnx.jit if stateful else jax.jit
    plain = grad(model.fn, has_aux=model.has_aux)
    observed = grad(bb.observe(model.fn, units, has_aux=model.has_aux), has_aux=True)
    if compiled and not _holds_functions(model.params):
        plain, observed = jit(plain), jit(observed)
    first = nnx.clone(model.params) if stateful else model.params
    second = nnx.clone(model.params) if stateful else model.params
    want, want_grads = plain(first, *model.args)
    (out, more), grads = observed(second, *model.args)
    if model.has_aux:
        same_tree((out, more[0]), want)
    else:
        same_tree(out, want)
    same_tree(grads, want_grads, rtol=1e-5)
    if stateful:  # running means and random counters
        same_tree(nnx.state(second), nnx.state(first))


def _holds_functions(params):
    return any(callable(leaf) for leaf in jax.tree.leaves(params))
