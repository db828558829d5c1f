"""What a claim's command leaves: JSON, a picture, and the results in its README.

The part of a README between the two marks below is written by the command, from the
JSON alone, so that text and numbers cannot part. Everything above them (claim,
protocol, tests) was fixed before the numbers.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims.common.stats import Verdict
from benchmarks.common import RESULTS, write

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


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


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


def publish(name: str, report: dict[str, Any]) -> None:
    """Writes the results into the claim's README."""
    page = readme(name)
    page.write_text(put_in(page.read_text(), results(report)))
    front = Path(__file__).parents[1] / "README.md"
    if all((PLACE / f"{name}.json").exists() for name in HEADLINES):
        front.write_text(put_in(front.read_text(), overview(saved())))


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
