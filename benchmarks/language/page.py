"""From cells to one report, and from the report to the tables of README.md."""

import re
import statistics
from pathlib import Path
from typing import Any

from scipy.stats import ttest_1samp

from benchmarks.common.page import Page
from benchmarks.common.stats import LEVEL, holm
from benchmarks.common.text import table
from benchmarks.language.methods import DENSE, METHODS, SCOPES
from benchmarks.language.store import Cell, Store
from benchmarks.language.text import BUCKETS

REFERENCE = "Wanda"
COLUMNS = ("all", *BUCKETS)
RARE = "0"
NAMED = {"none": "Nothing", "ffn": "FFN", "all": "All projections"}
SIGNS = {
    "published: busy units keep fewer": ("BB, ", "half blend, ", "law alone, "),
    "turned: busy units keep more": ("reversed, ",),
}
COSTS = ("ffn", "0.5")  # where seconds are shown

Found = dict[Cell, dict[str, Any]]


def report(store: Store) -> dict[str, Any]:
    """Means over draws of every method, and paired differences to the reference."""
    settings = sorted({(c.windows, c.layers) for c in store.cells})
    return {"settings": [_setting(store.cells, *setting) for setting in settings]}


def _setting(found: Found, windows: int, layers: int) -> dict[str, Any]:
    here = {
        c: v for c, v in found.items() if (c.windows, c.layers) == (windows, layers)
    }
    groups: dict[Cell, list[Cell]] = {}
    for cell in sorted(here, key=_order):
        groups.setdefault(cell._replace(draw=0), []).append(cell)
    machines = {
        (m["cpu"], m["cores"], m["jax"])
        for m in (value["machine"] for value in here.values())
    }
    rows = [_row(here, cells) for cells in groups.values()]
    return {
        "windows": windows,
        "layers": layers,
        "machines": sorted(map(list, machines)),
        "commits": sorted({value["commit"] or "unknown" for value in here.values()}),
        "rows": rows,
        "verdicts": verdicts(rows),
    }


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """C11: below Wanda on rare tokens, by one sign of the law or the other.

    For each scope and density: the law with and without competition under every notion
    of on, and the law with its sign turned; one-sided paired t tests over draws, Holm's
    correction over the methods of a sign.
    """
    found = []
    for (scope, kept), members in _by_place(rows).items():
        for sign, names in SIGNS.items():
            gaps = {
                row["method"]: row["nats_over_reference"][RARE]["values"]
                for row in members
                if plain(row["method"]) == row["method"]
                and row["method"].startswith(names)
                and row.get("nats_over_reference", {}).get(RARE, {}).get("count", 0) > 2
            }
            if not gaps:
                continue
            p = [
                ttest_1samp(each, 0, alternative="less").pvalue
                for each in gaps.values()
            ]
            below = [n for n, one in zip(gaps, holm(p), strict=True) if one < LEVEL]
            best = min(gaps, key=lambda name: statistics.fmean(gaps[name]))
            found.append(
                {
                    "scope": scope,
                    "kept": kept,
                    "sign": sign,
                    "methods": len(gaps),
                    "below": below,
                    "best": best,
                    "nats": _spread(gaps[best]),
                }
            )
    return found


def _order(cell: Cell) -> tuple[Any, ...]:
    names = [DENSE, *METHODS]
    place = names.index(cell.method) if cell.method in names else len(names)
    scopes = ["none", *SCOPES]
    return (
        scopes.index(cell.scope),
        -cell.density,
        cell.pattern,
        cell.sequences,
        place,
        cell.draw,
    )


def _row(found: Found, cells: list[Cell]) -> dict[str, Any]:
    """One method at one scope and density, over its draws."""
    first = cells[0]
    values = [found[cell] for cell in cells]
    row: dict[str, Any] = first._asdict() | {"draws": len(cells), "kept": first.kept}
    del row["draw"]
    row["perplexity"] = {
        column: _spread([v["perplexities"][column]["perplexity"] for v in values])
        for column in COLUMNS
        if all(column in v["perplexities"] for v in values)
    }
    row["targets"] = {c: v["targets"] for c, v in values[0]["perplexities"].items()}
    row["share_kept"] = statistics.fmean(v["kept"] for v in values)
    row["seconds"] = {
        name: _spread([v["seconds"][name] for v in values if name in v["seconds"]])
        for name in values[0]["seconds"]
    }
    row["peak_mb"] = max(v["peak_mb"] for v in values)
    if errors := [v["output_errors"] for v in values if v.get("output_errors")]:
        row["output_errors"] = {
            name: [_spread([each[name][side] for each in errors]) for side in (0, 1)]
            for name in errors[0]
        }
    for name, reference in (("reference", REFERENCE), ("plain", plain(first.method))):
        gaps = {c: _gaps(found, cells, reference, c) for c in row["perplexity"]}
        if gaps["all"]:
            row[f"nats_over_{name}"] = {c: _spread(g) for c, g in gaps.items() if g}
    return row


def plain(method: str) -> str:
    """The name of a method without what is added to it.

    >>> plain("BB, gate > 0, in order + swaps + ADMM"), plain("Wanda, OWL")
    ('BB, gate > 0', 'Wanda')
    """
    return re.sub(r"(, OWL)?(, in order)?( \+ \w+)*$", "", method)


