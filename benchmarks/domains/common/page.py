"""What the command leaves: JSON, a picture, and the results in the READMEs.

Between the marks of a README stands what the runs say, and nothing else does. Claim,
protocol and questions above them were fixed before the numbers.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.claims.common.report import verdict_table
from benchmarks.common.lines import Lines
from benchmarks.common.measure import RESULTS, write
from benchmarks.common.stats import VERDICTS, mean_sd
from benchmarks.common.text import plain, put_in, short, table
from benchmarks.domains.common import picture
from benchmarks.domains.common.experiment import Experiment, Runs

# In the order in which they are shown.
NAMES = (
    "speech",
    "faces",
    "change",
    "synapses",
    "lenet",
    "spoken_digits",
    "sensitivity",
    "attention",
)
PAPER = NAMES[:4]  # the four domains of Budgeted Broadcast
CODE = {
    "entropy": ("entropy, bits", 3),
    "correlation": ("mean abs. correlation", 3),
    "dimension": ("participation ratio / units", 3),
    "traffic": ("traffic", 4),
    "power": ("tr(W'ΣW), noise = 1", 3),
    "information": ("information, nats", 3),
}
FOLDER = Path(__file__).parents[1]
Report = dict[str, Any]


def made(experiment: Experiment, runs: Runs) -> Report:
    """What the JSON holds, but for the machine."""
    lines = runs.lines
    report = {
        "name": experiment.name,
        "title": experiment.title,
        "claim": experiment.claim,
        "command": f"python -m benchmarks.domains {experiment.name} --data FOLDER",
        "commits": dict(Counter(line["commit"] for line in lines)),
        "places": sorted({line["place"] for line in lines}),
        "hours": round(sum(line["seconds"] for line in lines) / 3600, 2),
        "runs": len(lines),
        "over": experiment.over,
        "verdicts": [list(verdict) for verdict in experiment.judge(runs)],
        "tables": _tables(experiment, runs),
        "caption": experiment.caption or _caption(experiment),
    }
    whole: Report = plain(report)
    return whole


def write_report(experiment: Experiment, store: Lines, out: Path) -> Report:
    """Writes JSON and picture; returns what the JSON holds."""
    runs = Runs(store.runs, experiment.metrics)
    path = out / f"{experiment.name}.json"
    write(path, made(experiment, runs))
    path.write_text(short(path.read_text()))
    draw = experiment.draw or (lambda r, p: picture.draw(experiment, r, p))
    draw(runs, out / f"{experiment.name}.png")
    found: Report = json.loads(path.read_text())
    return found


def summary(report: Report) -> str:
    """Where the numbers come from, and the verdicts."""
    where = "; ".join(report["places"])
    origin = (
        f"`{report['command']}`: {report['runs']} runs, {report['hours']:.1f} hours "
        f"on {where}; mean ± sd over {report['over']}, differences ± standard error "
        f"([JSON](../../results/domains/{report['name']}.json), [all "
        f"runs](../../results/domains/{report['name']}.jsonl))."
    )
    return f"{origin}\n\n{verdict_table(report['verdicts'])}"


def results(report: Report) -> str:
    """What stands between the marks."""
    name = report["name"]
    return "\n\n".join(
        [
            summary(report),
            report["tables"],
            f"![{report['caption']}](../../results/domains/{name}.png)",
        ]
    )


def publish(report: Report) -> None:
    """Writes the results into the experiment's README and the overview."""
    path = FOLDER / report["name"] / "README.md"
    path.write_text(put_in(path.read_text(), results(report)))
    front = FOLDER / "README.md"
    front.write_text(put_in(front.read_text(), overview()))


def saved() -> dict[str, Report]:
    """The reports that are there."""
    paths = {name: RESULTS / "domains" / f"{name}.json" for name in NAMES}
    return {n: json.loads(p.read_text()) for n, p in paths.items() if p.exists()}


def overview() -> str:
    """The questions that are decided, and how many of each experiment are not."""
    rows = []
    for name, report in saved().items():
        link = f"[{report['claim']}, {name}]({name}/README.md)"
        decided = [v for v in report["verdicts"] if v[1] != VERDICTS[-1]]
        rows += [
            [link, question, f"**{verdict}**"] for question, verdict, *_ in decided
        ]
        if rest := len(report["verdicts"]) - len(decided):
            rows.append([link, f"{rest} further questions", "cannot be decided"])
    return table(["claim", "question", "verdict"], rows)


def _caption(experiment: Experiment) -> str:
    label = experiment.metrics[experiment.first].label
    return f"{experiment.title}: {label} by method, at every density, seeds as points"


def _tables(experiment: Experiment, runs: Runs) -> str:
    parts = [_metrics(experiment, runs)]
    if own := experiment.tables(runs):
        parts.append(own)
    if any("code" in line for line in runs.lines):
        numbers = f"What the instruments of C5 show:\n\n{_codes(experiment, runs)}"
        parts.append(
            f"<details><summary>Codes and information</summary>\n\n{numbers}\n\n"
            "</details>"
        )
    return "\n\n".join(parts)


def _metrics(experiment: Experiment, runs: Runs) -> str:
    shown = [case for case in experiment.cases if runs.of(*case)]
    rows = []
    for case in shown:
        of = runs.of(*case).values()
        numbers = [
            mean_sd(runs.values(name, *case), metric.digits)
            for name, metric in experiment.metrics.items()
        ]
        weights = sorted({tuple(line["edges"]) for line in of if "edges" in line})
        kept = ", ".join(f"{kept:,} of {size:,}" for kept, size in weights if size)
        seconds = sum(line["seconds"] for line in of) / len(of)
        rows.append(
            [
                case.method,
                f"{case.density:g}",
                *numbers,
                kept,
                len(of),
                f"{seconds:.0f}",
            ]
        )
    labels = [metric.label for metric in experiment.metrics.values()]
    head = ["method", "density", *labels, "weights kept", "runs", "seconds a run"]
    at = head.index("weights kept")
    if not any(row[at] for row in rows):
        head, *rows = ([*row[:at], *row[at + 1 :]] for row in (head, *rows))
    return table(head, rows)


def _codes(experiment: Experiment, runs: Runs) -> str:
    rows = []
    for case in experiment.cases:
        if any("code" in line for line in runs.of(*case).values()):
            numbers = [
                mean_sd(runs.values(f"code.{name}", *case), digits)
                for name, (_, digits) in CODE.items()
            ]
            rows.append([case.method, f"{case.density:g}", *numbers])
    return table(["method", "density", *(label for label, _ in CODE.values())], rows)
