"""From cells to one report, and from the report to the tables of README.md."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.common.page import Page
from benchmarks.common.text import table
from benchmarks.language.methods import DENSE, METHODS, SCOPES
from benchmarks.language.store import Cell, Store
from benchmarks.language.text import BUCKETS

REFERENCE = "Wanda"
COLUMNS = ("all", *BUCKETS)

Found = dict[Cell, dict[str, Any]]


def report(store: Store) -> dict[str, Any]:
    """Means over draws of every method, and paired differences to the reference."""
    settings = sorted({(c.windows, c.layers) for c in store.cells})
    return {"settings": [_setting(store.cells, *setting) for setting in settings]}


def _setting(found: Found, windows: int, layers: int) -> dict[str, Any]:
    here = {
        c: v for c, v in found.items() if (c.windows, c.layers) == (windows, layers)
    }
    groups: dict[Cell, list[Cell]] = {}
    for cell in sorted(here, key=_order):
        groups.setdefault(cell._replace(draw=0), []).append(cell)
    machines = {
        (m["cpu"], m["cores"], m["jax"])
        for m in (value["machine"] for value in here.values())
    }
    return {
        "windows": windows,
        "layers": layers,
        "machines": sorted(map(list, machines)),
        "commits": sorted({value["commit"] or "unknown" for value in here.values()}),
        "rows": [_row(here, cells) for cells in groups.values()],
    }


def _order(cell: Cell) -> tuple[Any, ...]:
    names = [DENSE, *METHODS]
    place = names.index(cell.method) if cell.method in names else len(names)
    scopes = ["none", *SCOPES]
    return (
        scopes.index(cell.scope),
        -cell.density,
        cell.pattern,
        cell.sequences,
        place,
        cell.draw,
    )


def _row(found: Found, cells: list[Cell]) -> dict[str, Any]:
    """One method at one scope and density, over its draws."""
    first = cells[0]
    values = [found[cell] for cell in cells]
    row: dict[str, Any] = first._asdict() | {"draws": len(cells)}
    del row["draw"]
    row["perplexity"] = {
        column: _spread([v["perplexities"][column]["perplexity"] for v in values])
        for column in COLUMNS
        if all(column in v["perplexities"] for v in values)
    }
    row["targets"] = {c: v["targets"] for c, v in values[0]["perplexities"].items()}
    row["kept"] = statistics.fmean(v["kept"] for v in values)
    row["seconds"] = {
        name: _spread([v["seconds"][name] for v in values])
        for name in values[0]["seconds"]
    }
    row["peak_mb"] = max(v["peak_mb"] for v in values)
    if gaps := _gaps(found, cells):
        row["nats_over_reference"] = _spread(gaps)
    return row


def _gaps(found: Found, cells: list[Cell]) -> list[float]:
    """Nats above the reference on the same draw; what reads no data, on each draw."""
    first = cells[0]
    if first.method in (REFERENCE, DENSE):
        return []
    gaps = []
    for other in found:
        there = (other.scope, other.density, other.pattern)
        same = there == (first.scope, first.density, first.pattern)
        if other.method != REFERENCE or not same:
            continue
        if first.sequences not in (0, other.sequences):
            continue
        twin = other._replace(method=first.method) if first.sequences else first
        if twin in found:
            nats = [found[c]["perplexities"]["all"]["nats"] for c in (twin, other)]
            gaps.append(nats[0] - nats[1])
    return gaps


def _spread(values: list[float]) -> dict[str, float]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "sd": deviation, "count": len(values)}


# Text ------------------------------------------------------------------------------
def results(report: dict[str, Any]) -> str:
    """All settings, one table each."""
    return "\n\n".join(map(_shown, report["settings"])) or "Nothing measured yet."


def _shown(setting: dict[str, Any]) -> str:
    rows = setting["rows"]
    counts = next((row["targets"] for row in rows), {})
    machines = "; ".join(
        f"{cpu}, {n} cores, jax {j}" for cpu, n, j in setting["machines"]
    )
    about = (
        f"{setting['layers']} layers, {setting['windows']} windows; {machines}. Mean ± "
        "standard deviation over draws. Targets: "
        + ", ".join(f"{name} {count:,}" for name, count in counts.items())
        + "."
    )
    head = (
        *("kernels", "density", "method", "draws"),
        *(f"ppl {column}" for column in COLUMNS),
        *(
            f"nats over {REFERENCE}",
            "calibrate / prune / swap / update / evaluate s",
            "peak MB",
        ),
    )
    return about + "\n\n" + table(head, [_line(row) for row in rows])


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    perplexity = row["perplexity"]
    return (
        *(
            row["scope"],
            row["pattern"] or f"{row['density']:g}",
            row["method"],
            str(row["draws"]),
        ),
        *(_value(perplexity.get(column), "#.4g") for column in COLUMNS),
        _value(row.get("nats_over_reference"), "+.3f"),
        _seconds(row["seconds"]),
        f"{row['peak_mb']:,}",
    )


def _value(value: dict[str, float] | None, form: str) -> str:
    if value is None:
        return ""
    error = f" ± {value['sd']:.2g}" if value["count"] > 1 else ""
    return f"{value['mean']:{form}}".rstrip(".") + error


def _seconds(seconds: dict[str, dict[str, float]]) -> str:
    names = ("calibrate", "prune", "swap", "update", "evaluate")
    return " / ".join(
        f"{seconds[name]['mean']:.0f}" if name in seconds else "" for name in names
    )


PAGE = Page(Path(__file__).parent / "README.md", "language", results)
