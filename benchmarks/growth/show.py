"""The report as tables for a terminal of 80 columns."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

SHOWN = ("refresh", "plain", "sgd", "dense", "state_bytes", "temp_bytes", "flops")
LOCAL = 4  # local slopes shown, those of the largest sizes


def _table(title: str, *columns: str) -> Table:
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    made.padding, made.pad_edge = (0, 1, 0, 0), False
    for name in columns:
        made.add_column(name, justify="right", no_wrap=True)
    return made


def sizes(console: Console, title: str, part: dict[str, Any]) -> None:
    """Times of every size, ratios to the dense reference, bytes per weight."""
    dense = part["dense"]
    table = _table(
        f"{title}: ms, ratios to {dense}, bytes per weight",
        part["by"],
        *("refresh", "plain", dense),
        *("refresh\nratio", "plain\nratio", "every=100\nratio"),
        *("state\nB/w", "temp\nB/w", "compile\ns"),
    )
    for i, weights in enumerate(part["weights"]):
        per_weight = [part["facts"][n][i] / weights for n in SHOWN if "bytes" in n]
        table.add_row(
            f"{part[part['by']][i]:.2g}"
            if part["by"] == "weights"
            else str(part["units"][i]),
            *(f"{part['ms'][n][i]['median']:.3g}" for n in ("refresh", "plain", dense)),
            *(f"{part['ratio'][n][i]['median']:.2f}" for n in ("refresh", "plain")),
            f"{part['amortised']['100'][i]:.3f}",
            *(f"{n:.2f}" for n in per_weight),
            f"{part['facts']['compile_seconds'][i]:.1f}",
        )
    console.print(table)


def exponents(console: Console, parts: dict[str, dict[str, Any]]) -> None:
    """The fitted exponents with their errors, and the verdict."""
    title = "cost ~ size ** exponent, and the most that it may be"
    table = _table(title, "part", "cost", "exponent", "local slopes", "most", "within")
    for name, part in parts.items():
        fits = {n: fit for n, fit in part["fits"].items() if n in SHOWN}
        fits |= {
            f"{n} / {part['dense']}": part["ratio_fits"][n]
            for n in ("refresh", "plain")
        }
        for cost, fit in fits.items():
            table.add_row(
                name,
                cost,
                f"{fit['exponent']:.3f} ± {fit['error']:.3f}",
                " ".join(f"{s:.2f}" for s in fit["local"][-LOCAL:]),
                f"{fit['most']:g}",
                "yes" if fit["within"] else "NO",
            )
        table.add_section()
    console.print(table)


def periods(console: Console, part: dict[str, Any]) -> None:
    """Cost per step against the refresh period."""
    table = _table(
        f"refresh period, {part['weights']:.2g} weights",
        *("every", "steps run", "run ms", "computed ms", "run / dense SGD (quartiles)"),
    )
    for i, every in enumerate(part["periods"]):
        ratio = part["run_ratio"][i]
        table.add_row(
            str(every),
            str(part["steps"][i]),
            f"{part['run_ms'][i]['median']:.3g}",
            f"{part['computed_ms'][i]:.3g}",
            f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})",
        )
    console.print(table)
