"""Units and kernels: where a model's edges are, as frozen data.

`bb.trace` returns `Units`: the kernels of a model (`bbjax.model.kernel`), in order of
first use, and the parameters whose use in a multiplication cannot be measured. `select`
chooses kernels, and the side that a budget counts, by a pattern on their paths; `+`
joins selections. `Units` are frozen and hashable, so that a transform built from them
does not change.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Iterator

from bbjax.model.groups import Graph
from bbjax.model.kernel import Actuator, Kernel, Side
from bbjax.model.text import printable, regular, size, table

__all__ = ["Actuator", "Kernel", "Selected", "Side", "Units"]


@dataclasses.dataclass(frozen=True)
class Selected:
    """A kernel chosen for a budget: its path and the side that the budget counts."""

    path: str
    actuator: Actuator


@dataclasses.dataclass(frozen=True)
class Units:
    """The kernels of a model and the ones chosen for a budget. Frozen and hashable.

    Made by `bb.trace`; `select` chooses kernels and `+` joins selections.

    Attributes:
      kernels: every kernel that `trace` found, in order of first use.
      problems: `(path, reason)` of parameters whose use in a multiplication cannot be
        measured or masked; selecting one of them is an error.
      others: `(path, reason)` of parameters with several axes that are no kernels, as
        an embedding that is read by index.
      selection: the chosen kernels; `None` until `select` is called.
      graph: which axes of which parameters carry the same units, and which of these
        groups can shrink. Printed as a table. It does not count for `==`.
    """

    kernels: tuple[Kernel, ...]
    problems: tuple[tuple[str, str], ...] = ()
    selection: tuple[Selected, ...] | None = None
    others: tuple[tuple[str, str], ...] = ()
    graph: Graph = dataclasses.field(default=Graph(), compare=False, repr=False)

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all kernels, in order of first use."""
        return tuple(k.path for k in self.kernels)

    def __getitem__(self, path: str) -> Kernel:
        for kernel in self.kernels:
            if kernel.path == path:
                return kernel
        raise KeyError(
            f"expected the path of a kernel, got {path!r}; {self._near(path)}"
        )

    def __contains__(self, path: object) -> bool:
        return path in self.paths

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.kernels)

    def select(self, pattern: str, actuator: Actuator = "in") -> Units:
        """Chooses the kernels whose path matches, for a budget on one side.

        Args:
          pattern: regular expression, searched anywhere in the path (`re.search`).
          actuator: `"in"` counts the incoming edges of a kernel's output units
            (SP-in), `"out"` the outgoing edges of its input units (SP-out).

        Returns:
          The same kernels with this selection; join two selections with `+`.

        Raises:
          ValueError: no kernel matches, `pattern` is not a regular expression,
            `actuator` is neither side, or a match cannot be measured.

        Example:
          >>> units = Units((Kernel("mlp/up", (2, 3), fan_in=(0,), fan_out=(1,)),))
          >>> units.select("up$").selected
          (Selected(path='mlp/up', actuator='in'),)
        """
        _check_actuator(actuator)
        regex = regular(pattern)
        self._refuse_problems(regex, pattern)
        found = [p for p in self.paths if regex.search(p) is not None]
        if not found:
            others = [f"{p!r} {why}" for p, why in self.others if regex.search(p)]
            known = f"; a parameter that is no kernel: {others[0]}" if others else ""
            raise ValueError(
                f"expected a pattern that matches a kernel, got {pattern!r}, which "
                f"matches none{known}; {self._near(pattern)}"
            )
        return self.only(found, actuator)

    def only(self, paths: Iterable[str], actuator: Actuator = "in") -> Units:
        """Chooses kernels by their exact paths, in place of an earlier choice.

        Args:
          paths: of kernels; a repeated path is chosen once.
          actuator: as for `select`.

        Returns:
          The same kernels with this selection, in the order of `paths`.

        Raises:
          KeyError: a path without a kernel.
          ValueError: `actuator` is neither side.

        Example:
          >>> units = Units((Kernel("mlp/up", (2, 3), fan_in=(0,), fan_out=(1,)),))
          >>> units.only(["mlp/up"]) == units.select("up$")
          True
        """
        _check_actuator(actuator)
        chosen = tuple(Selected(self[p].path, actuator) for p in dict.fromkeys(paths))
        return dataclasses.replace(self, selection=chosen)

    def _refuse_problems(self, regex: re.Pattern[str], pattern: str) -> None:
        for path, reason in self.problems:
            if regex.search(path) is not None:
                raise ValueError(
                    f"expected kernels whose use can be measured, got {path!r} from "
                    f"pattern {pattern!r}: {reason}; narrow the pattern, or rewrite "
                    "the use"
                )

    def __add__(self, other: Units) -> Units:
        if not isinstance(other, Units):
            return NotImplemented
        if (self.kernels, self.problems) != (other.kernels, other.problems):
            raise ValueError(
                "expected two selections of the same trace, got different kernels; "
                "call select on one trace and add the results"
            )
        both = self.selected + other.selected
        return dataclasses.replace(self, selection=tuple(dict.fromkeys(both)))

    @property
    def selected(self) -> tuple[Selected, ...]:
        """The selection for a transform, or the default one.

        The default is every hidden kernel that a nonlinearity follows, actuator "in".
        It leaves out kernels whose units have a single incoming edge (there is no
        choice), those of complex weights, and those with units that are on always, as
        after a sigmoid. Of a kernel whose output is sliced, one range with a
        nonlinearity is enough.
        """
        if self.selection is not None:
            return self.selection
        return tuple(
            Selected(k.path, "in")
            for k in self.kernels
            if k.hidden and k.nonlinearity and not _why_not(k)
        )

    @property
    def budgeted(self) -> dict[str, tuple[Actuator, ...]]:
        """Actuators of each selected kernel, by path."""
        chosen: dict[str, tuple[Actuator, ...]] = {}
        for item in self.selected:
            chosen[item.path] = (*chosen.get(item.path, ()), item.actuator)
        return chosen

    def _near(self, text: str) -> str:
        words = [w for w in re.split(r"[^A-Za-z0-9_]+", text) if w]
        close = difflib.get_close_matches(text, self.paths, n=5, cutoff=0.3)
        close += [p for p in self.paths if any(w.lower() in p.lower() for w in words)]
        close = list(dict.fromkeys(close))[:5] or list(self.paths)[:8]
        return f"near misses: {close}" if close else "the trace found no kernels"

    def __str__(self) -> str:
        chosen = self.budgeted
        head = ("kernel", "shape", "units in -> out", "budget", "outputs measured")
        rows = [_row(k, chosen.get(k.path, ())) for k in self.kernels]
        lines = [table(head, rows)]
        notes = [f"cannot be used: {p}: {why}" for p, why in self.problems]
        notes += [f"no kernel: {p}: {why}" for p, why in self.others]
        lines += map(printable, notes)
        return "\n".join(lines)


