"""The page on what is measured shows what is measured.

Each panel of its picture is a function, with the values of the units by hand. To draw
the picture again:

    python -m tests.activity.test_page
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import relu, sigmoid, silu, softplus
from matplotlib.axes import Axes
from PIL import Image

import bbjax as bb
from bbjax.demo.drawing import GREY, STYLES, blank

PAGE = Path(bb.__file__).parent / "activity" / "README.md"
PICTURE = PAGE.parent / "pictures" / "measured.png"
KERNEL, MARK = STYLES["bb_in"]["color"], STYLES["bb_both"]["color"]
WIDTH = 6.7  # of a panel, in the units of its boxes


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


X, Y, POSITIONS = normal(0, 40, 4), normal(1, 40, 4), normal(2, 40, 4)
P = {name: normal(3 + i, 4, 4) for i, name in enumerate("ABCo")}
P |= {"AB": normal(8, 4, 8), "z|x|t": normal(9, 4, 12), "b": normal(10, 1, 4)}
A, B = np.asarray(X @ P["A"]), np.asarray(X @ P["B"])
YB = np.asarray(Y @ P["B"])
C = np.maximum(B, 0) @ np.asarray(P["C"])
HALVES = np.split(np.asarray(X @ P["AB"]), 2, 1)
THREE = np.asarray(X @ P["z|x|t"])
ON = np.ones_like(A)


def norm(h):
    return (h - h.mean(0, keepdims=True)) / jnp.sqrt(h.var(0, keepdims=True) + 1e-5)


def taken_apart(p, x):
    z, inner, step = jnp.split(x @ p["z|x|t"], 3, -1)
    return silu(z) @ p["o"] + inner @ p["o"] + softplus(step) @ p["o"]


def gated(p, x):
    a, b = jnp.split(x @ p["AB"], 2, -1)
    return (silu(a) * b) @ p["o"]


class Panel(NamedTuple):
    """A structure: its function, what is measured, and how it is drawn.

    Attributes:
      title: of the panel.
      note: what the panel says.
      fn: of the parameters and inputs.
      values: by kernel, the values of its units by hand.
      found: by kernel, the nonlinearity that the trace names.
      boxes: by name, position and text; a text in capitals is a kernel.
      wires: pairs of names, in order of the flow.
      marks: names of the boxes behind which units are measured; `raw` ones are hollow.
      raw: see above.
    """

    title: str
    note: str
    fn: Callable[..., Any]
    values: dict[str, np.ndarray]
    found: dict[str, str]
    boxes: dict[str, tuple[float, float, str]]
    wires: str
    marks: tuple[str, ...] = ()
    raw: tuple[str, ...] = ()


PANELS = (
    Panel(
        "After the last nonlinearity",
        "bias and norm before it count; norms, dropout,\n"
        "scales, positions after it do not",
        lambda p, x: norm(relu(norm(x @ p["A"]) + p["b"])) @ p["o"],
        {"A": norm(A) + P["b"]},
        {"A": "relu"},
        {
            "k": (0.9, 0, "A"),
            "n": (2.2, 0, "norm"),
            "r": (3.6, 0, "relu"),
            "d": (5.0, 0, "norm"),
        },
        "k>n n>r r>d d>",
        marks=("r",),
    ),
    Panel(
        "A sum in front of a nonlinearity",
        "one unit, which all kernels of the sum own:\n"
        "several inputs, recurrent cells, LoRA",
        lambda p, x: relu(x @ p["A"] + Y @ p["B"]) @ p["o"],
        {"A": A + YB, "B": A + YB},
        {"A": "relu", "B": "relu"},
        {
            "k": (0.9, 0.6, "A"),
            "l": (0.9, -0.6, "B"),
            "+": (2.4, 0, "+"),
            "r": (3.8, 0, "relu"),
        },
        "k>+ l>+ +>r r>",
        marks=("r",),
    ),
    Panel(
        "A residual stream",
        "no nonlinearity follows the sum before other layers\n"
        "read it: every kernel counts for itself",
        lambda p, x: norm(x @ p["A"] + relu(x @ p["B"]) @ p["C"]) @ p["o"],
        {"A": A, "B": B, "C": C},
        {"A": "", "B": "relu", "C": ""},
        {
            "k": (0.9, 0.6, "A"),
            "l": (0.9, -0.6, "B"),
            "r": (2.1, -0.6, "relu"),
            "m": (3.3, -0.6, "C"),
            "+": (4.4, 0, "+"),
            "n": (5.25, 0, "norm"),
        },
        "k>+ l>r r>m m>+ +>n n>",
        marks=("r",),
        raw=("k", "m"),
    ),
    Panel(
        "A gate",
        "the product is the unit of both factors",
        lambda p, x: (silu(x @ p["A"]) * (x @ p["B"])) @ p["o"],
        {"A": A * B, "B": A * B},
        {"A": "silu product", "B": "silu product"},
        {
            "k": (0.9, 0.6, "A"),
            "l": (0.9, -0.6, "B"),
            "s": (2.4, 0.6, "silu"),
            "x": (3.8, 0, "×"),
        },
        "k>s s>x l>x x>",
        marks=("x",),
    ),
    Panel(
        "A fused kernel: gate and value in one",
        "each unit of the product belongs to two columns of\n"
        "the kernel, j and H + j: both get its on-rate",
        gated,
        {"AB": np.tile(HALVES[0] * HALVES[1], 2)},
        {"AB": "silu product"},
        {
            "k": (0.9, 0, "A B"),
            "u": (2.2, 0.6, "[:H]"),
            "v": (2.2, -0.6, "[H:]"),
            "s": (3.4, 0.6, "silu"),
            "x": (4.6, 0, "×"),
        },
        "k>u k>v u>s s>x v>x x>",
        marks=("x",),
    ),
    Panel(
        "A fused kernel with ranges of their own",
        "each range at its own place; one without\na nonlinearity as the raw output",
        taken_apart,
        {"z|x|t": np.concatenate([THREE[:, :8], ON], 1)},
        {"z|x|t": "silu/raw/softplus"},
        {
            "k": (0.9, 0, "Z X T"),
            "z": (2.9, 0.75, "silu"),
            "i": (2.9, 0, ""),
            "t": (2.9, -0.75, "softplus"),
        },
        "k>z k>i k>t z> i> t>",
        marks=("z", "t"),
        raw=("i",),
    ),
    Panel(
        "Always on",
        "sigmoid, softplus, exp, softmax: on-rate 1 for ever.\n"
        "Not pruned by default; select it and choose on=",
        lambda p, x: sigmoid(x @ p["A"]) @ p["o"],
        {"A": ON},
        {"A": "logistic"},
        {"k": (0.9, 0, "A"), "s": (2.6, 0, "sigmoid")},
        "k>s s>",
        marks=("s",),
    ),
    Panel(
        "No nonlinearity",
        "the sign of the raw output, with its bias.\nNot pruned by default",
        lambda p, x: (x @ p["A"] + p["b"]) @ p["o"],
        {"A": A + P["b"]},
        {"A": ""},
        {"k": (0.9, 0, "A"), "b": (2.4, 0, "+ b")},
        "k>b b>",
        raw=("b",),
    ),
)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_units_are_measured_where_the_panel_marks_them(panel, lenient):
    units = bb.trace(panel.fn, P, X)
    _, activity = bb.observe(panel.fn, units)(P, X)
    for path, value in panel.values.items():
        assert units[path].nonlinearity == panel.found[path]
        rate = np.mean(np.asarray(value) > 0, axis=0)
        np.testing.assert_allclose(activity[path].outputs.on_rate, rate, atol=1e-6)
    curves = {p: set(name.split("/")) - {""} for p, name in panel.found.items()}
    always = {"logistic", "softplus"}
    assert set(units.budgeted) == {p for p, c in curves.items() if c and not c & always}


def test_the_page_shows_the_picture_and_every_panel():
    text = PAGE.read_text(encoding="utf-8")
    assert f"(pictures/{PICTURE.name})" in text
    assert 10_000 < PICTURE.stat().st_size < 100_000
    numbers = re.findall(r"^\| \((\d)\) ", text, re.MULTILINE)
    assert numbers == [str(i + 1) for i in range(len(PANELS))]


# The picture -------------------------------------------------------------------------
def draw(path: Path) -> None:
    """Writes the picture."""
    figure = blank(9.4, 8.2, pad=0.02)
    axes = figure.subplots(4, 2).T.reshape(-1)
    drawn = [draw_boxes(ax, i + 1, PANELS[i]) for i, ax in enumerate(axes)]
    look = {"color": MARK, "markersize": 9, "markeredgewidth": 2, "linestyle": ""}
    for face, text in (
        (MARK, "measured here"),
        ("white", "the raw output is measured"),
    ):
        axes[0].plot([], [], "o", markerfacecolor=face, label=text, **look)
    axes[0].plot([], [], "s", color=KERNEL, markersize=11, label="kernel")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    figure.canvas.draw()  # boxes get their sizes, to which wires are drawn
    for ax, panel, boxes in zip(axes, PANELS, drawn, strict=True):
        draw_wires(ax, panel, boxes, look)
    figure.canvas.draw()
    pixels = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels.quantize(32).save(path, optimize=True)


def draw_boxes(ax: Axes, number: int, panel: Panel) -> dict[str, Any]:
    """Title, note and boxes of a structure; the outline of each box."""
    ax.set(xlim=(0, WIDTH), ylim=(-2.1, 1.15))
    ax.set_axis_off()
    title = f"({number}) {panel.title}"
    ax.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    ax.text(0.25, -1.15, panel.note, fontsize=9, color=GREY, va="top")
    outlines = {}
    for name, (x, y, text) in panel.boxes.items():
        kernel = text.isupper() and not text.startswith("[")
        box = {
            "boxstyle": "square,pad=0.35" if kernel else "round,pad=0.3",
            "facecolor": KERNEL if kernel else "#f2f2f2",
            "edgecolor": KERNEL if kernel else GREY,
            "linewidth": 0.9 if text else 0,
        }
        ink = "white" if kernel else "black"
        place = {"ha": "center", "va": "center", "fontsize": 10, "zorder": 2}
        drawn = ax.text(x, y, text, color=ink, bbox=box, **place)
        outlines[name] = drawn.get_bbox_patch() if text else None
    return outlines


def draw_wires(ax: Axes, panel: Panel, outlines: dict[str, Any], look: Any) -> None:
    """The wires of a structure, and on them where its units are measured."""
    marked = set()
    for wire in panel.wires.split():
        name, end = wire.split(">")
        x, y, text = panel.boxes[name]
        far, high = panel.boxes[end][:2] if end else (x + 0.9 + 0.1 * len(text), y)
        arrow = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1.1, "shrinkA": 0}
        arrow |= {"patchA": outlines[name], "shrinkB": 0}
        if end and outlines[end]:
            arrow |= {"patchB": outlines[end]}
        elif end:
            arrow |= {"arrowstyle": "-"}
        ax.annotate("", (far, high), (x, y), arrowprops=arrow, zorder=1)
        if name in panel.marks + panel.raw and name not in marked:
            marked.add(name)
            along = 0.35 + 0.07 * len(text) if text else 0.0
            up = along * (high - y) / (far - x)
            face = MARK if name in panel.marks else "white"
            ax.plot(x + along, y + up, "o", markerfacecolor=face, zorder=3, **look)


if __name__ == "__main__":
    draw(PICTURE)
