"""What one run found, as text."""

from pathlib import Path
from typing import Any

from benchmarks.common.page import Page, middle, origin
from benchmarks.common.text import table

READ = (
    "Medians over rounds, quartiles in brackets; speed-ups are over dense kernels in "
    "the same round. Ideal: bytes of dense kernels over bytes of these."
)


def results(report: dict[str, Any]) -> str:
    """What one run found."""
    size = report["size"]
    rows = [row for rows in report["batches"].values() for row in rows.values()]
    worst = max(row["error"] for row in rows)
    return "\n\n".join(
        [
            origin(report, report["dtype"]),
            f"{size['blocks']} blocks {size['width']} → {size['hidden']} → "
            f"{size['width']}. {READ} Outputs are within {worst:.1e} of the dense "
            "ones, of the largest entry.",
            _times(report),
        ]
    )


def _times(report: dict[str, Any]) -> str:
    lines = []
    for batch, rows in report["batches"].items():
        for way, row in rows.items():
            share = report["bytes"][way] / report["bytes"]["dense"]
            lines.append(
                (
                    *(batch, way, f"{row['ms']['median']:.3g}"),
                    *(f"{share:.3f}", f"{1 / share:.2f}"),
                    "" if way == "dense" else middle(row["speedup"]),
                )
            )
    head = ("batch", "kernels", "ms", "bytes / dense", "ideal", "speed-up")
    return table(head, lines)


PAGE = Page(Path(__file__).parent / "README.md", "patterns", results)
