"""Which rule keeps rare features between hidden units: `python -m benchmarks.rare`.

Task, net and training are those of the claim C2 (`benchmarks/claims/dnf_rare`), budget
on the second kernel; the rules are those that a user can choose today. See `README.md`.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markdown import Markdown

import bbjax as bb
from bbjax import rules
from benchmarks.claims.common import train
from benchmarks.claims.common.methods import Method
from benchmarks.claims.dnf_rare.run import DENSITY, FLOOR, STEPS, lanes_of
from benchmarks.common import stats
from benchmarks.common.laws import standardized
from benchmarks.common.measure import RESULTS
from benchmarks.common.text import finish, put_in, table

NAME, PLACEMENT = "rare", "hidden"
README = Path(__file__).with_name("README.md")
RARITIES, SEEDS, FIRST_SEED = (0.005, 0.02), 20, 100
EQUAL, LAYER = "equal degrees", "layer-wide magnitude"
PLAIN = ("#8a8a8a", "o", "-")


def _bb(**options: Any) -> Callable[[], rules.Rule]:
    return lambda: rules.budgeted_broadcast(**options)


MAKE: dict[str, Callable[[], rules.Rule] | None] = {
    "dense": None,
    EQUAL: rules.magnitude,
    LAYER: lambda: rules.magnitude(scope="layer"),
    "activity-only": rules.activity_only,
    "BB, default": _bb(),
    "BB, half competition, spread 0.2": _bb(competition=0.5, spread=0.2),
    "BB, law alone": _bb(competition=0),
    "BB, law alone, spread 0.4": _bb(competition=0, spread=0.4),
    "BB, law alone, spread 0.4, wide": _bb(
        law=bb.laws.log_odds(spread=0.4, limit=5.0, clip=1e-3)
    ),
    "BB, law alone, reversed": _bb(competition=0, spread=-0.1),
    "BB, standardized law": _bb(law=standardized()),
}


def measured(seeds: int, steps: int) -> dict[str, dict[str, Any]]:
    """By on-rate and method: AUC, recall, accuracy and degrees, one for each seed."""
    found: dict[str, dict[str, Any]] = {f"{rare:g}": {} for rare in RARITIES}
    for name, make in MAKE.items():
        lanes = lanes_of(PLACEMENT, Method(name, make, PLAIN), steps, FLOOR)
        for rare in RARITIES:
            numbers = train.seeds_of(seeds, FIRST_SEED)
            out = jax.tree.map(np.asarray, lanes(numbers, DENSITY, rare))
            one = dict(out["end"])
            for kind in ("rare", "common"):
                one[f"fan-out {kind}"] = out["units"][f"fan-out, {kind}"][:, -1]
            found[f"{rare:g}"][name] = one
    return found


def tables(found: dict[str, dict[str, Any]]) -> str:
    """A table for each on-rate: what came out, and AUC against both controls."""
    head = ("rule", "AUC, rare", "recall, rare", "accuracy", "edges rare / common")
    head += (f"AUC against {EQUAL}", f"AUC against {LAYER}")
    parts = []
    for rare, of in found.items():
        auc = {name: np.asarray(one["AUC rare"]) for name, one in of.items()}
        others = {n: v for n, v in auc.items() if n != "dense"}
        rows = []
        for name, one in of.items():
            row = [
                name,
                *(stats.mean_sd(one[k], 1) for k in ("AUC rare", "recall rare")),
            ]
            row.append(stats.mean_sd(one["accuracy"], 2))
            row.append(f"{_mean(one, 'rare')} / {_mean(one, 'common')}")
            for control in (EQUAL, LAYER):
                row.append(_against(others, name, control))
            rows.append(row)
        parts.append(f"Rare clauses with an on-rate of {rare}:\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def _mean(one: dict[str, Any], kind: str) -> str:
    return f"{np.nanmean(np.asarray(one[f'fan-out {kind}'], float)):.1f}"


def _against(auc: dict[str, np.ndarray], name: str, control: str) -> str:
    """The paired difference, corrected for the number of rules."""
    if name in (control, "dense"):
        return ""
    rest = {n: v for n, v in auc.items() if n != control}
    gaps = stats.differences(auc[control], rest)
    gap = gaps[name]
    mark = "" if gap.p >= stats.LEVEL else " ▼" if gap.mean > 0 else " ▲"
    return f"{-gap.mean:+.2f} ± {gap.error:.2f}{mark}"


def results(report: dict[str, Any]) -> str:
    """What stands in the README, made from the JSON."""
    machine = report["machine"]
    where = f"{machine['cores']} cores, not idle, jax {machine['jax']}"
    return (
        f"`{report['command']}`: {report['seeds']} seeds, "
        f"{report['seconds'] / 60:.1f} minutes on {where}; mean ± sd over seeds, "
        "paired differences ± standard error; ▲ better, ▼ worse (paired t-test, Holm "
        f"over the rules of a column, 5 %) ([JSON](../results/{NAME}.json)).\n\n"
        f"{tables(report['found'])}"
    )


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--small", action="store_true", help="a trial, with --out")
    parser.add_argument("--out", type=Path, help="folder; default: benchmarks/results")
    args = parser.parse_args()
    if args.small and args.out is None:
        parser.error("expected --out with --small: its numbers are not results")
    seeds, steps = (2, 100) if args.small else (args.seeds, STEPS)
    started = time.perf_counter()
    head = {"command": "python -m benchmarks.rare", "seeds": seeds, "steps": steps}
    report = head | {"found": measured(seeds, steps)}
    report = finish(NAME, report, started, args.out or RESULTS)
    Console(width=160).print(Markdown(results(report)))
    if args.out is None:
        README.write_text(put_in(README.read_text(), results(report)))


if __name__ == "__main__":
    main()
