"""House rules that a machine can check, read off the source without running it.

Packages and the direction of their imports, sizes, import cycles, which file may use
which foreign library, docstrings; what the package shows; what tests import.
"""

import ast
import fnmatch
import importlib
import pydoc
import re
import subprocess
import sys
import tokenize
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import bbjax
from tests.support import shapes

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    path.relative_to(ROOT).as_posix(): path
    for path in sorted((ROOT / "bbjax").rglob("*.py"))
}
MAX_FILE_LINES = 800
MEDIAN_FILE_LINES = 200
MAX_FUNCTION_LINES = 60

# The packages in the order of the story: each imports those above it alone.
PACKAGES = (
    "arrays model adapters tracing activity budgets attention rules training oneshot "
    "shrinking files reporting demo"
).split()
# Any package may ask which frameworks are loaded; the package itself, without its
# adapters, imports nothing.
DOOR = "bbjax.adapters"

# One foreign library, one place. The longest matching prefix of a dotted import
# decides; a library that is not in the table may not be imported at all.
ADAPTERS = ("bbjax/adapters/linen.py", "bbjax/adapters/nnx.py", "bbjax/demo*")
DRAWING = ("bbjax/demo*", "bbjax/reporting*")
ALLOWED = {
    "jax": ("*",),
    "numpy": ("*",),
    "jaxtyping": tuple(f"{name.replace('.', '/')}/*" for name in shapes.PACKAGES),
    "jax.extend": ("bbjax/tracing/jaxprs.py",),
    "jax._src": (),
    "flax": ADAPTERS,
    "optax": ("bbjax/training/transform.py", *ADAPTERS),
    "matplotlib": DRAWING,
    "sklearn": DRAWING,
    "rich": DRAWING,
}


