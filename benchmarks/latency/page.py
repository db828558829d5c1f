"""The results part of the README, from the JSON alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.page import Page, middle, origin
from benchmarks.common.text import table

MEASURED = (
    "Medians over rounds, quartiles in brackets. Ratios and speed-ups are to dense in "
    "the same round. Ideal: operations of products, dense over shrunk; in brackets "
    "bytes of weights, cache and inputs. Efficiency is the speed-up over the first, "
    "and by bytes over the second."
)
EXPLAINED = (
    "Every product of the large batch alone, compiled by itself. Where products alone "
    "stay below the ideal, narrower products run at a lower rate; where they reach it "
    "and the model does not, the rest shrinks less than they do."
)
WIDTHS = "GFLOP/s of one layer with n units in and out, by itself:"


def results(report: dict[str, Any]) -> str:
    """What one run found."""
    rows = report["models"]
    parts = [
        origin(report, "float32"),
        goal(rows, report["goal"]),
        MEASURED,
        "Large batch:",
        _times(rows, "large"),
        "Batch 1:",
        _times(rows, "one"),
        accuracy(rows),
        EXPLAINED,
        _products(report["products"]),
        WIDTHS,
        _widths(report["widths"]),
    ]
    return "\n\n".join(parts)


def met(rows: dict[str, Any], least: float) -> dict[str, list[str]]:
    """Models and densities that reach the goal at the large batch, and the others."""
    found: dict[str, list[str]] = {"met": [], "not met": []}
    for name, row in rows.items():
        for density, cell in row["large"]["densities"].items():
            reached = cell["efficiency"]["flops"]["median"]
            text = f"{name} at {density} ({reached:.2f})"
            found["met" if reached >= least else "not met"].append(text)
    return found


def goal(rows: dict[str, Any], least: float) -> str:
    """The verdict."""
    found = met(rows, least)
    said = [f"**{k}**: {', '.join(v) or 'nowhere'}" for k, v in found.items()]
    return (
        f"Goal: shrunk reaches {100 * least:.0f} % of the ideal speed-up at the large "
        f"batch. {'; '.join(said)}."
    )


def accuracy(rows: dict[str, Any]) -> str:
    """Errors, and how XLA counts operations, over all rows."""
    cells = [
        (size, cell)
        for row in rows.values()
        for size in ("one", "large")
        for cell in row[size]["densities"].values()
    ]
    worst = max(cell["error"] for _, cell in cells)
    masked = [cell["ratio"]["masked"]["median"] for _, cell in cells]
    counts = []
    for name, row in rows.items():
        cell = row["large"]["densities"]["0.5"]
        ours = cell["flops"][0] / cell["flops"][1]
        xla = cell["xla_flops"][0] / cell["xla_flops"][1]
        part = cell["xla_flops"][0] / cell["flops"][0]
        counts.append([name, f"{ours:.3f}", f"{xla:.3f}", f"{part:.3f}"])
    head = (
        "large batch, density .5",
        "ideal, products",
        "ideal, XLA",
        "XLA / products",
    )
    return (
        f"Masks alone change nothing: masked models take {min(masked):.2f} to "
        f"{max(masked):.2f} times the dense time. Shrunk outputs are within "
        f"{worst:.1e} of masked ones, of the largest entry.\n\n"
        "Operations as XLA counts them, dense, beside those of products: it adds "
        "element-wise operations and leaves out what convolutions pad.\n\n"
        + table(head, counts)
    )


def _times(rows: dict[str, Any], size: str) -> str:
    head = (
        *("model", "batch", "density", "dense, ms", "masked, ratio", "shrunk, ratio"),
        *("speed-up", "ideal (bytes)", "efficiency", "by bytes"),
    )
    lines: list[Sequence[Any]] = []
    for name, row in rows.items():
        part = row[size]
        for density, cell in part["densities"].items():
            ideal = cell["ideal"]
            lines.append(
                (
                    *(name, part["batch"], density),
                    f"{part['dense_ms']['median']:.3g}",
                    middle(cell["ratio"]["masked"]),
                    middle(cell["ratio"]["shrunk"], 3),
                    f"{cell['speedup']['median']:.2f}",
                    f"{ideal['flops']:.2f} ({ideal['bytes']:.2f})",
                    middle(cell["efficiency"]["flops"]),
                    f"{cell['efficiency']['bytes']['median']:.2f}",
                )
            )
    return table(head, lines)


def _products(found: dict[str, Any]) -> str:
    head = (
        *("model", "density", "products, ms", "their efficiency"),
        "their share of the model's time",
    )
    lines: list[Sequence[Any]] = []
    for name, row in found.items():
        for density, ms in row["ms"].items():
            reach = row["efficiency"].get(density)
            lines.append(
                (
                    *(name, density, f"{ms:.3g}"),
                    "" if reach is None else f"{reach:.2f}",
                    f"{row['share'][density]:.2f}",
                )
            )
    return table(head, lines)


def _widths(found: dict[str, Any]) -> str:
    sizes = sorted(found["dense"], key=int)
    lines = [
        [kind, *(f"{rates[n]['median']:.0f}" for n in sizes)]
        for kind, rates in found.items()
    ]
    return table(["n", *sizes], lines)


PAGE = Page(Path(__file__).parent / "README.md", "latency", results)
