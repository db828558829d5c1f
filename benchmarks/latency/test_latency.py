"""The latency benchmark cuts what it says, and computes its ratios right."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import bbjax as bb

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("rich")

from benchmarks.common import quiet  # noqa: E402
from benchmarks.common.text import BEGIN, END  # noqa: E402
from benchmarks.latency import cut, measure, models, page, products  # noqa: E402

TASKS = {task.name: task for task in models.tasks(models.MODELS, "small")}


def test_efficiency_is_the_speed_up_over_the_ideal():
    dense = np.array([4.0, 40.0, 400.0])  # a machine that gets slower
    found = measure.figures(dense, dense, dense / 3, flops=(8, 2), read=(6, 3))
    assert found["ratio"]["masked"] == {"median": 1, "low": 1, "high": 1}
    assert found["ratio"]["shrunk"]["median"] == pytest.approx(1 / 3)
    assert found["speedup"]["high"] == pytest.approx(3)
    assert found["ideal"] == {"flops": 4, "bytes": 2}
    assert found["efficiency"]["flops"]["median"] == pytest.approx(0.75)
    assert found["efficiency"]["bytes"]["median"] == pytest.approx(1.5)
    assert found["ms"]["masked"]["median"] == 40


@pytest.mark.long
def test_products_alone_are_held_against_the_ideal():
    cell = {"ms": {"shrunk": {"median": 4.0}}, "ideal": {"flops": 4.0}}
    row = {"dense_ms": {"median": 10.0}, "densities": {"0.5": cell}}
    found = products.explained(row, {"dense": 9.0, "0.5": 3.0})
    assert found["efficiency"] == {"0.5": 0.75}
    assert found["share"] == {"dense": 0.9, "0.5": 0.75}


@pytest.mark.long
def test_the_goal_is_judged_by_operations_at_the_large_batch():
    def cell(reached):
        return {"efficiency": {"flops": {"median": reached}, "bytes": {"median": 2}}}

    rows = {"mlp": {"large": {"densities": {"0.75": cell(0.95), "0.5": cell(0.4)}}}}
    found = page.met(rows, 0.9)
    assert found == {"met": ["mlp at 0.75 (0.95)"], "not met": ["mlp at 0.5 (0.40)"]}


@pytest.mark.long
def test_what_others_take_is_counted(tmp_path):
    began = quiet.Mark(total=100.0, busy=40.0, own=10.0)
    ended = quiet.Mark(total=300.0, busy=150.0, own=100.0)
    assert quiet.others(began, ended) == pytest.approx((110 - 90) / 200)
    assert quiet.others(None, ended) is None
    assert quiet.mark(tmp_path / "none") is None
    stat = tmp_path / "stat"
    stat.write_text("cpu 300 0 100 500 100 0 0 0 50 0\ncpu0 1 1\n")
    found = quiet.mark(stat)  # in ticks, of which a second has some: shares are alike
    assert found.busy / found.total == pytest.approx(0.4)


@pytest.mark.long
@pytest.mark.parametrize("name", TASKS)
def test_every_free_group_loses_its_share(name):
    task = TASKS[name]
    params, inputs = task.params(), task.inputs(2)
    masks, widths = cut.masks(task, params, inputs, 0.5, seed=1)
    groups = {g.name: g for g in bb.trace(task.fn, params, inputs).graph}
    free = {n for n, g in groups.items() if not g.fixed}
    left_alone = free - set(widths)
    assert left_alone == {n for n in free if "layers" in n and "gate" not in n} - {
        f"layers/layer_{i}/q[1]" for i in range(2)
    }
    for group, (before, after) in widths.items():
        assert (before, after) == (groups[group].size, before // 2)
    small = bb.shrink(task.fn, params, masks, inputs)
    lost = {c.group: (c.before, c.after) for c in small.report.changes}
    assert lost == widths and not any(c.idle for c in small.report.changes)


@pytest.mark.long
def test_decode_says_what_prefill_says_at_the_next_position():
    task = TASKS["gpt decode"]
    params, tokens = task.params(), task.inputs(2)
    cache, token = task.timed_args(params, tokens)
    scores, _ = task.timed(params, cache, token)
    longer = np.concatenate([tokens, token], axis=1)
    expected = task.fn(params, jax.numpy.asarray(longer))[:, -1]
    np.testing.assert_allclose(scores[:, 0], expected, rtol=0, atol=1e-5)


@pytest.mark.long
def test_outputs_that_differ_stop_the_run():
    task = TASKS["mlp"]
    inputs = task.inputs(2)
    dense = measure.variant(task, task.params(), inputs)
    found = measure.pruned(task, dense, inputs, 0.5)
    assert measure.error(task, found) < measure.TOLERANCE
    found.shrunk.params["layer_3"]["bias"] += 1
    with pytest.raises(RuntimeError, match="mlp: expected shrunk outputs within"):
        measure.error(task, found)


@pytest.mark.long
def test_every_product_of_a_model_is_timed():
    task = TASKS["gpt decode"]
    inputs = task.inputs(2)
    params = task.params()
    found = products.kinds(task, params, inputs)
    # 4 projections, 3 of the MLP, and 4 with keys and values in each layer; the head.
    assert found.total() == 2 * 11 + 1
    assert jax.block_until_ready(products.alone(next(iter(found)))()).size


@pytest.mark.long
def test_the_page_says_what_the_saved_runs_say():
    found = page.PAGE.saved()
    if not found:
        pytest.skip("there is no saved run")
    part = page.PAGE.path.read_text().split(BEGIN, 1)[1].split(END, 1)[0].strip()
    assert part == "\n\n".join(page.results(report) for report in found).strip()
    for report in found:
        assert not report["small"] and set(report["models"]) == set(models.MODELS)


def command(*options: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "benchmarks.latency", *options]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.long
def test_a_trial_needs_a_place_of_its_own():
    done = command("--small")
    assert done.returncode == 2 and "expected --out with --small" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    "names",
    [("mlp",), pytest.param(("resnet", "gpt decode"), marks=pytest.mark.slow)],
    ids="-".join,
)
def test_the_command_measures_and_writes(names, tmp_path):
    done = command(
        *("--small", "--rounds", "1", "--out", str(tmp_path), "--models", *names)
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("latency*.json")
    report = json.loads(path.read_text())
    assert report["small"] and report["machine"]["jax"] and report["goal"] == 0.9
    assert set(report["models"]) == set(report["products"]) == set(names)
    for row in report["models"].values():
        for size in ("one", "large"):
            assert set(row[size]["densities"]) == {"0.75", "0.5", "0.25"}
            for cell in row[size]["densities"].values():
                dense, shrunk = cell["flops"]
                assert cell["ideal"]["flops"] == pytest.approx(dense / shrunk, rel=1e-3)
                assert cell["error"] <= measure.TOLERANCE
                assert cell["widths"] and cell["xla_flops"][0] > cell["xla_flops"][1]
                assert set(cell["ratio"]) == {"masked", "shrunk"}
    # Two batches at three densities, the count of operations, products of four models.
    assert page.results(report).count(f"| {names[0]} |") == 2 * 3 + 1 + 4