def parse(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"), filename=name)


def module_of(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(name): name for name in FILES}


def imported(node: ast.AST, name: str) -> list[str]:
    """Dotted names that an import statement of the file `name` may load."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        package = name.removesuffix(".py").split("/")[: -node.level]
        base = ".".join([*package, *filter(None, [base])])
    return [f"{base}.{alias.name}" for alias in node.names]


def code_lines(name: str) -> set[int]:
    """Numbers of the lines that hold code: no blanks, comments or docstrings."""
    quiet = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    }
    with FILES[name].open("rb") as file:
        lines = {
            line
            for token in tokenize.tokenize(file.readline)
            if token.type not in quiet
            for line in range(token.start[0], token.end[0] + 1)
        }
    for node in ast.walk(parse(name)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                lines -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return lines


@pytest.mark.parametrize("name", FILES)
def test_file_is_short(name):
    length = len(FILES[name].read_text(encoding="utf-8").splitlines())
    assert length <= MAX_FILE_LINES, f"{name}: {length} lines, split it"


def test_files_are_short_on_the_whole():
    lengths = sorted(len(p.read_text("utf-8").splitlines()) for p in FILES.values())
    assert lengths[len(lengths) // 2] <= MEDIAN_FILE_LINES


@pytest.mark.parametrize("name", FILES)
def test_functions_are_short(name):
    code, long = code_lines(name), []
    for node in ast.walk(parse(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = len(code & set(range(node.lineno, (node.end_lineno or 0) + 1)))
            if length > MAX_FUNCTION_LINES:
                long.append(f"{name}:{node.lineno} {node.name}: {length} code lines")
    assert not long, "\n".join(long)


@pytest.mark.parametrize("name", FILES)
def test_module_opens_with_a_docstring(name):
    assert ast.get_docstring(parse(name)), f"{name}: say what the module is for"


@pytest.mark.parametrize("name", FILES)
def test_foreign_library_stays_in_its_place(name):
    stray = []
    for node in ast.walk(parse(name)):
        targets = imported(node, name)
        if isinstance(node, ast.Attribute):  # `import jax`, then `jax.extend.core`
            targets = [text for text in [ast.unparse(node)] if text in ALLOWED]
        for target in targets:
            if target.split(".")[0] in {"bbjax", *sys.stdlib_module_names}:
                continue
            fits = [row for row in ALLOWED if f"{target}.".startswith(f"{row}.")]
            places = ALLOWED[max(fits, key=len)] if fits else ()
            if not any(fnmatch.fnmatch(name, place) for place in places):
                where = ", ".join(places) or "no file"
                stray.append(f"{name}:{node.lineno} uses {target}; allowed in: {where}")
    assert not stray, "\n".join(stray)


def runs_on_import(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements that run when a module is imported, `TYPE_CHECKING` left out."""
    found = []
    for node in body:
        found.append(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            found += runs_on_import(node.orelse)
            continue
        for field in ("body", "orelse", "finalbody", "handlers"):
            found += runs_on_import(getattr(node, field, []))
    return found


def loads(name: str) -> set[str]:
    """Modules of bbjax that importing `name` loads, and with them their packages.

    A package that is `name`'s own parent is being loaded already and is no edge,
    unless a name that is not a module is asked of it.
    """
    this, found = module_of(name), set()
    for node in runs_on_import(parse(name).body):
        for target in imported(node, name):
            known = target
            while known and known not in MODULES:
                known = known.rpartition(".")[0]
            package = known.rpartition(".")[0]
            while package:
                if not f"{this}.".startswith(f"{package}."):
                    found.add(package)
                package = package.rpartition(".")[0]
            if known and known != this:
                found.add(known)
    return found


def every_import(name: str) -> set[str]:
    """Modules of bbjax that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(parse(name)):
        for target in imported(node, name):
            while target and target not in MODULES:
                target = target.rpartition(".")[0]
            found.add(target)
    return found - {""}


def test_the_package_holds_its_packages_and_little_else():
    held = {p.name for p in (ROOT / "bbjax").iterdir()} - {"__pycache__"}
    assert held - set(PACKAGES) == {"__init__.py", "__main__.py", "py.typed"}
    assert set(PACKAGES) <= held


@pytest.mark.parametrize(
    "name", [n for n in FILES if n.split("/")[1] in PACKAGES and "/demo/" not in n]
)
def test_imports_go_to_packages_above(name):
    mine, wrong = PACKAGES.index(name.split("/")[1]), []
    for target in every_import(name) - {DOOR}:
        theirs = target.split(".")[1:2]
        if not theirs:
            wrong.append(f"{name} imports bbjax itself; name the module")
        elif PACKAGES.index(theirs[0]) > mine:
            wrong.append(f"{name} imports {target}, whose package comes later")
    assert not wrong, "\n".join(wrong)


def test_the_door_to_the_adapters_imports_nothing_of_ours():
    assert not every_import(MODULES[DOOR])


def test_no_import_cycle():
    try:
        TopologicalSorter({module_of(name): loads(name) for name in FILES}).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize("public", getattr(bbjax, "__all__", []))
def test_public_name_exists_and_is_documented(public):
    value = getattr(bbjax, public)
    text = public if public == "__version__" else value.__doc__ or ""
    # Dataclasses and named tuples write themselves a docstring: `Name(field, ...)`.
    assert text.strip() and not text.startswith(f"{public}("), f"document {public}"


def test_public_surface_lists_each_name_once():
    names = list(getattr(bbjax, "__all__", []))
    assert len(names) == len(set(names))


def test_dir_shows_the_public_names_alone():
    assert dir(bbjax) == sorted([*bbjax.__all__, "linen", "nnx"])


# The file of a rule has the name of the function in it: `bb.rules.magnitude`.
RULES = {f"bbjax.rules.{name}" for name in bbjax.rules.__all__}


@pytest.mark.parametrize(
    "name", [n for n in MODULES if n not in RULES and not n.endswith("__main__")]
)
def test_no_module_is_hidden_by_a_function_of_its_name(name):
    """`import bbjax.files.masks` gives that module, whatever its package exports."""
    if name.startswith("bbjax.demo"):
        pytest.importorskip("sklearn")
    module = importlib.import_module(name)
    value = bbjax
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    assert value is module


def test_drawings_are_reached_through_their_package():
    program = "import bbjax.reporting; bbjax.reporting.draw_graph"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


# Texts ---------------------------------------------------------------------------
def test_no_file_has_the_marks_of_a_merge():
    """Markdown and JSON files pass every other check with them."""
    kinds = ("*.py", "*.md", "*.json", "*.toml")
    folders = ("bbjax", "tests", "benchmarks", "notebooks")
    files = [p for f in folders for k in kinds for p in (ROOT / f).rglob(k)]
    files += [p for k in kinds for p in ROOT.glob(k)]
    marked = [
        str(path)
        for path in files
        if re.search(f"^({'<' * 7}|{'>' * 7}) ", path.read_text(), re.MULTILINE)
    ]
    assert marked == [] and len(files) > 300


# Benchmarks ----------------------------------------------------------------------
BENCHMARKS = sorted(
    ".".join(path.with_suffix("").relative_to(ROOT).parts).removesuffix(".__init__")
    for path in (ROOT / "benchmarks").rglob("*.py")
)


@pytest.mark.parametrize("name", [n for n in BENCHMARKS if ".test_" not in n])
def test_every_module_of_the_benchmarks_can_be_imported(name):
    """Most of their tests are slow; a name that moved must show before those run."""
    importlib.import_module(name)


# What help shows -----------------------------------------------------------------
FIVE_LINES = """
    units = bb.trace(loss_fn, params, batch)
    tx = optax.chain(optax.adamw(3e-4), bb.transform(units, density=0.25))

    @jax.jit
    def train_step(params, opt_state, batch):
        loss, grads, activity = bb.value_and_grad(loss_fn, units)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params, activity=activity)
        return optax.apply_updates(params, updates), opt_state, loss
"""


def test_help_begins_with_the_five_lines():
    _, described = pydoc.plain(pydoc.render_doc(bbjax)).split("DESCRIPTION", 1)
    words = FIVE_LINES.split()
    assert described.split()[: len(words)] == words


def test_help_maps_the_packages_in_order():
    text = pydoc.plain(pydoc.render_doc(bbjax)).split("PACKAGE CONTENTS")[0]
    rows = re.findall(r"^ +([a-z]+)  +(\S.*?)  +(\S.*)$", text, re.MULTILINE)
    assert rows[0] == ("package", "what it is about", "main names")
    assert [name for name, _, _ in rows[1:]] == PACKAGES
    for package, _, names in rows[1:]:
        if package != "demo":
            assert set(names.split(", ")) <= set(dir(bbjax)), package


# Tests ---------------------------------------------------------------------------
@pytest.mark.parametrize("folder", ["tests", "benchmarks"])
def test_tests_import_no_other_test_file(folder):
    """What several of them use is in `tests/support`."""
    wrong = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and ".test_" in f".{node.module}":
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.module}")
    assert not wrong, "\n".join(wrong)
