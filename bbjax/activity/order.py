"""Puts measured values from the order of a product into the kernel's own order.

A tap measures along the axes of a value, in the order of the product; inside scans, the
layers come first. Each axis consists of parts, and each part is a piece of an axis of
the parameter. So one reshape into parts, one transposition and one reshape give the
kernel's own order:

    per unit     layers, axes of the value, positions -> stack, positions, units
    gram         layers, stack, in, in                -> stack, in units, in units
    per edge     layers, groups, in, out, window      -> edge view, window

The groups of a ragged product have an axis of their own, behind the layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import repeat

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from bbjax.model.units import Kernel
from bbjax.tracing.flow.kernels import Tap
from bbjax.tracing.flow.values import Part


def arranged(
    name: str, value: Float[Array, "..."], tap: Tap, kernel: Kernel
) -> Float[Array, "..."]:
    """Puts a measurement, given by its name, into the kernel's own order."""
    if name == "gram":
        return _gram(value, tap, kernel)
    if name in ("fro_of_mean", "mean_of_fro", "l1", "windows"):
        return _per_edge(value, tap, kernel)
    return _per_unit(value, tap, kernel)


def lead_parts(tap: Tap) -> list[Part]:
    """Parts of an input tap that number separate products."""
    own = [p for axis in tap.parts for p in axis]
    lead = [p for p in own if p.source is not None and not _is_input(p, tap)]
    return _groups(tap) + lead


def in_parts(tap: Tap) -> list[Part]:
    """Parts on the axes of an input tap that are input units."""
    return [p for axis in tap.parts for p in axis if _is_input(p, tap)]


def out_parts(tap: Tap) -> list[Part]:
    """Parts of the parameter that are output units, in the order of the product."""
    return [p for p, role in tap.use.roles if role == "out"]


def _is_input(part: Part, tap: Tap) -> bool:
    return (part, "in") in tap.use.roles


def _layers(tap: Tap) -> list[Part]:
    return [p for _, p in tap.layers if p is not None]


def _groups(tap: Tap) -> list[Part]:
    """Parts that number the groups of rows; measurements have them on one axis."""
    return [] if tap.rows is None else list(tap.rows.parts)


def _per_unit(
    value: Float[Array, "..."], tap: Tap, kernel: Kernel
) -> Float[Array, "..."]:
    """Entries per unit, or whole maps with their positions behind."""
    layers = _layers(tap)
    parts = layers + _groups(tap) + [p for axis in tap.parts for p in axis]
    before = len(layers) + (tap.rows is not None)
    positions = value.shape[before + len(tap.axes) :]
    value = jnp.reshape(value, (*(p.size for p in parts), *positions))
    if tap.starts or tap.units is not None:
        value, parts = _among_all(value, parts, tap, kernel)
    own = kernel.fan_in if tap.side == "inputs" else kernel.fan_out
    rank = {p: (_rank(p, kernel, own), p.axis, -p.stride) for p in parts}
    order = sorted(range(len(parts)), key=lambda i: rank[parts[i]])
    behind = range(len(parts), value.ndim)
    value = jnp.transpose(value, (*order, *behind))
    shape = kernel.per_unit_shape(tap.side)
    value = jnp.reshape(value, (*shape, *positions))
    if not positions:
        return value
    stack = len(kernel.stack_shape)
    behind = range(len(shape), value.ndim)
    return jnp.transpose(value, (*range(stack), *behind, *range(stack, len(shape))))


def _among_all(
    value: Float[Array, "..."], parts: Sequence[Part], tap: Tap, kernel: Kernel
) -> tuple[Float[Array, "..."], list[Part]]:
    """A range of units among all of them, with 0 for the others.

    Returns:
      An array with one axis for each digit of the kernel's axes that count units, then
      those of positions; and the parts on these axes.
    """
    order = _by_place(parts)
    value = jnp.transpose(value, (*order, *range(len(parts), value.ndim)))
    starts, at = dict(tap.starts), 0
    axes = sorted({*(p.axis for p in parts), *starts})
    among: list[Part] = []
    for axis in axes:
        digits = [parts[i] for i in order if parts[i].axis == axis]
        if axis not in starts and tap.units is None:  # it is whole
            among += digits
            at += len(digits)
            continue
        value = _widened(value, at, digits, starts.get(axis, 0), kernel.shape[axis])
        among += _digits_of(axis, tap, kernel)
        at += 1
    if tap.units is not None:
        value = jnp.where(_counted(tap, axes, value.shape), value, 0)
    sizes = [p.size for p in among]
    return jnp.reshape(value, (*sizes, *value.shape[at:])), among


