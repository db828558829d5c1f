"""Decides which units go: those whose leaving no sum would notice.

A unit of a group can go if the group's size is free and every product that runs over it
gets nothing from the unit for good, or a constant that the bias of the reading kernel
can hold instead. What then hears nothing but units that left, or says nothing that is
heard, goes as well: the program is read again until nothing more goes.

Layers of a scan have one shape. Where all arrays of a group belong to one layer alone,
every layer may lose units of its own, as many as the layer that can lose fewest; the
others keep some that do nothing. Else a unit goes where it can go in every layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bbjax.shrinking.folds import Fold, folded, holds
from bbjax.shrinking.known import Held
from bbjax.shrinking.model import Model
from bbjax.shrinking.reading import Sum, read
from bbjax.tracing.axes.scans import stack_axes

Bools = dict[int, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is kept.

    Attributes:
      kept: by group, bool, `(units,)` or `layers + (units,)`; a group that loses
        nothing is not there.
      biases: new values, by number of the parameter, of biases that hold what units
        said that left.
      stayed: by group, how many units that nobody needs stay, and why.
      folds: what units said that left, as it came to be in the biases.
    """

    kept: Bools
    biases: dict[int, np.ndarray]
    stayed: dict[int, tuple[int, str]]
    folds: tuple[Fold, ...]


def plan(model: Model, refused: Mapping[int, str], bound: Mapping[int, str]) -> Plan:
    """Which units go.

    Args:
      model: with masks.
      refused: groups that must keep their size, with the reason.
      bound: groups whose units must stay if they say anything, with the reason.
    """
    masks = dict(model.masks)
    arrays = list(model.arrays)
    kept: Bools = {}
    folds: list[Fold] = []
    while True:
        sums = read(
            model.program, [_held(a, masks.get(i)) for i, a in enumerate(arrays)]
        )
        decided = _Decision(model, sums, refused, bound, kept)
        if not decided.anew():
            changed = {i for i, a in enumerate(arrays) if a is not model.arrays[i]}
            biases = {i: arrays[i] for i in changed}
            return Plan(kept, biases, decided.stayed, tuple(folds))
        kept = decided.kept
        folds += decided.folds
        for fold in decided.folds:  # in time for what hears these units alone
            arrays[fold.bias] = folded(model, fold, arrays[fold.bias])
        for leaf in range(len(arrays)):
            mask = kept_entries(model, leaf, kept)
            if mask is not None:
                own = model.masks.get(leaf)
                masks[leaf] = mask if own is None else own & mask


def _held(array: Any, mask: np.ndarray | None) -> Held:
    return Held(lambda: np.asarray(array), mask)


def kept_entries(
    model: Model, leaf: int, kept: Mapping[int, np.ndarray]
) -> np.ndarray | None:
    """A mask of a parameter; None if it loses nothing."""
    found = None
    dims = model.program.leaves[leaf]
    for axis in range(len(dims)):
        mine = axis_kept(model, leaf, axis, kept)
        if mine is None:
            continue
        at, keep = mine
        others = [a for a in range(len(dims)) if a not in (*at, axis)]
        spread = np.transpose(keep, np.argsort([*at, axis]))
        spread = np.expand_dims(spread, others)
        found = spread if found is None else found & spread
    shape = tuple(map(model.program.extents.size, dims))
    return None if found is None else np.broadcast_to(found, shape)


def axis_kept(
    model: Model, leaf: int, axis: int, kept: Mapping[int, np.ndarray]
) -> tuple[tuple[int, ...], np.ndarray] | None:
    """What is kept along an axis of a parameter: stack axes, and `stack + (size,)`."""
    extents = model.program.extents
    dims = model.program.leaves[leaf]
    mine = [w for w in extents.wholes(dims[axis]) if w in kept]
    if not mine:
        return None
    keep = extents.select(dims[axis], kept)
    scans = max((model.scans.get(w, ()) for w in mine), key=len)
    return stack_axes(model.program, leaf, scans[: keep.ndim - 1]), keep


