"""What the claims measure with, against oracles; and that text and numbers agree."""

import json
import math
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb

reports = pytest.importorskip("benchmarks.claims.common.report")
text_of = pytest.importorskip("benchmarks.common.text")
net = pytest.importorskip("benchmarks.claims.common.net")
stats = pytest.importorskip("benchmarks.common.stats")
methods = pytest.importorskip("benchmarks.claims.common.methods")
rare = pytest.importorskip("benchmarks.claims.dnf_rare.task")
rare_run = pytest.importorskip("benchmarks.claims.dnf_rare.run")
witness = pytest.importorskip("benchmarks.claims.dnf_witness.task")
witness_judge = pytest.importorskip("benchmarks.claims.dnf_witness.judge")
redraw = pytest.importorskip("benchmarks.claims.dnf_witness.redraw")
fits = pytest.importorskip("benchmarks.claims.xor.fits")
xor = pytest.importorskip("benchmarks.claims.xor.task")
train = pytest.importorskip("benchmarks.claims.common.train")
command = pytest.importorskip("benchmarks.claims.__main__")

ROOT = Path(__file__).resolve().parents[2]


# Benchmarks are run under JAX's own settings.
pytestmark = pytest.mark.usefixtures("lenient")


# Text and numbers ----------------------------------------------------------------
@pytest.mark.parametrize("name", command.CLAIMS)
def test_every_claim_says_what_its_numbers_say(name):
    report = json.loads((reports.PLACE / f"{name}.json").read_text())
    page = reports.readme(name).read_text()
    assert text_of.put_in(page, reports.results(report)) == page
    assert report["seeds"] >= 20 and report["command"] in page
    assert (reports.PLACE / f"{name}.png").exists()
    for _, verdict, number, test in report["verdicts"]:
        assert verdict in stats.VERDICTS and number and test
    for heading in ("## Protocol", "## Results", "## Reading"):
        assert heading in page, heading


def test_the_overview_shows_verdicts_of_every_claim():
    page = (ROOT / "benchmarks/claims/README.md").read_text()
    table = reports.overview(reports.saved())
    assert text_of.put_in(page, table) == page
    assert set(reports.HEADLINES) == set(command.CLAIMS)
    assert all(f"({name}/README.md)" in table for name in command.CLAIMS)


def test_a_part_goes_between_the_marks_and_nowhere_else():
    text = f"a\n{text_of.BEGIN}\nold\n{text_of.END}\nb\n"
    new = text_of.put_in(text, "new")
    assert new == f"a\n{text_of.BEGIN}\nnew\n{text_of.END}\nb\n"
    with pytest.raises(ValueError, match="expected <!-- results -->"):
        text_of.put_in("no marks", "new")


def test_reports_hold_plain_numbers():
    line = stats.Line(1.0, float("nan"), 3)
    held = {"a": np.float32(0.1), "b": [jnp.arange(2)], "c": line, 5: (math.inf,)}
    found = text_of.plain(held)
    assert found == {"a": 0.1, "b": [[0, 1]], "c": [1.0, None, 3], "5": [None]}
    assert json.loads(json.dumps(found)) == found


def test_commands_are_checked(capsys):
    wrong = {"nope": "expected claims out of", "xor --seeds 1": "at least 2 seeds"}
    for line, text in wrong.items():
        with pytest.raises(SystemExit):
            command.main(line.split())
        assert text in capsys.readouterr().err
    assert command.command("xor", 3, True).endswith("xor --seeds 3 --small")


# Statistics ----------------------------------------------------------------------
def test_lines_are_least_squares():
    rng = np.random.default_rng(0)
    x = rng.normal(size=50)
    y = 2 * x + rng.normal(size=50)
    found = stats.line(x, y)
    slope, level = np.polyfit(x, y, 1)
    residual = y - slope * x - level
    assert found.slope == pytest.approx(slope)
    assert found.r2 == pytest.approx(1 - residual.var() / y.var())
    assert math.isnan(stats.line([1, 1, 1], [1, 2, 3]).slope)
    assert math.isnan(stats.line([1, 2], [1, 2]).slope)


def test_differences_are_paired_and_corrected():
    rng = np.random.default_rng(0)
    base = rng.normal(size=20)
    near = base + 0.5 + 0.1 * rng.normal(size=20)
    noise = base + rng.normal(size=20)
    found = stats.differences(near, {"base": base, "noise": noise})
    assert found["base"].mean == pytest.approx((near - base).mean())
    error = (near - base).std(ddof=1) / 20**0.5
    assert found["base"].error == pytest.approx(error)
    assert found["base"].p < 1e-6 < found["noise"].p
    alone = stats.differences(near, {"base": base})["base"].p
    assert found["base"].p == pytest.approx(2 * alone)  # Holm: the smallest of two
    gone = near.copy()
    gone[0] = np.nan
    assert np.isfinite(stats.differences(gone, {"base": base})["base"].mean)


def test_shares_have_wilsons_interval():
    p, n, z = 7 / 20, 20, 1.959964
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert stats.wilson(7, 20) == pytest.approx((middle - half, middle + half))


