"""Text that commands leave: markdown tables, marked parts of pages, JSON."""

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.measure import write


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def marks(name: str) -> tuple[str, str]:
    """What stands before and after a part of a page."""
    return f"<!-- {name} -->", f"<!-- end of {name} -->"


BEGIN, END = marks("results")


def put_in(text: str, part: str, name: str = "results") -> str:
    """A text with another part between its marks."""
    begin, end = marks(name)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(
            f"expected {begin} and {end} once, got {text.count(begin)} and "
            f"{text.count(end)}; put them where the part belongs"
        )
    before, rest = text.split(begin)
    return f"{before}{begin}\n{part}\n{end}{rest.split(end)[1]}"


def finish(
    name: str, report: dict[str, Any], started: float, out: Path
) -> dict[str, Any]:
    """Writes the JSON, and returns what it holds."""
    whole = {"name": name, "seconds": round(time.perf_counter() - started, 1)}
    path = out / f"{name}.json"
    write(path, whole | plain(report))
    path.write_text(short(path.read_text()))
    return json.loads(path.read_text())


def short(text: str) -> str:
    """JSON with each innermost list on one line."""
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text)


def plain(value: Any, digits: int = 4) -> Any:
    """Arrays as lists and numbers rounded, NaN as None: what JSON can hold."""
    if isinstance(value, dict):
        return {str(k): plain(v, digits) for k, v in value.items()}
    if hasattr(value, "_asdict"):
        return plain(tuple(value), digits)
    if isinstance(value, list | tuple):
        return [plain(v, digits) for v in value]
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "dtype"):
        return plain(np.asarray(value).tolist(), digits)
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if np.isfinite(value) else None
    return value
