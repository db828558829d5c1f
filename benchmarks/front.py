"""The figures of the front page and of the demo's page, from JSON.

    python -m benchmarks.front [--demo FOLDER]

The README shows no measured number but between marks, `<!-- NAME -->` and
`<!-- end of NAME -->`. What stands there is written here, from the results alone.
`--demo` first takes over the results of a run of the demo.
"""

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims.common import report as claims
from benchmarks.common.measure import RESULTS, ROOT
from benchmarks.common.page import middle
from benchmarks.common.text import put_in, table
from benchmarks.domains.common import page as domains

Report = dict[str, Any]
# What the demo writes, and what it is called here.
DEMO = {
    "results.json": "demo_digits.json",
    "overview.png": "demo_digits.png",
    "benefit.png": "demo_benefit.png",
}


def written(text: str, parts: Mapping[str, str]) -> str:
    """A page with its parts."""
    for name, part in parts.items():
        text = put_in(text, part, name)
    return text


def saved(name: str) -> Report:
    """Results that are committed."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def benefit() -> str:
    """What the picture of the front page shows, in figures."""
    demo = saved("demo_digits")
    first, *_, third, last = demo["smaller"]["rounds"]
    seeds, cores = demo["settings"]["seeds"], demo["machine"]["cores"]
    return (
        f"A small convolutional net on digits, {seeds} seeds, test accuracy "
        f"{first['test_accuracy']['mean']:.2f} %. Left: three eighths of its units are "
        f"{_left(third, first)}; a quarter, {_left(last, first)} (widths are multiples "
        f"of 8). Right: edges kept by {len(demo['methods']) - 1} methods at all "
        f"{len(demo['refreshes'])} refreshes, {demo['edges_missed']} off what was asked"
        f" for. `make demo`, {minutes(demo)} on {cores} cores "
        "([all numbers](bbjax/demo/README.md))."
    )


def _left(one: Report, first: Report) -> str:
    """What is left of a net, and how much accuracy it costs."""
    gap = np.subtract(*(r["test_accuracy"]["per_seed"] for r in (one, first)))
    left = 100 * one["parameters"][0] / first["parameters"][0]
    return (
        f"{left:.0f} % of the parameters, {_time(one)} of the time, "
        f"{_with_error(gap)} points"
    )


def _time(one: Report) -> str:
    names = ("low", "median", "high")
    return middle(dict(zip(names, one["time_ratio_quartiles"], strict=True)))


def minutes(demo: Report) -> str:
    """How long a run took."""
    return f"{demo['seconds']['wall'] / 60:.0f} minutes"


def _with_error(values: np.ndarray) -> str:
    return f"{values.mean():+.2f} ± {values.std(ddof=1) / len(values) ** 0.5:.2f}"


def methods() -> str:
    """The table of the demo, and where it comes from."""
    demo = saved("demo_digits")
    settings, machine = demo["settings"], demo["machine"]
    pairs = {pair["method"]: pair for pair in demo["paired"]}
    rows = [_method(one, pairs.get(one["key"])) for one in demo["methods"]]
    head = ["method", "test accuracy, %", "minus magnitude", "significance"]
    head += ["kept edges", "step / dense", f"dead of {settings['hidden_units']} units"]
    origin = (
        f"`make demo` at commit {demo['commit']}: {settings['seeds']} seeds, "
        f"{settings['steps']} steps, density {settings['density']:g} of three kernels, "
        f"{minutes(demo)} on {machine['cores']} cores ({machine['platform']}), jax "
        f"{demo['versions']['jax']}; accuracy is mean ± sd, differences are paired, ± "
        f"standard error, with a t test at 5 %, Holm for {len(pairs)} comparisons "
        "([JSON](../../benchmarks/results/demo_digits.json))."
    )
    return f"{origin}\n\n{table(head, rows)}\n\n{_sizes(demo)}"


def _method(one: Report, pair: Report | None) -> list[str]:
    low, high = min(one["kept_edges"]), max(one["kept_edges"])
    gap = f"{pair['mean']:+.2f} ± {pair['se']:.2f}" if pair else ""
    return [
        one["label"],
        _accuracy(one),
        gap,
        (pair["significance"] or "") if pair else "",
        f"{low:,}" if low == high else f"{low:,} to {high:,}",
        f"{one['step_time_ratio']:.2f}",
        f"{one['dead_units']['mean']:.1f}",
    ]


def _accuracy(one: Report) -> str:
    found = one["test_accuracy"]
    return f"{found['mean']:.2f} ± {found['sd']:.2f}"


def _sizes(demo: Report) -> str:
    rows = []
    for one in demo["smaller"]["rounds"]:
        accuracy = one["test_accuracy"]
        row = [", ".join(map(str, one["widths"])), f"{one['parameters'][0]:,}"]
        rows.append(
            [*row, _time(one), f"{accuracy['mean']:.2f} ± {accuracy['sd']:.2f}"]
        )
    head = ["hidden units", "parameters", "time per call, dense = 1"]
    return table([*head, "test accuracy, %"], rows)


def speed_rows(parts: Report) -> dict[str, Report]:
    """By part of `benchmarks.speed`, the rows that the front page reads."""
    topk = {
        label: row
        for label, row in parts["topk"]["rows"].items()
        if row["dtype"] == "float32" and min(row["shape"]) in (2048, 4096)
    }
    names = {"step": ("ffn-256",), "bytes": ("ffn-256",), "compile": ("ffn-256", "gpt")}
    chosen = {
        part: {label: parts[part]["rows"][label] for label in labels}
        for part, labels in names.items()
    }
    return chosen | {"topk": topk}


def cost() -> str:
    """Four lines about time and memory."""
    parts = saved("speed_cpu")["parts"]
    rows, cores = speed_rows(parts), parts["step"]["machine"]["cores"]
    step = rows["step"]["ffn-256"]["pruned"]
    alone, both = (step[name]["ratio"] for name in ("bb", "bb, competition"))
    state = rows["bytes"]["ffn-256"]["state"]
    without = state["bb, regrow=False"] / state["dense"]
    stack, scanned = (
        rows["compile"][name]["ratio"]["bb"]["median"] for name in ("ffn-256", "gpt")
    )
    faster = [row["top_k/count"]["median"] for row in rows["topk"].values()]
    return "\n".join(
        [
            f"- **Time** of a step, dense = 1: {middle(both['plain'])}; of one that "
            f"refreshes all 16 kernels: {middle(both['refresh'])}, with "
            f"`competition=0` {middle(alone['refresh'])}.",
            f"- **Memory**: one bit a weight and a copy for pruned values: optimizer "
            f"state {state['bb'] / state['dense']:.2f} times dense Adam's, "
            f"{without:.2f} with `regrow=False`.",
            f"- **Compiling** a step takes {stack:.1f} times as long with 16 "
            f"separate kernels, {scanned:.1f} times with scanned layers.",
            f"- **Selection** (`bb.top_k_mask`, 2048² and 4096²) is {min(faster):.0f} "
            f"to {max(faster):.0f} times faster than `lax.top_k`, which has to sort "
            "everything where every unit has its own k.",
            "",
            f"`python -m benchmarks.speed` on {cores} cores, 16.8 M weights, Adam, 256 "
            "tokens, medians with quartiles. [All figures](benchmarks/README.md), two "
            "budgets that are missed among them.",
        ]
    )


def claim_counts() -> str:
    """How many questions came out how, in three lines."""
    reports = claims.saved()
    verdicts = Counter(
        reports[name]["verdicts"][i][1]
        for name, (_, shown) in claims.HEADLINES.items()
        for i in shown
    )
    total = sum(verdicts.values())
    seeds = [report["seeds"] for report in reports.values()]
    return (
        f"- Of {total} questions about {len(reports)} claims on synthetic tasks "
        f"{verdicts['holds']} hold, {verdicts['holds weakly']} hold weakly and "
        f"{verdicts['does not hold']} do not: [all verdicts](benchmarks/claims/README"
        f".md), with {min(seeds)} to {max(seeds)} seeds and controls.\n"
        "  They ask about the law alone.\n"
        f"- {domain_counts()}"
    )


def domain_counts() -> str:
    """The same of the experiments on real data: the paper's domains, and the others."""
    paper, others = Counter[str](), Counter[str]()
    for name, report in domains.saved().items():
        counts = paper if name in domains.PAPER else others
        counts.update(verdict[1] for verdict in report["verdicts"])
    held, open_ = "holds", "cannot be decided"
    return (
        f"On [real data](benchmarks/domains/README.md) {paper[held]} of "
        f"{paper.total()} questions on its domains hold ({paper[open_]} "
        f"undecided), of {others.total()} further {others[held]} ({others[open_]})."
    )


PAGES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    ROOT / "README.md": {"benefit": benefit, "cost": cost, "claims": claim_counts},
    ROOT / "bbjax/demo/README.md": {"methods": methods},
}


def publish() -> None:
    """Writes all parts of all pages."""
    for page, parts in PAGES.items():
        made = {name: make() for name, make in parts.items()}
        page.write_text(written(page.read_text(), made))


def take_over(folder: Path) -> None:
    """Keeps the results of a run of the demo."""
    if missing := [name for name in DEMO if not (folder / name).exists()]:
        raise SystemExit(
            f"expected a folder that the demo wrote, got {folder} without "
            f"{', '.join(missing)}; run `make demo`"
        )
    for name, ours in DEMO.items():
        shutil.copyfile(folder / name, RESULTS / ours)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, help="folder that the demo wrote")
    args = parser.parse_args()
    if args.demo is not None:
        take_over(args.demo)
    publish()


if __name__ == "__main__":
    main()
