"""All rules on digits and, where its files are given, MNIST: one table each.

    python -m benchmarks.rules [--data FOLDER] [--seeds 6] [--only PATTERN]

Every method prunes both hidden layers of an MLP (digits 64-128-64-10, MNIST
784-300-100-10; Adam 1e-3, batches of 64, 1000 steps) to densities .3, .1, .03 and .01.
Seeds are paired: first weights and batches of a seed are the same for all methods. See
`methods.py` for what each does, `table.py` for the statistics. Takes 13.6 minutes with
MNIST on 2 CPU cores.
"""

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common import machine
from benchmarks.rules import data
from benchmarks.rules.methods import METHODS
from benchmarks.rules.table import markdown, summary
from benchmarks.rules.train import BATCH, RATE, Bench

RESULTS = Path(__file__).resolve().parents[1] / "results"
DENSITIES = (0.3, 0.1, 0.03, 0.01)
FAMILIES = {
    "while or before training": ("train", "init"),
    "after training, once, without retraining": ("after",),
}


def run(problem: data.Problem, args: argparse.Namespace, console: Console) -> Any:
    """Trains and tests every method on one problem."""
    started = time.perf_counter()
    bench = Bench(problem, args.seeds, args.steps or problem.steps)
    densities = tuple(args.densities)
    dense, accuracy = bench.dense()
    found, seconds = {}, {}
    for name, method in METHODS.items():
        if not re.search(args.only, name):
            continue
        before = time.perf_counter()
        if method.when == "after":
            found[name] = bench.once(method, dense, densities)
        else:
            found[name] = bench.train(method, densities)
        seconds[name] = round(time.perf_counter() - before, 1)
        means = " ".join(f"{m:6.2f}" for m in found[name]["accuracy"].mean(1))
        console.print(f"{problem.name:7} {name:28} {means}  {seconds[name]:6.1f} s")
    report: dict[str, Any] = {
        "problem": problem.name,
        "net": [problem.train_x.shape[1], *problem.hidden, 10],
        "train_images": len(problem.train_x),
        "test_images": len(problem.test_x),
        "seeds": args.seeds,
        "steps": bench.steps,
        "batch": BATCH,
        "learning_rate": RATE,
        "densities": densities,
        "machine": machine(),
        "seconds": round(time.perf_counter() - started, 1),
        "seconds_by_method": seconds,
        "dense": [round(float(a), 3) for a in accuracy],
        "accuracy": {n: f["accuracy"].round(3).tolist() for n, f in found.items()},
        "density_got": {n: f["density"].round(5).tolist() for n, f in found.items()},
        "families": {},
    }
    for family, whens in FAMILIES.items():
        names = [n for n in found if METHODS[n].when in whens]
        if not names:
            continue
        accuracies = {n: found[n]["accuracy"] for n in names}
        report["families"][family] = summary(accuracies, densities)
        console.print(f"\n{problem.name}, {family}:\n")
        got = {n: found[n]["density"] for n in names}
        text = markdown(report["families"][family], densities, got)
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    mean, sd = accuracy.mean(), accuracy.std(ddof=1) if len(accuracy) > 1 else 0.0
    console.print(f"\ndense {mean:.2f} ± {sd:.2f}, {report['seconds']} s in all\n")
    return report


def main() -> None:
    """Runs the problems that are there and writes what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the MNIST idx files")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, help="default: 1000")
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--only", default="", help="pattern of method names")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    console = Console()
    problems = [data.digits()]
    if args.data is not None:
        problems.append(data.mnist(args.data))
    args.out.mkdir(parents=True, exist_ok=True)
    for problem in problems:
        report = run(problem, args, console)
        path = args.out / f"rules_{problem.name}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"written: {path}")


if __name__ == "__main__":
    main()
