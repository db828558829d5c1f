"""Two real processes prune as one does, and a run that cannot end well ends clearly."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
gloo = pytest.mark.skipif(
    sys.platform not in ("linux", "darwin"), reason="jaxlib has Gloo on Linux and macOS"
)


@gloo
@pytest.mark.parametrize(
    "options, layouts",
    [
        pytest.param(
            ["--layouts", "fsdp", "--steps", "5", "--width", "32"],
            1,
            marks=pytest.mark.slow,
        ),
        pytest.param([], 2, marks=pytest.mark.slow),
    ],
)
def test_two_processes_are_one(options, layouts, tmp_path):
    program = [sys.executable, "-m", "benchmarks.processes", "--out", str(tmp_path)]
    done = subprocess.run(
        [*program, *options], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "processes.json").read_text())
    assert len(report["differences"]) == 2 * layouts
    for counts in report["differences"].values():
        assert set(counts.values()) == {0}
    assert len(report["churn"]) >= 2 * 2  # of two kernels, at several refreshes
    mask = report["views"]["fsdp"]  # two of four parts are on this process
    assert mask["own"] == [[mask["shape"][0] // 4, mask["shape"][1]]] * 2
    assert not mask["addressable"]


def _started(tmp_path, *codes):
    running = {}
    for n, code in enumerate(codes):
        log = tmp_path / f"process_{n}.log"
        with log.open("w") as output:
            running[log] = subprocess.Popen(
                [sys.executable, "-c", code], stdout=output, stderr=subprocess.STDOUT
            )
    return running


SLEEPS = "import time; time.sleep(600)"


def test_a_process_that_fails_ends_the_others_and_is_shown(tmp_path):
    main = pytest.importorskip("benchmarks.processes.__main__")
    running = _started(tmp_path, SLEEPS, "raise SystemExit('no peer')")
    trouble = main.wait(running, 300)
    assert trouble.startswith("process_1 failed:") and "no peer" in trouble
    assert all(process.poll() is not None for process in running.values())


def test_a_process_that_hangs_is_ended(tmp_path):
    main = pytest.importorskip("benchmarks.processes.__main__")
    running = _started(tmp_path, SLEEPS, "pass")
    assert main.wait(running, 0.2).startswith("process_0 still ran after 0.2 seconds:")
    assert all(process.poll() is not None for process in running.values())


def test_one_flipped_bit_is_a_difference():
    main = pytest.importorskip("benchmarks.processes.__main__")
    mask = np.eye(4, dtype=bool)
    other = mask.copy()
    other[0, 3] = True
    one, same, flipped = ({"data|masks|up": m} for m in (mask, mask.copy(), other))
    assert main.compare(one, same, "data", "data")["masks"] == 0
    assert main.compare(one, flipped, "data", "data")["masks"] == 1
    assert main.compare(one, {}, "data", "data")["masks"] > 0  # nothing is no success
