"""What is printed: bytes per chip, collectives of the refresh, estimated times."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.tpu_aot.topology import chip_of

_LEFT_OUT = "did not fit: not compiled"


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints all tables."""
    console = Console()
    for table in (_bytes(rows), _states(rows), _moved(rows), _times(rows)):
        console.print(table)


def _name(row: Mapping[str, Any]) -> str:
    more = f" {row['options']}" if row["options"] else ""
    return f"{row['model']} {row['topology']}{more}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.3f}"


def _bytes(rows: Sequence[Mapping[str, Any]]) -> Table:
    names = ("step", "arguments", "not aliased", "temporary", "held")
    table = Table(
        "model, topology",
        *names,
        "chip",
        "fits",
        "compiled in",
        title="GB per chip (1e9 bytes); times of a shared machine",
    )
    for row in rows:
        for name in ("dense", "pruned"):
            cell = row[name]
            first = _name(row) if name == "dense" else f"  {row['chips']} chips"
            memory = f"{chip_of(row['topology']).memory:g}"
            fits = "yes" if cell["fits"] else "no"
            if "refused" in cell:
                table.add_row(first, name, _LEFT_OUT, *[""] * 3, memory, fits, "")
                continue
            fresh = cell["output"] - cell["alias"]
            parts = [_gb(size) for size in (cell["argument"], fresh, cell["temp"])]
            took = f"{cell['seconds_to_compile']:.0f} s"
            held = _gb(cell["held"])
            table.add_row(first, name, *parts, held, memory, fits, took)
        table.add_section()
    return table


def _states(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        "model, topology",
        "remembered",
        "masks",
        "dormant",
        "means",
        "pruning / optimizer",
        title="State of the pruning, MB per chip",
    )
    for row in rows:
        for name, cell in row["state_bytes"].items():
            parts = [f"{cell[p] / 1e6:.3f}" for p in ("masks", "dormant", "means")]
            ratio = f"{cell['pruning'] / cell['optimizer']:.3f}"
            table.add_row(_name(row), name, *parts, ratio)
        table.add_section()
    return table


def _moved(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        "model, topology",
        "where",
        "kind",
        "count",
        "largest KB",
        "limit KB",
        title="Collectives: the refresh, and the rest of the steps",
    )
    for row in rows:
        for where in ("refresh", "rest", "dense"):
            limit = f"{row['limits']['unit_bytes'] / 1e3:.0f}"
            for kind, cell in row.get(f"{where}_collectives", {}).items():
                size = f"{cell['largest_bytes'] / 1e3:.0f}"
                count = str(cell["count"])
                own = limit if where == "refresh" else ""
                table.add_row(_name(row), where, kind, count, size, own)
        table.add_section()
    return table


def _times(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        "model, topology",
        "dense compute",
        "pruned / dense",
        "dense memory at least",
        "a refresh",
        title="Estimates, ms, from counted FLOPs and bytes: nothing here was run",
    )
    for row in rows:
        made = row["estimates"]
        dense, pruned = (made[name]["compute_ms"] for name in ("dense", "pruned"))
        bound = made["dense"].get("memory_ms_at_least", float("nan"))
        table.add_row(
            _name(row),
            f"{dense:.1f}",
            f"{pruned / dense:.4f}",
            f"{bound:.1f}",
            f"{made.get('refresh_ms', float('nan')):.1f}",
        )
    return table
