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

import jax.numpy as jnp
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
    own = kernel.fan_in if tap.side == "inputs" else kernel.fan_out
    rank = {p: (_rank(p, kernel, own), p.axis, -p.stride) for p in parts}
    order = sorted(range(len(parts)), key=lambda i: rank[parts[i]])
    before = len(layers) + (tap.rows is not None)
    positions = value.shape[before + len(tap.axes) :]
    value = jnp.reshape(value, (*(p.size for p in parts), *positions))
    behind = range(len(parts), value.ndim)
    value = jnp.transpose(value, (*order, *behind))
    shape = kernel.per_unit_shape(tap.side)
    value = jnp.reshape(value, (*shape, *positions))
    if not positions:
        return value
    stack = len(kernel.stack_shape)
    behind = range(len(shape), value.ndim)
    return jnp.transpose(value, (*range(stack), *behind, *range(stack, len(shape))))


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
    return jnp.reshape(value, (*kernel.stack_shape, size, size))


def _per_edge(
    value: Float[Array, "..."], tap: Tap, kernel: Kernel
) -> Float[Array, "..."]:
    lead, made = lead_parts(tap), out_parts(tap)
    parts = _layers(tap) + lead + in_parts(tap) + made
    window = value.shape[len(_layers(tap)) + 3 :]
    value = jnp.reshape(value, (*(p.size for p in parts), *window))
    order = (*_by_place(parts), *range(len(parts), value.ndim))
    return jnp.reshape(jnp.transpose(value, order), (*kernel.edge_shape, *window))