class _Decision:
    """What one reading of the program lets go."""

    def __init__(
        self,
        model: Model,
        sums: Sequence[Sum],
        refused: Mapping[int, str],
        bound: Mapping[int, str],
        before: Bools,
    ):
        self.model, self.refused, self.before = model, refused, before
        self.bound = bound
        self.sums: dict[int, list[Sum]] = {}
        for found in sums:
            if found.whole in model.groups:  # others are on no parameter's axis
                self.sums.setdefault(found.whole, []).append(found)
        self.kept: Bools = {}
        self.folds: list[Fold] = []
        self.stayed: dict[int, tuple[int, str]] = {}
        for whole, mine in sorted(self.sums.items()):
            self.decide(whole, mine)

    def anew(self) -> bool:
        """Whether anything goes that did not go before."""
        count = sum(int((~k).sum()) for k in self.kept.values())
        return count > sum(int((~k).sum()) for k in self.before.values())

    def decide(self, whole: int, sums: list[Sum]) -> None:
        """What a group loses."""
        extents = self.model.program.extents
        others = extents.why_fixed(whole)  # something but sums knows the units
        fixed = others or self.refused.get(whole, "")
        lead = tuple(extents.size(s) for s in self.model.scans.get(whole, ()))
        depth = len(lead)
        size = extents.size((whole,))
        useless = np.ones((*lead, size), bool)
        goes = np.ones((*lead, size), bool)
        why = ""
        for found in sums:
            layer = found.layer[:depth]
            gone, quiet, hinders = self.weigh(found)
            useless[layer] &= gone if others else gone | quiet
            goes[layer] &= gone | (quiet if not hinders else False)
            why = why or (hinders if (quiet & ~gone).any() else "")
        if fixed:
            self.stay(whole, useless, fixed)
            return
        before = self.before.get(whole, np.ones_like(goes))
        goes = _as_many(goes, ~before)
        if not goes.any():
            self.stay(whole, useless, why)
            return
        self.kept[whole] = ~goes
        last = "layers of a scan have one shape" if lead else "one unit has to stay"
        self.stay(whole, useless & ~goes, why or last)
        for found in sums:
            self.fold(whole, found, goes[found.layer[:depth]])

    def stay(self, whole: int, useless: np.ndarray, why: str) -> None:
        """Notes units that do nothing and stay."""
        if useless.any() and why:
            self.stayed[whole] = int(useless.sum()), why

    def weigh(self, found: Sum) -> tuple[np.ndarray, np.ndarray, str]:
        """Units that add nothing, units that add a constant, and what hinders these."""
        gone, constant = found.gone, found.constant
        if constant is None:
            return gone, np.zeros_like(gone), ""
        gone = gone | constant.zero
        quiet = constant.known & ~gone
        if not quiet.any():
            return gone, quiet, ""
        return gone, quiet, self.hinders(found)

    def hinders(self, found: Sum) -> str:
        """Why constants cannot leave a sum; empty if they can."""
        if found.hinders or found.whole in self.bound:
            return found.hinders or self.bound[found.whole]
        leaf, bias = found.leaf, found.bias
        if leaf is None or bias is None or not holds(self.model, leaf, bias):
            return "no bias is added to the product that reads them"
        if np.dtype(self.model.kernels[leaf].dtype).kind == "c":
            return "what they add is complex"
        return self.differing(found)

    def differing(self, found: Sum) -> str:
        """A kernel read twice has one bias for both."""
        for other in self.sums[found.whole]:
            if (other.leaf, other.layer) != (found.leaf, found.layer):
                continue
            one, two = found.constant, other.constant
            assert one is not None
            if two is None or not np.array_equal(
                np.where(one.known, one.value, 0), np.where(two.known, two.value, 0)
            ):
                return "the reading kernel is used twice, and they add different values"
        for leaf in (found.leaf, found.bias):
            assert leaf is not None
            axes = stack_axes(self.model.program, leaf, found.scans)
            if len(axes) < len(found.scans):
                return "the reading kernel or its bias is used in several layers"
        return ""

    def fold(self, whole: int, found: Sum, goes: np.ndarray) -> None:
        """What units that go have added to a sum."""
        gone, quiet, _ = self.weigh(found)
        leaving = goes & quiet & ~gone
        if not leaving.any():
            return
        assert found.leaf is not None and found.constant is not None
        assert found.bias is not None
        extents = self.model.program.extents
        dims = self.model.program.leaves[found.leaf]
        kernel = self.model.kernels[found.leaf]
        axis = next(a for a in kernel.fan_in if whole in extents.wholes(dims[a]))
        at = extents.positions(dims[axis], whole)
        value = np.where(leaving, found.constant.value, 0).astype(np.float64)
        entries = np.where(at >= 0, value[at], 0.0)
        fold = Fold(
            whole=whole,
            leaf=found.leaf,
            layer=found.layer,
            scans=found.scans,
            axis=axis,
            bias=found.bias,
            value=entries,
            dtype=found.constant.value.dtype,
        )
        if not any(fold.same(other) for other in self.folds):
            self.folds.append(fold)


def _as_many(goes: np.ndarray, before: np.ndarray) -> np.ndarray:
    """As many units in every layer, the last ones first to stay; one stays in all.

    Units that went before go again: what they said may be in a bias by now.
    """
    most = min(int(goes.sum(axis=-1).min()), goes.shape[-1] - 1)
    others = goes & ~before
    left = most - before.sum(axis=-1, keepdims=True)
    return before | (others & (np.cumsum(others, axis=-1) <= left))
