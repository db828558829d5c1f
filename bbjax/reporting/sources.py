"""Where a report gets its masks: optimizer states, masks by path, saved files.

Each source becomes the same thing, a `Source` of one `Look` per kernel. Masks are
fetched one at a time (`Look.mask`), so that a report on a large model never holds all
of them as a byte per weight. What a source does not know is None or empty: masks alone
carry no on-rates, no density asked for and no churn.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bbjax.activity.statistics import Activity
from bbjax.files import container
from bbjax.model.checks import check_values, on_host
from bbjax.model.kernel import Actuator, Kernel, Side
from bbjax.model.leaves import leaves_by_path
from bbjax.model.units import Units
from bbjax.training import state

SIDES: tuple[Side, Side] = ("outputs", "inputs")


class Rates(NamedTuple):
    """On-rates of one side, `stack + units`.

    Attributes:
      rate: float32, 0.5 where nothing was observed, as `bb.on_rates`.
      seen: bool, where something was.
    """

    rate: np.ndarray
    seen: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Look:
    """One masked kernel of a source.

    Attributes:
      kernel: the kernel.
      actuators: sides that the budget counts; empty if not known.
      mask: fetches the mask, bool of the kernel's shape.
      rates: on-rates by side, where anything was observed.
      asked: density asked for; None if not known or an outcome.
      churn: share of the edges that the last refresh flipped; None if not known.
      k_min: least degree of a unit.
    """

    kernel: Kernel
    actuators: tuple[Actuator, ...]
    mask: Callable[[], np.ndarray]
    rates: Mapping[Side, Rates] = dataclasses.field(default_factory=dict)
    asked: float | None = None
    churn: float | None = None
    k_min: int = 1

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
      looks: one per kernel.
      others: masks of parameters that are no kernel's: path, entries, kept entries.
      updates: updates that a state has seen; None for masks.
      no_activity: why on-rates may be missing.
    """

    origin: str
    looks: tuple[Look, ...]
    others: tuple[tuple[str, int, int], ...] = ()
    updates: int | None = None
    no_activity: str = ""


def read(source: Any, units: Units | None) -> Source:
    """Reads any source.

    Args:
      source: an optimizer state, masks by path, or the path of a saved file.
      units: from `bb.trace`; may be None where the source knows its kernels.

    Raises:
      TypeError: masks that are not bool.
      ValueError: nothing to report on; no kernels known; shapes that differ.
    """
    if isinstance(source, str | os.PathLike):
        masks, kernels, origin = _file(Path(source))
        return _from_masks(masks, kernels, units, origin)
    if _is_masks(source):
        return _from_masks(on_host(source), {}, units, "masks")
    return _from_state(source, units)


def _file(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Kernel], str]:
    """Masks and kernels of a saved file, and what kind of file it is."""
    if path.is_dir():
        raise ValueError(
            f"expected a saved file, got the folder {path.name!r}; restore the "
            "checkpoint into the structure of its optimizer state and pass that"
        )
    what = "a file as bb.save writes it, or bb.save_masks"
    _, saved = container.read(path, what)
    kind = "file" if saved.params else "mask file"
    return saved.masks, saved.header.kernels, f"the {kind} {path.name}"


def _is_masks(source: Any) -> bool:
    if not isinstance(source, Mapping) or not all(isinstance(p, str) for p in source):
        return False
    kinds = {str(getattr(mask, "dtype", "")) for mask in source.values()}
    return "bool" in kinds or not kinds  # one that is not bool is named, not guessed


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
            f"expected masks of kernels that are known, got {list(masks)[:5]}; pass "
            "units=bb.trace(...), which says which axes are inputs and outputs"
            + (f" (it has {list(known)[:8]})" if known else "")
        )
    chosen = {} if units is None else units.budgeted
    looks = []
    for path, kernel in found.items():
        check_shape(path, masks[path].shape, kernel)
        fetch = functools.partial(np.asarray, masks[path])
        looks.append(Look(kernel, chosen.get(path, ()), fetch))
    others = tuple(_other(p, mask) for p, mask in masks.items() if p not in found)
    why = "masks alone carry no on-rates; pass activity= (see bb.calibrate)"
    return Source(origin, tuple(looks), others, no_activity=why)


