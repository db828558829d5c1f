"""The benchmark of all rules runs, at a small setting, and writes what it found."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are not here"
)


@pytest.mark.slow
def test_rules_on_digits(tmp_path):
    only = "^(priced at 1|RigL, ERK|SNIP|magnitude, unit, once|SparseGPT, once)$"
    options = ["--seeds", "2", "--steps", "40", "--only", only, "--out", str(tmp_path)]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.rules", *options], cwd=ROOT, check=True
    )
    report = json.loads((tmp_path / "rules_digits.json").read_text())
    assert len(report["accuracy"]) == 5 and report["machine"]["jax"]
    for got in report["density_got"].values():
        want = np.array(report["densities"])[:, None]
        np.testing.assert_allclose(got, np.broadcast_to(want, (4, 2)), atol=1e-3)


def test_corrections_for_several_tests():
    table = pytest.importorskip("benchmarks.rules.table")
    # By hand: 3 * .01, then 2 * .02, then .5, none below the one before.
    np.testing.assert_allclose(table.holm([0.02, 0.5, 0.01]), [0.04, 0.5, 0.03])
    report = table.summary(
        {"a": np.array([[1.0, 2, 3]]), "b": np.array([[0, 1, 2.5]])}, [0.1]
    )
    at = report["0.1"]
    assert at["best"] == "a" and at["methods"]["a"]["mean_rank"] == 1
    assert at["methods"]["b"]["p_against_best"] < 0.05
