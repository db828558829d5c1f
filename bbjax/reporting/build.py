"""Builds reports: reads a source, computes the figures, and writes or prints them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from bbjax.activity.statistics import Activity
from bbjax.files import atomic
from bbjax.model.checks import APPLY_MASKS
from bbjax.model.leaves import Leaves
from bbjax.model.units import Units
from bbjax.oneshot.sensitivity import Sensitivity
from bbjax.reporting import figures, forks, numbers, sources, words
from bbjax.reporting.data import Facts, Given, KernelFacts
from bbjax.reporting.formats import counted

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


class Report(Facts):
    """The result of `bb.report`: a page, text, or numbers.

    `print(report)` is the table of kernels, `report.show()` everything in a terminal,
    `report.save("report.html")` a page; a notebook shows the page by itself. The
    figures are the attributes of `Facts`.
    """

    def html(self) -> str:
        """One page: no script, nothing fetched, light and dark."""
        from bbjax.reporting import page

        return page.page(self)

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes the page, or its numbers where the name ends in `.json`.

        Args:
          file: a path; what is there is replaced, once the new file is complete.

        Raises:
          FileNotFoundError: the folder of the path is missing.
          ValueError: a name that ends neither in `.html` (`.htm`) nor in `.json`, or a
            path that is no regular file.
        """
        path = _page_or_numbers(file)
        if path.suffix.lower() == ".json":
            text = json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
        else:
            text = self.html()
        atomic.write(path, text.encode("utf-8"))

    def show(
        self, console: Console | None = None, *, details: bool | None = None
    ) -> None:
        """Prints everything to a terminal.

        Args:
          console: a `rich.console.Console`; None for standard output.
          details: whether to print a section on every kernel; None for up to eight.

        Raises:
          ImportError: rich is missing.
        """
        terminal = _terminal()
        (terminal.console() if console is None else console).print(
            terminal.render(self, details), highlight=False
        )

    def to_dict(self) -> dict[str, Any]:
        """The numbers, of Python's own kinds, as JSON takes them."""
        return numbers.to_dict(self)

    def _repr_html_(self) -> str:
        from bbjax.reporting import page

        return page.notebook(self)

    def __rich__(self) -> RenderableType:
        return _terminal().render(self)

    def __str__(self) -> str:
        return words.text(self)

    def __repr__(self) -> str:
        kernels = counted(len(self.kernels), "kernels")
        return f"<Report {self.title!r}: {kernels}, density {self.got:.4g}>"


