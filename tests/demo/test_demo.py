"""The demo: what it refuses, and what a tiny run writes.

The tiny run is at a density that binds and at a number of steps where ramp, refreshes
and frozen masks all happen; whether methods differ is not asked here.
"""

import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from rich.console import Console

from bbjax.demo import __main__ as command
from bbjax.demo import data, folders, model, outcome, run, smaller, statistics, tables
from bbjax.demo.methods import LAW, METHODS, Timing, least_degree
from bbjax.demo.origin import commit
from bbjax.demo.progress import Steps
from bbjax.demo.results import Results

PICTURES = ("degrees", "churn", "overview", "benefit")
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
    for option in ("--density", "--seeds", "--steps", "--out", "--overwrite"):
        assert option in shown
    assert "(default: demo-output, or demo-output-2 and so on" in shown
    assert "(default: 5)" in shown


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The folders that runs are asked to write, in an empty place; nothing is run."""
    folders = []

    def fake(density, seeds, steps, out):
        folders.append(str(out))
        (out / "results.json").write_text("{}")

    monkeypatch.setattr(run, "run", fake)
    monkeypatch.chdir(tmp_path)
    return folders


def test_runs_without_a_folder_write_one_after_the_other(asked, tmp_path):
    (tmp_path / "demo-output").mkdir()  # of a run that was stopped
    for _ in range(3):
        assert command.main([]) == 0
    assert asked == ["demo-output", "demo-output-2", "demo-output-3"]
    assert command.main(["--overwrite"]) == 0
    assert asked[-1] == "demo-output"


def test_folder_with_results_is_refused_unless_overwritten(asked, capsys):
    assert command.main(["--out", "mine"]) == 0
    capsys.readouterr()
    line = refused(capsys, "--out", "mine")
    assert "argument --out: expected a folder without results, got 'mine'" in line
    assert "--overwrite" in line and asked == ["mine"]
    assert command.main(["--out", "mine", "--overwrite"]) == 0
    assert asked == ["mine", "mine"]


def test_results_that_appear_during_a_run_are_not_overwritten(tmp_path):
    out, first, second = (
        tmp_path / "out",
        {"results.json": b"1"},
        {"results.json": b"2"},
    )
    out.mkdir()
    assert folders.write_results(out, first, overwrite=False) == out
    other = folders.write_results(out, second, overwrite=False)
    assert (other.name, (other / "results.json").read_bytes()) == ("out-2", b"2")
    assert (out / "results.json").read_bytes() == b"1"
    assert folders.write_results(out, second, overwrite=True) == out
    assert (out / "results.json").read_bytes() == b"2"


def test_interrupted_run_ends_in_one_line_and_130(asked, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run", interrupted)
    assert command.main([]) == 130
    shown = capsys.readouterr().err
    assert shown == "bbjax.demo: stopped by Ctrl-C before the end\n"


def started(out):
    """The demo as a process of its own."""
    words = ["-m", "bbjax.demo", "--seeds", "1", "--steps", "9", "--out", out]
    # Jobs in the background of a shell ignore Ctrl-C, and so would their children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    signal.signal(signal.SIGINT, before)
    return process


def wait_until_loaded(process, library):
    """Waits until a process has loaded a file of a library."""
    while library not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.005)


def assert_ends_in_one_line(process, out):
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert errors == "bbjax.demo: stopped by Ctrl-C before the end\n"
    assert process.returncode == 130
    assert not out.exists() or list(out.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    "delay",
    [
        *(0.0, 0.9),
        *(pytest.param(0.15 * n, marks=pytest.mark.slow) for n in range(1, 40)),
    ],
)
def test_interrupt_while_libraries_are_loaded_ends_in_130(tmp_path, delay):
    process = started(tmp_path / "out")
    wait_until_loaded(process, "numpy")
    time.sleep(delay)
    assert_ends_in_one_line(process, tmp_path / "out")


@pytest.mark.parametrize(
    "line",
    [
        "bbjax demo:",
        *(pytest.param(f"{n} of 6", marks=pytest.mark.slow) for n in (1, 2, 3, 5)),
    ],
)
def test_interrupt_at_any_step_ends_in_130(tmp_path, line):
    process = started(tmp_path / "out")
    assert any(shown.startswith(line) for shown in process.stdout)
    assert_ends_in_one_line(process, tmp_path / "out")


@pytest.mark.long
def test_interrupt_in_a_terminal_shows_the_cursor_again(tmp_path):
    """Bars hide it."""
    pty = pytest.importorskip("pty")
    program = "from bbjax.demo import interrupt; interrupt._end(2, None)"
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", program], stdout=theirs)
    assert process.wait() == 130
    assert os.read(ours, 100).startswith(b"\x1b[?25h")
    os.close(ours)
    os.close(theirs)


def test_an_ignored_interrupt_stays_ignored(monkeypatch):
    from bbjax.demo import interrupt

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupt.end_at_once()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


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
    for method in (*METHODS, LAW):
        assert tuple(method.select(units).budgeted) == model.PRUNED


def test_units_keep_an_edge_where_the_density_pays_for_it():
    units = model.trace()
    assert [least_degree(units, d) for d in (1.0, 0.05, 0.01)] == [1, 1, 0]


@pytest.mark.long
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
    assert dead() == 2  # no incoming edge
    params["Dense_1"]["kernel"][8, :] = 0
    assert dead() == 3  # no outgoing edge
    channel = np.arange(1024) % 64 == 5
    channel[5] = False
    params["Dense_0"]["kernel"][channel, :] = 0
    assert dead() == 3  # a channel with edges from one position only
    params["Dense_0"]["kernel"][5, :] = 0
    assert dead() == 4


def test_no_ratio_of_times_without_enough_steps():
    steps = 30
    dense = SimpleNamespace(seconds=np.linspace(1.0, 2.0, steps))
    slow = SimpleNamespace(seconds=1.5 * dense.seconds)
    slow.seconds[: outcome.SKIPPED] = 1e3  # what the first steps took is not counted
    assert outcome.step_ratio(slow, dense, list(range(steps))) == pytest.approx(1.5)
    few = list(range(outcome.SKIPPED + outcome.LEAST - 1))
    assert outcome.step_ratio(slow, dense, few) is None
    assert outcome.step_ratio(slow, dense, [*few, 20]) == pytest.approx(1.5)


@pytest.mark.long
def test_missed_budgets_are_counted_in_edges():
    units, timing, path = model.trace(), Timing(40), "Dense_1/kernel"
    steps = timing.refreshes()
    right = [[round(float(d) * 8192)] for d in timing.densities(0.25)[steps]]

    def missed(kept):
        method = SimpleNamespace(key="bb_in")
        one = SimpleNamespace(
            method=method, metrics=[{}], density=0.25, kept_at={path: np.array(kept)}
        )
        nothing = [], None, [], np.zeros((1, 3))
        return Results([one], *nothing, timing, units).missed

    assert missed(right) == 0
    right[3][0] -= 2
    assert missed(right) == 2


@pytest.mark.long
def test_widths_are_those_of_the_net(lenient):
    net = model.Net((3, 4, 5, 6))
    params = net.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))["params"]
    kernels = [path.split("/")[0] for path in model.HIDDEN]
    assert [params[k]["kernel"].shape[-1] for k in kernels] == [3, 4, 5, 6]


# Statistics ----------------------------------------------------------------------
@pytest.mark.parametrize("values", [[1.0, 2.5], [0.1, -0.4]])
def test_p_of_two_seeds_is_that_of_the_cauchy_distribution(values):
    se, p = statistics.t_test(np.array(values))
    t = np.mean(values) / se
    np.testing.assert_allclose(se, abs(values[0] - values[1]) / 2)
    np.testing.assert_allclose(p, 1 - 2 / np.pi * np.arctan(abs(t)), rtol=1e-4)


def test_p_of_three_seeds_has_its_closed_form():
    se, p = statistics.t_test(np.array([1.0, 1.1, 0.9]))
    t = 1.0 / se
    np.testing.assert_allclose(se, 0.1 / np.sqrt(3))
    np.testing.assert_allclose(p, 1 - t / np.sqrt(2 + t**2), rtol=1e-3)


def test_equal_differences_are_no_proof():
    assert statistics.t_test(np.zeros(3)) == (0.0, 1.0)
    assert statistics.t_test(np.full(3, 0.14)) == (0.0, None)
    assert statistics.t_test(np.array([0.3])) == (None, None)


def test_corrected_p_values_count_all_comparisons():
    assert statistics.holm([0.02, 0.5, 0.01]) == [0.04, 0.5, 0.03]
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([None, 0.04]) == [None, 0.04]


def test_paired_differences_are_against_noise():
    base = np.array([90.0, 92.0, 91.0])
    compared = {
        "up": base + [1.0, 1.1, 0.9],
        "down": base - [1.0, 1.1, 0.9],
        "same": base + [1.0, -1.0, 0.5],
    }
    up, down, same = statistics.paired(compared, base, "magnitude")
    np.testing.assert_allclose(up["mean"], 1.0)
    words = [one["significance"] for one in (up, down, same)]
    assert words == ["better", "worse", "noise"]
    np.testing.assert_allclose(up["p_holm"], 3 * up["p"])
    (single,) = statistics.paired({"up": base[:1] + 5}, base[:1], "magnitude")
    assert single["se"] is single["p"] is single["significance"] is None


# What is said --------------------------------------------------------------------
def test_every_step_is_said_on_plain_lines():
    file = io.StringIO()
    with Steps(Console(file=file, width=80), 2, pause=0) as steps:
        with steps.step("training", 10) as tick:
            for _ in range(10):
                tick(1)
        with steps.step("drawing", 1):
            steps.say("a remark")
    lines = file.getvalue().splitlines()
    assert [line for line in lines if not line.startswith("  ")] == [
        "1 of 2: training",
        "2 of 2: drawing",
        "a remark",
    ]
    parts = [line.split()[0] for line in lines[1:5]]
    assert parts == ["20", "40", "60", "80"] and "left" in lines[1]
    assert lines[5].startswith("  done in") and lines[-1].startswith("  done in")
    assert "\x1b" not in file.getvalue()


def test_every_step_has_a_bar_in_a_terminal():
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system=None)
    with Steps(console, 1) as steps, steps.step("training", 4) as tick:
        tick(1)
    *_, last = [line for line in file.getvalue().splitlines() if "training" in line]
    assert "1 of 1: training" in last and "100%" in last


def shown(seeds, ratio):
    """The table of two made-up methods, in a terminal of 80 columns."""
    base = 60.0 + 17.5 * np.arange(seeds)
    accuracies = {"magnitude": base, "bb_in": base - 10.25 + 9 * np.arange(seeds) ** 2}
    methods = [
        {
            "key": method.key,
            "label": method.label,
            "test_accuracy": statistics.spread(accuracies[method.key]),
            "kept_edges": [7066] * seeds,
            "edges": 141312,
            "step_time_ratio": ratio,
            "dead_units": {"mean": 43.2},
        }
        for method in METHODS
        if method.key in accuracies
    ]
    result = {
        "settings": {"seeds": seeds, "steps": 9, "density": 0.05, "hidden_units": 288},
        "methods": methods,
        "edges_asked": 7066,
        "paired": statistics.paired({"bb_in": accuracies["bb_in"]}, base, "magnitude"),
    }
    file = io.StringIO()
    Console(file=file, width=80).print(tables.table(result, 80))
    return file.getvalue()


def test_table_fits_a_terminal_and_leaves_out_what_means_nothing():
    one, more = shown(1, None), shown(3, 1.07)
    for text in (one, more):
        assert text.count("43.2") == 2  # the last column
        assert "keep 7,066 of 141,312 edges" in text
    assert "1.07" in more and "77.50 ± 17.50" in more and "noise" in more
    row = next(line for line in one.splitlines() if "−10.25" in line)
    assert row.count("–") == 4  # sd, standard error, significance, time ratio


# Where numbers come from ---------------------------------------------------------
@pytest.mark.long
@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_is_that_of_the_library_alone(tmp_path):
    def git(*words):
        name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = subprocess.run(
            ["git", *name, *words], cwd=tmp_path, check=True, capture_output=True
        )
        return done.stdout.decode().strip()

    library = tmp_path / "bbjax"
    library.mkdir()
    assert commit(tmp_path) is None
    git("init")
    (library / "a.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "one")
    assert commit(tmp_path) == git("rev-parse", "--short", "HEAD")
    assert commit(library) is None  # installed inside the checkout of something else
    (tmp_path / "notes").write_text("not of the library")
    assert not commit(tmp_path).endswith("+")
    (library / "a.py").write_text("2")
    assert commit(tmp_path).endswith("+")


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
    assert result["commit"] == commit()
    assert {"platform", "python", "cores", "device"} <= set(result["machine"])
    assert result["seconds"]["wall"] > 0 and result["seconds"]["cpu"] > 0


@pytest.mark.slow
def test_every_method_keeps_exactly_the_budget(result):
    units = model.trace()
    budget = sum(round(0.06 * units[p].edge_count) for p in model.PRUNED)
    assert [m["key"] for m in result["methods"]] == [m.key for m in METHODS]
    assert result["edges_asked"] == budget and result["edges_missed"] == 0
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
        assert method["step_time_ratio"] is None  # too few steps
        assert 0 <= method["dead_units"]["mean"] <= result["settings"]["hidden_units"]
    pruned = result["methods"][1:]
    assert all(len(m["churn"]) == len(result["refreshes"]) for m in pruned)
    assert all("overall/balance_slope" in m["metrics"] for m in pruned)
    compared = {m["key"] for m in pruned} - {"magnitude"}
    assert {p["method"] for p in result["paired"]} == compared
    assert all(p["significance"] is None for p in result["paired"])  # one seed


@pytest.mark.slow
def test_nets_become_smaller_round_by_round(result):
    rounds = result["smaller"]["rounds"]
    assert len(rounds) == len(smaller.KEEP) + 1
    assert rounds[0]["widths"] == list(model.WIDTHS)
    assert rounds[0]["time_ratio_quartiles"] == [1, 1, 1]
    sizes = [one["parameters"][0] for one in rounds]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.1 * sizes[0]
    assert rounds[0]["test_accuracy"]["mean"] == pytest.approx(
        result["methods"][0]["test_accuracy"]["mean"], abs=0.15
    )
    assert len(result["smaller"]["masked_time_ratio_quartiles"]) == 3
