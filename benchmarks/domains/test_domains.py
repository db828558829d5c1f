"""The experiments on real data: what they share, their metrics, and small real runs."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

ROOT = Path(__file__).resolve().parents[2]
for needed in ("grain", "jiwer", "matplotlib", "rich", "scipy", "sklearn", "soundfile"):
    pytest.importorskip(needed)

from benchmarks.common.lines import Lines  # noqa: E402
from benchmarks.common.text import BEGIN, END  # noqa: E402
from benchmarks.domains import __main__ as command  # noqa: E402
from benchmarks.domains.attention import run as attention  # noqa: E402
from benchmarks.domains.common import instruments, judge, methods, page  # noqa: E402
from benchmarks.domains.common.experiment import (  # noqa: E402
    DENSE,
    Case,
    Experiment,
    Metric,
    Runs,
    grid,
)
from benchmarks.domains.common.training import (  # noqa: E402
    Problem,
    Schedule,
    Trainer,
)

# Benchmarks add arrays of different ranks, as users do.
pytestmark = pytest.mark.usefixtures("lenient")
METRICS = {"up": Metric("up"), "down": Metric("down", higher=False)}
names = pytest.mark.parametrize("name", page.NAMES)


def line(method, density, seed, **numbers):
    return {"method": method, "density": density, "seed": seed} | numbers


# Runs and verdicts --------------------------------------------------------------------
def test_runs_are_paired_by_seed():
    runs = Runs(
        [
            line("a", 0.5, 2, up=3.0),
            line("a", 0.5, 0, up=1.0, code={"entropy": 0.5}),
            line("b", 0.5, 0, up=5.0),
            line("b", 0.5, 1, up=6.0),
        ],
        METRICS,
    )
    assert runs.values("up", "a", 0.5).tolist() == [1, 3]
    one, other = runs.paired("up", Case("a", 0.5), Case("b", 0.5))
    assert one.tolist() == [1] and other.tolist() == [5]
    np.testing.assert_array_equal(runs.values("code.entropy", "a", 0.5), [0.5, np.nan])
    assert len(runs) == 4 and not len(runs.values("up", "none"))


def compare(metric, one, other, seeds=8):
    noise = np.random.default_rng(0).normal(0, 0.01, seeds)
    lines = [line("one", 0.5, s, **{metric: one}) for s in range(seeds)]
    lines += [line("other", 0.5, s, **{metric: other + noise[s]}) for s in range(seeds)]
    cases = Case("one", 0.5), [Case("other", 0.5)]
    return judge.better(Runs(lines, METRICS), "?", metric, *cases).verdict


def test_better_is_as_the_metric_has_it():
    assert compare("up", 2.0, 1.0) == compare("down", 1.0, 2.0) == "holds"
    assert compare("up", 1.0, 2.0) == compare("down", 2.0, 1.0) == "does not hold"
    assert compare("up", 1.0, 1.0) == "does not hold"
    assert compare("up", 1.0, 1.0, seeds=7) == "cannot be decided"
    assert compare("up", 2.0, 1.0, seeds=3) == "holds"
    assert compare("up", 2.0, 1.0, seeds=2) == "cannot be decided"


def test_level_is_nowhere_worse_by_more_than_a_margin():
    def verdict(one, noise, seeds=4):
        rng = np.random.default_rng(1)
        lines = [line("a", 0.5, s, up=one + noise * rng.normal()) for s in range(seeds)]
        lines += [line("b", 0.5, s, up=0.0) for s in range(seeds)]
        question = judge.Question("?", "up", Case("a", 0.5), (Case("b", 0.5),))
        return judge.level(Runs(lines, METRICS), question, margin=1.0).verdict

    assert verdict(-0.5, 0.01) == "holds" and verdict(3.0, 0.01) == "holds"
    assert verdict(-2.0, 0.01) == "does not hold"
    assert verdict(0.0, 5.0) == verdict(0.0, 0.01, seeds=2) == "cannot be decided"


def test_level_takes_less_as_better_where_it_is_and_skips_missing_numbers():
    values = [(10.2, 10.0), (10.4, 10.0), (10.3, 10.0), (10.1, None)]
    lines = [line("a", 0.5, s, down=one) for s, (one, _) in enumerate(values)]
    lines += [line("b", 0.5, s, down=two) for s, (_, two) in enumerate(values)]
    question = judge.Question("?", "down", Case("a", 0.5), (Case("b", 0.5),))
    found = judge.level(Runs(lines, METRICS), question, margin=1.0)
    # .3 worse, sd .1, t of 2 degrees 4.303: half a width of .248.
    assert found.verdict == "holds" and "-0.55 to -0.05" in found.number
    tight = judge.level(Runs(lines, METRICS), question, margin=0.5)
    assert tight.verdict == "does not hold"


def test_pairs_without_a_number_do_not_count():
    lines = [line("a", 0.5, s, up=1.0) for s in range(9)]
    lines += [line("b", 0.5, s) for s in range(9)]
    cases = Case("a", 0.5), [Case("b", 0.5)]
    found = judge.better(Runs(lines, METRICS), "?", "up", *cases)
    assert found.verdict == "cannot be decided" and "0 paired" in found.number


def test_better_than_the_first_and_worse_than_none_holds_weakly():
    rng = np.random.default_rng(0)
    values = {"one": 2.0, "below": 1.0, "level": 2.0, "above": 3.0}
    lines = [
        line(name, 1.0, seed, up=value + 0.01 * rng.normal())
        for name, value in values.items()
        for seed in range(5)
    ]
    runs = Runs(lines, METRICS)

    def verdict(*others):
        cases = [Case(name) for name in others]
        return judge.better(runs, "?", "up", Case("one"), cases).verdict

    assert verdict("below") == "holds"
    assert verdict("below", "level") == "holds weakly"
    assert verdict("level", "below") == "cannot be decided"
    assert verdict("below", "above") == "does not hold"


def test_traffic_predicts_information_by_a_rising_line():
    def runs(slope):
        code = [
            {"traffic": t, "power": -t, "information": slope * t / 9 + seed}
            for t in range(4)
            for seed in range(3)
        ]
        lines = [line(f"m{i // 3}", 0.5, i % 3, code=c) for i, c in enumerate(code)]
        return Runs(lines, METRICS)

    assert judge.codes(runs(2.0), "a", (), 0.5)[2].verdict == "holds"
    assert judge.codes(runs(-2.0), "a", (), 0.5)[2].verdict == "does not hold"


def test_information_at_the_ceiling_of_its_estimate_decides_nothing():
    most = float(np.log(instruments.SAMPLES))

    def verdict(level):
        lines = [
            line(f"m{i}", 0.5, s, code={"traffic": i, "power": i, "information": level})
            for i in range(4)
            for s in range(3)
        ]
        for one in lines:
            one["code"]["information"] += 1e-3 * one["code"]["traffic"]
        return judge.codes(Runs(lines, METRICS), "a", (), 0.5)[2].verdict

    assert verdict(most - 2) == "holds" and verdict(most - 0.5) == "cannot be decided"


def test_the_price_on_fan_out_is_judged_beside_activity_as_steep():
    def verdict(steep):
        lines = [
            line(name, 0.5, s, up=value + 0.01 * s)
            for name, value in ((methods.STEEP, steep), (methods.ACTIVITY, 1.0))
            for s in range(8)
        ]
        return judge.fan_out(Runs(lines, METRICS), "up", 0.5).verdict

    assert verdict(2.0) == "holds" and verdict(0.5) == "does not hold"


# Instruments --------------------------------------------------------------------------
def test_numbers_of_a_layer_by_hand():
    values = jnp.array([[1.0, 0.0], [0.0, 0.0], [1.0, 2.0], [0.0, 0.0]])
    maker = jnp.array([[1.0, 0.0], [1.0, 1.0]])  # fan-in 2 and 1
    reader = jnp.array([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])  # fan-out 1 and 3
    found = instruments.measure([instruments.of_dense(values, maker, reader)], 0)
    # On-rates 1/2 and 1/4, kept shares 3/5 and 4/5.
    assert found["traffic"] == pytest.approx((0.5 * 0.6 + 0.25 * 0.8) / 2)
    entropy = (1 + 0.25 * 2 + 0.75 * np.log2(4 / 3)) / 2
    assert found["entropy"] == pytest.approx(entropy, abs=1e-4)
    correlation = np.corrcoef(np.asarray(values).T)[0, 1]
    assert found["correlation"] == pytest.approx(abs(correlation), abs=1e-4)
    # Its own noise has twice its spread; with half of it the power is four times that.
    assert found["power"] == pytest.approx(0.25)
    half = [found["noise"][0] / 2]
    again = instruments.measure(
        [instruments.of_dense(values, maker, reader)], 0, noise=half
    )
    assert again["power"] == pytest.approx(1.0, rel=1e-3)
    assert again["information"] > found["information"]


@pytest.mark.parametrize("window", [(3, 3), (1, 1), (1, 3, 3)], ids=str)
def test_patches_times_the_reader_are_the_convolution(window):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, *(5,) * len(window), 4)).astype(np.float32)
    reader = rng.normal(size=(*window, 4, 6)).astype(np.float32)
    layer = instruments.of_convolution(values, np.ones((*window, 3, 4)), reader)
    space = "DHW"[-len(window) :]
    numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
    expected = jax.lax.conv_general_dilated(
        values, reader, (1,) * len(window), "SAME", dimension_numbers=numbers
    ).reshape(-1, 6)
    np.testing.assert_allclose(layer.seen @ layer.reader, expected, atol=1e-4)
    np.testing.assert_allclose(layer.values, values.reshape(-1, 4), atol=1e-6)
    np.testing.assert_allclose(layer.share, 1)


# Training -----------------------------------------------------------------------------
def small_problem(steps=12):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 12)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int32)

    def init(key):
        one, two = jax.random.split(key)
        up = 0.3 * jax.random.normal(one, (12, 20))
        return {"up": up, "down": 0.3 * jax.random.normal(two, (20, 2))}, {}

    def loss(params, rest, batch, key):
        hidden = jax.nn.relu(batch[0] @ params["up"])
        wrong = optax.softmax_cross_entropy_with_integer_labels
        return wrong(hidden @ params["down"], batch[1]).mean(), rest

    def layers(params, rest):
        values = jax.nn.relu(x @ params["up"])
        return [instruments.of_dense(values, params["up"], params["down"])]

    def batches(seed):
        order = np.random.default_rng(seed)
        for _ in range(steps):
            rows = order.integers(0, 64, 16)
            yield x[rows], y[rows]

    return Problem(
        init,
        loss,
        batches,
        steps,
        lambda: optax.adam(1e-2),
        {"in": "up", "out": "down"},
        Schedule(every=2, start=2, regrow=True),
        lambda params, rest: {"up": float(jnp.sum(params["up"] != 0))},
        layers,
    )


@pytest.fixture(scope="module")
def trainer():
    return Trainer(small_problem())


@pytest.mark.sampled(4)
@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_keeps_the_same_edges(trainer, method):
    dense = trainer.run(Case(DENSE), 0, {})
    found = trainer.run(Case(method, 0.3), 0, {Case(DENSE): dense})
    out = methods.METHODS[method].actuator == "out"
    size = 40 if out else 240
    assert found["edges"][1] == size and dense["edges"] == [0, 0]
    # A whole unit has 12 edges: as many as come nearest.
    assert found["edges"][0] == round(0.3 * size)
    assert found["up"] == (240 if out else 72)
    assert found["code"]["noise"] == pytest.approx(dense["code"]["noise"], rel=1e-4)


def test_a_method_is_compiled_once_for_all_densities_and_seeds(trainer):
    step = trainer._compiled("BB, fan-in")[1]
    for density, seed in ((0.3, 0), (0.5, 1), (0.5, 0)):
        trainer.run(Case("BB, fan-in", density), seed, {})
    assert step._cache_size() == 1


def test_runs_can_be_repeated_and_seeds_differ(trainer):
    one, again, other = (
        trainer.run(Case("magnitude, unit", 0.5), seed, {}) for seed in (0, 0, 1)
    )
    assert one["loss"] == again["loss"] != other["loss"]


def test_regrowth_is_the_only_difference():
    plain, regrown = (
        methods.method("BB, fan-in"),
        methods.method("BB, fan-in, regrowth"),
    )
    assert regrown.regrow and plain.regrow is None and regrown.make is plain.make
    with pytest.raises(KeyError):
        methods.method("nothing")


# The command --------------------------------------------------------------------------
@pytest.fixture
def fake(monkeypatch):
    """An experiment whose runs are counted."""
    asked = []

    def bench(folder, small):
        def run(case, seed, earlier):
            asked.append((case, seed, len(earlier)))
            return {"up": case.density + seed, "edges": [5, 10]}

        return run

    made = Experiment(
        name="faces",
        title="fake",
        claim="C0",
        cases=grid(["a", "b"], [0.5, 0.25]),
        metrics={"up": Metric("up")},
        bench=bench,
        judge=lambda runs: [
            judge.better(runs, "a over b", "up", Case("a", 0.5), [Case("b", 0.5)])
        ],
    )
    monkeypatch.setattr(command, "load", lambda name: made)
    return asked


def call(tmp_path, *more):
    command.main(["faces", "--data", str(tmp_path), "--out", str(tmp_path), *more])


def test_a_stopped_experiment_goes_on_where_it_was(tmp_path, fake):
    call(tmp_path, "--seeds", "2")
    assert [(c.method, c.density, s) for c, s, _ in fake][:4] == [
        ("dense", 1, 0),
        ("dense", 1, 1),
        ("a", 0.5, 0),
        ("a", 0.5, 1),
    ]
    assert len(fake) == 10 and [n for *_, n in fake][:4] == [0, 0, 1, 1]
    path = tmp_path / "faces.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])  # was being written
    call(tmp_path, "--seeds", "2")
    assert len(fake) == 11 and fake[-1][:2] == (Case("b", 0.25), 1)
    call(tmp_path, "--seeds", "3")
    assert len(fake) == 16
    call(tmp_path, "--report")
    assert len(fake) == 16
    call(tmp_path / "again", "--seeds", "4")
    seeds = [seed for _, seed, _ in fake[16:]]
    assert seeds == [0, 1, 2] * 5 + [3] * 5
    report = json.loads((tmp_path / "faces.json").read_text())
    assert report["runs"] == 15 and (tmp_path / "faces.png").exists()
    assert report["verdicts"][0][1] == "cannot be decided"
    assert "5 of 10" in report["tables"]


def test_a_budget_stops_before_the_next_run(tmp_path, fake):
    call(tmp_path, "--budget", "1e-9")
    assert len(fake) == 1  # nothing is known of a run's time before the first
    call(tmp_path, "--budget", "1e-9")
    assert len(fake) == 1
    call(tmp_path, "--budget", "9", "--seeds", "1")
    assert len(fake) == 5


def test_trials_and_missing_data_are_refused(tmp_path, fake, capsys):
    with pytest.raises(SystemExit):
        command.main(["faces", "--small", "--data", str(tmp_path)])
    assert "expected --out with --small" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["faces"])
    assert "expected --data" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="expected runs in"):
        call(tmp_path, "--report")


@names
def test_an_experiment_is_whole(name):
    """Named as its folder, judged without runs, cases told apart, a README."""
    experiment = command.load(name)
    assert experiment.name == name and len(set(experiment.cases)) == len(
        experiment.cases
    )
    verdicts = experiment.judge(Runs([], experiment.metrics))
    assert {v.verdict for v in verdicts} == {"cannot be decided"}
    text = (page.FOLDER / name / "README.md").read_text()
    assert f"python -m benchmarks.domains {name} --data FOLDER" in text
    assert "## Protocol" in text.split(BEGIN)[0]


@names
def test_pages_say_what_the_results_say(name):
    saved = page.RESULTS / "domains" / f"{name}.json"
    text = (page.FOLDER / name / "README.md").read_text()
    if not saved.exists():
        pytest.skip("no results yet")
    part = text.split(BEGIN, 1)[1].split(END, 1)[0].strip()
    assert part == page.results(json.loads(saved.read_text())).strip()
    front = (page.FOLDER / "README.md").read_text()
    assert page.overview() in front


@names
def test_results_are_what_the_runs_and_the_code_say(name):
    experiment = command.load(name)
    path = page.RESULTS / "domains" / f"{name}.json"
    if not path.exists():
        pytest.skip("no results yet")
    held = {"small": False, "protocol": experiment.protocol}
    store = Lines(path.with_suffix(".jsonl"), ("method", "density", "seed"), held)
    made = page.made(experiment, Runs(store.runs, experiment.metrics))
    report = json.loads(path.read_text())
    assert {key: report.get(key) for key in made} == json.loads(json.dumps(made))


@names
def test_missing_files_are_named(name, tmp_path):
    experiment = command.load(name)
    with pytest.raises(SystemExit, match="expected the data set's file .*--data"):
        experiment.bench(tmp_path, True)(experiment.cases[0], 0, {})


# Metrics of the domains ---------------------------------------------------------------
def test_errors_of_words_by_hand():
    from benchmarks.domains.speech import run
    from benchmarks.domains.speech.data import Speech, Utterance

    words = tuple("ABCDEFGHIJ")
    # A makes up the first fifth of the running words, I and J the last tenth.
    counts = dict(zip(words, (10, 8, 8, 6, 5, 4, 3, 2, 3, 1), strict=True))
    train = [Utterance(np.zeros((9, 40)), (w,) * n) for w, n in counts.items()]
    speech = Speech(train, [], words)
    assert ["".join(b) for b in speech.buckets()] == ["A", "BCDEFG", "IHJ"]
    assert speech.encoded("AJ").tolist()[:5] == [1, 3, 12, 2, 0]
    found = run.scores(["A B C", "J A"], ["A X C C", "A"], speech)
    # One substitution (B), one insertion, one deletion (J) in 5 words.
    assert found["wer"] == pytest.approx(60)
    assert found["head"] == 0  # of two A
    assert found["mid"] == 50 and found["tail"] == 100


def test_equal_error_rate_by_hand():
    from benchmarks.domains.faces.run import equal_error_rate

    people = np.array([0, 0, 1, 1])
    apart = np.array([[1, 0.1], [1, -0.1], [0.1, 1], [-0.1, 1]])
    assert equal_error_rate(apart, people) == 0
    mixed = apart[[0, 2, 1, 3]]
    assert equal_error_rate(mixed, people) > 0.4
    # Angles 0, 10, 30 and 70: the pair of person 0 is 10 apart, that of person 1 is
    # 40. Pairs of two people are 20, 30, 60 and 70 apart: half of the true pairs are
    # refused from 10 to 40, and half of the false ones are accepted at 30.
    angles = np.radians([0, 10, 30, 70])
    embedded = np.stack([np.cos(angles), np.sin(angles)], -1)
    assert equal_error_rate(embedded, people) == pytest.approx(0.5)
    # Straight between the points of the curve: one true pair, then all false ones at
    # once, then the other true pair.
    tied = np.array([[1, 0], [1, 0], [0.0, 1], [0, -1]])
    assert equal_error_rate(tied, np.array([0, 0, 1, 1])) == pytest.approx(1 / 2)


def test_windows_cover_everything_once_in_the_mean():
    from benchmarks.domains.synapses import run

    raw = np.random.default_rng(0).normal(size=(2, 256, 256))
    found = run.slid(lambda parts: parts[..., 0], raw)
    np.testing.assert_allclose(found, raw)
    assert run.windows(256)[-1] + run.WINDOW == 256
    assert run.windows(60) == [0]
    scores = run.scores(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]))
    assert all(value == pytest.approx(100) for value in scores.values())
    # Synapse, other, synapse, other, by falling score.
    scores = run.scores(np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4]))
    assert scores["pr_auc"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert scores["roc_auc"] == pytest.approx(75)
    assert scores["f1"] == pytest.approx(80)
    assert scores["iou"] == pytest.approx(100 * 2 / 3)


def test_nnrelief_keeps_accuracy_by_an_interval():
    from benchmarks.domains.lenet import run

    def verdict(*losses):
        lines = [
            line(f"LeNet-5, {run.RELIEF}", 1, s, dense=98.0, few=few)
            for s, few in enumerate(losses)
        ]
        found = run.judged(Runs(lines, run.METRICS))
        return next(v.verdict for v in found if "LeNet-5: NNrelief keeps" in v.question)

    assert verdict(97.9, 97.8, 97.9) == "holds"
    assert verdict(96.9, 96.8, 96.9) == "does not hold"
    assert verdict(97.9, 97.0, 97.9) == "cannot be decided"
    assert verdict(97.9, 97.8, None) == "cannot be decided"  # never so few weights


def test_a_setting_matters_where_a_value_differs():
    from benchmarks.domains.sensitivity import run

    level = np.array([0.1, -0.1] * 4)  # no difference in the mean of 8 seeds

    def verdict(*gains):
        found = {
            task: {
                run.MIDDLE: np.zeros(8),
                run.MIDDLE._replace(every=5): gain + level,
                run.MIDDLE._replace(every=100): level,
            }
            for task, gain in zip(run.TASKS, gains, strict=True)
        }
        return run._matters(found, "every").verdict

    assert verdict(1, 1) == "holds" and verdict(1, 0) == "holds weakly"
    assert verdict(0, 0) == "does not hold"


def test_ranks_of_whole_programs_are_compared():
    from benchmarks.domains.sensitivity import run

    lanes = np.arange(10) / 100
    levels = np.arange(6.0)[:, None]
    alike = np.stack([levels + lanes, 2 * levels + lanes])
    rank, p = run._rank(alike)
    assert rank == pytest.approx(1) and p == pytest.approx(1 / 720)
    # The lanes alike, the programs not: no evidence from 60 settings as if alone.
    level = np.stack([np.zeros((6, 1)) + lanes] * 2)
    rank, p = run._rank(level)
    assert rank == pytest.approx(1) and p == 1


def test_fingerprints_are_judged_by_pairs_of_seeds():
    from benchmarks.domains.spoken_digits import run

    def verdict(within):
        lines = [
            line(*run.MOST_CUT, s, within=within + 0.01 * s, between=0.5, chance=0.4,
                 named=1.0, named_by_inputs=0.5)
            for s in range(4)
        ]  # fmt: skip
        return run._fingerprints(Runs(lines, run.METRICS), run.MOST_CUT).verdict

    assert verdict(0.7) == "holds" and verdict(0.4) == "does not hold"


def test_pairs_of_the_controls_are_counted():
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (jax.random.normal(k, (2, 16, 4, 8)) for k in keys)
    eye = jnp.broadcast_to(jnp.eye(16), (2, 16, 16))[:, :, None]
    eye = jnp.broadcast_to(eye, (2, 16, 4, 16))
    for name in attention.METHODS:
        # Values that are unit vectors show the weights.
        weights = attention.WAYS[name](0.3)(query, key, eye)
        kept = np.asarray(weights > 0)
        np.testing.assert_array_equal(kept.sum((1, 3)), round(0.3 * 256))
        assert kept.sum(3).min() >= 1  # no query is left alone
    dense = attention.WAYS[DENSE](0.3)(query, key, value)
    assert dense.shape == value.shape


@pytest.mark.long
def test_magnitude_is_given_the_counts_of_nnrelief():
    from benchmarks.domains.lenet import run

    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((240, 28, 28, 1)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 10, 240), jnp.int32)
    setting = run.SETTINGS["LeNet-300-100"]._replace(epochs=1, rounds=2)
    lab = run.Lab(setting, run.Images(x, y, x, y))
    first = lab.init(0)
    _, points = lab.relieved(first, first, 0)
    assert len(points) == 2 and 1 > points[0]["kept"] > points[1]["kept"]
    assert set(points[0]["densities"]) == {f"^dense_{i}/kernel$" for i in range(3)}
    wanted = [point["densities"] for point in points]
    last, matched = lab.matched(first, first, 0, wanted)
    assert [point["densities"] for point in matched] == wanted
    assert len(lab.layers(last)) == 2


def test_pairs_become_fewer_over_half_of_the_training():
    trainer = attention.Trainer(text=None, steps=100)
    ramp = [trainer.ramped(0.1, step) for step in (0, 25, 50, 99)]
    np.testing.assert_allclose(ramp, [1, 0.55, 0.1, 0.1])
    assert trainer.ramped(1.0, 30) == 1


def test_hidden_characters_are_all_that_is_judged():
    text = object.__new__(attention.Text)
    text.alphabet = np.array(list("abc"))
    row = np.array([[0, 1, 2, 0] * 50], np.int32)
    seen, right = np.moveaxis(text.hidden(row, np.random.default_rng(0)), -2, 0)
    away = seen != right
    assert 0.05 < away.mean() < 0.3 and (seen[away] == 3).all()
    np.testing.assert_array_equal(right, row)


def test_factors_of_full_rank_are_the_net():
    from benchmarks.domains.spoken_digits import run

    params = run.Net().init(jax.random.key(0), jnp.ones((1, 20)))["params"]
    kernel = params["hidden_0"]["kernel"]
    u, s, v = jnp.linalg.svd(kernel, full_matrices=False)
    of = run.Factors(params, {"hidden_0": u * s}, {"hidden_0": v})
    whole = of.whole({"hidden_0": jnp.eye(len(s))})
    np.testing.assert_allclose(whole["hidden_0"]["kernel"], kernel, atol=1e-5)
    assert whole["out"] is params["out"]


# Real data ----------------------------------------------------------------------------
def test_an4_is_read_whole(shared_data):
    from benchmarks.domains.speech import data

    speech = data.an4(shared_data / "an4" / "an4_flac.tar", most=24)
    assert len(speech.train) == len(speech.test) == 24
    frames = [u.frames for u in speech.train]
    assert all(f.shape[1] == data.BANDS and np.isfinite(f).all() for f in frames)
    np.testing.assert_allclose([f.mean() for f in frames], 0, atol=1e-3)
    batch = next(data.batches(speech, 0, 1, 4))
    assert batch["frames"].shape[1] in data.FRAMES
    assert (batch["words"][:, 0] == data.BEGIN).all()
    again = next(data.batches(speech, 0, 1, 4))
    np.testing.assert_array_equal(batch["frames"], again["frames"])


def test_folders_of_librispeech_are_read(shared_data):
    from benchmarks.domains.common import recordings

    path = shared_data / "librispeech_subset" / "librispeech_subset.tar"
    found = recordings.librispeech(path, "test-other")
    some = [next(found) for _ in range(3)]
    for utterance in some:
        assert utterance.frames.shape[1] == recordings.BANDS
        assert len(utterance.words) > 1
        assert " ".join(utterance.words).isupper()


def test_faces_are_split_by_image(shared_data):
    from benchmarks.domains.faces import data

    faces = data.orl(shared_data / "faces_orl" / "orl_faces.tar.xz")
    assert faces.train_x.shape == faces.test_x.shape == (200, 56, 46, 1)
    assert np.bincount(faces.train_y).tolist() == [5] * 40
    assert np.bincount(faces.test_y).tolist() == [5] * 40
    np.testing.assert_allclose(faces.test_x.std((1, 2, 3)), 1, rtol=1e-4)
    images, labels = next(data.batches(faces, 0, 1, 8))
    assert images.shape == (8, 56, 46, 1) and labels.dtype == np.int32


def test_unlabelled_pixels_of_the_scenes_do_not_count(shared_data):
    from benchmarks.domains.change import data

    path = shared_data / "change_landsat" / "taizhou_nanjing.npz"
    for scene, changed, same in zip(
        data.landsat(path), (4227, 2363), (17163, 12393), strict=True
    ):
        assert np.sum(scene.label == 1) == changed
        assert np.sum(scene.label == 0) == same
        assert set(np.unique(scene.label)) == {-1, 0, 1}
    before, after, label = next(data.batches(scene, 0, 1, 3))
    assert before.shape == after.shape == (3, data.CROP, data.CROP, 6)
    assert (np.sum(label >= 0, (1, 2)) >= data.FEWEST).all()


def test_folders_of_levir_are_read(shared_data):
    from benchmarks.domains.change import data

    path = shared_data / "change_levir" / "levir_cd_samples.tar"
    found = list(data.levir(path, "test"))
    assert len(found) == 7
    for scene in found:
        assert scene.before.shape == scene.after.shape == (256, 256, 3)
        assert set(np.unique(scene.label)) <= {0, 1}


@pytest.mark.long
def test_sections_are_split_in_depth(shared_data):
    from benchmarks.domains.synapses import data

    train, test = data.vnc(shared_data / "em_vnc" / "vnc_stack1.tar.xz")
    assert train.raw.shape == (15, 256, 256) and test.raw.shape == (4, 256, 256)
    assert 0.003 < train.synapse.mean() < 0.01
    raw, synapse = next(data.batches(train, 0, 1, 4))
    assert raw.shape == (4, *data.CROP, 1) and synapse[1].any() and synapse[3].any()


@pytest.mark.slow
@names
def test_a_small_run_of_an_experiment(name, tmp_path, shared_data):
    options = ["--data", shared_data, "--seeds", "1", "--small", "--out", tmp_path]
    call = [sys.executable, "-m", "benchmarks.domains", name, *options]
    call += ["--budget", "2"]
    subprocess.run(call, cwd=ROOT, check=True, capture_output=True, timeout=1200)
    runs = (tmp_path / f"{name}.jsonl").read_text().splitlines()
    assert runs and (tmp_path / f"{name}.png").exists()
    for run in map(json.loads, runs):
        kept, size = run.get("edges", (0, 0))
        if size:
            assert kept == pytest.approx(run["density"] * size, abs=0.02 * size)
