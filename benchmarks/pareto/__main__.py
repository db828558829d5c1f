"""Pareto front in one program: the demo's training, vmapped over seeds x densities.

    python -m benchmarks.pareto [--small] [--methods magnitude bb_in] [--seeds 5]
                                [--densities .5 .3 ...] [--steps 150] [--scan]

Accuracy on the digits against density, 8 densities x 5 seeds per method, trained as one
compiled program and, over the same lanes, in Python loops with one program and with one
per density (`lanes.py`). Counted: edges kept in every kernel of every lane, which must
be the budget to the edge, and how far rounding takes the three ways apart. Times are of
one run each: compilation, and training without making the first weights. Takes about 5
minutes on 2 CPU cores; `--small` 30 seconds. Writes pareto_<backend>.json and .png.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from bbjax.demo.data import load
from bbjax.demo.methods import BY_KEY
from benchmarks.common.measure import RESULTS, write
from benchmarks.pareto import picture
from benchmarks.pareto.lanes import Front, Run

DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01)
WAYS: dict[str, Callable[[Front], Run]] = {
    "vmap": Front.vmapped,
    "loop": Front.looped,
    "anew": Front.anew,
}


def measure(front: Front) -> dict[str, Any]:
    """Every way of one method, and how they compare."""
    runs = {name: way(front) for name, way in WAYS.items()}
    budgets = front.budgets()
    rows = {name: _row(front, run, budgets) for name, run in runs.items()}
    seconds = {n: (r["seconds"], r["run_seconds"]) for n, r in rows.items()}
    return {
        "lanes": len(front.grid),
        "k_min": front.lane.k_min,
        "budgets": budgets,
        "ways": rows,
        "vmap_against": {n: _apart(runs["vmap"], runs[n]) for n in ("loop", "anew")},
        "loop_against_anew": _apart(runs["loop"], runs["anew"]),
        "seconds_vmap_over": {
            n: {
                "total": seconds["vmap"][0] / seconds[n][0],
                "run": seconds["vmap"][1] / seconds[n][1],
            }
            for n in ("loop", "anew")
        },
    }


def _row(front: Front, run: Run, budgets: dict[str, list[int]]) -> dict[str, Any]:
    kept = front.kept(run)
    exact = all((kept[p] == np.array(b)[:, None]).all() for p, b in budgets.items())
    return {
        "compiles": run.compiles,
        "compile_seconds": run.compile_seconds,
        "run_seconds": run.run_seconds,
        "seconds": run.compile_seconds + run.run_seconds,
        "accuracy": run.accuracy.round(4).tolist(),
        "kept": {path: count.tolist() for path, count in kept.items()},
        "counts_exact": bool(exact),
        "nonzero_outside_masks": run.stray,
    }


def _apart(one: Run, other: Run) -> dict[str, Any]:
    """How far two ways are apart, over all lanes."""
    differ = {p: float((m != other.masks[p]).mean()) for p, m in one.masks.items()}
    gaps = one.accuracy - other.accuracy
    same = [
        [all((m[d, s] == other.masks[p][d, s]).all() for p, m in one.masks.items())]
        for d, s in np.ndindex(gaps.shape)
    ]
    return {
        "accuracy_gap_most": float(np.abs(gaps).max()),
        "accuracy_gap_mean": float(gaps.mean()),
        "lanes_with_equal_masks": float(np.mean(same)),
        "share_of_mask_bits_apart": differ,
    }


def _spread(values: np.ndarray) -> str:
    sd = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{sd}"


def show(console: Console, key: str, found: dict[str, Any], densities: Any) -> None:
    """Prints accuracy against density, then times and counts."""
    title = f"{key}: test accuracy in %, mean ± sd of seeds"
    table = Table("density", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    lanes = {name: np.array(row["accuracy"]) for name, row in found["ways"].items()}
    for name in lanes:
        table.add_column(name, justify="right", no_wrap=True)
    for i, density in enumerate(densities):
        table.add_row(f"{density:g}", *(_spread(a[i]) for a in lanes.values()))
    console.print(table)
    table = Table(title=f"{key}: {found['lanes']} lanes", title_justify="left")
    table.box = box.SIMPLE_HEAD
    for column in ("way", "compiles", "compile s", "run s", "total s", "counts exact"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in found["ways"].items():
        seconds = (row[n] for n in ("compile_seconds", "run_seconds", "seconds"))
        exact = "yes" if row["counts_exact"] else "NO"
        cells = (f"{s:.1f}" for s in seconds)
        table.add_row(name, str(row["compiles"]), *cells, exact)
    console.print(table)
    for name, apart in found["vmap_against"].items():
        times = found["seconds_vmap_over"][name]
        bits = max(apart["share_of_mask_bits_apart"].values())
        console.print(
            f"vmap / {name}: total {times['total']:.2f}, run {times['run']:.2f}; "
            f"accuracies at most {apart['accuracy_gap_most']:.2f} points apart "
            f"(mean {apart['accuracy_gap_mean']:+.3f}), masks equal in "
            f"{100 * apart['lanes_with_equal_masks']:.0f} % of lanes, at most "
            f"{100 * bits:.2f} % of the bits of a kernel apart"
        )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="3 lanes x 2, 20 steps")
    keys = [key for key, method in BY_KEY.items() if method.rule is not None]
    default = ["magnitude", "bb_in"]
    parser.add_argument("--methods", nargs="+", choices=keys, default=default)
    parser.add_argument("--densities", type=float, nargs="+")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--scan", action="store_true", help="steps in the program, too")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.densities = args.densities or ([0.1, 0.03] if args.small else list(DENSITIES))
    args.seeds = args.seeds or (2 if args.small else 5)
    args.steps = args.steps or (20 if args.small else 150)
    return args


def main() -> None:
    """Trains, compares, writes and draws."""
    args = arguments()
    began = time.perf_counter()
    data = load()
    console = Console()
    found, probe = {}, None
    for key in args.methods:
        front = Front(
            BY_KEY[key], args.densities, args.seeds, args.steps, data, args.scan
        )
        found[key] = measure(front)
        show(console, BY_KEY[key].label, found[key], args.densities)
        if probe is None and not args.small:
            probe = front.probe()
            console.print(f"a step in a scan takes {probe:.1f} times as long")
    report = {
        "densities": args.densities,
        "seeds": args.seeds,
        "steps": args.steps,
        "steps_in_program": args.scan,
        "scan_over_python_loop": probe,
        "seconds": time.perf_counter() - began,
        "labels": {key: BY_KEY[key].label for key in found},
        "methods": found,
    }
    path = args.out / f"pareto_{jax.default_backend()}.json"
    write(path, report)
    picture.draw(report, path.with_suffix(".png"))
    console.print(f"{report['seconds']:.0f} s; written: {path} and .png")


if __name__ == "__main__":
    main()
