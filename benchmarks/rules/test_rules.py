"""The benchmark of all rules: its tasks, statistics, resuming, and a small real run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"the folder of data sets {DATA} is not here"
)


def rules(name):
    return pytest.importorskip(f"benchmarks.rules.{name}")


# Statistics --------------------------------------------------------------------------
def test_corrections_for_several_tests():
    # By hand: 3 * .01, then 2 * .02, then .5, none below the one before.
    found = rules("table").holm([0.02, 0.5, 0.01])
    np.testing.assert_allclose(found, [0.04, 0.5, 0.03])


def test_gains_are_paired_and_turned():
    table = rules("table")
    equal = {"up": {0: 1.0, 1: 2.0, 2: 9.0}, "down": {0: 1.0, 1: 2.0, 2: 3.0}}
    # The seed that one of the two lacks, and a run without a number, do not count.
    method = {"up": {0: 2.0, 1: 5.0}, "down": {0: 2.0, 1: 5.0, 2: np.nan}}
    found = table.gains(method, equal, {"up": True, "down": False})
    assert found["up"]["gain"] == 2 and found["down"]["gain"] == -2
    assert found["up"]["seeds"] == found["down"]["seeds"] == 2
    np.testing.assert_allclose(found["up"]["error"], 1)  # of 1 and 3: sd sqrt(2)
    assert table.counts(found) == {"better": 0, "worse": 0, "not told apart": 2}


def test_verdicts_are_corrected_over_the_cells_of_a_method():
    table = rules("table")
    equal = {c: {0: 0.0, 1: 0.0, 2: 0.0} for c in "ab"}
    method = {"a": {0: 1.0, 1: 1.1, 2: 1.2}, "b": {0: -0.2, 1: 0.3, 2: 0.1}}
    found = table.gains(method, equal, {"a": True, "b": True})
    alone = table.paired(np.array([1, 1.1, 1.2]), np.zeros(3))
    np.testing.assert_allclose(found["a"]["p"], 2 * alone)
    assert found["a"]["verdict"] == "better"
    assert found["b"]["verdict"] == "not told apart"


def test_equal_differences_are_judged_by_their_signs():
    table = rules("table")
    assert table.paired(np.ones(3), np.ones(3)) == 1
    assert table.paired(np.ones(3), np.zeros(3)) == 0.25
    assert table.paired(np.zeros(8), np.ones(8)) == 2.0**-7
    rounded = np.arange(4) / 10
    assert table.paired(rounded + 1, rounded) == 0.125


def test_the_best_is_the_lowest_where_lower_is_better():
    table = rules("table")
    rows = {"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {0: 0.0, 1: 1.0, 2: 2.5}}
    assert table.against_best(rows, higher=True)[0] == "a"
    best, p = table.against_best(rows, higher=False)
    assert best == "b" and p["b"] == 1 and p["a"] < 0.05


def test_mean_ranks_by_hand():
    table = rules("table")
    methods = {
        "a": {"x": {0: 3.0, 1: 3.0}, "y": {0: 1.0}},
        "b": {"x": {0: 2.0, 1: 3.0}, "y": {0: 2.0}},
        "c": {"x": {0: 1.0, 1: 1.0}, "y": {0: np.nan}},
        "short": {"x": {0: 9.0}},
    }
    found = table.ranks(methods, {"x": True, "y": False}, "a")
    # a: 1, 1.5, 1; b: 2, 1.5, 2; c: 3, 3, and 3 for no number.
    np.testing.assert_allclose(found["mean"]["a"], 3.5 / 3)
    np.testing.assert_allclose(found["mean"]["b"], 5.5 / 3)
    assert found["mean"]["c"] == 3
    assert found["missing"] == {"short": 2} and "short" not in found["mean"]


# Runs --------------------------------------------------------------------------------
def job(store, **other):
    one = store.Job("digits", "BB", 1, 40, (0.3, 0.1), (0, 1))
    return one._replace(**other)


def found(count):
    return {"accuracy": np.arange(4.0).reshape(2, 2), "kept": np.full((2, 2), count)}


def test_what_is_there_is_not_repeated(tmp_path):
    store = rules("store")
    place = store.Store(tmp_path)
    assert place.missing(job(store)) == [job(store)]
    place.add(store.as_runs(job(store), found(0.1), 8.0, "abc"))
    again = store.Store(tmp_path)
    assert again.runs == place.runs and not again.missing(job(store))
    run = again.runs[store.Key("digits", "BB", 1, 40, 0.1, 1)]
    assert run == (run.key, {"accuracy": 3.0}, 0.1, 2.0, "abc")
    # Another setting is another run, and more seeds are those that lack.
    assert again.missing(job(store, k_min=0)) and again.missing(job(store, steps=50))
    more = job(store, seeds=(0, 1, 2))
    assert again.missing(more) == [job(store, seeds=(2,))]


def test_a_line_that_was_cut_off_is_done_again(tmp_path):
    store = rules("store")
    store.Store(tmp_path).add(store.as_runs(job(store), found(0.1), 8.0, None))
    path = tmp_path / "digits.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-30])  # the run of density .1 and seed 1
    place = store.Store(tmp_path)
    assert place.missing(job(store)) == [job(store, densities=(0.1,), seeds=(1,))]
    # What follows does not stick to the rest of the line.
    lacking = [run for run in store.as_runs(job(store), found(0.1), 8.0, None)][-1:]
    place.add(lacking)
    assert not store.Store(tmp_path).missing(job(store))
    for count in range(len(whole)):  # wherever it was cut
        path.write_text(whole[:count])
        left = store.Store(tmp_path)
        runs = sum(part.runs for part in left.missing(job(store)))
        assert runs + len(left.runs) == 4


def test_no_number_is_kept_as_such(tmp_path):
    store = rules("store")
    values = found(0.1) | {"accuracy": np.array([[1.0, np.nan], [2.0, np.inf]])}
    store.Store(tmp_path).add(store.as_runs(job(store), values, 8.0, None))
    text = (tmp_path / "digits.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    runs = store.Store(tmp_path).runs.values()
    assert sum(np.isnan(run.metrics["accuracy"]) for run in runs) == 2


def test_methods_can_be_made_fresh(tmp_path):
    store = rules("store")
    place = store.Store(tmp_path)
    for method in ("BB", "BB, out", "random"):
        place.add(store.as_runs(job(store, method=method), found(0.1), 8.0, None))
    assert place.drop("^BB", ["mnist"]) == 0
    assert place.drop("^BB", ["digits"]) == 8
    left = store.Store(tmp_path)
    assert {run.key.method for run in left.runs.values()} == {"random"}
    assert [path.name for path in tmp_path.iterdir()] == ["digits.jsonl"]


def test_a_stopped_benchmark_goes_on(tmp_path, monkeypatch):
    main, store = rules("__main__"), rules("store")
    console = main.Console(quiet=True)
    done = []

    class Stub(main.Runner):
        def do(self, job):
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(job.method)
            self.store.add(store.as_runs(job, found(0.1), 8.0, None))

    jobs = [job(store, method=method) for method in "abcd"]
    with pytest.raises(KeyboardInterrupt):
        main.work(jobs, Stub(store.Store(tmp_path), None), console)
    monkeypatch.setattr(Stub, "do", lambda self, job: done.append(job.method))
    main.work(jobs, Stub(store.Store(tmp_path), None), console)
    assert done == list("abcd")


def test_main_contenders_come_first_on_all_tasks():
    plan, methods = rules("plan"), rules("methods")
    assert set(methods.MAIN) | set(methods.FACTOR_METHODS) < set(methods.METHODS)
    assert sorted(plan.ordered()) == sorted(methods.METHODS)
    assert plan.ordered()[: len(methods.MAIN)] == list(methods.MAIN)


def test_missing_data_are_told(tmp_path):
    plan, data = rules("plan"), rules("data")
    assert plan.possible(None, None) == ("digits",)
    assert plan.possible(None, tmp_path) == tuple(plan.TASKS)
    with pytest.raises(SystemExit, match="expected --data for mnist, got none; pass"):
        plan.possible(["digits", "mnist"], None)
    with pytest.raises(SystemExit, match="found none; pass with --data the folder"):
        data.mnist(tmp_path)


# Tasks -------------------------------------------------------------------------------
def test_class_sizes_fall_fiftyfold():
    data = rules("data")
    sizes = data.class_sizes()
    assert sizes[0] == 1000 and sizes[-1] == 20 and (np.diff(sizes) < 0).all()
    np.testing.assert_allclose(sizes[1:] / sizes[:-1], 50 ** (-1 / 9), rtol=0.03)
    labels = np.repeat(np.arange(10), 1500)
    rarest = []
    for seed in range(8):
        samples, tail = data.draw_tail(labels, seed)
        counts = np.bincount(labels[samples], minlength=10)
        assert len(samples) == len(set(samples)) == sizes.sum()
        assert sorted(counts) == sorted(sizes)
        assert sorted(counts[tail]) == sorted(sizes[-3:])
        rarest.append(int(tail[-1]))
    assert len(set(rarest)) > 2  # no property of one digit


def test_tail_accuracy_by_hand():
    data = rules("data")
    y = np.array([0, 0, 0, 1, 1, 2])
    logits = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 0, 2]]
    found = data.balanced(logits, y, np.array([1, 2], np.int32))
    np.testing.assert_allclose(found["balanced accuracy"], 250 / 3, rtol=1e-6)
    np.testing.assert_allclose(found["tail accuracy"], 75, rtol=1e-6)


def test_rare_characters_by_hand():
    text = rules("text")
    logits = np.log(np.array([[0.5, 0.5], [0.5, 0.5], [0.75, 0.25]], np.float32))
    found = text.nats(logits, np.array([0, 0, 1]), np.array([False, True]))
    np.testing.assert_allclose(found["rare nats"], np.log(4), rtol=1e-6)
    np.testing.assert_allclose(found["nats"], np.log(16) / 3, rtol=1e-6)


def test_log_mel_of_a_tone():
    speech = rules("speech")
    seconds = np.arange(4000) / speech.RATE
    low, high = (speech.spectrum(np.sin(2 * np.pi * f * seconds)) for f in (300, 2500))
    assert low.shape == high.shape == (32, 12) and np.isfinite(low).all()
    assert low[5].argmax() < high[5].argmax()
    # Behind the recording there is silence; a longer one is cut.
    np.testing.assert_allclose(low[-1], np.log(speech.FLOOR), rtol=1e-6)
    assert speech.spectrum(np.ones(50_000)).shape == (32, 12)


@needs_data
@pytest.mark.parametrize("name", ["mnist", "longtail", "speech", "text"])
def test_tasks_have_the_shapes_they_say(name):
    plan, data = rules("plan"), rules("data")
    task = plan.TASKS[name](DATA)
    assert task.name == name and task.densities == plan.DENSITIES[name]
    assert len(task.train_x) == len(task.train_y)
    inputs = task.train_x.shape[1]
    if task.embedding is None:
        assert inputs == task.sizes[0] and abs(task.train_x.mean()) < 0.01
    else:
        assert inputs * task.embedding[1] == task.sizes[0]
    assert task.train_y.max() + 1 == task.sizes[-1]
    samples, known = task.samples(0)
    logits = np.zeros((len(task.test_y), task.sizes[-1]), np.float32)
    assert list(task.measure(logits, task.test_y, known)) == list(data.METRICS[name])
    assert samples.max() < len(task.train_y)


# All of it ---------------------------------------------------------------------------
@pytest.mark.slow
def test_rules_on_digits(tmp_path):
    equal = r"equal degrees \(magnitude, unit\)"
    only = f"^({equal}|priced at 1|RigL|SNIP|{equal}, once|SparseGPT, once)$"
    options = ["--seeds", "2", "--steps", "40", "--only", only, "--out", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.rules", *options]
    subprocess.run(command, cwd=ROOT, check=True)
    lines = (tmp_path / "rules" / "digits.jsonl").read_text().splitlines()
    runs = [json.loads(line) for line in lines]
    assert len(runs) == 2 + 6 * 3 * 2  # dense, and six methods at three densities
    for run in runs:
        assert abs(run["kept"] - run["density"]) < 1e-3
        assert run["metrics"]["accuracy"] > 5
    # A second call repeats nothing.
    subprocess.run(command, cwd=ROOT, check=True)
    again = (tmp_path / "rules" / "digits.jsonl").read_text().splitlines()
    assert again == lines
    report = json.loads((tmp_path / "rules.json").read_text())
    assert len(report["families"]["trained"]["ranks"]["mean"]) == 4
    assert report["machine"]["jax"] and report["runs"] == len(runs)
    assert (tmp_path / "rules.png").stat().st_size > 1000
