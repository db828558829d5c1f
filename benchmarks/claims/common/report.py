"""What a claim's command leaves: JSON, a picture, and the results in its README.

The part of a README between the two marks below is written by the command, from the
JSON alone, so that text and numbers cannot part. Everything above them (claim,
protocol, tests) was fixed before the numbers.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.measure import RESULTS
from benchmarks.common.stats import Verdict
from benchmarks.common.text import put_in, table

# What the overview of all claims shows: the claim, and which of its questions.
HEADLINES = {
    "xor": ("C1", (0, 3, 4, 6)),
    "dnf_rare": ("C2", (0, 2, 5, 7, 9)),
    "dnf_witness": ("C3", (0, 1, 2, 5, 6)),
    "shock": ("C4", (0, 1, 4)),
    "information": ("C5", (0, 1, 2, 4)),
    "response": ("C6", (0, 2)),
    "settle": ("C16", (0, 2, 4, 5, 7)),
}
PLACE = RESULTS / "claims"


def verdict_table(verdicts: Sequence[Any]) -> str:
    """A row for each question: verdict, figures, test."""
    rows = ["| question | verdict | number | test |", "| --- | --- | --- | --- |"]
    for one in verdicts:
        question, verdict, number, test = Verdict(*one)
        rows.append(f"| {question} | **{verdict}** | {number} | {test} |")
    return "\n".join(rows)


def results(report: dict[str, Any]) -> str:
    """What stands between the marks."""
    minutes = report["seconds"] / 60
    machine = report["machine"]
    where = (
        f"{machine['cores']} cores, {machine['backend']}, jax {machine['jax']}"
        if machine["backend"] == "cpu"
        else f"{machine['device']}, jax {machine['jax']}"
    )
    name = report["name"]
    parts = [
        f"`{report['command']}`: {report['seeds']} seeds, {minutes:.1f} minutes on "
        f"{where}; mean ± sd over seeds unless said otherwise "
        f"([JSON](../../results/claims/{name}.json)).",
        verdict_table(report["verdicts"]),
        f"<details><summary>All numbers</summary>\n\n{report['tables']}\n\n</details>",
        f"![{report['caption']}](../../results/claims/{name}.png)",
    ]
    return "\n\n".join(parts)


def overview(reports: Mapping[str, Any]) -> str:
    """The main questions of all claims, with their verdicts."""
    rows = []
    for name, (claim, shown) in HEADLINES.items():
        for i in shown:
            question, verdict, *_ = reports[name]["verdicts"][i]
            link = f"[{claim}, {name}]({name}/README.md)"
            rows.append([link, question, f"**{verdict}**"])
    return table(["claim", "question", "verdict"], rows)


def saved() -> dict[str, Any]:
    """The reports that are committed."""
    return {
        name: json.loads((PLACE / f"{name}.json").read_text()) for name in HEADLINES
    }


def readme(name: str) -> Path:
    """Where a claim is described."""
    return Path(__file__).parents[1] / name / "README.md"


def publish(name: str, report: dict[str, Any]) -> None:
    """Writes the results into the claim's README."""
    page = readme(name)
    page.write_text(put_in(page.read_text(), results(report)))
    front = Path(__file__).parents[1] / "README.md"
    if all((PLACE / f"{name}.json").exists() for name in HEADLINES):
        front.write_text(put_in(front.read_text(), overview(saved())))
