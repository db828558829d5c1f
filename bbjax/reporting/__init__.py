"""Reports: what pruning did to a model, on one page, in a terminal, as numbers.

    sources    optimizer states, masks, saved files -> masks and on-rates
    facts      masks and on-rates -> figures of every kernel; arrays, no drawing
    params     what parameters add: their sizes, and a check that masks were applied
    data       the figures, frozen
    words      figures -> the same words and tables for page and terminal
    numbers    figures -> JSON
    page       HTML in one file, drawn by charts (SVG), masks (PNG) and style (CSS)
    terminal   the same with rich, the only foreign library here

Importing bbjax loads what finds the figures; what draws is loaded when it draws.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from bbjax.model.units import Units
from bbjax.reporting import facts, sources
from bbjax.reporting import params as parameters
from bbjax.reporting.data import KernelFacts, Report, page_or_numbers
from bbjax.reporting.sources import Source

__all__ = ["KernelFacts", "Report", "draw_graph", "report"]

_PIXELS = (256, 128)  # of a mask picture; the latter beside many kernels


def __getattr__(name: str) -> Any:
    if name == "draw_graph":  # loaded when it draws
        from bbjax.reporting.groups import draw_graph

        return draw_graph
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def report(
    source: Any,
    units: Units | None = None,
    *,
    params: Any = None,
    previous: Any = None,
    activity: Mapping[str, Any] | None = None,
    latency: Mapping[str, float] | None = None,
    shrunk: Mapping[str, tuple[float, float]] | None = None,
    file: str | os.PathLike[str] | None = None,
    title: str = "Pruning report",
) -> Report:
    """Reports on pruning: budgets, degrees, activity, dead and hub units, churn, masks.

    Args:
      source: an optimizer state with `bb.transform`, `bb.wrap` or `bb.hold` at any
        depth, also one restored from a checkpoint; or masks by path, as `bb.masks` and
        `bb.prune` return them; or the path of a file of `bb.save` or
        `bb.save_masks`.
      units: from `bb.trace`. Needed for masks, unless the file was saved with them;
        with units, those that no reader hears are counted as well.
      params: the parameters, for the size of the whole model and to check that pruned
        weights are 0.
      previous: a source of its own, of the same kernels; churn is then counted between
        its masks and these, else it is that of the last refresh.
      activity: from `bb.calibrate` or `bb.observe`; on-rates to report instead of those
        that the state remembers. Masks have none by themselves.
      latency: milliseconds by a name of your own.
      shrunk: `(before, after)` by a name of your own: parameters, FLOPs, bytes, as
        `sizes` of the report of `bb.shrink`.
      file: where to write the page; its numbers if the name ends in `.json`.
      title: of the page.

    Returns:
      `Report`. `print` it for a table, `show()` it in a terminal, `save("report.html")`
      it as one page that needs nothing else; `to_dict()` gives the numbers.

    Raises:
      TypeError: masks that are not bool, activity or figures of the wrong kind.
      ValueError: no masks, no pruning state, masks of unknown kernels, shapes that
        differ, latencies or sizes below 0, a file of another kind.

    Example:
      >>> import bbjax as bb
      >>> kernel = bb.Kernel("w", (2, 3), fan_in=(0,), fan_out=(1,))
      >>> mask = np.array([[True, True, False], [True, False, False]])
      >>> found = report({"w": mask}, bb.Units((kernel,)))
      >>> found.kept, found.edges, found["w"].sides[0].degree.tolist(), found.dead
      (3, 6, [[2, 1, 0]], 1)
    """
    if units is not None and not isinstance(units, Units):
        raise TypeError(
            f"expected units as bb.trace makes them, got {type(units).__name__}; "
            "masks of another time go into previous="
        )
    if file is not None:
        page_or_numbers(file)
    found = sources.read(source, units)
    if activity is not None:
        found = sources.with_activity(found, activity)
    flipped = {} if previous is None else _flipped(found, previous, units)
    context = facts.Context(
        side_of_picture=_PIXELS[len(found.looks) > facts.MANY],
        flipped=flipped,
        unheard={} if units is None else facts.unheard(units, found.looks),
        dtypes={} if params is None else parameters.dtypes(params, found.looks),
        no_activity=found.no_activity,
    )
    kernels = tuple(facts.kernel_facts(look, context) for look in found.looks)
    made = Report(
        title=str(title),
        origin=found.origin,
        updates=found.updates,
        kernels=kernels,
        others=found.others,
        since="the last refresh" if previous is None else "the previous masks",
        model=None if params is None else parameters.model(params, kernels),
        latency=_checked("latency", latency, 1),
        shrunk=_checked("shrunk", shrunk, 2),
        notes=tuple(_notes(found, kernels, units, params)),
    )
    if file is not None:
        made.save(file)
    return made


def _flipped(source: Source, previous: Any, units: Units | None) -> dict[str, int]:
    """Edges that differ from the previous masks, by path."""
    kernels = tuple(look.kernel for look in source.looks)
    before = sources.read(previous, Units(kernels) if units is None else units)
    earlier = {look.kernel.path: look for look in before.looks}
    missing = [kernel.path for kernel in kernels if kernel.path not in earlier]
    if missing:
        raise ValueError(
            f"expected previous masks of the same kernels, got none of {missing[:5]}; "
            "churn is counted kernel by kernel"
        )
    flipped = {}
    for look in source.looks:
        path = look.kernel.path
        sources.check_shape(path, earlier[path].kernel.shape, look.kernel)
        changed = look.edges() ^ earlier[path].edges()
        flipped[path] = int(np.count_nonzero(changed))
    return flipped


def _checked(name: str, given: Mapping[str, Any] | None, count: int) -> dict[str, Any]:
    """Figures by name: one number each, or as many as `count`."""
    found: dict[str, Any] = {}
    for key, value in (given or {}).items():
        numbers = np.ravel(np.asarray(value, np.float64))
        if np.shape(value) != ((count,) if count > 1 else ()):
            what = "one number" if count == 1 else "a pair (before, after)"
            raise TypeError(
                f"{name}: expected {what} for {key!r}, got {value!r}; give figures by "
                "name"
            )
        if not all(math.isfinite(n) and n >= 0 for n in numbers):
            raise ValueError(
                f"{name}: expected finite numbers >= 0 for {key!r}, got {value!r}; "
                "leave out what was not measured"
            )
        pair = tuple(float(n) for n in numbers)
        found[str(key)] = pair if count > 1 else pair[0]
    return found


def _notes(
    source: Source, kernels: tuple[KernelFacts, ...], units: Units | None, params: Any
) -> list[str]:
    """What a reader must know before the figures."""
    notes = []
    if all(kernel.kept == kernel.edges for kernel in kernels):
        seen = "" if source.updates is None else ": no refresh has cut an edge so far"
        notes.append(f"Nothing is pruned yet{seen}. Every unit has all of its edges.")
    paths = {kernel.path for kernel in kernels}
    chosen = [] if units is None or units.selection is None else list(units.budgeted)
    absent = [path for path in chosen if path not in paths]
    if absent:
        notes.append(f"Selected in units, but without a mask: {', '.join(absent)}.")
    stray = {} if params is None else parameters.stray(params, source.looks)
    for path, count in stray.items():
        notes.append(
            f"{count:,} pruned weights of {path} are not 0 in the parameters: these "
            "masks were not applied to them."
        )
    return notes
