"""Reports in forked processes: an error or a report, never a process that hangs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, sys, warnings
warnings.simplefilter("ignore")  # JAX warns of every fork
import numpy as np
import bbjax as bb
from bbjax.reporting import forks

forks.SECONDS = 60.0 if sys.argv[1] == "before" else 1.0
kernel = bb.Kernel("w", (2, 3), fan_in=(0,), fan_out=(1,))
units, masks = bb.Units((kernel,)).select("w"), {"w": np.eye(2, 3, dtype=bool)}
source = masks
if sys.argv[1] != "before":
    source = bb.transform(units).init({"w": np.ones((2, 3), np.float32)})
    if sys.argv[1] == "used":
        bb.report(source, units)
child = os.fork()
if not child:
    try:
        print("kept", bb.report(source, units).kept, flush=True)
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "jax, words",
    [
        ("before", "kept 2\n"),
        ("used", "got one that was forked after JAX was used"),
        pytest.param("state", "forked after JAX was used", marks=pytest.mark.slow),
    ],
)
def test_a_report_in_a_forked_process_ends(jax, words):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, jax],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
