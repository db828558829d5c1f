"""The speed benchmark measures what it says, and keeps what it does not measure."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import bbjax as bb

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("rich")

from benchmarks.common.models import ffn  # noqa: E402
from benchmarks.speed import peer, programs, report, steps, tasks, topk  # noqa: E402
from benchmarks.speed.options import DENSITY, Options, every  # noqa: E402


def test_amortised_cost_counts_one_refresh_and_one_step_after_it():
    # By hand: eight plain steps, one at 1.2 and one at 2.
    cost = steps.amortised(plain=1.0, after=1.2, refresh=2.0, every=10)
    assert cost == pytest.approx(1.12)
    assert steps.amortised(7.0, 1.0, 3.0, every=2) == pytest.approx(2.0)


@pytest.mark.parametrize("calls", [1, 10])
def test_a_round_takes_a_pruned_program_from_refresh_to_refresh(calls):
    order = steps.turns(["a", "b"], ["observe"], calls)
    for name in ("a", "b"):
        own = [turn for turn in order if turn.program == name]
        assert own[0] == (name, f"{name}/refresh", 1)
        assert own[-1] == (name, f"{name}/plain", calls)
        assert sum(turn.calls for turn in own) == 3 + calls
    labels = [turn.label for turn in order if turn.label]
    assert len(labels) == len(set(labels)) and "observe" in labels
    assert ("dense/once" in labels) == (calls > 1)


def test_ratios_are_taken_within_a_round():
    drifting = np.array([1.0, 10.0, 100.0])
    times = {"dense": drifting, "bb/plain": 2 * drifting}
    times |= {"bb/after": 3 * drifting, "bb/refresh": 4 * drifting}
    found = steps.against_dense(times, "bb")
    assert found["ratio"]["plain"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert found["amortised"]["10"]["median"] == pytest.approx((8 * 2 + 3 + 4) / 10)
    assert found["ms"]["refresh"]["median"] == 40.0


def test_single_steps_are_compared_with_a_single_dense_step():
    one = np.ones(3)
    times = {"dense": one, "dense/once": 2 * one, "bb/plain": one}
    times |= {"bb/after": 2 * one, "bb/refresh": 6 * one}
    ratio = steps.against_dense(times, "bb")["ratio"]
    medians = {kind: value["median"] for kind, value in ratio.items()}
    assert medians == {"plain": 1.0, "after": 1.0, "refresh": 3.0}


def test_a_part_measured_again_leaves_the_others():
    here, there = {"machine": {"cpu": "a"}}, {"machine": {"cpu": "b"}}
    parts = report.merged({}, "step", here, {"x": 1, "y": 2})
    parts = report.merged(parts, "topk", there, {"z": 3})
    again = report.merged(parts, "step", here, {"y": 4})
    assert again == {
        "step": here | {"rows": {"x": 1, "y": 4}},
        "topk": there | {"rows": {"z": 3}},
    }
    # Rows of two machines do not mix.
    elsewhere = report.merged(again, "step", there, {"y": 5})
    assert elsewhere["step"] == there | {"rows": {"y": 5}}
    assert elsewhere["topk"] == again["topk"]


def test_a_report_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "speed.json"
    assert report.load(path) == {}
    parts = report.merged({}, "topk", report.about(small=True), {"a": {"ms": 1.5}})
    report.save(path, parts)
    assert report.load(path) == parts
    kept = report.merged(report.load(path), "topk", report.about(small=True), {"b": 2})
    assert set(kept["topk"]["rows"]) == {"a", "b"}


def tiny() -> tasks.Task:
    """One layer, one budgeted kernel."""
    shape = ffn.Shape(1, 16, 32)

    def batch(key: jax.Array):
        return tuple(jax.random.normal(key, (2, 8, shape.model)))

    init = functools.partial(ffn.init, shape)
    return tasks.Task("tiny", ffn.loss, init, batch, shape, (("up$", "in"),))


def test_the_first_step_of_a_round_refreshes_and_no_other(lenient):
    what = tiny()
    program = programs.pruned(what)
    params = what.init(jax.random.key(0))
    batch = what.batch(jax.random.key(1))
    state, step, seen = program.init(params), programs.compiled(program), []
    for _ in range(every() + 1):
        params, state = step(params, state, *batch)
        kept = [np.asarray(mask) for mask in bb.masks(state).values()]
        seen.append(np.concatenate([mask.ravel() for mask in kept]))
    assert seen[0].mean() == pytest.approx(DENSITY, abs=1e-3)
    changed = [bool((a != b).any()) for a, b in zip(seen, seen[1:], strict=False)]
    assert changed == [False] * (every() - 1) + [True]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [*tasks.MODELS, "gpt-24"])
def test_every_model_has_kernels_to_prune_at_full_size(name, lenient):
    what = tasks.task(name, "accelerator")
    state = programs.pruned(what).shapes()[1]
    budgeted = optax.tree.get(state, "bb_masks")
    assert len(budgeted) >= 2
    if what.select:  # both kernels of every layer
        assert {path.rsplit("/")[-1] for path in budgeted} == {"up", "down"}


@pytest.fixture(scope="module")
def selection():
    """Calls that select along the last axis of (16, 24), and their k."""
    scores, k = topk.draw((16, 24), "float32", 1)
    return topk.methods(scores, k, 1), k


def test_sorting_takes_part_in_few_rounds_where_it_is_slow(selection):
    calls, _ = selection
    times = topk.in_turns(calls, rounds=5, slow=True)
    rounds = {name: len(taken) for name, taken in times.items()}
    sorting = dict.fromkeys(set(calls) - set(topk.QUICK), 2)
    assert {"top_k", "sort", "approx"} <= set(sorting)
    assert rounds == dict.fromkeys(topk.QUICK, 5) | sorting
    quick = topk.in_turns(calls, rounds=3, slow=False)
    assert {len(taken) for taken in quick.values()} == {3}


def test_a_wrong_mask_stops_the_run(selection):
    calls, k = dict(selection[0]), selection[1]
    topk.check(calls, k, 1)
    with pytest.raises(RuntimeError, match="expected k entries"):
        topk.check(calls, k + 1, 1)
    calls["count"] = lambda: ~calls["top_k"]()
    with pytest.raises(RuntimeError, match="expected equal masks, got 384"):
        topk.check(calls, k, 1)


def test_the_peer_needs_a_checkout(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a checkout of JaxPruner"):
        peer.load(tmp_path)
    with pytest.raises(ValueError, match="give its path"):
        next(peer.rows(Options(models=("ffn-256",), size="small")))


@pytest.mark.slow
@pytest.mark.parametrize("name", tasks.MODELS)
def test_every_model_learns(name, lenient):
    what = tasks.task(name, "small")
    params = what.init(jax.random.key(0))
    batch = what.batch(jax.random.key(1))
    before = what.loss(params, *batch)
    program = programs.dense(what)
    state, step = program.init(params), programs.compiled(program)
    for _ in range(30):
        params, state = step(params, state, *batch)
    assert what.loss(params, *batch) < 0.98 * before


def command(*options: str) -> str:
    """What `python -m benchmarks.speed` prints."""
    call = [sys.executable, "-m", "benchmarks.speed", "--small", "--rounds", "1"]
    done = subprocess.run(
        [*call, *options], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.mark.slow
def test_the_command_measures_all_parts_and_keeps_them(tmp_path):
    said = command("--models", "ffn-256", "gpt", "--out", str(tmp_path))
    assert "jaxpruner: skipped" in said and "github.com/google-research" in said
    path = tmp_path / "speed_cpu.json"
    parts = json.loads(path.read_text())["parts"]
    assert set(parts) == {"step", "topk", "bytes", "compile"}
    assert all(part["machine"]["jax"] and part["small"] for part in parts.values())
    assert set(parts["step"]["rows"]) == {"ffn-256", "gpt"}
    assert "gpt-24" in parts["compile"]["rows"]
    added = parts["bytes"]["rows"]["ffn-256"]["added"]
    assert added["bits_per_edge"] == 1.0
    assert (tmp_path / "speed_cpu.png").stat().st_size > 10_000
    command("--parts", "topk", "--out", str(tmp_path))
    again = json.loads(path.read_text())["parts"]
    assert again.pop("topk")["rows"].keys() == parts.pop("topk")["rows"].keys()
    assert again == parts