def test_verdicts_are_one_of_four():
    assert stats.decide("q", "n", "t", holds=True).verdict == "holds"
    assert stats.decide("q", "n", "t", holds=False, weakly=True)[1] == "holds weakly"
    assert stats.decide("q", "n", "t", holds=False).verdict == "does not hold"
    assert stats.undecided("q", "n", "t").verdict == "cannot be decided"


# Methods -------------------------------------------------------------------------
@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_keeps_the_same_number_of_edges(name):
    method = methods.METHODS[name]
    units = train.trace(xor.TASK, (xor.KERNEL, "out"))
    weights, order = train.keys(0)
    settings = {"density": 0.3, "every": 2, "start": 1}
    tx, params = method.optimizer(
        optax.adam(1e-3), units, xor.TASK.init(weights), 0, **settings
    )
    loop = train.Loop(xor.TASK, units, tx, method.needs)
    lane, _ = jax.jit(lambda lane: loop.train(lane, 4, 2))(loop.start(params, order))
    if name == "dense":
        assert (lane.params["layer_1"]["kernel"] != 0).all()
        return
    mask = bb.masks(lane.state)[xor.KERNEL]
    assert int(mask.sum()) == round(0.3 * mask.size)
    assert (lane.params["layer_1"]["kernel"][~mask] == 0).all()


# XOR -----------------------------------------------------------------------------
def test_xor_has_margins_and_balanced_labels(getkey):
    x, y = xor.sample(getkey(), 4000)
    assert float(jnp.abs(x).min()) >= xor.LEAST and float(jnp.abs(x).max()) <= xor.MOST
    assert (y == (x[:, 0] * x[:, 1] < 0)).all()
    assert float(y.mean()) == pytest.approx(0.5, abs=0.05)


def test_fits_find_the_line_of_the_law_that_made_the_degrees():
    rate = np.linspace(0.05, 0.95, 60)
    odds = np.log((1 - rate) / rate)
    by_odds = np.round(40 + odds / 0.1)
    by_tau = np.round(4 / rate)
    found = {
        "rate": np.stack([rate, rate])[:, None, None].repeat(2, 2),
        "degree": np.stack([by_odds, by_tau])[:, None, None].repeat(2, 2),
        "accuracy": np.zeros((2, 1, 2)),
    }
    fitted = fits.fit(found)
    assert fitted["beta"][0, -1, 0] == pytest.approx(0.1, rel=0.01)
    assert fitted["slope"][0, -1, 0] == pytest.approx(0.1, rel=0.01)
    assert fitted["r2"][0, -1, 0] > 0.999 > fitted["r2_tau"][0, -1, 0]
    assert fitted["r2_tau"][1, -1, 0] > 0.999 > fitted["r2"][1, -1, 0]
    assert (fitted["moved"] == 0).all()


# Rare features -------------------------------------------------------------------
def test_bits_have_the_on_rates_of_their_class(getkey):
    x, y = rare.task(0.02).sample(getkey(), 20000)
    np.testing.assert_allclose(x.mean(0), rare.rates(0.02), atol=0.015)
    keys, gates = np.asarray(x)[:, rare.KEYS] > 0, np.asarray(x)[:, rare.GATES] > 0
    np.testing.assert_array_equal(np.asarray(y) > 0, (keys & gates).any(1))


@pytest.mark.parametrize("kind", range(3))
def test_probes_satisfy_what_they_say(getkey, kind):
    true = np.asarray(rare.satisfied(rare.positives(getkey(), 500, 0.02, kind)))
    assert (true.sum(1) == 1).all()
    assert (rare.OF_CLAUSE[true.argmax(1)] == kind).all()
    assert not rare.satisfied(rare.near_misses(getkey(), 500, 0.02, kind)).any()
    assert not rare.satisfied(rare.negatives(getkey(), 500, 0.02)).any()


def test_a_near_miss_is_a_positive_with_its_gate_off(getkey):
    key = getkey()
    whole, near = rare.positives(key, 200, 0.1, 0), rare.near_misses(key, 200, 0.1, 0)
    differ = np.asarray(whole != near)
    assert (differ.sum(1) == 1).all() and differ[:, rare.GATES].sum() == 200


@pytest.mark.long
def test_units_belong_to_the_clause_that_moves_them(getkey):
    def hidden(x):
        clauses = rare.satisfied(x).astype(jnp.float32)
        constant = jnp.ones((len(x), 1))
        return jnp.concatenate([clauses, constant], 1)

    found = rare.detected(hidden, getkey(), 400, 0.05)
    assert found.tolist() == [*rare.OF_CLAUSE.tolist(), -1]


def test_auc_counts_ties_half():
    positive, negative = jnp.array([1.0, 2.0, 2.0]), jnp.array([0.0, 2.0, 3.0, 1.0])
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert float(rare_run.auc(positive, negative)) == pytest.approx(
        float(np.mean(pairs))
    )


