"""The parts of a report as tables: medians, quartiles in brackets, budgets beside.

Budgets are those of the design, met or not. They hold for the model, the size and the
backend that they name; elsewhere no budget is shown.

    plain step        <= 1.02  FFN at 256 tokens, CPU
    refresh step      <= 1.3   FFN at 256 tokens, CPU
    amortised         <= 1.01  at every = 100, FFN at 4096 tokens, CPU
    sort / count      >= 10    2048 x 2048 and 4096 x 4096, CPU
    compile           <= 1.3   24 scanned layers
"""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

PLAIN, REFRESH, AMORTISED, COMPILE, FASTER = 1.02, 1.3, 1.01, 1.3, 10.0
BUDGETS = {
    ("ffn-256", "plain"): PLAIN,
    ("ffn-256", "refresh"): REFRESH,
    ("ffn-4096", "every 100"): AMORTISED,
}
Part = Mapping[str, Any]


def ratio(value: Mapping[str, float] | None) -> str:
    """Median and quartiles of a ratio."""
    if value is None:
        return ""
    return "{median:.3f} ({low:.3f}-{high:.3f})".format(**value)


def ms(value: Mapping[str, float]) -> str:
    """A median in milliseconds."""
    return f"{value['median']:.4g}"


def seconds(value: Mapping[str, float]) -> str:
    """A median in seconds."""
    return f"{value['median'] / 1e3:.3g}"


def mib(value: float | None) -> str:
    """Bytes in MiB."""
    return "-" if value is None else f"{value / 2**20:.2f}"


def kinds(pruned: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """(ms or none, ratio) of every kind of step of a pruned program."""
    found = {k: (pruned["ms"][k], r) for k, r in pruned["ratio"].items()}
    return found | {f"every {n}": (None, r) for n, r in pruned["amortised"].items()}


def steps(part: Part) -> Table:
    """Training steps against dense."""
    table = Table("model", "program", "step", "ms", "ratio to dense", "budget")
    cpu = part["machine"]["backend"] == "cpu" and not part["small"]
    for model, row in part["rows"].items():
        table.add_row(model, "dense", "", ms(row["dense_ms"]), "1", "")
        for name, other in row["others"].items():
            table.add_row("", name, "", ms(other["ms"]), ratio(other["ratio"]), "")
        for name, pruned in row["pruned"].items():
            ours = cpu and name == "bb"
            for kind, (took, value) in kinds(pruned).items():
                budget = BUDGETS.get((model, kind)) if ours else None
                cells = (name, kind, ms(took) if took else "", ratio(value))
                table.add_row("", *cells, f"<= {budget}" if budget else "")
        table.add_section()
    return table


def topk(part: Part) -> Table:
    """Selection by method."""
    rows = part["rows"]
    # Not every version of JAX has every method; older rows have fewer.
    names = list(dict.fromkeys(name for row in rows.values() for name in row["ms"]))
    pairs = list(dict.fromkeys(k for row in rows.values() for k in row if "/" in k))
    table = Table("shape dtype axis", *(f"{n} ms" for n in names), *pairs)
    for name, row in rows.items():
        times = [ms(row["ms"][n]) if n in row["ms"] else "" for n in names]
        ratios = [f"{row[k]['median']:.1f}" if k in row else "" for k in pairs]
        table.add_row(name, *times, *ratios)
    return table


def memory(part: Part) -> Table:
    """State and programs, in MiB and as ratios to dense."""
    table = Table("model", "what", "MiB", "against dense")
    for model, row in part["rows"].items():
        table.add_row(model, "weights", mib(row["weight_bytes"]), "")
        for name, size in row["state"].items():
            against = f"{size / row['state']['dense']:.3f}"
            table.add_row("", f"state: {name}", mib(size), against)
        added = row["added"]
        bits = f"{added['bits_per_edge']:.3f} bits/edge"
        table.add_row("", "bb masks", mib(added["masks"]), bits)
        for name in ("dormant", "rest"):
            table.add_row("", f"bb {name}", mib(added[name]), "")
        for kind in ("temporary", "flops"):
            _account(table, row["programs"], kind)
        table.add_section()
    return table


def _account(table: Table, programs: Mapping[str, Any], kind: str) -> None:
    """Rows for what the compiler says of each program."""
    dense = programs["dense"][kind]
    for name, said in programs.items():
        value = said[kind]
        shown = "" if kind == "flops" else mib(value)
        against = f"{value / dense:.4f}" if value and dense else "-"
        table.add_row("", f"{kind}: {name}", shown, against)


def compiling(part: Part) -> Table:
    """Seconds to lower and compile."""
    table = Table("model", "bb.trace ms", "program", "lower s", "backend s", "ratio")
    for model, row in part["rows"].items():
        for name, took in row["programs"].items():
            first = name == "dense"
            head = (model, ms(row["trace_ms"])) if first else ("", "")
            budget = f", <= {COMPILE}" if (model, name) == ("gpt-24", "bb") else ""
            halves = (seconds(took[half]) for half in ("lower_ms", "backend_ms"))
            last = "1" if first else ratio(row["ratio"][name]) + budget
            table.add_row(*head, name, *halves, last)
        table.add_section()
    return table


def state(part: Part) -> Table:
    """Bytes of the state beside JaxPruner's."""
    table = Table("model", "program", "state MiB", "against dense")
    for model, row in part["rows"].items():
        for name, size in row["state"].items():
            table.add_row(model, name, mib(size), f"{size / row['state']['dense']:.3f}")
    return table


TABLES: dict[str, tuple[Callable[[Part], Table], ...]] = {
    "step": (steps,),
    "topk": (topk,),
    "bytes": (memory,),
    "compile": (compiling,),
    "jaxpruner": (steps, state),
}


def show(parts: Mapping[str, Part], names: list[str], console: Console) -> None:
    """Prints these parts."""
    for name in names:
        if name in parts:
            where = parts[name]["machine"]
            console.print(f"\n{name}: {where['device']}, jax {where['jax']}")
            for table in TABLES[name]:
                console.print(table(parts[name]))