# Nonlinearities whose value is above 0 whatever the input is.
_ALWAYS_ON = frozenset("logistic sigmoid softplus exp exp2 erfc".split())


def _check_actuator(actuator: str) -> None:
    if actuator not in ("in", "out"):
        raise ValueError(
            f'expected actuator "in" or "out", got {actuator!r}; "in" limits the '
            'incoming edges of output units, "out" the outgoing edges of input units'
        )


def _why_not(kernel: Kernel) -> str:
    """Why a kernel with a nonlinearity is not selected by default; empty if it is."""
    if kernel.fan("in") == 1:
        return "one edge a unit leaves no choice"
    if kernel.dtype.startswith("complex"):
        return "its weights are complex"
    curves = kernel.nonlinearity.split("/")
    if always := [name for name in curves if name in _ALWAYS_ON]:
        some = "" if len(curves) == 1 else f"units after {'/'.join(always)} are "
        return f"{some}always on: select it and choose on="
    return ""


def _row(kernel: Kernel, actuators: tuple[Actuator, ...]) -> tuple[str, ...]:
    units = f"{size(kernel.in_units)} -> {size(kernel.out_units)}"
    if kernel.stack:
        units += f"  x{math.prod(kernel.stack_shape)} stacked"
    if kernel.groups > 1:
        units += f"  {kernel.groups} groups"
    what = (
        f"after {kernel.nonlinearity}"
        if kernel.nonlinearity
        else "no nonlinearity: sign of the raw output"
    )
    if kernel.hidden and kernel.nonlinearity and (why := _why_not(kernel)):
        what += f"; not selected by default: {why}"
    return (kernel.path, size(kernel.shape), units, "+".join(actuators), what)
