"""Trains in two real processes and in one, and compares every bit of what came out.

    python -m benchmarks.processes [--steps 20] [--layouts data fsdp] [--out DIR]

Processes meet over loopback (`jax.distributed`, Gloo collectives on CPU) and own two
devices each. The same run by one process, on as many devices and on one, is the
reference: masks, degrees, running means and parameters must be equal bit for bit (see
`benchmarks.processes.worker` for why they can be), metrics up to the order of float32
sums, one program must serve all steps, and every process must hold its own part of
masks that are sharded. The exit code is 1 on any difference, when a process fails (its
output is shown) and when one still runs after `--limit` seconds (all are ended).
Takes about half a minute on two CPU cores; writes processes.json.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.common import measure as common

ROOT = Path(__file__).resolve().parents[2]
EXACT = ("masks", "degrees", "means", "params", "churn")
TOLERANCE = 1e-5  # of metrics, relative: logarithms summed in another order
SHARED = ("data", "fsdp")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=2, help="of each process")
    parser.add_argument("--layouts", nargs="+", choices=SHARED, default=list(SHARED))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--limit", type=float, default=300, help="seconds")
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    return parser.parse_args()


# Processes -----------------------------------------------------------------------
def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def start(devices: int, log: Path, *arguments: Any) -> subprocess.Popen:
    """One worker, its output in `log`."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.processes.worker", *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def end(running: dict[Path, subprocess.Popen]) -> None:
    for process in running.values():
        if process.poll() is None:
            process.kill()
        process.wait()


def wait(running: dict[Path, subprocess.Popen], limit: float) -> str:
    """Waits until all have ended well, else ends the others; what went wrong."""
    until = time.monotonic() + limit
    while True:
        codes = {log: process.poll() for log, process in running.items()}
        failed = [log for log, code in codes.items() if code]
        late = [log for log, code in codes.items() if code is None]
        if failed or (late and time.monotonic() > until):
            end(running)
            why = "failed" if failed else f"still ran after {limit:g} seconds"
            shown = [f"{log.stem} {why}:\n{log.read_text()}" for log in failed or late]
            return "\n".join(shown)
        if not late:
            return ""
        time.sleep(0.05)


def run(asked: argparse.Namespace, folder: Path) -> str:
    """Runs one process alone and several together; what went wrong."""
    what = ["--steps", asked.steps, "--width", asked.width, "--layouts"]
    together = ["--processes", asked.processes]
    together += ["--address", f"127.0.0.1:{free_port()}"]
    running = {}
    try:
        for index in range(asked.processes):
            log = folder / f"process_{index}.log"
            rest = [*together, "--index", index, "--out", folder / "many.npz"]
            rest += [*what, *asked.layouts]
            running[log] = start(asked.devices, log, *rest)
        log = folder / "alone.log"
        rest = ["--out", folder / "one.npz", *what, "alone", *asked.layouts]
        running[log] = start(asked.processes * asked.devices, log, *rest)
        return wait(running, asked.limit)
    finally:
        end(running)


# Comparison ----------------------------------------------------------------------
def part(arrays: dict[str, np.ndarray], layout: str, name: str) -> dict[str, Any]:
    prefix = f"{layout}|{name}|"
    return {
        key.removeprefix(prefix): value
        for key, value in arrays.items()
        if key.startswith(prefix)
    }


def unequal(one: dict[str, Any], other: dict[str, Any], exact: bool) -> int:
    """How many entries of two sets of arrays differ; all, if they are other sets."""
    if not one or one.keys() != other.keys():
        return sum(np.size(v) for v in one.values()) or 1
    total = 0
    for key, value in one.items():
        close = np.isclose(value, other[key], rtol=TOLERANCE, atol=1e-6, equal_nan=True)
        total += int(np.sum(value != other[key] if exact else ~close))
    return total


def compare(arrays: Any, reference: Any, layout: str, against: str) -> dict[str, int]:
    """Entries that differ, by what is compared."""
    return {
        name: unequal(
            part(reference, against, name), part(arrays, layout, name), name in EXACT
        )
        for name in (*EXACT, "metrics")
    }


def check(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The report: differences, how masks lay on processes, and what was trained."""
    one, many = (dict(np.load(folder / f"{name}.npz")) for name in ("one", "many"))
    views = json.loads(str(many.pop("views")))
    rows = {}
    for layout in asked.layouts:
        for reference, label in ((layout, "one process"), ("alone", "one device")):
            rows[f"{layout}, against {label}"] = compare(many, one, layout, reference)
    churn = part(one, "alone", "churn")
    return {
        "setting": {k: v for k, v in vars(asked).items() if k != "out"},
        "differences": rows,
        "views": views,
        "programs": {k: int(many[f"{k}|programs"]) for k in asked.layouts},
        "churn": {refresh: float(share) for refresh, share in churn.items()},
        "density": float(one["alone|metrics|overall/density_got"]),
    }


def problems(report: dict[str, Any]) -> list[str]:
    """What must not be."""
    found = [
        f"{row}: {count} entries of {name} differ"
        for row, counts in report["differences"].items()
        for name, count in counts.items()
        if count
    ]
    found += [
        f"{layout}: {count} programs were compiled, expected 1"
        for layout, count in report["programs"].items()
        if count != 1
    ]
    for layout, view in report["views"].items():
        rows = view["shape"][0] // (view["devices"] if layout == "fsdp" else 1)
        if any(own[0] != rows for own in view["own"]):
            found.append(
                f"{layout}: parts {view['own']} of a mask, expected {rows} rows"
            )
    return found


def table(report: dict[str, Any]) -> Table:
    setting = report["setting"]
    title = (
        f"{setting['processes']} processes x {setting['devices']} devices, "
        f"{setting['steps']} steps, {len(report['churn']) // 2} refreshes, "
        f"density {report['density']:.2f}; entries that differ:"
    )
    shown = Table(title=title)
    shown.add_column("run", no_wrap=True)
    names = (*EXACT, "metrics")
    for name in names:
        shown.add_column(name, justify="right")
    for row, counts in report["differences"].items():
        shown.add_row(row, *(str(counts[name]) for name in names))
    return shown


def main() -> int:
    asked, console = options(), Console(width=100)
    with tempfile.TemporaryDirectory() as name:
        trouble = run(asked, Path(name))
        if trouble:
            console.print(trouble, markup=False)
            return 1
        report = check(asked, Path(name))
    console.print(table(report))
    for layout, view in report["views"].items():
        console.print(
            f"{layout}: process 0 holds {view['own']} of a mask of {view['shape']}",
            markup=False,
        )
    common.write(asked.out / "processes.json", report)
    wrong = problems(report)
    for line in wrong:
        console.print(line, markup=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
