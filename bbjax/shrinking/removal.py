"""Chooses the units to remove: those without which every sum stays the same.

A unit of a group can be removed if the size of the group is free, and if every product
that sums over the group gets from the unit either 0, now and after further training, or
a constant that the bias of the reading kernel can hold instead:

    y = x W + b,  x[j] = c for every input   ->   y = x[-j] W[-j] + (b + c W[j])

Other units may then have no use or no input left. So the program is read again until
nothing more can be removed.

Layers of a scan have one shape. If all arrays of a group are inside single layers,
every layer may lose units of its own, as many as the layer that can lose fewest; the
other layers keep some units without effect. Otherwise a unit is removed if it can be
removed in every layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from bbjax.model.groups import on_axes
from bbjax.shrinking.constants import Parameter
from bbjax.shrinking.model import Array, Kept, TracedModel
from bbjax.shrinking.reading import Sum, read
from bbjax.tracing.axes.extents import Dims
from bbjax.tracing.graph.groups import UNUSED
from bbjax.tracing.graph.scans import stack_axes

_UNPROVEN = "a sum over them is not known to get 0 from them"


class Use(NamedTuple):
    """The use of a group of units by a kernel.

    Attributes:
      group: of units.
      leaf: the reading kernel.
      axis: of the kernel, with the units.
      layer: iteration of each scan over stacked parameters.
    """

    group: int
    leaf: int
    axis: int
    layer: tuple[int, ...]


class Fold(NamedTuple):
    """Constants of removed units, to be added to the bias of a kernel that read them.

    Attributes:
      bias: number of the parameter that the constants are added to.
      scans: the axes of the scans that read the kernel.
      value: one constant for each entry of the axis, 0 for units that stay.
      dtype: in which the constants were computed.
    """

    bias: int
    scans: Dims
    value: np.ndarray
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Removal:
    """Which units are kept.

    Attributes:
      kept: by group; groups that keep all are not there.
      biases: by number of the parameter, new values of biases that hold constants of
        removed units.
      idle: by group, how many units without effect stay, and why.
      folds: the constants in these biases, by the use of the units.
    """

    kept: dict[int, np.ndarray]
    biases: dict[int, Array]
    idle: dict[int, tuple[int, str]]
    folds: dict[Use, Fold]


def choose(
    model: TracedModel, refused: Mapping[int, str], varying: Mapping[int, str]
) -> Removal:
    """Chooses the units to remove.

    Args:
      model: with masks.
      refused: groups that must keep their size, with the reason.
      varying: groups whose constants are not the same at other sizes of the arguments,
        with the reason. Only units that add 0 are removed from these.
    """
    masks = dict(model.masks)
    arrays: list[Array] = list(model.arrays)
    kept: dict[int, np.ndarray] = {}
    folds: dict[Use, Fold] = {}
    masked = {group: model.masked_units(group) for group in model.groups}
    while True:
        parameters = [_parameter(a, masks.get(i)) for i, a in enumerate(arrays)]
        sums = read(model.program, parameters)
        choice = _Choice(model, sums, refused, varying, kept, masked)
        if not choice.removes_more():
            break
        kept = choice.kept
        for use, fold in choice.folds.items():  # the next reading needs the new biases
            arrays[fold.bias] = _folded(model, use, fold, arrays[fold.bias])
            earlier = folds.get(use)
            value = fold.value if earlier is None else earlier.value + fold.value
            folds[use] = fold._replace(value=value)
        before, masks = masks, _with_removed(model, masks, kept)
        if not choice.folds and _equal(before, masks):
            break  # what is removed was masked already: the next reading is the same
    changed = {i for i, a in enumerate(arrays) if a is not model.arrays[i]}
    biases = {i: arrays[i] for i in changed}
    return Removal(kept, biases, choice.idle, folds)


def _with_removed(
    model: TracedModel, masks: Mapping[int, np.ndarray], kept: Kept
) -> dict[int, np.ndarray]:
    """Masks of the parameters without the removed units."""
    found = dict(masks)
    for leaf in range(len(model.arrays)):
        mask = model.kept_entries(leaf, kept)
        if mask is not None:
            own = model.masks.get(leaf)
            found[leaf] = mask if own is None else own & mask
    return found


def _equal(one: Mapping[int, np.ndarray], two: Mapping[int, np.ndarray]) -> bool:
    same = (
        np.array_equal(one[leaf], mask) for leaf, mask in two.items() if leaf in one
    )
    return one.keys() == two.keys() and all(same)


def _parameter(array: Array, mask: np.ndarray | None) -> Parameter:
    return Parameter(lambda: np.asarray(array), mask)


class _Choice:
    """The units that one reading of the program allows to remove."""

    def __init__(
        self,
        model: TracedModel,
        sums: Sequence[Sum],
        refused: Mapping[int, str],
        varying: Mapping[int, str],
        before: Kept,
        masked: Mapping[int, np.ndarray],
    ):
        self.model, self.refused, self.before = model, refused, before
        self.masked = masked
        self.varying = varying
        self.sums: dict[int, list[Sum]] = {}
        for found in sums:
            if found.group in model.groups:  # others are on no axis of a parameter
                self.sums.setdefault(found.group, []).append(found)
        self.kept: dict[int, np.ndarray] = {}
        self.folds: dict[Use, Fold] = {}
        self.idle: dict[int, tuple[int, str]] = {}
        for group in sorted(model.groups):
            self.decide(group, self.sums.get(group, []))

    def removes_more(self) -> bool:
        """Whether more units are removed than before."""
        count = sum(int((~k).sum()) for k in self.kept.values())
        return count > sum(int((~k).sum()) for k in self.before.values())

    def decide(self, group: int, sums: list[Sum]) -> None:
        """Chooses the units of one group."""
        extents = self.model.program.extents
        others = extents.why_fixed(group)  # other uses than sums
        fixed = others or self.refused.get(group, "")
        lead = tuple(extents.size(s) for s in self.model.scans.get(group, ()))
        depth = len(lead)
        size = extents.size((group,))
        idle = np.ones((*lead, size), bool)
        removed = np.ones((*lead, size), bool)
        why = "" if sums else UNUSED
        effects = [(found, *self.effects(found)) for found in sums]
        for found, zero, constant, why_not in effects:
            layer = found.layer[:depth]
            idle[layer] &= zero if others else zero | constant
            removed[layer] &= zero | (constant if not why_not else False)
            why = why or why_not
        idle &= bool(sums)
        if not others and (self.masked[group] & ~idle).any():
            idle |= self.masked[group]
            why = why or _UNPROVEN
        if fixed or not sums:
            self.note_idle(group, idle, fixed or why)
            return
        before = self.before.get(group, np.ones_like(removed))
        removed = _as_many(removed, ~before)
        if not removed.any():
            self.note_idle(group, idle, why)
            return
        self.kept[group] = ~removed
        last = "layers of a scan have one shape" if lead else "one unit has to stay"
        self.note_idle(group, idle & ~removed, why or last)
        for found, _, constant, _ in effects:
            self.fold(group, found, removed[found.layer[:depth]] & constant)

    def note_idle(self, group: int, idle: np.ndarray, why: str) -> None:
        """Notes units without effect that stay."""
        if idle.any() and why:
            self.idle[group] = int(idle.sum()), why

    def effects(self, found: Sum) -> tuple[np.ndarray, np.ndarray, str]:
        """Units that add 0, other units that add a constant, and why these stay."""
        zero, constant = found.pruned, found.constant
        if constant is None:
            return zero, np.zeros_like(zero), ""
        zero = zero | constant.zero
        constants = constant.known & ~zero
        return zero, constants, self.why_not(found) if constants.any() else ""

    def why_not(self, found: Sum) -> str:
        """Why a bias cannot hold the constants of a sum; empty if it can."""
        if found.why_not or found.group in self.varying:
            return found.why_not or self.varying[found.group]
        leaf, bias = found.leaf, found.bias
        if leaf is None or bias is None or not _fits(self.model, leaf, bias):
            return "no bias is added to the product that reads them"
        if np.dtype(self.model.kernels[leaf].dtype).kind == "c":
            return "what they add is complex"
        for other in self.sums[found.group]:  # a kernel read twice has one bias
            if (other.leaf, other.layer) != (leaf, found.layer):
                continue
            one, two = found.constant, other.constant
            assert one is not None
            if two is None or not np.array_equal(
                np.where(one.known, one.value, 0), np.where(two.known, two.value, 0)
            ):
                return "the reading kernel is used twice, and they add different values"
        for parameter in (leaf, bias):
            axes = stack_axes(self.model.program, parameter, found.scans)
            if len(axes) < len(found.scans):
                return "the reading kernel or its bias is used in several layers"
        return ""

    def fold(self, group: int, found: Sum, removed: np.ndarray) -> None:
        """Notes the constants that removed units added to a sum."""
        if not removed.any():
            return
        assert found.leaf is not None and found.constant is not None
        assert found.bias is not None
        extents = self.model.program.extents
        dims = self.model.program.leaves[found.leaf]
        kernel = self.model.kernels[found.leaf]
        axis = next(a for a in kernel.fan_in if group in extents.wholes(dims[a]))
        at = extents.positions(dims[axis], group)
        value = np.where(removed, found.constant.value, 0).astype(np.float64)
        each = np.where(at >= 0, value[at], 0.0)
        fold = Fold(found.bias, found.scans, each, found.constant.value.dtype)
        # A kernel that is used twice has one bias, and gets the same constants.
        self.folds.setdefault(Use(group, found.leaf, axis, found.layer), fold)


def _as_many(removed: np.ndarray, before: np.ndarray) -> np.ndarray:
    """As many units in every layer, the first ones, and never all.

    Units removed before stay removed: a bias may hold their constants by now.
    """
    most = min(int(removed.sum(axis=-1).min()), removed.shape[-1] - 1)
    others = removed & ~before
    left = most - before.sum(axis=-1, keepdims=True)
    return before | (others & (np.cumsum(others, axis=-1) <= left))


def _fits(model: TracedModel, leaf: int, bias: int) -> bool:
    """Whether a parameter has one entry per output of a kernel, in their order."""
    extents, dims = model.program.extents, model.program.leaves
    kernel = model.kernels.get(leaf)
    if kernel is None or kernel.groups > 1:
        return False
    axes = [dims[leaf][axis] for axis in (*kernel.stack, *kernel.fan_out)]
    outputs, own = (
        [factor for dim in its for factor in extents.factors(dim)]
        for its in (axes, dims[bias])
    )
    return outputs == own and len(set(own)) == len(own)


def _folded(model: TracedModel, use: Use, fold: Fold, bias: Array) -> Array:
    """A bias with the constants of removed units; summed in float64."""
    kernel = model.kernels[use.leaf]
    weights = np.asarray(model.arrays[use.leaf]).astype(np.float64)
    if use.leaf in model.masks:
        weights = np.where(model.masks[use.leaf], weights, 0.0)
    added = weights * on_axes(fold.value, (use.axis,), weights.ndim)
    axes = stack_axes(model.program, use.leaf, fold.scans)
    for axis, layer in zip(axes, use.layer, strict=True):
        here = np.arange(weights.shape[axis]) == layer
        added = added * on_axes(here, (axis,), weights.ndim)
    added = added.sum(axis=(*kernel.fan_in, *kernel.spatial))
    outputs = (*kernel.stack, *kernel.fan_out)
    added = added.transpose([sorted(outputs).index(axis) for axis in outputs])
    total = np.asarray(bias).astype(np.float64) + added.reshape(bias.shape)
    found = total.astype(bias.dtype)
    if not isinstance(bias, jax.Array):
        return found
    return jax.device_put(found, bias.sharding)
