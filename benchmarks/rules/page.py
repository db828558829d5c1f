"""The results part of the README, its JSON and its picture.

The text is made from the JSON alone, so that text and numbers cannot part.
"""

import json
import math
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.measure import RESULTS, machine, write
from benchmarks.common.text import plain, put_in, short, table
from benchmarks.rules import picture
from benchmarks.rules.report import Setting, report
from benchmarks.rules.store import Store
from benchmarks.rules.table import LEVEL, VERDICTS

README = Path(__file__).parent / "README.md"
GUIDE = Path(__file__).parents[2] / "bbjax" / "rules" / "README.md"
# What the guide to the rules shows.
IN_BRIEF = (
    "magnitude, global, scaled",
    "magnitude, layer, scaled",
    "magnitude, global",
    "magnitude, layer, ERK",
    "magnitude, layer",
    "BB, global, scaled",
    "BB, scaled",
    "BB, global",
    "BB",
    "BB, out",
    "BB, law alone",
    "BB, law alone, reversed",
    "BB, standardized law",
    "equal degrees (magnitude, unit)",
    "activity-only",
    "Wanda, refreshed",
    "RigL, ERK",
    "SNIP",
)
# Runs are kept one by one: this makes all of them, however many calls it took.
COMMAND = "python -m benchmarks.rules --data FOLDER"
UNRESOLVED, BETTER, WORSE = "=", "▲", "▼"
MARKS = {VERDICTS[0]: f" {BETTER}", VERDICTS[1]: f" {WORSE}", VERDICTS[2]: ""}


def publish(store: Store, args: Namespace, console: Console) -> None:
    """Writes JSON and picture, and into the README where results are kept."""
    if not store.runs:
        raise SystemExit(
            f"expected runs in {store.folder}, found none; run the command without "
            "--report first, or pass the folder with --out"
        )
    setting = Setting(args.k_min, args.steps)
    found = report(store.runs.values(), setting, args.seeds)
    if found["families"]["trained"] is None:
        console.print("no tables: runs of equal degrees are needed to compare with")
        return
    path = args.out / "rules.json"
    head = {"name": "rules", "command": COMMAND}
    if args.report and path.exists():  # the machine that ran, not the one that tells
        saved = json.loads(path.read_text())
        head |= {"machine": saved["machine"]}
    write(path, plain({"machine": machine()} | head | found, digits=5))
    path.write_text(flat(path.read_text()))
    saved = json.loads(path.read_text())
    picture.draw(saved, args.out / "rules.png")
    if args.out.resolve() == RESULTS.resolve():
        README.write_text(put_in(README.read_text(), results(saved)))
        GUIDE.write_text(put_in(GUIDE.read_text(), brief(saved)))
    console.print(overall(saved["families"]["trained"]), markup=False, highlight=False)
    console.print(f"written: {path}")


def flat(text: str) -> str:
    """JSON with each innermost list and object on one line."""
    return re.sub(r"\{[^\[\]{}]*\}", lambda m: " ".join(m[0].split()), short(text))


# Text ------------------------------------------------------------------------------
def results(saved: dict[str, Any]) -> str:
    """What stands between the marks."""
    trained, once = (saved["families"][name] for name in ("trained", "once"))
    parts = [origin(saved), overall(trained), notes(trained)]
    parts.append(
        "![Gain of six methods over equal degrees, by task and density]"
        "(../results/rules.png)"
    )
    parts += by_task(saved, trained)
    if once:
        text = "\n\n".join([overall(once), notes(once), *by_task(saved, once, level=4)])
        parts.append(_details("Pruned once, after training, without retraining", text))
    if saved["factors"]:
        parts += ["### Floor and length of training", *factors(saved["factors"])]
    return "\n\n".join(part for part in parts if part)