# Witness set ---------------------------------------------------------------------
@pytest.mark.long
@pytest.mark.parametrize("clauses", [1, 2, 8])
def test_witnesses_satisfy_one_clause_and_near_misses_none(getkey, clauses):
    x, y = witness.witness_set(getkey(), clauses)
    assert x.shape == (2 * clauses, 3 * clauses)
    true = (np.asarray(x).reshape(2 * clauses, clauses, 3) > 0).all(-1)
    np.testing.assert_array_equal(true[:clauses], np.eye(clauses, dtype=bool))
    assert not true[clauses:].any()
    np.testing.assert_array_equal(np.asarray(y) > 0, true.any(1))
    lit = (np.asarray(x).reshape(2 * clauses, clauses, 3) > 0).sum(-1)
    assert (lit[clauses:].diagonal() == 2).all()


def test_separability_is_that_of_perceptrons():
    points = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])
    assert witness.separable(points, np.array([1, 1, 1, 0]))
    assert not witness.separable(points, np.array([1, 1, 0, 0]))
    assert not witness.separable(np.zeros((2, 2)), np.array([1, 0]))


def test_cover_holds_for_points_in_general_position():
    rng = np.random.default_rng(0)
    hits = [
        witness.separable(rng.normal(size=(12, 6)), rng.permutation(12) < 6)
        for _ in range(200)
    ]
    low, high = stats.wilson(sum(hits), len(hits))
    assert low < 0.5 < high


@pytest.mark.long
@pytest.mark.parametrize("by_traffic", [True, False])
def test_both_exchanges_keep_budgets_and_exchange_alike(by_traffic):
    kernel = bb.Kernel("w", (60, 40), fan_in=(0,), fan_out=(1,))
    units = bb.Units((kernel,)).select("w", actuator="in")
    rate = jnp.linspace(0.1, 0.9, 40)
    side = bb.activity.Statistics(on_rate=rate, count=jnp.ones(40))
    inputs = bb.activity.Statistics(on_rate=jnp.ones(60), count=jnp.ones(60))
    seen = {"w": bb.activity.Activity(inputs, side)}
    tx = bb.transform(
        units, redraw.redraw(3, by_traffic=by_traffic), density=0.5, start=0, every=1
    )
    params = {"w": jnp.ones((60, 40))}
    state, masks = tx.init(params), []
    for _ in range(5):
        updates = jax.tree.map(jnp.zeros_like, params)
        updates, state = tx.update(updates, state, params, activity=seen)
        params = optax.apply_updates(params, updates)
        masks.append(np.asarray(bb.masks(state)["w"]))
    assert all(m.sum() == 1200 for m in masks)
    lost = np.mean([(a & ~b).sum(0) / a.sum(0) for a, b in pairwise(masks[1:])], 0)
    # Of what is lost, chance gives some back at once.
    assert 0.1 < lost.mean() < redraw.SHARE
    assert (lost[:10].mean() < 0.8 * lost[-10:].mean()) == by_traffic


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_busy_units_lose_most_and_all_together_lose_the_share(seed):
    rng = np.random.default_rng(seed)
    rate = jnp.asarray(rng.uniform(0.01, 1, 12), jnp.float32)
    degree = jnp.asarray(rng.integers(1, 30, 12))
    lost = redraw.shares_by_traffic(rate, degree)
    share = float(jnp.sum(lost * degree) / jnp.sum(degree))
    assert share == pytest.approx(redraw.SHARE, abs=1e-4)
    order = np.argsort(np.asarray(rate * degree))
    assert (np.diff(np.asarray(lost)[order]) >= 0).all() and lost.max() <= 1
    assert (redraw.shares_by_traffic(jnp.zeros(3), jnp.array([1, 2, 3])) == 0).all()


@pytest.mark.long
def test_first_cycles_and_growth():
    solved = [np.array([[0, 0, 1, 0], [0, 0, 0, 0]], bool)]
    assert witness_judge.firsts(solved, 4).tolist() == [[3, 5]]
    w = np.array([2, 4, 8, 16, 32])
    rng = np.random.default_rng(0)
    for label, grown in witness_judge.GROWTHS.items():
        first = (
            5
            * grown(w.astype(float))[:, None]
            * np.exp(0.05 * rng.normal(size=(5, 40)))
        )
        report = {"clauses": w, "cycles": 10**6, "solved": {"bb": first}}
        found = witness_judge.growth(report, "bb")
        assert max(found["best"], key=found["best"].get) == label
        assert min(found["rms"], key=found["rms"].get) == label
    never = {"clauses": w, "cycles": 4, "solved": {"bb": np.full((5, 9), 5)}}
    assert witness_judge.growth(never, "bb") == {"points": 0}


# Whole commands ------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", command.CLAIMS)
def test_a_trial_of_every_claim_leaves_json_and_a_picture(name, tmp_path):
    command.main([name, "--small", "--out", str(tmp_path)])
    report = json.loads((tmp_path / f"{name}.json").read_text())
    assert report["seeds"] == 2 and report["verdicts"]
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
