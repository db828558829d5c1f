"""The results part of the README, from the JSON alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.stats import LEVEL, mean_sd
from benchmarks.common.text import put_in, table
from benchmarks.corruptions.corrupt import CELLS, CLEAN, LABELS
from benchmarks.corruptions.judge import NOISE
from benchmarks.corruptions.methods import (
    AGAINST,
    EQUAL,
    LAYER,
    METHODS,
    OUT,
    PARTS,
    STANDARDIZED,
)
from benchmarks.corruptions.nets import NETS

README = Path(__file__).parent / "README.md"
CAPTION = (
    "Points over equal degrees for each corruption and strength, by method and net"
)
Report = dict[str, Any]


def results(report: Report) -> str:
    """What stands between the marks."""
    parts = [summary(report)]
    for net, of in report["nets"].items():
        numbers = "\n\n".join(_tables(of))
        title = f"All numbers: {NETS[net].title}"
        parts.append(f"<details><summary>{title}</summary>\n\n{numbers}\n\n</details>")
    parts.append(f"![{CAPTION}](../results/{report['name']}.png)")
    return "\n\n".join(parts)


def summary(report: Report) -> str:
    """The verdicts, and the numbers that decide the first question."""
    parts = (_origin(report), _said(report), _controls(report), _noise(report))
    return "\n\n".join(parts)


def publish(report: Report) -> None:
    """Writes the results into the README."""
    README.write_text(put_in(README.read_text(), results(report)))


def cell_label(cell: str) -> str:
    """`blur 0.7` for readers."""
    kind, *strength = cell.split()
    return " ".join([LABELS[kind], *strength])


def _origin(report: Report) -> str:
    seeds = ", ".join(
        f"{len(of['seeds'])} seeds of the {NETS[net].title}"
        for net, of in report["nets"].items()
    )
    commits = ", ".join(f"{n} at {name}" for name, n in report["commits"].items())
    minutes, places = report["seconds"] / 60, "; ".join(report["places"])
    return (
        f"`{report['command']}`: {seeds}; {report['steps']} steps, density "
        f"{report['density']:g}, {minutes:.0f} minutes on {places} "
        f"({sum(report['commits'].values())} runs: {commits}; "
        f"[JSON](../results/{report['name']}.json), "
        f"[runs](../results/{report['name']}.jsonl))."
    )


def _said(report: Report) -> str:
    """A row for each question; the method that decides it stands first."""
    asked = [v for v in report["verdicts"] if set(v["verdicts"]) == set(OUT)]
    rows = [
        [v["name"], f"{v['text']} ({NETS[v['net']].title})"]
        + [_bold(v["verdicts"][m], m == STANDARDIZED) for m in OUT]
        for v in asked
    ]
    return table(["", "question (net)", *_labels(OUT)], rows)


def _controls(report: Report) -> str:
    asked = [v for v in report["verdicts"] if set(v["verdicts"]) == set(PARTS)]
    rows = [
        [v["name"], f"{v['text']} ({NETS[v['net']].title})"]
        + [v["verdicts"][m] for m in PARTS]
        for v in asked
    ]
    return table(["", "question (net)", *_labels(PARTS)], rows)


def _noise(report: Report) -> str:
    """The differences that decide Q1 and Q3."""
    rows = [
        [NETS[net].title, cell.split()[1], METHODS[method].label]
        + [_gap(of["differences"][method][a][cell]) for a in AGAINST]
        for net, of in report["nets"].items()
        for cell in CELLS
        if cell.split()[0] == NOISE
        for method in (*OUT, *PARTS)
    ]
    head = [
        "net",
        "noise, sd",
        "method",
        *(f"over {name}" for name in _labels(AGAINST)),
    ]
    return (
        "Gaussian noise, points of accuracy, mean ± standard error of paired "
        "differences; * Holm-corrected p < .05:\n\n" + table(head, rows)
    )


def _tables(of: Report) -> list[str]:
    """Accuracies and differences of one net."""
    cells = (CLEAN, *CELLS)
    accuracy = [
        [cell_label(c), *(mean_sd(of["accuracy"][m][c], 2) for m in METHODS)]
        for c in cells
    ]
    parts = [
        "Test accuracy in percent, mean ± sd over seeds:\n\n"
        + table(["", *_labels(METHODS)], accuracy)
    ]
    compared = {
        EQUAL: (LAYER, "bb_in", *OUT, *PARTS),
        LAYER: ("bb_in", *OUT, *PARTS),
    } | dict.fromkeys(PARTS, OUT)
    for against, methods in compared.items():
        rows = [
            [cell_label(c), *(_gap(of["differences"][m][against][c]) for m in methods)]
            for c in cells
        ]
        parts.append(
            f"Points over {METHODS[against].label}, mean ± standard error; * p < .05, "
            "Holm-corrected over the ten corrupted rows of a column:\n\n"
            + table(["", *_labels(methods)], rows)
        )
    return parts


def _gap(found: Sequence[float | None]) -> str:
    mean, error, p = found
    if mean is None or error is None or p is None:  # a single seed has no error
        return "" if mean is None else f"{mean:+.2f}"
    return f"{mean:+.2f} ± {error:.2f}" + r"\*" * (p < LEVEL)


def _bold(text: str, decides: bool) -> str:
    return f"**{text}**" if decides else text


def _labels(methods: Any) -> list[str]:
    return [METHODS[m].label for m in methods]
