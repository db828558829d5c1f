"""The package as a user gets it: its wheel, installed with nothing but dependencies.

Slow: builds a wheel and downloads its dependencies. `make wheel` runs it.
"""

import email
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "wheel"
# Optax has annotations but no py.typed.
MYPY = "[mypy]\nstrict = true\n[mypy-optax.*]\nfollow_untyped_imports = true\n"

pytestmark = pytest.mark.slow


class Installed(NamedTuple):
    wheel: Path
    python: Path
    folder: Path  # to work in, far from the sources


def run(*command, cwd):
    paths = ("PYTHONPATH", "MYPYPATH")  # may lead to the sources
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name not in paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", ROOT, cwd=folder)
    (wheel,) = folder.glob("bbjax-*.whl")
    venv.create(folder / "bare", with_pip=True)
    scripts = "Scripts" if sys.platform == "win32" else "bin"
    python = folder / "bare" / scripts / "python"
    run(python, "-m", "pip", "install", wheel, cwd=folder)
    return Installed(wheel, python, folder)


def test_holds_the_package_alone_and_says_that_it_is_typed(installed):
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = {n for n in wheel.namelist() if ".dist-info/" not in n}
        (about,) = (n for n in wheel.namelist() if n.endswith("/METADATA"))
        metadata = email.message_from_bytes(wheel.read(about))
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "bbjax").rglob("*.py")}
    assert sources | {"bbjax/py.typed"} <= names
    assert {n.split("/")[0] for n in names} == {"bbjax"}
    assert "Typing :: Typed" in metadata.get_all("Classifier")


@pytest.mark.parametrize("program", ["bare.py", "typed.py"])
def test_works_without_optional_libraries(installed, program):
    run(installed.python, PROGRAMS / program, cwd=installed.folder)


def test_users_see_types(installed):
    pytest.importorskip("mypy")
    config = installed.folder / "mypy.ini"
    config.write_text(MYPY, encoding="utf-8")
    program = installed.folder / "program.py"
    program.write_bytes((PROGRAMS / "typed.py").read_bytes())
    run(
        *(sys.executable, "-m", "mypy", "--config-file", config),
        *("--python-executable", installed.python, program),
        cwd=installed.folder,
    )