def _gaps(found: Found, cells: list[Cell], reference: str, bucket: str) -> list[float]:
    """Nats above a reference on the same draw; what reads no data, on each draw."""
    first = cells[0]
    if first.method in (reference, DENSE):
        return []
    gaps = []
    for other in found:
        there = (other.scope, other.density, other.pattern)
        same = there == (first.scope, first.density, first.pattern)
        if other.method != reference or not same:
            continue
        if 0 not in (first.sequences, other.sequences):
            if first.sequences != other.sequences:
                continue
            pairs = [(other._replace(method=first.method), other)]
        else:
            # One of the two reads no data: it is compared with every draw.
            pairs = [(cell, other) for cell in cells]
        for pair in pairs:
            if all(c in found for c in pair):
                nats = [found[c]["perplexities"][bucket]["nats"] for c in pair]
                gaps.append(nats[0] - nats[1])
    return gaps


def _spread(values: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "mean": statistics.fmean(values),
        "sd": deviation,
        "count": len(values),
        "values": values,
    }


# Text ------------------------------------------------------------------------------
def results(report: dict[str, Any]) -> str:
    """All settings, one table each."""
    return "\n\n".join(map(_shown, report["settings"])) or "Nothing measured yet."


def _shown(setting: dict[str, Any]) -> str:
    rows = setting["rows"]
    counts = next((row["targets"] for row in rows), {})
    machines = "; ".join(
        f"{cpu}, {n} cores, jax {j}" for cpu, n, j in setting["machines"]
    )
    about = (
        f"{setting['layers']} layers, {setting['windows']} windows; {machines}. Mean ± "
        "standard deviation over draws. Targets: "
        + ", ".join(f"{name} {count:,}" for name, count in counts.items())
        + f". *Nats over {REFERENCE}* are paired by draw: of all targets, and of those "
        f"that the validation part does not have (*{RARE}*)."
    )
    parts = [_claim(setting["verdicts"]), about]
    for (scope, kept), members in _by_place(rows).items():
        simple = [row for row in members if plain(row["method"]) == row["method"]]
        head = (
            *("method", "draws", *(f"ppl {column}" for column in COLUMNS)),
            *(f"nats over {REFERENCE}", f"nats over {REFERENCE}, {RARE}"),
        )
        title = "**Dense**" if scope == "none" else f"**{NAMED[scope]}, {kept}**"
        parts += [title, table(head, [_line(row) for row in simple])]
    if added := [row for row in rows if "nats_over_plain" in row]:
        text = "**What additions buy**: nats over the same rule alone, paired by draw."
        parts += [text, _additions(added)]
    parts += [
        f"**Seconds and memory**, density {COSTS[1]}, {NAMED[COSTS[0]].lower()}.",
        _costs([row for row in rows if (row["scope"], row["kept"]) == COSTS]),
    ]
    return "\n\n".join(parts)


def _claim(verdicts: list[dict[str, Any]]) -> str:
    """C11 as a table."""
    if not verdicts:
        return "C11: too few draws for a verdict."
    lines = []
    for each in verdicts:
        count = len(each["below"])
        says = f"{count} of {each['methods']} methods below {REFERENCE}"
        nats = f"{each['best']}: {_value(each['nats'], '+.3f')} nats"
        place = f"{NAMED[each['scope']]}, {each['kept']}"
        lines.append((place, each["sign"], f"**{says}**", nats))
    text = (
        f"**C11: are rare tokens below {REFERENCE}'s perplexity?** Targets that the "
        "validation part does not have; paired over draws, one-sided t test at "
        f"{LEVEL:g}, Holm's correction over the methods of a sign."
    )
    head = ("kernels, density", "sign of the law", "verdict", "the best of them")
    return text + "\n\n" + table(head, lines)


def _by_place(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[Any]]:
    found: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        found.setdefault((row["scope"], row["kept"]), []).append(row)
    return found


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    perplexity, gaps = row["perplexity"], row.get("nats_over_reference", {})
    return (
        *(row["method"], str(row["draws"])),
        *(_value(perplexity.get(column), "#.4g") for column in COLUMNS),
        *(_value(gaps.get(column), "+.3f") for column in ("all", RARE)),
    )


def _additions(rows: list[dict[str, Any]]) -> str:
    """A line for each method, a column for each scope and density."""
    places = list(_by_place(rows))
    lines: dict[str, dict[tuple[str, str], str]] = {}
    for row in rows:
        value = _value(row["nats_over_plain"]["all"], "+.3f")
        lines.setdefault(row["method"], {})[row["scope"], row["kept"]] = value
    head = ("method", *(f"{scope} {kept}" for scope, kept in places))
    body = [(name, *(at.get(p, "") for p in places)) for name, at in lines.items()]
    return table(head, body)


def _costs(rows: list[dict[str, Any]]) -> str:
    names = ("calibrate", "prune", "swap", "update", "evaluate")
    body = [
        (
            row["method"],
            *(
                f"{row['seconds'][name]['mean']:.0f}" if name in row["seconds"] else ""
                for name in names
            ),
            f"{row['peak_mb']:,}",
        )
        for row in rows
    ]
    return table(("method", *names, "peak MB"), body)


def _value(value: dict[str, Any] | None, form: str) -> str:
    if value is None:
        return ""
    error = f" ± {value['sd']:.2g}" if value["count"] > 1 else ""
    return f"{value['mean']:{form}}".rstrip(".") + error


PAGE = Page(Path(__file__).parent / "README.md", "language", results)
