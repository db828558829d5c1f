"""A drawing of the unit graph: which kernels make the units of a group or read them.

One row per kernel, in order of use, and one line per group of units, from the first of
its kernels to the last:

    filled square   the kernel makes the units
    open circle     it reads them
    blue line       the group can shrink;  grey: it cannot, with the reason below

The picture is one SVG file that takes the colours of its surroundings, light or dark.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bbjax.files import atomic
from bbjax.model.groups import Group
from bbjax.model.units import Units
from bbjax.reporting.charts import label, tag
from bbjax.reporting.formats import escape

ROW, COLUMN, HEAD, LETTER = 24, 38, 46, 7.3
_CSS = """
text { font: 12px ui-monospace, Menlo, Consolas, monospace; fill: #1a2027; }
.dim { fill: #5a6573; } .free { stroke: #2a6fb8; } .fixed { stroke: #98a2ae; }
.row { stroke: #e3e8ed; } .line { stroke-width: 3; }
.stem { stroke-width: 1; stroke-dasharray: 2 3; } .note { font-size: 9px; }
.reads { fill: #ffffff; }
.free.makes { fill: #2a6fb8; } .fixed.makes { fill: #98a2ae; }
.ground { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  text { fill: #e5e9ee; } .dim { fill: #9ba7b4; } .row { stroke: #252c35; }
  .free { stroke: #6cacf0; } .free.makes { fill: #6cacf0; }
  .fixed { stroke: #6b7682; } .fixed.makes { fill: #6b7682; }
  .reads, .ground { fill: #0f1317; }
}
"""


def draw_graph(units: Units, file: str | os.PathLike[str] | None = None) -> str:
    """Draws the groups of a trace.

    Args:
      units: from `bb.trace`.
      file: where to write the picture, a name that ends in `.svg`; what is there is
        replaced, once the new file is complete.

    Returns:
      The picture, an SVG document.

    Raises:
      FileNotFoundError: the folder of the file is missing.
      ValueError: no group of units that a kernel makes or reads; a file of another
        name, or a path that is no regular file.

    Example:
      >>> import bbjax as bb, jax, jax.numpy as jnp
      >>> def net(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
      >>> draw_graph(bb.trace(net, params, jnp.ones((5, 3))))[:4]
      '<svg'
    """
    if file is not None and Path(file).suffix.lower() != ".svg":
        raise ValueError(
            f"expected a file of a drawing to end in .svg, got {os.fspath(file)!r}; "
            "the drawing is an SVG picture, which other programs convert"
        )
    rows = [k.path for k in units.kernels]
    groups = [g for g in units.graph if _places(g, rows)]
    if not groups:
        raise ValueError(
            "expected groups of units, got none; pass what bb.trace returned"
        )
    left = 16 + LETTER * max(len(path) for path in rows)
    reasons = list(dict.fromkeys(g.fixed for g in groups if g.fixed))
    below = HEAD + ROW * len(rows) + 14
    width = left + COLUMN * (len(groups) + 0.5)
    width = max(width, 60 + LETTER * max((len(r) for r in reasons), default=0))
    height = below + 18 * (len(reasons) + 1) + 10
    parts = [
        tag("style", _CSS),
        tag("rect", class_="ground", width=width, height=height),
    ]
    parts += _rows(rows, left, width)
    for number, group in enumerate(groups):
        x = left + COLUMN * (number + 0.75)
        parts.append(_group(group, rows, x, reasons))
    parts += _legend(reasons, below)
    picture = tag(
        "svg",
        "".join(parts),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=f"{width:.0f}",
        height=f"{height:.0f}",
        role="img",
        aria_label="groups of units",
    )
    if file is not None:
        atomic.write(file, picture.encode("utf-8"))
    return picture


def _places(group: Group, rows: Sequence[str]) -> list[tuple[int, str]]:
    """Rows of the kernels that make or read the units."""
    found = [(rows.index(m.path), m.role) for m in group.members if m.path in rows]
    return sorted({(row, role) for row, role in found if role != "beside"})


def _rows(rows: Sequence[str], left: float, width: float) -> list[str]:
    parts = [label(8, HEAD - 18, "units", class_="dim")]
    for number, path in enumerate(rows):
        y = HEAD + ROW * (number + 0.5)
        line = tag("line", class_="row", x1=left, x2=round(width), y1=y, y2=y)
        parts += [line, label(8, y + 4, path, class_="")]
    return parts


def _group(group: Group, rows: Sequence[str], x: float, reasons: Sequence[str]) -> str:
    """The line of a group with its marks."""
    kind = "fixed" if group.fixed else "free"
    places = _places(group, rows)
    ys = [HEAD + ROW * (row + 0.5) for row, _ in places]
    marks = [
        tag("line", class_=f"line {kind}", x1=x, x2=x, y1=min(ys), y2=max(ys)),
        tag("line", class_=f"stem {kind}", x1=x, x2=x, y1=HEAD - 12, y2=min(ys)),
        label(x, HEAD - 18, str(group.size), class_="", text_anchor="middle"),
    ]
    both = {row for row, _ in places if sum(r == row for r, _ in places) > 1}
    for (row, role), y in zip(places, ys, strict=True):
        aside = 0 if row not in both else (-6 if role == "makes" else 6)
        marks.append(_mark(x + aside, y, f"{kind} {role}", role))
    if group.fixed:
        note = str(reasons.index(group.fixed) + 1)
        marks.append(label(x + 9, HEAD - 23, note, class_="dim note"))
    beside = group.having("beside")
    title = f"{group.name}: {group.size} units, {len(beside)} parameters beside"
    return tag("g", tag("title", escape(title)) + "".join(marks))


def _mark(x: float, y: float, kind: str, role: str) -> str:
    if role == "makes":
        return tag("rect", class_=kind, x=x - 5, y=y - 5, width=10, height=10)
    return tag("circle", class_=kind, cx=x, cy=y, r=5, stroke_width=2)


def _legend(reasons: Sequence[str], y: float) -> list[str]:
    parts = [
        _mark(16, y, "free makes", "makes"),
        label(28, y + 4, "makes", class_=""),
        _mark(84, y, "free reads", "reads"),
        label(96, y + 4, "reads", class_=""),
    ]
    for number, reason in enumerate(reasons):
        line = y + 18 * (number + 1) + 6
        parts.append(label(11, line, f"{number + 1} {reason}", class_="dim"))
    return parts
