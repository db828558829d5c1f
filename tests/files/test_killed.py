"""Processes that are killed (`kill -9`) while they write leave a whole file."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import killed

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("save", "save_masks", "report")

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "SIGKILL"), reason="processes cannot be killed like this here"
)


def started(kind, path):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.killed", kind, str(path)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
    )


def killed_after(process, seconds):
    """Numbers that a process has printed before it was killed."""
    first = process.stdout.readline()
    time.sleep(seconds)
    process.kill()
    rest, _ = process.communicate()
    whole = [line for line in [first, *rest.splitlines(True)] if line.endswith("\n")]
    return [line.strip() for line in whole]


def moments(kinds, count):
    """Cases at random moments of a second; the first of each kind is not slow."""
    for n in range(count):
        seconds = round(random.Random(n).uniform(0.0, 1.0), 3)
        marks = [] if n < len(kinds) else [pytest.mark.slow]
        yield pytest.param(kinds[n % len(kinds)], seconds, marks=marks)


@pytest.mark.long
@pytest.mark.parametrize("kind, seconds", list(moments(KINDS, 39)))
def test_a_killed_writer_leaves_a_whole_file(tmp_path, kind, seconds):
    path = tmp_path / ("file.html" if kind == "report" else "file.safetensors")
    told = killed_after(started(kind, path), seconds)
    # The last number that was told is on the disk, or the next, which was not told yet.
    assert killed.right(kind, path) in (int(told[-1]), int(told[-1]) + 1)
    left = {p.name for p in tmp_path.iterdir()} - {path.name}
    assert len(left) <= 1 and all(name.startswith(".bbjax-") for name in left)
    killed.write(kind, path, 0)
    assert killed.right(kind, path) == 0
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 5, 6])
def test_training_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path, kills):
    path, rng, before = tmp_path / "state.safetensors", random.Random(kills), 0
    for _ in range(kills):
        told = killed_after(started("training", path), rng.uniform(0.0, 0.06))
        assert int(told[0]) in (before, before + killed.EVERY)  # what was saved last
        if "as without" in told[-1]:
            break
        before = int(told[-1])
    whole, _ = started("training", path).communicate()
    assert whole.endswith("as without a stop\n")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
