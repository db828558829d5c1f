"""Ranges of units: a slice names exactly the entries that it leaves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbjax.tracing.flow import ranges
from bbjax.tracing.flow.ranges import Cut, covered, cuts, sliced
from bbjax.tracing.flow.values import Part, Value, extent, position, reshape
from tests.support.parts import placed

UNITS = ("u", 0)


def units(*shape):
    """A value whose axes are those of a kernel's units."""
    axes = tuple((Part(UNITS, i, n, 1),) for i, n in enumerate(shape))
    return Value(axes, owners=frozenset({UNITS}), deps=frozenset({0}))


def entries(value, shape):
    """Which unit stands where, as the parts and the cuts of their source say."""
    strides = np.cumprod([1, *shape[:0:-1]])[::-1]
    (source,) = value.owners
    start = sum(strides[cut.axis] * cut.start for cut in cuts(source))
    return placed(value.axes, shape, start)


@st.composite
def moves(draw):
    """Reshapes that nest, and slices, of an array of 2 x 24 units."""
    shapes = [(2, 24), (48,), (2, 4, 6), (2, 2, 12), (4, 12), (2, 3, 8), (2, 24, 1)]
    shape = draw(st.sampled_from(shapes))
    at = draw(st.integers(0, len(shape) - 1))
    start = draw(st.integers(0, shape[at] - 1))
    step = draw(st.integers(1, 4))
    most = (shape[at] - 1 - start) // step + 1
    return shape, at, start, draw(st.integers(1, most)), step


@given(moves(), moves())
def test_a_slice_names_the_entries_that_it_leaves(first, second):
    value, array = units(2, 24), np.arange(48).reshape(2, 24)
    for shape, at, start, count, step in (first, second):
        if array.size == 48:
            axes = reshape(value, shape)
            value, array = value.replace(axes=axes, const=()), array.reshape(shape)
        at = min(at, array.ndim - 1)
        size = array.shape[at]
        start = min(start, size - 1)
        count = min(count, (size - 1 - start) // step + 1)
        found = sliced(value, at, start, count, step)
        index = [slice(None)] * array.ndim
        index[at] = slice(start, start + (count - 1) * step + 1, step)
        if found is None:  # no sums of digits: only of an axis of several parts
            assert len(value.axes[at]) > 1
            return
        value, array = found, array[tuple(index)]
        assert value.shape == array.shape
        np.testing.assert_array_equal(entries(value, (2, 24)), array)
        (source,) = value.owners
        mask = covered(source, {0: 2, 1: 24})
        np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(array.reshape(-1)))
        assert ranges.extent_of(source, {0: 2, 1: 24}) == array.size


def test_equal_ranges_have_equal_names_whatever_made_them():
    direct = sliced(units(16), 0, 8, 4, 1)
    twice = sliced(sliced(units(16), 0, 4, 12, 1), 0, 4, 4, 1)
    axes = reshape(units(16), (4, 4))
    indexed = sliced(units(16).replace(axes=axes, const=()), 0, 2, 1, 1)
    assert direct.owners == twice.owners == indexed.owners
    assert direct.owners == {("u", 0, (Cut(0, 8, ((4, 1),)),))}


@pytest.mark.parametrize("owners", [frozenset(), frozenset({UNITS})])
def test_a_choice_of_positions_is_no_range_of_units(owners):
    value = Value((position(5), (Part(UNITS, 0, 8, 1),)), owners=owners)
    found = sliced(value, 0, 1, 3, 1)
    assert (found is None) == bool(owners)
    if found is not None:
        assert found.axes == (position(3), value.axes[1])


def test_the_partner_of_a_unit_in_a_product_is_cut_with_it():
    mine, its = Part(UNITS, 0, 8, 1), Part(("u", 1), 0, 8, 2)
    value = Value(
        ((mine,),),
        owners=frozenset({UNITS, ("u", 1)}),
        twins=frozenset({(mine, its)}),
    )
    found = sliced(value, 0, 3, 2, 2)
    one, two = ("u", 0, (Cut(0, 3, ((2, 2),)),)), ("u", 1, (Cut(0, 6, ((2, 4),)),))
    assert found.owners == {one, two}
    assert found.twins == {(Part(one, 0, 2, 2), Part(two, 0, 2, 4))}
    assert found.axes == ((Part(one, 0, 2, 2),),)


def test_an_empty_slice_is_no_range():
    assert sliced(units(4), 0, 2, 0, 1) is None


def test_units_on_two_axes_of_one_array_are_not_cut():
    value = units(4).replace(axes=units(4).axes * 2, const=())
    assert extent(value.axes[0]) == 4 and sliced(value, 0, 0, 2, 1) is None