def _counted(tap: Tap, axes: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Which units count, to meet an array with some axes of the kernel in front."""
    others = {p.axis for p in _layers(tap) + _groups(tap)}
    others |= {axis for axis, _ in tap.use.at}
    counted = {i for i, axis in enumerate(axes) if axis not in others}
    assert tap.units is not None
    return tap.units.reshape([n if i in counted else 1 for i, n in enumerate(shape)])


def _digits_of(axis: int, tap: Tap, kernel: Kernel) -> list[Part]:
    """The parts of a whole axis of the kernel, as the edge view splits it."""
    sizes = [size for own, size in _edge_axes(kernel) if own == axis]
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    source = ("w", tap.use.weight)
    return list(map(Part, repeat(source), repeat(axis), sizes, strides))


def _edge_axes(kernel: Kernel) -> list[tuple[int, int]]:
    """For each axis of the edge view, the axis of the kernel and the size."""
    found = []
    for axis, size in enumerate(kernel.shape):
        at = kernel.roles.index("group") if "group" in kernel.roles else -1
        sizes = kernel.split[at : at + 2] if axis == at else (size,)
        if axis not in kernel.spatial:
            found += [(axis, n) for n in sizes]
    return found


def _widened(
    value: Float[Array, "..."], at: int, digits: Sequence[Part], start: int, size: int
) -> Float[Array, "..."]:
    """Digits of an index, the fastest last, as an axis of all entries, 0 elsewhere.

    The digits are the axes of `value` from `at` on; without any, it gets one.
    """
    count, every = (digits[-1].size, digits[-1].stride) if digits else (1, 1)
    last = at + max(len(digits) - 1, 0)
    if not digits:
        value = jnp.expand_dims(value, at)
    value = _padded(value, last, (0, 0, every - 1))
    count = (count - 1) * every + 1
    for digit in reversed(digits[:-1]):  # each is a block of `stride` entries
        value = _padded(value, last, (0, digit.stride - count, 0))
        count, last = digit.size * digit.stride, last - 1
        shape = (*value.shape[:last], count, *value.shape[last + 2 :])
        value = jnp.reshape(value, shape)
    return _padded(value, at, (start, size - start - count, 0))


def _padded(
    value: Float[Array, "..."], axis: int, padding: tuple[int, int, int]
) -> Float[Array, "..."]:
    """Zeros around and between the entries of an axis."""
    if padding == (0, 0, 0):
        return value
    config = [(0, 0, 0)] * value.ndim
    config[axis] = padding
    return lax.pad(value, jnp.zeros((), value.dtype), config)


def _rank(part: Part, kernel: Kernel, own: tuple[int, ...]) -> int:
    """Stack first, then groups, then units: the order of the edge view."""
    if part.axis in kernel.stack:
        return 0
    return 1 if part.axis not in own or _is_group(part, kernel) else 2


def _is_group(part: Part, kernel: Kernel) -> bool:
    """Whether a part counts groups; they are major on the axis that they split."""
    if "group" not in kernel.roles:
        return False
    at = kernel.roles.index("group")  # every axis before it is whole
    return part.axis == at and abs(part.stride) >= kernel.split[at + 1]


def _by_place(parts: Sequence[Part]) -> list[int]:
    """Positions of the parts in the order of the parameter's own axes."""
    return sorted(range(len(parts)), key=lambda i: (parts[i].axis, -parts[i].stride))


def _gram(
    value: Float[Array, "..."], tap: Tap, kernel: Kernel
) -> Float[Array, "*stack in in"]:
    lead = _layers(tap) + lead_parts(tap)
    inputs = in_parts(tap)
    n, m = len(lead), len(inputs)
    value = jnp.reshape(value, [p.size for p in lead + inputs + inputs])
    order = [n + i for i in _by_place(inputs)]
    value = jnp.transpose(value, (*_by_place(lead), *order, *(m + i for i in order)))
    size = math.prod(part.size for part in inputs)
    stack = [
        kernel.shape[axis] for axis in kernel.stack if axis not in dict(tap.use.at)
    ]
    value = jnp.reshape(value, (*stack, size, size))
    return _in_slices(value, [*kernel.stack], tap, kernel)


def _per_edge(
    value: Float[Array, "..."], tap: Tap, kernel: Kernel
) -> Float[Array, "..."]:
    lead, made = lead_parts(tap), out_parts(tap)
    parts = _layers(tap) + lead + in_parts(tap) + made
    window = value.shape[len(_layers(tap)) + 3 :]
    value = jnp.reshape(value, (*(p.size for p in parts), *window))
    order = (*_by_place(parts), *range(len(parts), value.ndim))
    value = jnp.transpose(value, order)
    axes = [axis for axis, _ in _edge_axes(kernel)]
    at = dict(tap.use.at)
    sizes = [size for axis, size in _edge_axes(kernel) if axis not in at]
    return _in_slices(jnp.reshape(value, (*sizes, *window)), axes, tap, kernel)


def _in_slices(
    value: Float[Array, "..."], axes: Sequence[int], tap: Tap, kernel: Kernel
) -> Float[Array, "..."]:
    """What belongs to one slice of a kernel, among all slices, with 0 for the others.

    Args:
      value: an array whose first axes are `axes` without those that are indexed.
      axes: axes of the kernel.
      tap: where the value was measured.
      kernel: the kernel.
    """
    for axis, index in tap.use.at:
        at, size = axes.index(axis), kernel.shape[axis]
        value = _widened(value, at, (), index, size)
    return value