def report(
    source: Any,
    units: Units | None = None,
    *,
    params: Any = None,
    previous: Any = None,
    activity: Mapping[str, Activity] | None = None,
    latency: Mapping[str, float] | None = None,
    shrunk: Mapping[str, tuple[float, float]] | None = None,
    sensitivity: Sensitivity | None = None,
    file: str | os.PathLike[str] | None = None,
    title: str = "Pruning report",
) -> Report:
    """Reports on pruning: budgets, degrees, activity, dead and hub units, churn, masks.

    Args:
      source: an optimizer state with `bb.transform`, `bb.wrap` or `bb.hold` at any
        depth, also one restored from a checkpoint; or masks by path, as `bb.masks` and
        `bb.prune` return them; or the path of a file of `bb.save` or
        `bb.save_masks`.
      units: from `bb.trace`. Needed for masks, unless the file was saved with them.
        With units, output units that have incoming edges but no path to the output are
        counted as well.
      params: the parameters, for the size of the whole model and to check that pruned
        weights are 0.
      previous: a source of its own, of the same kernels. Churn is then counted between
        its masks and these; without it, churn is that of the last refresh.
      activity: from `bb.calibrate` or `bb.observe`: on-rates to report instead of those
        in the optimizer state. Masks have none by themselves.
      latency: milliseconds by a name of your own.
      shrunk: `(before, after)` by a name of your own: parameters, FLOPs, bytes, as
        `sizes` of the report of `bb.shrink`.
      sensitivity: from `bb.sensitivity`: losses with one kernel or layer pruned at a
        time, drawn as curves, and for layers of a stack as maps.
      file: where to write the page; its numbers if the name ends in `.json`.
      title: of the page.

    Returns:
      `Report`. `print` it for a table, `show()` it in a terminal, `save("report.html")`
      it as one page that needs nothing else; `to_dict()` gives the numbers.

    Raises:
      TypeError: masks that are not bool, activity or figures of the wrong kind.
      ValueError: pruned weights in `params` that are not 0, no masks, no pruning state,
        masks of unknown kernels, shapes that differ, latencies or sizes below 0, a file
        of another kind.
      RuntimeError: in a process that was forked after JAX was used, where JAX would
        wait for ever.

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
    if sensitivity is not None and not isinstance(sensitivity, Sensitivity):
        raise TypeError(
            f"expected sensitivity as bb.sensitivity returns it, got "
            f"{type(sensitivity).__name__}; pass its result as it is"
        )
    if file is not None:
        _page_or_numbers(file)
    forks.check()
    found = sources.read(source, units)
    if activity is not None:
        found = sources.with_activity(found, activity)
    if previous is not None:
        found = sources.with_previous(found, previous, units)
    leaves = None if params is None else Leaves.of(params)
    kernels = figures.kernel_facts(found, units, leaves)
    made = Report(
        title=str(title),
        origin=found.origin,
        updates=found.updates,
        kernels=kernels,
        others=found.others,
        since=found.since,
        model=None if leaves is None else figures.model_size(leaves, kernels),
        given={
            "latency_ms": _checked("latency", latency, 1),
            "shrunk": _checked("shrunk", shrunk, 2),
        },
        notes=tuple(_notes(found.updates, kernels, units)),
        losses=None if sensitivity is None else figures.loss_facts(sensitivity),
    )
    if file is not None:
        made.save(file)
    return made


def _checked(
    name: str, given: Mapping[str, Given] | None, length: int
) -> dict[str, Given]:
    """Figures by name: one number each, or as many as `length`."""
    found: dict[str, Given] = {}
    for key, value in (given or {}).items():
        values = np.ravel(np.asarray(value, np.float64))
        if np.shape(value) != ((length,) if length > 1 else ()):
            what = "one number" if length == 1 else "a pair (before, after)"
            raise TypeError(
                f"{name}: expected {what} for {key!r}, got {value!r}; give figures by "
                "name"
            )
        if not all(math.isfinite(n) and n >= 0 for n in values):
            raise ValueError(
                f"{name}: expected finite numbers >= 0 for {key!r}, got {value!r}; "
                "leave out what was not measured"
            )
        first, *rest = (float(n) for n in values)
        found[str(key)] = (first, *rest) if rest else first
    return found


def _notes(
    updates: int | None, kernels: Sequence[KernelFacts], units: Units | None
) -> list[str]:
    """Remarks that stand before the figures."""
    notes = []
    if all(kernel.kept == kernel.edges for kernel in kernels):
        seen = "" if updates is None else ": no refresh has cut an edge so far"
        notes.append(f"Nothing is pruned yet{seen}. Every unit has all of its edges.")
    paths = {kernel.path for kernel in kernels}
    chosen = [] if units is None or units.selection is None else list(units.budgeted)
    absent = [path for path in chosen if path not in paths]
    if absent:
        notes.append(f"Selected in units, but without a mask: {', '.join(absent)}.")
    notes += [
        f"A share of {kernel.stray:.3g} of the edges of {kernel.path} was pruned, yet "
        f"not 0 in the parameters of an update: {APPLY_MASKS}."
        for kernel in kernels
        if kernel.stray
    ]
    return notes


def _page_or_numbers(file: str | os.PathLike[str]) -> Path:
    """The path of a report's file, refused if it is of another kind."""
    path = Path(file)
    if path.suffix.lower() not in (".html", ".htm", ".json"):
        raise ValueError(
            f"expected a file of a report to end in .html or .json, got {str(path)!r}; "
            "print(report) is the text"
        )
    return path


def _terminal() -> ModuleType:
    try:
        from bbjax.reporting import terminal
    except ImportError as error:
        if (error.name or "").split(".")[0] != "rich":
            raise
        raise ImportError(
            "expected the package rich, which draws reports in a terminal, got none; "
            'pip install "bbjax[report]", or report.save("report.html")'
        ) from error
    return terminal