def origin(saved: dict[str, Any]) -> str:
    """Where the numbers come from."""
    where = saved["machine"]
    seconds = ", ".join(f"{t} {s:.2g} s" for t, s in saved["seconds_per_run"].items())
    commits = ", ".join(f"{c} ({n} runs)" for c, n in saved["commits"].items())
    return (
        f"`{saved['command']}`: {saved['seeds']} seeds, {saved['runs']} runs in "
        f"{saved['seconds'] / 60:.0f} minutes on {where['cores']} cores "
        f"({where['backend']}, jax {where['jax']}; mean of a run: {seconds}), "
        f"library at {commits}; {saved['steps']} steps, `k_min={saved['k_min']}` "
        "([JSON](../results/rules.json))."
    )


def overall(family: dict[str, Any]) -> str:
    """Methods by mean rank, with their verdicts against equal degrees."""
    ranks, verdicts = family["ranks"]["mean"], family["metrics"][0]["verdicts"]
    names = sorted({*ranks, *verdicts}, key=lambda n: (ranks.get(n, math.inf), n))
    rows = []
    for name in names:
        rank = f"{ranks[name]:.1f}" if name in ranks else "–"
        found = verdicts.get(name)
        counts = [found[v] for v in VERDICTS] if found else ["–"] * 3
        rows.append([_name(name, family), rank, *counts])
    return table(["method", "mean rank", *VERDICTS], rows)


def brief(saved: dict[str, Any]) -> str:
    """What the guide to the rules shows: ranks, verdicts, gains at tight budgets."""
    family = saved["families"]["trained"]
    ranks, metric = family["ranks"]["mean"], family["metrics"][0]
    tasks = list(metric["names"])
    tight = {task: list(_cells(metric, task).items())[-1] for task in tasks}
    heads = [f"{task}, {cell['density']:g}" for task, (_, cell) in tight.items()]
    names = [n for n in IN_BRIEF if n in ranks or n in metric["verdicts"]]
    rows = []
    for name in sorted(names, key=lambda n: ranks.get(n, math.inf)):
        rank = f"{ranks[name]:.1f}" if name in ranks else "–"
        found = metric["verdicts"].get(name)
        counts = "–" if found is None else " / ".join(str(found[v]) for v in VERDICTS)
        cells = [gain(cell["methods"].get(name)) for _, cell in tight.values()]
        rows.append([_name(name, family), rank, counts, *cells])
    return table(["rule", "mean rank", "better / worse / level", *heads], rows)


def notes(family: dict[str, Any]) -> str:
    """What the overall table leaves out, and whether ranks are more than chance."""
    ranks = family["ranks"]
    said = []
    if (p := ranks["friedman_p_overall"]) is not None:
        said.append(f"Friedman's test over the means of all cells: p = {p:.2g}.")
    unresolved = [c for c, p in ranks["friedman_p"].items() if p and p >= LEVEL]
    if unresolved:
        cells = ", ".join(unresolved)
        said.append(f"In these cells ranks are not told from chance: {cells}.")
    if ranks["missing"]:
        lacking = ", ".join(f"{n} ({c})" for n, c in ranks["missing"].items())
        said.append(f"Without a rank, since runs are missing (how many): {lacking}.")
    return " ".join(said)


def by_task(saved: Any, family: Any, level: int = 3) -> list[str]:
    """Of each task: values, gains over equal degrees, other metrics."""
    first, *others = family["metrics"]
    parts = []
    for task, metric in first["names"].items():
        dense = saved["dense"].get(task)
        parts.append(f"{'#' * level} {task}: {metric}")
        if dense:
            parts.append(f"Dense: {_spread(dense[metric])}.")
        parts.append(values(first, family, task))
        text = gains(first, family, task)
        parts.append(_details(f"{task}: gain over equal degrees", text))
        for more in others:
            if name := more["names"].get(task):
                text = f"{values(more, family, task)}\n\n{gains(more, family, task)}"
                if dense:
                    text = f"Dense: {_spread(dense[name])}.\n\n{text}"
                parts.append(_details(f"{task}: {name}", text))
    return parts