def _other(path: str, mask: np.ndarray) -> tuple[str, int, int]:
    return path, mask.size, int(np.count_nonzero(mask))


def check_shape(path: str, shape: tuple[int, ...], kernel: Kernel) -> None:
    """Refuses what cannot be laid over a kernel.

    Raises:
      ValueError: it has another shape.
    """
    if shape != kernel.shape:
        raise ValueError(
            f"expected {path!r} of shape {kernel.shape}, got {shape}; use masks and "
            "the trace of one model"
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
    looks, others = [], []
    for held, kernel, actuators in entries:
        fetch = functools.partial(_unpacked, kernel, held.bb_masks[kernel.path])
        if not actuators:  # held masks that no budget counts have no units, either
            others.append(_other(kernel.path, fetch()))
            continue
        if units is not None and kernel.path in units:
            check_shape(kernel.path, kernel.shape, units[kernel.path])
        look = Look(
            kernel=kernel,
            actuators=actuators,
            mask=fetch,
            rates=_observed(kernel, held.bb_means[kernel.path]),
            asked=_number(held.bb_density[kernel.path]),
            churn=_number(held.bb_churn[kernel.path]),
            k_min=held.bb_plan.k_min,
        )
        looks.append(look)
    if not looks:
        raise ValueError(
            f"expected a state that budgets kernels, got one that holds masks of "
            f"{[path for path, *_ in others][:5]}; give bb.hold units, or pass "
            "bb.masks(opt_state) and units"
        )
    updates = max(int(held.bb_count) for held in states)
    why = "no update was given activity="
    origin = f"an optimizer state after {updates:,} update{'s' * (updates != 1)}"
    return Source(origin, tuple(looks), tuple(others), updates, why)


def _unpacked(kernel: Kernel, packed: Any) -> np.ndarray:
    return np.asarray(state.full_mask(kernel, packed))


def _number(value: Any) -> float | None:
    """A float32 as it was written, 0.1 for 0.1; None where it is an outcome (NaN)."""
    number = np.float32(value)
    return float(str(number)) if math.isfinite(number) else None


def _observed(kernel: Kernel, means: Mapping[str, Any]) -> dict[Side, Rates]:
    found: dict[Side, Rates] = {}
    for side in SIDES:
        if f"{side}.on_rate" not in means:
            continue
        rate = np.asarray(state.read_mean(means, f"{side}.on_rate"))
        weight = np.asarray(means[f"{side}.weight"])
        seen = np.broadcast_to(weight > 0, rate.shape)
        if seen.any():
            found[side] = _clean(rate, seen)
    return found


def _clean(rate: np.ndarray, seen: np.ndarray) -> Rates:
    seen = seen & np.isfinite(rate)
    return Rates(np.where(seen, rate, np.float32(state.UNOBSERVED)), seen)


# Activity ------------------------------------------------------------------------
def with_activity(source: Source, activity: Mapping[str, Any]) -> Source:
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
    paths = [look.kernel.path for look in source.looks]
    if not set(paths) & set(activity):
        raise ValueError(
            f"expected activity of {paths[:5]}, got that of {list(activity)[:5]}; "
            "measure the kernels that were pruned"
        )
    looks = tuple(
        dataclasses.replace(look, rates=dict(_measured(look.kernel, activity)))
        if look.kernel.path in activity
        else look
        for look in source.looks
    )
    why = "activity= has no on-rates of this kernel"
    return dataclasses.replace(source, looks=looks, no_activity=why)


def _measured(
    kernel: Kernel, activity: Mapping[str, Any]
) -> Iterator[tuple[Side, Rates]]:
    for side in SIDES:
        measured = getattr(activity[kernel.path], side)
        if measured.on_rate is None:
            continue
        rate = np.asarray(measured.on_rate, np.float32)
        if rate.shape != kernel.per_unit_shape(side):
            raise ValueError(
                f"expected on-rates of shape {kernel.per_unit_shape(side)} for the "
                f"{side} of {kernel.path!r}, got {rate.shape}; measure this very model"
            )
        count = 1.0 if measured.count is None else np.asarray(measured.count)
        seen = np.broadcast_to(np.asarray(count) > 0, rate.shape)
        if seen.any():
            yield side, _clean(rate, seen)
