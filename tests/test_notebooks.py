"""The notebooks: each is a pair of files that say the same, holds no outputs, and runs.

A notebook lies in `notebooks/` twice, as `.ipynb` and as readable text (jupytext,
py:percent). The checks of the files are fast; `make notebooks` executes all of them at
their small setting, where a cell that fails or warns fails the test.
"""

import ast
import os
import re
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
NAMES = sorted(
    {path.stem for path in FOLDER.glob("*") if path.suffix in (".ipynb", ".py")}
)
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the notebooks are not here"
)

# What a notebook may import: the package, what it needs, and its extra `demo`; more
# than that only if the notebook installs it by itself.
IMPORTS = {"bbjax", "flax", "jax", "matplotlib", "numpy", "optax", "rich", "sklearn"}
STANDARD = {"dataclasses", "functools", "os", "time"}
INSTALLED = {"02_the_balance": {"ipywidgets"}, "04_any_model": {"equinox"}}

SMALL = 'SMALL = bool(os.environ.get("BBJAX_SMALL"))'
# Folders of a machine, and drives.
PLACE = re.compile(
    r"(?<![\w.:/])/(?:home|root|work|tmp|Users|usr|opt|mnt)\b|\b[A-Z]:\\"
)


def book(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(name):
    return [cell for cell in book(name).cells if cell.cell_type == "code"]


def text(name):
    return (FOLDER / f"{name}.py").read_text(encoding="utf-8")


def test_there_are_notebooks():
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_say_the_same(name):
    ours, theirs = (
        [(cell.cell_type, cell.source) for cell in form.cells]
        for form in (book(name), jupytext.read(FOLDER / f"{name}.py", fmt="py:percent"))
    )
    remedy = f"run `jupytext --sync notebooks/{name}.py`, or .ipynb if you edited that"
    assert ours == theirs, remedy


@pytest.mark.parametrize("name", NAMES)
def test_holds_no_outputs_and_no_metadata(name):
    nbformat.validate(book(name))
    for cell in code(name):
        assert cell.outputs == [] and cell.execution_count is None, "clear all outputs"
    assert all(not cell.metadata for cell in book(name).cells)
    assert set(book(name).metadata) == {"kernelspec"}
    assert book(name).metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("name", NAMES)
def test_begins_by_installing_what_is_missing(name):
    first = code(name)[0].source
    for part in ("import bbjax as bb", "except ImportError", "%pip install"):
        assert part in first
    assert 'SOURCE = "bbjax[demo]"' in first
    for extra in INSTALLED.get(name, ()):
        assert re.search(rf"%pip install .*\b{extra}\b", first)


@pytest.mark.parametrize("name", NAMES)
def test_has_a_small_setting_and_names_its_minutes(name):
    assert SMALL in text(name)
    first = book(name).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert re.search(r"\bminutes?\b", first.source)


@pytest.mark.parametrize("name", NAMES)
def test_runs_anywhere(name):
    assert not PLACE.findall(text(name)), "no paths of a machine"
    assert not re.search(r"float64|jax_enable_x64|jax_platform", text(name))
    loaded = set()
    for node in ast.walk(ast.parse(text(name))):
        if isinstance(node, ast.Import):
            loaded |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            loaded.add((node.module or "").split(".")[0])
    assert loaded <= IMPORTS | STANDARD | INSTALLED.get(name, set())


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.parametrize("name", NAMES)
def test_runs_to_its_end_without_warnings(name, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    # As a user has it: one device, and pictures where the notebook shows them.
    left_out = ("XLA_FLAGS", "MPLBACKEND")
    env = {k: v for k, v in os.environ.items() if k not in left_out}
    notebook = book(name)
    # A cell with widgets at times ends without the message that says so, and the client
    # waits for it until the time is up: no longer than the slowest cell needs.
    client = nbclient.NotebookClient(
        notebook,
        timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute(env=env | {"BBJAX_SMALL": "1"})
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            assert output.get("name") != "stderr", output["text"]