def values(metric: Any, family: Any, task: str) -> str:
    """A row for each method: mean ± sd at each density, best in bold."""
    cells = _cells(metric, task)
    rows = []
    for name in _sorted(family, cells):
        row = [_name(name, family)]
        for key, cell in cells.items():
            one = cell["methods"].get(name)
            row.append("–" if one is None else _value(one, name, cell, family, key))
        rows.append(row)
    return table(["method", *_heads(cells)], rows)


def gains(metric: Any, family: Any, task: str) -> str:
    """A row for each method, its paired gain over equal degrees ± standard error."""
    cells = _cells(metric, task)
    rows = []
    for name in _sorted(family, cells):
        if name != family["reference"]:
            found = [cell["methods"].get(name) for cell in cells.values()]
            rows.append([name, *map(gain, found)])
    return table(["method", *_heads(cells)], rows)


def gain(one: Any) -> str:
    """A gain with its standard error and verdict."""
    if not one or "gain" not in one:
        return "–"
    digits = 3 if abs(one["mean"] or 0) < 10 else 2
    error = "?" if one["error"] is None else f"{one['error']:.{digits}f}"
    return f"{one['gain']:+.{digits}f} ± {error}{MARKS[one['verdict']]}"


def factors(found: Sequence[Any]) -> list[str]:
    """Of each task: methods at all floors and lengths, with gain over equal degrees."""
    heads = [f"`k_min={f['k_min']}`, {f['steps']} steps" for f in found]
    keys = {k: c for f in found for k, c in f["cells"]["cells"].items()}
    parts = []
    for task in dict.fromkeys(cell["task"] for cell in keys.values()):
        rows = []
        for key, cell in _cells({"cells": keys}, task).items():
            at = [f["cells"]["cells"].get(key, {"methods": {}}) for f in found]
            for name in dict.fromkeys(n for one in at for n in one["methods"]):
                shown = [_factor(one["methods"].get(name)) for one in at]
                rows.append([f"{cell['density']:g}", name, *shown])
        text = table(["density", "method", *heads], rows)
        parts.append(_details(f"{task}: mean (gain over equal degrees)", text))
    return parts


def _factor(one: Any) -> str:
    if one is None:
        return "–"
    mean = "–" if one["mean"] is None else f"{one['mean']:.2f}"
    return f"{mean} ({gain(one)})" if "gain" in one else mean


def _value(one: Any, name: str, cell: Any, family: Any, key: str) -> str:
    text = _spread(one)
    if cell["best"] == name:
        text = f"**{text}**"
    elif one["p_against_best"] >= LEVEL:
        text += f" {UNRESOLVED}"
    got = family["got"][key][name]
    if abs(got - cell["density"]) > 0.05 * cell["density"]:
        text += f" (got {got:.3g})"
    return text


def _spread(one: Any) -> str:
    if one["mean"] is None:
        return "no number"
    digits = 2 if one["mean"] > 10 else 3
    sd = "?" if one["sd"] is None else f"{one['sd']:.{digits}f}"
    return f"{one['mean']:.{digits}f} ± {sd}"


def _cells(metric: Any, task: str) -> dict[str, Any]:
    found = {k: c for k, c in metric["cells"].items() if c["task"] == task}
    return dict(sorted(found.items(), key=lambda item: -item[1]["density"]))


def _heads(cells: dict[str, Any]) -> list[str]:
    return [f"density {cell['density']:g}" for cell in cells.values()]


def _sorted(family: Any, cells: Any) -> list[str]:
    """The methods of some cells by mean rank over everything, others behind."""
    ranks = family["ranks"]["mean"]
    names = {name for cell in cells.values() for name in cell["methods"]}
    return sorted(names, key=lambda name: (ranks.get(name, math.inf), name))


def _name(name: str, family: Any) -> str:
    return f"*{name}*" if name == family["reference"] else name


def _details(head: str, text: str) -> str:
    return f"<details><summary>{head}</summary>\n\n{text}\n\n</details>"
