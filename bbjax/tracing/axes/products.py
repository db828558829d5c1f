"""What products, and operations that pick by index, make of axes.

Contracted axes are tied and *used*: the sum over them is what a unit's contribution
goes into. Axes that a product leaves alone are handed on. A convolution in groups has
channels `group * input` before and `group * output` after it. The matrices of a ragged
product have one size: units behind it are one group for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bbjax.tracing.axes.extents import Dim, Dims
from bbjax.tracing.axes.operations import AxisStep
from bbjax.tracing.primitives import RAGGED


def followed(step: AxisStep) -> list[Dims] | None:
    """Dims of the results of an equation; None if it is none of these."""
    if step.name == "dot_general":
        return [_dot(step, step.params["dimension_numbers"])]
    if step.name in RAGGED:
        return [_ragged_dot(step)]
    if step.name == "conv_general_dilated":
        return [_convolution(step)]
    if step.name == "gather":
        return [_gather(step)]
    if step.name.startswith("scatter"):
        return [_scatter(step)]
    return None


def _dot(step: AxisStep, numbers: Any, gone: Sequence[int] = ()) -> Dims:
    """A matrix product; the result does not have the axes `gone` of the right side."""
    (left, right), (left_batch, right_batch) = numbers
    one, two = step.ins[:2]
    for a, b in zip(left, right, strict=True):
        step.extents.tie(one[a], two[b])
        step.used.append(one[a])
    for a, b in zip(left_batch, right_batch, strict=True):
        step.extents.tie(one[a], two[b])
    free = [d for i, d in enumerate(one) if i not in (*left, *left_batch)]
    free += [d for i, d in enumerate(two) if i not in (*right, *right_batch, *gone)]
    return (*(one[a] for a in left_batch), *free)


def _ragged_dot(step: AxisStep) -> Dims:
    """A product of rows in groups, with a matrix for each group or one for all."""
    numbers = step.params["ragged_dot_dimension_numbers"]
    pairs, matrices = numbers.dot_dimension_numbers, numbers.rhs_group_dimensions
    (row,) = numbers.lhs_ragged_dimensions
    one, two, sizes = step.ins[:3]
    for axis in matrices:
        step.extents.tie(two[axis], sizes[-1])
    step.fix((one[row], sizes[-1]), f"{step.name} has rows in groups")
    found = _dot(step, pairs, matrices)
    (left, _), _ = pairs
    return (sizes[-1], *found) if row in left else found


def _convolution(step: AxisStep) -> Dims:
    params, extents = step.params, step.extents
    numbers = params["dimension_numbers"]
    data, kernel = step.ins[:2]
    (batch, channel, *places) = numbers.lhs_spec
    (out, into, *window) = numbers.rhs_spec
    step.fix((data[p] for p in places), "a convolution slides over them")
    step.fix((kernel[w] for w in window), "they are the window of a convolution")
    found: dict[int, Dim] = {
        axis: extents.new(n, "a convolution slides over them")
        for axis, n in enumerate(step.shapes[0])
    }
    if params["batch_group_count"] != 1:
        step.fix((data[batch], data[channel], kernel[out]), "grouped over the batch")
        return tuple(found[i] for i in range(len(found)))
    groups = params["feature_group_count"]
    if groups == 1:
        extents.tie(data[channel], kernel[into])
    else:
        group = extents.new(groups)
        made = extents.size(kernel[out]) // groups
        extents.tie(data[channel], group + kernel[into])
        extents.tie(kernel[out], group + extents.new(made))
    step.used.append(kernel[into])
    found[numbers.out_spec[0]] = data[batch]
    found[numbers.out_spec[1]] = kernel[out]
    return tuple(found[i] for i in range(len(found)))


def _gather(step: AxisStep) -> Dims:
    """Whole slices pass; what is picked by index is fixed."""
    numbers, sizes = step.params["dimension_numbers"], step.params["slice_sizes"]
    operand, indices = step.ins[:2]
    theirs = numbers.start_indices_batching_dims
    batching = dict(zip(numbers.operand_batching_dims, theirs, strict=True))
    gone = {*numbers.collapsed_slice_dims, *batching}
    offset = _offset(numbers.offset_dims, operand, gone)
    for i, dim in enumerate(operand):
        if i in batching:
            step.extents.tie(dim, indices[batching[i]])
        elif sizes[i] != step.extents.size(dim):
            step.extents.fix(dim, "gather picks some of them")
    return _windows(step, offset, operand, indices, "gather picks as many")


def _offset(axes: Sequence[int], operand: Dims, gone: set[int]) -> dict[int, int]:
    """The axis of the operand that each axis of a slice is."""
    window = [i for i in range(len(operand)) if i not in gone]
    return dict(zip(axes, window, strict=True))


def _windows(
    step: AxisStep, offset: dict[int, int], operand: Dims, indices: Dims, why: str
) -> Dims:
    """Dims of an array of slices: whole axes of the operand, and one per index."""
    places = iter(indices[:-1])
    found = []
    for axis, n in enumerate(step.shapes[0]):
        dim = operand[offset[axis]] if axis in offset else next(places)
        if step.extents.size(dim) != n:
            dim = step.extents.new(n, why)
        found.append(dim)
    return tuple(found)


def _scatter(step: AxisStep) -> Dims:
    """Whole slices are replaced or added to; what is picked by index is fixed."""
    numbers = step.params["dimension_numbers"]
    operand, indices, updates = step.ins[:3]
    theirs = numbers.scatter_indices_batching_dims
    batching = dict(zip(numbers.operand_batching_dims, theirs, strict=True))
    gone = {*numbers.inserted_window_dims, *batching}
    offset = _offset(numbers.update_window_dims, operand, gone)
    why = f"{step.name} picks some of them"
    step.fix(indices[:-1], f"{step.name} places them by index")
    places = iter(indices[:-1])
    for axis, dim in enumerate(updates):
        own = operand[offset[axis]] if axis in offset else next(places)
        if step.extents.size(own) == step.extents.size(dim):
            step.extents.tie(own, dim)
        else:
            step.fix((own, dim), why)
    for i, dim in enumerate(operand):
        if i in batching:
            step.extents.tie(dim, indices[batching[i]])
        elif i in gone:
            step.extents.fix(dim, why)
    return operand
