"""The bookkeeping of axes: parts name exactly the entries that a reshape puts there."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bbjax.tracing.flow.values import Part, extent, leaf, position, reshape
from tests.support.parts import placed

FACTORS = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4)


def groupings(shape):
    """All shapes that merge neighbouring axes, and split them again."""
    yield tuple(shape)
    yield (int(np.prod(shape)),)
    for i in range(len(shape) - 1):
        yield (*shape[:i], shape[i] * shape[i + 1], *shape[i + 2 :])


@given(FACTORS, st.permutations(range(4)))
def test_parts_follow_any_nesting_reshape(shape, order):
    shape = tuple(shape)
    array = np.arange(np.prod(shape)).reshape(shape)
    order = [a for a in order if a < len(shape)]
    value = leaf(0, shape)
    moved = value.replace(axes=tuple(value.axes[a] for a in order))
    array = array.transpose(order)
    for target in groupings(array.shape):
        axes = reshape(moved, target)
        assert tuple(extent(a) for a in axes) == target
        np.testing.assert_array_equal(placed(axes, shape), array.reshape(target))
        back = reshape(moved.replace(axes=axes, const=()), array.shape)
        np.testing.assert_array_equal(placed(back, shape), array)


def test_pieces_that_do_not_nest_have_no_name():
    axes = reshape(leaf(0, (4, 9)), (6, 6))
    assert axes == (position(6), position(6))


def test_merging_units_with_positions_is_noticed():
    units = (Part(("u", 0), 0, 3, 1),)
    value = leaf(0, (2, 3)).replace(axes=(position(2), units), const=())
    beside = value.replace(axes=reshape(value, (6,)), const=())
    assert beside.axes == (position(2) + units,)
    assert beside.is_merged and not value.is_merged
    assert reshape(beside, (2, 1, 3)) == (position(2), position(1), units)


def test_merging_positions_is_noticed():
    units = (Part(("u", 0), 0, 3, 1),)
    value = leaf(0, (2, 4, 3)).replace(axes=(position(2), position(4), units), const=())
    beside = value.replace(axes=reshape(value, (8, 3)), const=())
    assert beside.is_merged
    assert reshape(beside, (2, 4, 3)) == value.axes


def test_pieces_of_an_axis_are_put_together_again():
    value = leaf(0, (6,))
    groups = value.replace(axes=reshape(value, (2, 3)), const=())
    assert [len(axis) for axis in groups.axes] == [1, 1]
    assert reshape(groups, (6,)) == value.axes
