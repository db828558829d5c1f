"""Paths and titles with control characters: shown escaped, wherever people read them.

Such characters clear a terminal, break a table or a document, or turn the direction of
the text around them.
"""

import html
import io
import re
import xml.etree.ElementTree as ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax.model.text import printable, table
from bbjax.reporting import draw_graph

HOSTILE = {
    "a terminal's": "up\x1b[2J\x1b]0;title\x07",
    "a newline": "up\r\nDone: 100 % kept",
    "direction": "up\u202ekernel\u2066",
    "null": "up\x00\x7f\x9b2J",
    "a surrogate": "up\ud800\u2028",
}
FEW = ("a terminal's", "direction")
CASES = [
    pytest.param(path, id=name, marks=[] if name in FEW else pytest.mark.slow)
    for name, path in HOSTILE.items()
]
each_path = pytest.mark.parametrize("path", CASES)


def net(path):
    def fn(params, x):
        return jax.nn.relu(x @ params[path]) @ params["down"]

    params = {path: jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
    return fn, params, jnp.ones((5, 3))


def is_safe(text):
    """Whether only line ends are no printable characters."""
    return all(c.isprintable() or c == "\n" for c in text)


def reported(path):
    fn, params, x = net(path)
    units = bb.trace(fn, params, x)
    masks = {path: np.eye(3, 8, dtype=bool), "down": np.ones((8, 2), bool)}
    other = f"other {path}"
    return bb.report(
        {**masks, other: np.ones(2, bool)},
        units.select("^up", actuator="in"),
        params=bb.apply_masks(params, masks),
        latency={path: 1.0},
        shrunk={path: (2.0, 1.0)},
        title=path,
    )


def test_printable_text_stays_as_it_is():
    for text in ("Dense_0/kernel", "é/ü ⊙ 层", "a\\nb", ""):
        assert printable(text) == text


@each_path
def test_control_characters_are_written_as_python_shows_them(path):
    assert printable(path).isprintable() and printable(path).startswith("up")
    assert printable(path) == printable(printable(path))
    if path.isascii():
        assert printable(path) == repr(path)[1:-1]


@each_path
def test_tables_are_safe(path):
    fn, params, x = net(path)
    units = bb.trace(fn, params, x)
    masks = {path: np.ones((3, 8), bool)}
    halved = {path: np.arange(24).reshape(3, 8) % 2 == 0}
    _, report = bb.shrink(fn, params, {}, x).params, bb.shrink(fn, params, {}, x).report
    shown = {
        "units": units,
        "graph": units.graph,
        "diff": bb.diff_masks(masks, halved),
        "overlap": bb.overlap(masks, halved),
        "overlaps": bb.overlap_table({path: masks, "b": halved}),
        "shrink": report,
        "table": table((path, "b"), [(path, "c")], width=20),
        "report": reported(path),
    }
    for name, value in shown.items():
        assert is_safe(str(value)), name
        assert is_safe(repr(value)), name
    for name in ("units", "graph", "diff", "overlap", "overlaps", "report"):
        assert printable(path)[:9] in str(shown[name]), name


@each_path
@pytest.mark.parametrize("width", [60, 200])
def test_the_terminal_is_safe(path, width):
    pytest.importorskip("rich")
    from rich.console import Console

    for details in (True, False):
        file = io.StringIO()
        console = Console(file=file, width=width, color_system=None)
        reported(path).show(console, details=details)
        assert is_safe(file.getvalue())
        console = Console(file=file, width=width, force_terminal=True)
        reported(path).show(console, details=details)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())  # rich's own colours
        assert is_safe(plain) and "\\" in plain


@each_path
def test_page_and_notebook_are_safe(path):
    report = reported(path)
    shown = html.escape(printable(path))
    for text in (report.html(), html.unescape(report._repr_html_())):
        assert is_safe(text) and shown in text
    report.html().encode("utf-8")


@each_path
def test_a_drawing_is_safe_and_well_formed(path):
    fn, params, x = net(path)
    picture = draw_graph(bb.trace(fn, params, x))
    assert is_safe(picture.replace("\n", ""))
    texts = [t.text for t in ElementTree.fromstring(picture).iter()]
    assert printable(path) in texts


@each_path
def test_json_gives_the_path_itself_back(path, tmp_path):
    report = reported(path)
    assert report.to_dict()["kernels"][0]["path"] in (path, "down")
    report.save(tmp_path / "report.json")
    assert is_safe((tmp_path / "report.json").read_text())


def test_the_frame_of_a_notebook_is_a_sandbox():
    shown = reported("up")._repr_html_()
    assert re.match(r'<iframe [^>]*\bsandbox=""[^>]*srcdoc="&lt;!DOCTYPE', shown)
    assert shown.count("<") == 2 and shown.endswith("></iframe>")
    assert html.unescape(shown.split('srcdoc="')[1][:-11]) == reported("up").html()
    for active in ("<script", "<form", "javascript:", "http"):
        assert active not in reported("up").html()


# Errors --------------------------------------------------------------------------
def errors(path):
    """Calls that name a path in their error."""
    fn, params, x = net(path)
    units = bb.trace(fn, params, x)
    chosen = units.select("^up", actuator="in")
    mask, other = np.ones((3, 8), bool), np.ones((4, 8), bool)
    file, stored = io.BytesIO(), path.replace("\ud800", "")  # no file holds it
    bb.save(file, {stored: np.ones((3, 8))}, {stored: mask})

    def load(**options):
        file.seek(0)
        return bb.load(file, **options)

    return {
        "select": lambda: units.select(path.replace("[", r"\[") + "none"),
        "units": lambda: units[f"{path}x"],
        "report": lambda: bb.report({path: mask}),
        "report's shape": lambda: bb.report({path: other}, units),
        "report, not pruned": lambda: bb.report({path: ~mask}, units, params=params),
        "overlap": lambda: bb.overlap({path: mask}, {path: other}),
        "overlap's paths": lambda: bb.overlap({path: mask}, {"b": mask}),
        "load, missing": lambda: load(like={f"a{path}": np.ones(2)}),
        "load, another": lambda: load(like={path: np.ones(2)}),
        "load, units": lambda: load(units=chosen),
        "save it": lambda: bb.save(io.BytesIO(), {"\ud800": np.ones(2)}),
        "save": lambda: bb.save(io.BytesIO(), {path: np.ones((3, 8))}, {path: other}),
        "save, not pruned": lambda: bb.save(
            io.BytesIO(), {path: np.ones((3, 8))}, {path: ~mask}
        ),
        "masks": lambda: bb.save_masks(io.BytesIO(), {path: np.ones(2)}),
        "init": lambda: bb.transform(chosen).init({"down": params["down"]}),
        "shape": lambda: bb.transform(chosen).init({path: jnp.ones(2)}),
        "density": lambda: bb.transform(chosen, density={f"{path}$": 2.0}),
        "k_min": lambda: bb.transform(chosen, density=0.01, k_min=3),
        "masked": lambda: bb.apply_masks(params, {path: other}),
        "shrink": lambda: bb.shrink(fn, params, {path: other}, x),
        "hold": lambda: bb.hold({f"a/{path}": mask}).init(params),
    }


@each_path
def test_errors_are_safe(path):
    raised = 0
    for name, call in errors(path).items():
        try:
            call()
        except Exception as error:
            raised += 1
            assert is_safe(str(error)), name
    assert raised > 12
