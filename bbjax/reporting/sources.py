"""Reads the masks of a report: optimizer states, masks by path, saved files.

Each kind of source becomes a `Source`, which has one `MaskedKernel` for each kernel.
Masks are fetched one at a time (`MaskedKernel.mask`), so that a report on a large model
never holds all of them with a byte per weight. Leading axes of a state (seeds,
replicas) are stack axes of its kernels. What a source does not contain is None
or empty: masks alone come without on-rates, density asked for, or churn.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bbjax.activity.statistics import Activity
from bbjax.files import container
from bbjax.model.checks import check_values, meant, on_host
from bbjax.model.kernel import Actuator, Kernel, Side
from bbjax.model.leaves import leaves_by_path
from bbjax.model.units import Units
from bbjax.reporting.formats import counted
from bbjax.training import state

SIDES: tuple[Side, Side] = ("outputs", "inputs")
Rates = Mapping[Side, np.ndarray | None]


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedKernel:
    """One kernel of a source, with its mask.

    Attributes:
      kernel: the kernel.
      actuators: sides that the budget counts; empty if not known.
      mask: fetches the mask, bool of the kernel's shape.
      rates: on-rates by side, float32 `stack + units`, NaN for units that were never
        observed; None, or no entry, if none was.
      asked: density asked for; None if not known or an outcome.
      flipped: edges that changed; None if not known.
      k_min: least degree of a unit.
      stray: share of the edges that were pruned and yet not 0; None if not known.
    """

    kernel: Kernel
    actuators: tuple[Actuator, ...]
    mask: Callable[[], np.ndarray]
    rates: Rates = dataclasses.field(default_factory=dict)
    asked: float | None = None
    flipped: int | None = None
    k_min: int = 1
    stray: float | None = None

    def edges(self) -> np.ndarray:
        """The mask with one entry per edge, bool of shape `kernel.edge_shape`."""
        return per_edge(self.kernel, self.mask())


def per_edge(kernel: Kernel, mask: np.ndarray) -> np.ndarray:
    """`Kernel.edge_mask` by numpy: no device is touched, and nothing is compiled."""
    window = tuple(i for i, role in enumerate(kernel.roles) if role == "spatial")
    return np.asarray(np.any(mask.reshape(kernel.split), axis=window))


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """What a report is made from.

    Attributes:
      origin: what was read, in words.
      kernels: in the order of the source.
      others: masks of parameters that are no kernels: path, entries, kept entries.
      updates: updates that a state has counted; None for masks.
      since: what churn is counted from, in words.
      no_activity: why on-rates may be missing.
    """

    origin: str
    kernels: tuple[MaskedKernel, ...]
    others: tuple[tuple[str, int, int], ...]
    updates: int | None
    no_activity: str
    since: str = "the last refresh"


def read(source: Any, units: Units | None) -> Source:
    """Reads any source.

    Args:
      source: an optimizer state, masks by path, or the path of a saved file.
      units: from `bb.trace`; may be None where the source contains its kernels.

    Raises:
      TypeError: masks that are not bool.
      ValueError: no masks or pruning state; no known kernels; shapes that differ.
    """
    if isinstance(source, str | os.PathLike):
        masks, kernels, origin = _file(Path(source))
        return _from_masks(masks, kernels, units, origin)
    if _is_masks(source):
        return _from_masks(on_host(source), {}, units, "masks")
    return _from_state(source, units)


def _file(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Kernel], str]:
    """Masks and kernels of a saved file, and its name in words."""
    if path.is_dir():
        raise ValueError(
            f"expected a saved file, got the folder {path.name!r}; restore the "
            "checkpoint into the structure of its optimizer state and pass that"
        )
    what = "a file as bb.save writes it, or bb.save_masks"
    _, saved = container.read(path, what)
    kind = "file" if saved.params else "mask file"
    return saved.masks, saved.header.kernels, f"the {kind} {path.name}"


def _is_masks(source: object) -> bool:
    if not isinstance(source, Mapping) or not all(isinstance(p, str) for p in source):
        return False
    kinds = {str(getattr(mask, "dtype", "")) for mask in source.values()}
    return "bool" in kinds or not kinds  # `on_host` names an entry that is not bool


# Masks ---------------------------------------------------------------------------
def _from_masks(
    masks: Mapping[str, np.ndarray],
    saved: Mapping[str, Kernel],
    units: Units | None,
    origin: str,
) -> Source:
    known = dict(saved)
    if units is not None:
        known = {kernel.path: kernel for kernel in units.kernels}
    found = {path: known[path] for path in masks if path in known}
    if not found:
        raise ValueError(
            f"expected masks of kernels that are known, got {list(masks)[:5]}"
            f"{''.join(meant(p, known) for p in list(masks)[:1])}; pass "
            "units=bb.trace(...), to tell the axes of inputs from those of outputs"
            + (f" (it has {list(known)[:8]})" if known else "")
        )
    chosen = {} if units is None else units.budgeted
    masked = []
    for path, kernel in found.items():
        lead = _check_shape(path, masks[path].shape, kernel)
        fetch = functools.partial(np.asarray, masks[path])
        entry = MaskedKernel(kernel.behind(lead), chosen.get(path, ()), fetch)
        masked.append(entry)
    others = tuple(_other(p, mask) for p, mask in masks.items() if p not in found)
    why = "masks alone carry no on-rates; pass activity= (see bb.calibrate)"
    return Source(origin, tuple(masked), others, None, why)


def _other(path: str, mask: np.ndarray) -> tuple[str, int, int]:
    return path, mask.size, int(np.count_nonzero(mask))


def _check_shape(path: str, shape: tuple[int, ...], kernel: Kernel) -> tuple[int, ...]:
    """Sizes of the axes in front of those of the kernel: of seeds, usually none."""
    lead = max(len(shape) - len(kernel.shape), 0)
    if shape[lead:] != kernel.shape:
        raise ValueError(
            f"expected {path!r} of shape {kernel.shape}, got {shape}; use masks and "
            "the trace of one model"
        )
    return shape[:lead]


def _check_same(old: Kernel, new: Kernel) -> None:
    if old.shape != new.shape:
        raise ValueError(
            f"expected {new.path!r} of shape {new.shape}, got {old.shape}; use masks "
            "of one model and of as many seeds"
        )


# Optimizer states ----------------------------------------------------------------
def _from_state(opt_state: Any, units: Units | None) -> Source:
    states = state.find(opt_state)
    for held in states:
        check_values(dict(leaves_by_path(held)[0]), "a state")
    entries = list(state.budgeted(opt_state))
    paths = [kernel.path for _, kernel, _ in entries]
    if units is not None and not any(path in units for path in paths):
        raise ValueError(
            f"expected a state of the kernels in units ({list(units.paths)[:5]}), got "
            f"one of {paths[:5]}; use the state and the trace of one model"
        )
    masked, others = [], []
    for held, kernel, actuators in entries:
        if not actuators:  # held masks that no budget counts, so without units
            others.append(_other(kernel.path, _unpacked(held, kernel)))
            continue
        entry = _of_state(held, kernel, actuators)
        if units is not None and kernel.path in units:
            _check_shape(kernel.path, entry.kernel.shape, units[kernel.path])
        masked.append(entry)
    if not masked:
        raise ValueError(
            f"expected a state that budgets kernels, got one that holds masks of "
            f"{[path for path, *_ in others][:5]}; give bb.hold units, or pass "
            "bb.masks(opt_state) and units"
        )
    updates = max(int(np.max(np.asarray(held.bb_count))) for held in states)
    origin = f"an optimizer state after {counted(updates, 'updates')}"
    why = "no update was given activity="
    return Source(origin, tuple(masked), tuple(others), updates, why)


def _of_state(
    held: state.PruneState, kernel: Kernel, actuators: tuple[Actuator, ...]
) -> MaskedKernel:
    path, whole = kernel.path, kernel.behind(state.leading(held))
    churn, edges = _number(held.bb_churn[path]), math.prod(whole.edge_shape)
    return MaskedKernel(
        kernel=whole,
        actuators=actuators,
        mask=functools.partial(_unpacked, held, kernel),
        rates=_observed(held, kernel),
        asked=_number(held.bb_density[path]),
        flipped=None if churn is None else round(churn * edges),
        k_min=int(np.max(np.asarray(held.bb_k_min))),
        stray=_number(held.bb_stray[path]),
    )


def _unpacked(held: state.PruneState, kernel: Kernel) -> np.ndarray:
    full = state.mapped(held, functools.partial(state.full_mask, kernel))
    return np.asarray(full(held.bb_masks[kernel.path]))


def _number(values: jax.Array) -> float | None:
    """The mean of float32 as it was written, 0.1 for 0.1; None for an outcome (NaN)."""
    number = np.float32(np.mean(np.asarray(values), dtype=np.float64))
    return float(str(number)) if math.isfinite(number) else None


def _observed(held: state.PruneState, kernel: Kernel) -> Rates:
    means = held.bb_means[kernel.path]
    return {
        side: _where_seen(
            np.asarray(state.mean_of(held, kernel, f"{side}.on_rate")),
            np.asarray(means[f"{side}.weight"]),
        )
        for side in SIDES
        if f"{side}.on_rate" in means
    }


def _where_seen(rate: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """On-rates, NaN for units without observations; None if there are none at all."""
    seen = np.broadcast_to(weight > 0, rate.shape)
    if not seen.any():
        return None
    return np.where(seen & np.isfinite(rate), rate, np.float32(np.nan))


# What is added -------------------------------------------------------------------
def with_previous(source: Source, previous: Any, units: Units | None) -> Source:
    """The same with churn counted from another source.

    Raises:
      ValueError: masks of other kernels, or of other shapes.
    """
    kernels = tuple(masked.kernel for masked in source.kernels)
    before = read(previous, Units(kernels) if units is None else units)
    earlier = {masked.kernel.path: masked for masked in before.kernels}
    missing = [kernel.path for kernel in kernels if kernel.path not in earlier]
    if missing:
        raise ValueError(
            f"expected previous masks of the same kernels, got none of {missing[:5]}; "
            "churn is counted kernel by kernel"
        )
    found = []
    for masked in source.kernels:
        old = earlier[masked.kernel.path]
        _check_same(old.kernel, masked.kernel)
        flipped = int(np.count_nonzero(masked.edges() ^ old.edges()))
        found.append(dataclasses.replace(masked, flipped=flipped))
    return dataclasses.replace(source, kernels=tuple(found), since="the previous masks")


def with_activity(source: Source, activity: Mapping[str, Activity]) -> Source:
    """The same with the on-rates of activity, as `bb.observe` returns it.

    Raises:
      TypeError: not activity by path.
      ValueError: none of these kernels, or on-rates of another shape.
    """
    if not isinstance(activity, Mapping) or not all(
        isinstance(sides, Activity) for sides in activity.values()
    ):
        raise TypeError(
            f"expected activity by path, got {type(activity).__name__}; pass what "
            "bb.calibrate or bb.observe returned"
        )
    paths = [masked.kernel.path for masked in source.kernels]
    if not set(paths) & set(activity):
        raise ValueError(
            f"expected activity of {paths[:5]}, got that of {list(activity)[:5]}; "
            "measure the kernels that were pruned"
        )
    kernels = tuple(
        dataclasses.replace(masked, rates=_measured(masked.kernel, activity[path]))
        if path in activity
        else masked
        for path, masked in zip(paths, source.kernels, strict=True)
    )
    why = "activity= has no on-rates of this kernel"
    return dataclasses.replace(source, kernels=kernels, no_activity=why)


def _measured(kernel: Kernel, activity: Activity) -> Rates:
    found: dict[Side, np.ndarray | None] = {}
    for side in SIDES:
        measured = getattr(activity, side)
        if measured.on_rate is None:
            continue
        rate = np.asarray(measured.on_rate, np.float32)
        if rate.shape != kernel.per_unit_shape(side):
            raise ValueError(
                f"expected on-rates of shape {kernel.per_unit_shape(side)} for the "
                f"{side} of {kernel.path!r}, got {rate.shape}; measure this very model"
            )
        count = 1.0 if measured.count is None else measured.count
        found[side] = _where_seen(rate, np.asarray(count))
    return found
