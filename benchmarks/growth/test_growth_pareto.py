"""Costs that grow linearly, and a front of many densities and seeds in one program."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

cases = pytest.importorskip("benchmarks.growth.cases")
fit = pytest.importorskip("benchmarks.growth.fit")

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "one kernel": [((n, n), 1) for n in (128, 256, 512, 1024)],
    "many kernels": [((64, 64), n) for n in (1, 2, 4)],
}


# Growth --------------------------------------------------------------------------
@pytest.mark.long
@pytest.mark.parametrize("layout", SIZES)
def test_update_costs_grow_no_faster_than_the_weights(layout):
    weights = [shape[0] * shape[1] * count for shape, count in SIZES[layout]]
    found = [cases.facts(cases.kernels(*size)) for size in SIZES[layout]]
    for name in ("flops", "bytes_accessed", "temp_bytes", "state_bytes"):
        grown = fit.exponent(weights, np.array([said[name] for said in found]))
        assert grown["exponent"] <= 1.02, (name, grown)
    # The state is what is promised: the dormant weights, a bit each, and unit-sized.
    assert 4 + 1 / 8 <= found[-1]["state_bytes"] / weights[-1] < 4.3


def test_exponents_of_known_powers():
    sizes = np.array([1e3, 1e4, 1e5, 1e6])
    flat = np.repeat(sizes[:, None] ** 1.5, 3, 1)
    grown = fit.exponent(sizes, flat)
    assert grown["exponent"] == pytest.approx(1.5) and not grown["within"]
    assert grown["error"] == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(grown["local"], 1.5)
    assert grown["at_end"] == pytest.approx(1e9)
    # A constant cost of any call hides the growth at small sizes: the fit can skip it.
    late = fit.exponent(sizes, 1e4 + sizes**1.2, start=1e5)
    assert late["from"] == 1e4, "no fewer than three sizes"
    assert fit.exponent(sizes, sizes)["within"]
    assert not fit.exponent(sizes, sizes**0.3, most=0)["within"]


@pytest.mark.long
def test_errors_of_an_exponent_cover_noise():
    rng = np.random.default_rng(0)
    sizes = np.array([1e3, 1e4, 1e5, 1e6])
    noise = np.exp(0.3 * rng.normal(size=(200, 4, 7)))
    fits = [fit.exponent(sizes, sizes[:, None] * n) for n in noise]
    z = [(f["exponent"] - 1) / f["error"] for f in fits]
    assert np.mean(np.abs(z) < 2) > 0.85
    assert np.mean([f["within"] for f in fits]) > 0.9


# Pareto --------------------------------------------------------------------------
@pytest.mark.slow
def test_counts_are_exact_in_every_lane_of_one_program(lenient):
    lanes = pytest.importorskip("benchmarks.pareto.lanes")
    methods = pytest.importorskip("bbjax.demo.methods")
    data = pytest.importorskip("bbjax.demo.data").load()
    front = lanes.Front(methods.BY_KEY["bb_in"], (0.3, 0.07, 0.01), 2, 8, data)
    run = front.vmapped()
    kept, budgets = front.kept(run), front.budgets()
    assert budgets["Conv_1/kernel"] == [614, 143, 20]  # of 2048 windows
    for path, budget in budgets.items():
        want = np.repeat(np.array(budget)[:, None], 2, 1)
        np.testing.assert_array_equal(kept[path], want, err_msg=path)
    assert run.stray == 0 and run.accuracy.shape == (3, 2)
    dense = run.masks["Dense_0/kernel"]
    assert (dense[:, 0] != dense[:, 1]).any(), "seeds have masks of their own"


# Commands ------------------------------------------------------------------------
def _small(module: str, out: Path) -> dict:
    command = [sys.executable, "-m", f"benchmarks.{module}", "--small", "--out", out]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True)
    (picture,) = out.glob("*.png")
    assert picture.stat().st_size > 10_000
    (written,) = out.glob("*.json")
    return json.loads(written.read_text())


@pytest.mark.slow
def test_growth_command(tmp_path):
    report = _small("growth", tmp_path)
    assert report["machine"]["jax"]
    assert set(report["parts"]) == {
        *("one kernel", "many kernels", "train step"),
        *("units, in", "units, out"),
    }
    for part in report["parts"].values():
        sizes = part[part["by"]]
        assert sizes == sorted(sizes) and len(sizes) > 1
        assert {"refresh", "plain", part["dense"]} <= set(part["ms"])
        for fitted in (*part["fits"].values(), *part["ratio_fits"].values()):
            assert np.isfinite(fitted["exponent"]) and len(fitted["local"])
        for name in ("state_bytes", "temp_bytes", "flops"):
            assert part["fits"][name]["within"], name
    period = report["period"]
    assert len(period["run_ms"]) == len(period["computed_ms"]) == len(period["periods"])


@pytest.mark.slow
def test_pareto_command(tmp_path):
    report = _small("pareto", tmp_path)
    assert set(report["methods"]) == {"magnitude", "bb_in"}
    for found in report["methods"].values():
        assert found["lanes"] == len(report["densities"]) * report["seeds"]
        assert [w["compiles"] for w in found["ways"].values()] == [1, 1, 2]
        for way in found["ways"].values():
            assert way["counts_exact"] and way["nonzero_outside_masks"] == 0
            assert np.shape(way["accuracy"]) == (2, report["seeds"])
            for path, budget in found["budgets"].items():
                kept = np.array(way["kept"][path])
                assert (kept == np.array(budget)[:, None]).all()
        # Rounding may take the ways apart, by an image or two in so few steps.
        assert found["vmap_against"]["loop"]["accuracy_gap_most"] < 2
