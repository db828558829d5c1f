"""The demo: what it refuses, and what a tiny run writes.

The tiny run is at a density that binds and at a number of steps where ramp, refreshes
and frozen masks all happen; whether methods differ is not asked here.
"""

import json
import struct
from types import SimpleNamespace

import jax
import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from bbjax.demo import __main__ as command
from bbjax.demo import data, model, tables
from bbjax.demo.methods import METHODS, Timing, least_degree

PICTURES = ("activity_degree", "degrees", "accuracy_density", "churn", "overview")
STEPS = 14


def refused(capsys, *argv):
    """The one line that a bad command ends in, after checking exit code and output."""
    with pytest.raises(SystemExit) as stopped:
        command.main(argv)
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err


# Command line --------------------------------------------------------------------
@pytest.mark.parametrize("value", ["0", "-0.1", "1.01", "nan", "half", "inf"])
def test_density_outside_its_range_is_refused(capsys, value):
    line = refused(capsys, f"--density={value}")
    assert "argument --density: expected a number in (0, 1]" in line
    assert value in line


@pytest.mark.parametrize("name", ["seeds", "steps"])
@pytest.mark.parametrize("value", ["0", "-3", "1.5", "few"])
def test_counts_below_one_are_refused(capsys, name, value):
    line = refused(capsys, f"--{name}={value}")
    assert f"argument --{name}: expected an integer >= 1" in line
    assert value in line


def test_unknown_argument_is_refused(capsys):
    assert "--epochs" in refused(capsys, "--epochs", "3")


def test_folder_that_cannot_be_written_is_refused(capsys, tmp_path):
    file = tmp_path / "taken"
    file.write_text("a file, not a folder")
    for out in (file, file / "below"):
        line = refused(capsys, "--out", str(out))
        assert "argument --out: expected a folder that can be written" in line
        assert str(out) in line
    assert file.read_text() == "a file, not a folder"


def test_missing_packages_are_named_with_the_remedy(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(command.EXTRAS, "no_such_module_", "no-such-package")
    line = refused(capsys, "--out", str(tmp_path / "out"))
    assert "no-such-package" in line and "pip install 'bbjax[demo]'" in line
    assert not (tmp_path / "out").exists()


def test_help_names_every_option_and_its_default(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for option in ("--density", "--seeds", "--steps", "--out"):
        assert option in shown
    assert "demo-output" in shown and "(default: 5)" in shown


# Parts ---------------------------------------------------------------------------
def test_split_is_stratified_disjoint_and_standardised_by_training_images():
    split = data.load()
    assert len(split.train_y) + len(split.test_y) == 1797
    shares = [np.bincount(y) / len(y) for y in (split.train_y, split.test_y)]
    np.testing.assert_allclose(*shares, atol=2e-3)
    np.testing.assert_allclose(split.train_x.mean(), 0, atol=1e-4)
    np.testing.assert_allclose(split.train_x.std(), 1, atol=1e-4)


def test_batches_are_epochs_without_repeats_and_fixed_by_the_seed():
    rows = data.batches(3, steps=7, count=50, size=12)
    assert rows.shape == (7, 12)
    assert len(np.unique(rows[:4])) == 48  # four batches of 12 are an epoch
    np.testing.assert_array_equal(rows, data.batches(3, steps=7, count=50, size=12))
    assert (rows != data.batches(4, steps=7, count=50, size=12)).any()


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 60, 601])
def test_last_refresh_has_the_final_density_whatever_the_length(steps):
    timing = Timing(steps)
    refreshes = timing.refreshes()
    assert refreshes and refreshes[-1] < steps
    assert timing.densities(0.05)[refreshes[-1]] == np.float32(0.05)


def test_every_method_budgets_the_same_kernels():
    units = model.trace()
    for method in METHODS:
        assert tuple(method.select(units).budgeted) == model.PRUNED


def test_units_keep_an_edge_where_the_density_pays_for_it():
    units = model.trace()
    assert [least_degree(units, d) for d in (1.0, 0.05, 0.01)] == [1, 1, 0]


