"""Thousands of changed files: each loads exactly right or is refused in bounds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="memory is not limited here"
)
@pytest.mark.parametrize(
    "count", [150, pytest.param(3000, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_every_changed_file_is_refused_or_loads_what_it_held(count):
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.mutations", str(count)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failures"] == []
    assert sum(found["counts"].values()) == count
    assert found["counts"]["refused"] > 0.9 * count and found["counts"]["loaded"] > 0
    assert found["grown"] < 200  # MB
