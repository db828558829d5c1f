"""`bb.trace` on the zoo: every kernel is found, and its axes mean what they mean."""

import jax
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


def traced(case):
    return zoo.built(case.name)[1]


def axes(kernel):
    found = {n: getattr(kernel, n) for n in ("fan_in", "fan_out", "spatial", "stack")}
    found = {n: value for n, value in found.items() if value}
    return found | ({"groups": kernel.groups} if kernel.groups != 1 else {})


@pytest.mark.sampled(11)
def test_finds_every_kernel_and_its_axes(case):
    units = traced(case)
    assert {k.path: axes(k) for k in units.kernels} == case.layout
    assert units.problems == ()


def test_names_nonlinearities_and_links_units_to_readers(case):
    units = traced(case)
    for path, name in case.nonlinearity.items():
        assert units[path].nonlinearity == name, path
    for path, sources in case.reads.items():
        assert set(units[path].reads) == set(sources), path


@pytest.mark.sampled(13)
def test_units_have_the_shape_of_their_statistics(case):
    units, rates = traced(case), zoo.expected(case.name)
    assert set(rates) == set(units.paths)
    for path, (inputs, outputs) in rates.items():
        kernel = units[path]
        assert np.shape(inputs) == kernel.stack_shape + kernel.in_units, path
        assert np.shape(outputs) == kernel.stack_shape + kernel.out_units, path


def test_needs_shapes_alone(case):
    model, _ = zoo.built(case.name)
    if not isinstance(model.params, nnx.Module):
        shapes = jax.tree.map(_shape, (model.params, model.args))
        assert bb.trace(model.fn, shapes[0], *shapes[1]) == traced(case)


def _shape(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.Array) else x