def test_dead_units_are_silent_or_cut_off_on_either_side(lenient):
    units, params = model.trace(), jax.tree.map(np.array, model.initial(0))
    rates = {p: np.full(units[p].out_units, 0.5, np.float32) for p in model.HIDDEN}

    def dead():
        activity = {
            path: SimpleNamespace(outputs=SimpleNamespace(on_rate=rate))
            for path, rate in rates.items()
        }
        return int(model.dead_units(units, params, activity))

    assert dead() == 0
    rates["Conv_0/kernel"][3] = 0.001
    assert dead() == 1  # never on
    params["Dense_0"]["kernel"][:, 7] = 0
    assert dead() == 2  # hears nothing
    params["Dense_1"]["kernel"][8, :] = 0
    assert dead() == 3  # nobody listens
    channel = np.arange(1024) % 64 == 5
    channel[5] = False
    params["Dense_0"]["kernel"][channel, :] = 0
    assert dead() == 3  # a channel that is heard from one position
    params["Dense_0"]["kernel"][5, :] = 0
    assert dead() == 4


def test_paired_differences_are_against_noise():
    class Fake:
        def __init__(self, key, *accuracy):
            self.method = type("M", (), {"key": key})
            self.accuracy = np.array(accuracy)

    base = Fake("magnitude", 90.0, 92.0, 91.0)
    clear = tables.paired(Fake("a", 91.0, 93.1, 91.9), base)
    np.testing.assert_allclose(clear["mean"], 1.0)
    np.testing.assert_allclose(clear["se"], 0.1 / np.sqrt(3))
    assert clear["resolved"]
    assert not tables.paired(Fake("b", 91.0, 91.0, 91.5), base)["resolved"]
    single = tables.paired(Fake("c", 95.0), Fake("magnitude", 90.0))
    assert single["se"] is None and not single["resolved"]


# A run ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a tiny run."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    argv = ["--seeds", "1", "--steps", str(STEPS), "--density", "0.06"]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert command.main([*argv, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def result(written):
    """Its JSON, read strictly: NaN is none."""
    text = (written / "results.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=lambda name: pytest.fail(name))


@pytest.mark.slow
def test_run_writes_the_table_and_every_picture(written):
    names = {f"{name}.png" for name in PICTURES} | {"results.json"}
    assert {file.name for file in written.iterdir()} == names
    for name in PICTURES:
        head = (written / f"{name}.png").read_bytes()[:24]
        width, height = struct.unpack(">II", head[16:])
        assert head.startswith(b"\x89PNG") and width > 600 and height > 300


@pytest.mark.slow
def test_json_says_what_was_run(result):
    settings = result["settings"]
    assert (settings["seeds"], settings["steps"]) == (1, STEPS)
    assert settings["density"] == 0.06
    assert {"bbjax", "jax", "flax", "optax"} <= set(result["versions"])
    assert {"platform", "python", "cores", "device"} <= set(result["machine"])
    assert result["seconds"]["wall"] > 0 and result["seconds"]["cpu"] > 0
    assert "One seed" in result["conclusion"]


@pytest.mark.slow
def test_every_method_keeps_exactly_the_budget(result):
    units = model.trace()
    budget = sum(round(0.06 * units[p].edge_count) for p in model.PRUNED)
    assert [m["key"] for m in result["methods"]] == [m.key for m in METHODS]
    for method in result["methods"][1:]:
        assert method["kept_edges"] == [budget], method["key"]
        assert method["density_asked"] == 0.06
    assert result["methods"][0]["kept_edges"] == [result["methods"][0]["edges"]]
    for point in result["sweep"]:
        kept = sum(round(point["density"] * units[p].edge_count) for p in model.PRUNED)
        got = kept / result["methods"][0]["edges"]
        np.testing.assert_allclose(point["density_got"], [got], rtol=1e-6)


@pytest.mark.slow
def test_json_has_each_number_of_the_table(result):
    for method in result["methods"]:
        assert 0 <= method["test_accuracy"]["mean"] <= 100
        assert len(method["test_accuracy"]["per_seed"]) == 1
        assert method["test_accuracy"]["sd"] is None
        assert method["step_time_ratio"] > 0
        assert 0 <= method["dead_units"]["mean"] <= result["settings"]["hidden_units"]
    pruned = result["methods"][1:]
    assert all(len(m["churn"]) == len(result["refreshes"]) for m in pruned)
    assert all("overall/balance_slope" in m["metrics"] for m in pruned)
    assert {p["method"] for p in result["paired"]} >= {"bb_in", "bb_out", "bb_both"}
