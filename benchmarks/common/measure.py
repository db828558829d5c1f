"""What every benchmark needs: calls timed in turns, and where the numbers come from.

Times of one process drift with the machine, so calls that are compared run in turns,
round after round, and a ratio is the median of the ratios within a round.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax

from bbjax.demo.origin import commit

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> dict[str, Any]:
    """What the numbers hold for."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
    }


def place() -> str:
    """The machine and the versions that times and digits belong to, in a line."""
    its = machine()
    kind = its["cpu"] if its["backend"] == "cpu" else its["device"]
    return f"{kind}, {its['cores']} cores, {its['backend']}, jax {its['jax']}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def milliseconds(call: Callable[[], Any]) -> float:
    """How long a call takes until its result is there."""
    started = time.perf_counter()
    jax.block_until_ready(call())
    return 1e3 * (time.perf_counter() - started)


def interleaved(
    calls: Mapping[str, Callable[[], Any]], rounds: int, *, warmup: int = 1
) -> dict[str, np.ndarray]:
    """Milliseconds of each call in each round, all of them run in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(warmup + rounds):
        for name, call in calls.items():
            times[name].append(milliseconds(call))
    return {name: np.array(t[warmup:]) for name, t in times.items()}


def spread(values: Any) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = np.percentile(np.asarray(values, float), (25, 50, 75))
    return {"median": float(middle), "low": float(low), "high": float(high)}


def nbytes(tree: Any) -> int:
    """Bytes of all arrays, or of what `eval_shape` returns."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def write(path: Path, report: Mapping[str, Any]) -> None:
    """Writes a report as JSON, with machine and commit in front."""
    path.parent.mkdir(parents=True, exist_ok=True)
    front = {"machine": machine(), "commit": commit()}
    text = json.dumps(front | dict(report), indent=1)
    path.write_text(text + "\n")
