"""Spoiled test images: the images, runs that are kept, differences and verdicts."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
for needed in ("matplotlib", "rich", "scipy", "sklearn"):
    pytest.importorskip(needed)

from benchmarks.common import lines  # noqa: E402
from benchmarks.common.laws import standardized  # noqa: E402
from benchmarks.common.measure import RESULTS  # noqa: E402
from benchmarks.common.stats import Difference  # noqa: E402
from benchmarks.common.text import BEGIN, END  # noqa: E402
from benchmarks.corruptions import __main__ as command  # noqa: E402
from benchmarks.corruptions import corrupt, judge, methods, page, runs  # noqa: E402
from benchmarks.corruptions.images import mnist  # noqa: E402
from benchmarks.corruptions.nets import NETS  # noqa: E402

CELLS = (corrupt.CLEAN, *corrupt.CELLS)
kinds = pytest.mark.parametrize("kind", corrupt.STRENGTHS)
ABOVE, LEVEL, BELOW = (
    Difference(mean, 0.1, p) for mean, p in ((1, 0), (0, 1), (-1, 0))
)


@pytest.fixture
def images():
    return np.random.default_rng(0).standard_normal((6, 8, 8, 1)).astype(np.float32)


# Corruptions ------------------------------------------------------------------
@kinds
def test_a_corruption_keeps_shape_and_type_and_its_draws(images, kind):
    before = images.copy()
    spoiled = corrupt.corrupted(images, kind, 0.5, draw=3)
    assert spoiled.shape == images.shape and spoiled.dtype == np.float32
    np.testing.assert_array_equal(spoiled, corrupt.corrupted(images, kind, 0.5, 3))
    np.testing.assert_array_equal(images, before)
    other = corrupt.corrupted(images, kind, 0.5, draw=4)
    drawn = kind not in ("blur", "contrast")
    assert np.array_equal(spoiled, other) != drawn


@kinds
def test_draws_belong_to_an_image_and_not_to_its_batch(images, kind):
    bounds = np.array([images.min(), images.max()]).reshape(2, 1, 1, 1)
    ends = np.broadcast_to(bounds, (2, 8, 8, 1)).astype(np.float32)  # black and white
    some = corrupt.corrupted(np.concatenate([images[:2], ends]), kind, 0.5, 0)
    every = corrupt.corrupted(np.concatenate([images, ends]), kind, 0.5, 0)
    np.testing.assert_allclose(some[:2], every[:2], rtol=1e-6)


@kinds
def test_stronger_is_further_from_clean(images, kind):
    strengths = (0, *corrupt.STRENGTHS[kind])
    away = [
        np.mean((corrupt.corrupted(images, kind, s, 0) - images) ** 2, axis=(1, 2, 3))
        for s in strengths
    ]
    assert not away[0].any()
    assert away[0].sum() < away[1].sum() < away[2].sum()


def test_an_unknown_corruption_is_refused(images):
    with pytest.raises(ValueError, match="expected a corruption of .*'fog'; pass one"):
        corrupt.corrupted(images, "fog", 1.0, 0)


def test_cells_are_named_and_all_there(images):
    found = dict(corrupt.all_cells(images, 0))
    assert tuple(found) == CELLS and len(CELLS) == 11
    np.testing.assert_array_equal(found["clean"], images)


# Images, nets, methods --------------------------------------------------------
def test_mnist_is_pooled_and_standardised(shared_data):
    data = mnist(shared_data)
    assert data.train_x.shape == (10_000, 14, 14, 1) and data.test_x.shape[0] == 2_000
    np.testing.assert_allclose(data.train_x.mean(), 0, atol=1e-4)
    np.testing.assert_allclose(data.train_x.std(), 1, rtol=1e-4)
    assert set(data.test_y) == set(range(10))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(SystemExit, match="expected train-images.*with --data"):
        mnist(tmp_path)
    with pytest.raises(SystemExit, match="expected --data.*or --nets demo"):
        NETS["residual"].data(None)


@pytest.mark.long
@pytest.mark.usefixtures("lenient")
def test_units_of_the_residual_net_stand_behind_its_norms():
    net = NETS["residual"]
    x, y = np.zeros((2, 14, 14, 1), np.float32), np.zeros(2, np.int32)
    units = net.trace(type(NETS["demo"].data(None))(x, y, x, y))
    assert set(net.pruned) < set(units)
    for path in ("stem/kernel", "down/kernel", "first/kernel", "dense/kernel"):
        assert units[path].nonlinearity == "relu"
    params, state = net.initial(0)
    _, new = net.loss(params, state, x + 1, y)
    assert not np.array_equal(
        new["stem_norm"]["mean"], state["stem_norm"]["mean"]
    )  # running statistics move in training


def test_the_earlier_law_has_degrees_that_vary_as_much_as_their_mean():
    law = standardized()
    rates = np.array([0.1, 0.2, 0.4, 0.7], np.float32)
    profile = np.asarray(law.profile(rates, np.float32(8)))
    np.testing.assert_allclose(profile.std(), 8, rtol=1e-2)
    assert (np.diff(profile) < 0).all()
    level = law.profile(np.array([0.5, 0.501], np.float32), np.float32(8))
    assert np.std(level) < 0.2  # noise is not blown up


# Runs that are kept -----------------------------------------------------------
class Fake:
    """A bench that trains nothing and remembers what it was asked."""

    asked: list = []

    def __init__(self, net, data, steps):
        self.net = net.key

    def run(self, method, seed):
        self.asked.append((self.net, method, seed))
        rng = np.random.default_rng((len(method), seed))
        accuracy = {cell: float(rng.uniform(50, 90)) for cell in CELLS}
        return {"accuracy": accuracy, "kept": 0.05, "seconds": 1.0}


@pytest.mark.long
def test_a_stopped_benchmark_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "Bench", Fake)
    monkeypatch.setattr(Fake, "asked", [])
    options = ["--steps", "7", "--nets", "demo", "--out", str(tmp_path)]
    command.main([*options, "--seeds", "1"])
    assert Fake.asked == [("demo", m, 100) for m in methods.METHODS]
    command.main([*options, "--seeds", "2"])
    assert [seed for *_, seed in Fake.asked] == [100] * 9 + [101] * 9
    path = tmp_path / "corruptions.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])  # stopped while it wrote
    command.main([*options, "--seeds", "2"])
    assert Fake.asked[18:] == [Fake.asked[17]] and path.read_bytes() == whole
    command.main([*options, "--report"])
    assert len(Fake.asked) == 19
    line = json.loads(path.read_text().splitlines()[0])
    assert line["commit"] and line["place"] and line["steps"] == 7
    report = json.loads((tmp_path / "corruptions.json").read_text())
    assert report["nets"]["demo"]["seeds"] == [100, 101] and report["seconds"] == 18
    assert report["machine"]["jax"] and report["versions"]["bbjax"]
    assert (tmp_path / "corruptions.png").exists()
    assert page.results(report).count("cannot be decided") == 11


def test_runs_of_other_settings_do_not_count(tmp_path):
    path = tmp_path / "runs.jsonl"
    run = {"net": "demo", "method": "dense", "accuracy": dict.fromkeys(CELLS, 1.0)}
    runs.opened(path, {"steps": 3}).add(run | {"seed": 0})
    again = runs.opened(path, {"steps": 4})
    assert again.others == 1 and ("demo", "dense", 0) not in again
    again.add(run | {"seed": 1})
    assert len(path.read_text().splitlines()) == 2
    assert ("demo", "dense", 1) in runs.opened(path, {"steps": 4})


def test_a_broken_line_inside_the_file_is_an_error(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"a": \n{"b": 1}\n')
    with pytest.raises(ValueError, match="line 1: expected JSON.*delete the line"):
        lines.read(path)


def test_trials_are_no_results():
    with pytest.raises(SystemExit):
        command.parsed(["--steps", "40"])


def test_nothing_to_report_is_said(tmp_path):
    with pytest.raises(SystemExit, match="expected a seed with all 9 methods"):
        command.main(["--report", "--out", str(tmp_path)])


# Statistics -------------------------------------------------------------------
def test_differences_by_hand():
    one = {cell: [5.0, 5.0, 5.0] for cell in CELLS} | {"blur 1": [2.0, 4.0, 6.0]}
    other = {cell: [5.0, 5.0, 5.0] for cell in CELLS} | {"blur 1": [1.0, 2.0, 3.0]}
    one["clean"] = [6.0, 7.0, 8.0]
    found = judge.gaps(one, other)
    # Differences 1, 2, 3: mean 2, error 1 / sqrt 3, t = 3.464, 2 degrees of freedom.
    for cell, p in (("clean", 0.0742), ("blur 1", 10 * 0.0742)):
        np.testing.assert_allclose(found[cell][:2], (2, 0.5774), rtol=1e-3)
        np.testing.assert_allclose(found[cell].p, p, rtol=1e-3)
    assert found["blur 0.7"] == (0, 0, 1)


def test_only_seeds_with_every_method_count():
    accuracy = dict.fromkeys(CELLS, 1.0)
    lines = [
        {"net": "demo", "method": method, "seed": seed, "accuracy": accuracy}
        for seed in (101, 100, 102)
        for method in methods.METHODS
    ][:-1]
    assert judge.accuracies(lines)["demo"]["seeds"] == [100, 101]


def gaps(**cells):
    """Level everywhere, but in the corruptions given: weak and strong."""
    found = dict.fromkeys(CELLS, LEVEL)
    for kind, both in cells.items():
        found |= dict(zip(judge._cells(kind), both, strict=True))
    return found


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((ABOVE, ABOVE), (ABOVE, ABOVE), "holds"),
        ((ABOVE, ABOVE), (ABOVE, LEVEL), "holds weakly"),
        ((LEVEL, ABOVE), (LEVEL, LEVEL), "holds weakly"),
        ((LEVEL, ABOVE), (BELOW, LEVEL), "does not hold"),
        ((LEVEL, LEVEL), (ABOVE, ABOVE), "does not hold"),
    ],
)
def test_verdicts_under_noise(first, second, expected):
    question = judge.QUESTIONS[0]
    found = {"equal": gaps(gaussian=first), "layer": gaps(gaussian=second)}
    assert question.name == "Q1"
    assert judge.verdict(question, found, 20) == expected
    assert judge.verdict(question, found, 4) == "cannot be decided"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({}, {}, "holds"),
        ({}, {"blur": (LEVEL, LEVEL)}, "holds weakly"),
        ({"blur": (LEVEL, LEVEL), "contrast": (LEVEL, LEVEL)}, {}, "holds weakly"),
        ({"blur": (BELOW, ABOVE)}, {}, "does not hold"),
        ({}, {"blur": (BELOW, ABOVE)}, "holds weakly"),
        ({k: (LEVEL, LEVEL) for k in judge.OTHERS[1:]}, {}, "does not hold"),
    ],
)
def test_verdicts_under_other_corruptions(first, second, expected):
    question, won = judge.QUESTIONS[1], dict.fromkeys(judge.OTHERS, (LEVEL, ABOVE))
    found = {"equal": gaps(**won | first), "layer": gaps(**won | second)}
    assert question.name == "Q2"
    assert judge.verdict(question, found, 20) == expected


# The whole --------------------------------------------------------------------
@pytest.mark.long
def test_the_readme_says_what_was_measured():
    text = page.README.read_text()
    assert BEGIN in text and END in text
    saved = RESULTS / "corruptions.json"
    if not saved.exists():
        pytest.skip("no results yet")
    part = text.split(BEGIN, 1)[1].split(END, 1)[0].strip()
    assert part == page.results(json.loads(saved.read_text())).strip()


@pytest.mark.slow
def test_a_tiny_run(tmp_path, shared_data):
    options = ["--data", shared_data, "--seeds", "1", "--steps", "40"]
    call = [sys.executable, "-m", "benchmarks.corruptions", *options, "--out", tmp_path]
    subprocess.run(call, cwd=ROOT, check=True, capture_output=True, timeout=1200)
    found = lines.read(tmp_path / "corruptions.jsonl")
    assert len(found) == 18
    for line in found:
        kept = 1 if line["method"] == "dense" else 0.05
        np.testing.assert_allclose(line["kept"], kept, atol=1e-3)
        assert all(0 < a <= 100 for a in line["accuracy"].values())
