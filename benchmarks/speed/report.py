"""One report for all parts, kept when only some of them are measured again.

    {"machine": of the last writer,
     "parts": {part: {"machine": ..., "small": ..., "rows": {name: row}}}}

Rows are taken in one at a time, so a run that is cut short keeps what it has. Within a
part all rows come from one machine with one set of versions: a row measured elsewhere
replaces the part, one measured on the same machine replaces the row of its name.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common.measure import machine, write

Report = dict[str, Any]


def about(small: bool) -> dict[str, Any]:
    """What the rows measured now hold for."""
    return {"machine": machine(), "small": small}


def merged(
    parts: Mapping[str, Any], part: str, where: Mapping[str, Any], rows: Any
) -> dict[str, Any]:
    """The parts with these rows taken in."""
    old = dict(parts.get(part, {}))
    kept = old.pop("rows", {})
    if old != dict(where):
        kept = {}
    return dict(parts) | {part: dict(where) | {"rows": kept | dict(rows)}}


def load(path: Path) -> dict[str, Any]:
    """The parts of a report, none where there is no file."""
    return json.loads(path.read_text())["parts"] if path.exists() else {}


def save(path: Path, parts: Mapping[str, Any]) -> None:
    """Writes a report."""
    write(path, {"parts": dict(parts)})
