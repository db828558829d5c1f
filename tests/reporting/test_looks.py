"""How a report looks, as far as numbers tell: labels, legends, masks and tables.

Sizes of labels are estimates from the number of letters; they are upper bounds for the
usual sans-serif fonts.
"""

import base64
import io
import re
import xml.etree.ElementTree as xml

import numpy as np
import pytest
from rich.console import Console

import bbjax as bb
from bbjax.reporting import charts, masks, words
from bbjax.reporting.data import Picture
from tests.support.pages import Page, contrast, decoded, schemes, squeezed, terminal
from tests.support.reports import MASK, by_hand, losses, reported
from tests.support.runs import activity, dense, select

SIDES = ("input", "output")
SHAPES = [(1024, 128), (128, 1024), (512, 10), (3, 2000), (6, 4), (1, 1), (133, 119)]


def masked(shape, share=0.1, seed=0):
    return np.random.default_rng(seed).random(shape) < share


def alone(shape, share=0.1, **more):
    """A report on one random mask."""
    kernel = dense(*shape)
    return bb.report({"w": masked(shape, share)}, bb.Units((kernel,)), **more)


def crowded(rate, fan=40):
    """One kernel of which many units have the same degree and on-rate."""
    degree = np.arange(len(rate)) % fan
    mask = np.arange(fan)[:, None] < degree
    kernel = dense(fan, len(rate))
    seen = activity(kernel, outputs=np.asarray(rate, np.float64))
    return bb.report({"w": mask}, select(kernel), activity=seen)


REPORTS = {
    "mlp": lambda: reported("mlp", latency={"a": 1.5}, shrunk={"bytes": (9, 3)}),
    "both": lambda: reported("both"),
    "conv": lambda: reported("conv"),
    "stack": lambda: reported("stack"),
    "portrait": lambda: alone((1024, 128)),
    "thin": lambda: alone((20000, 3)),
    "nothing_kept": lambda: alone((40, 30), 0.0),
    "all_kept": lambda: alone((40, 30), 1.1),
    "single": lambda: alone((1, 1), 1.1),
    "spread": lambda: crowded(np.linspace(0, 1, 30000)),
    "alike": lambda: crowded(np.full(50, 0.3)),
    "close": lambda: crowded(np.linspace(0.4612, 0.4644, 50)),
    "silent": lambda: crowded(np.zeros(50)),
    "always": lambda: crowded(np.ones(50)),
    "losses": lambda: alone((6, 4), sensitivity=losses()),
    "many_losses": lambda: alone(
        (6, 4), sensitivity=losses(12, densities=(0.9, 0.85, 0.6, 0.4, 0.35, 0.05))
    ),
    "equal_losses": lambda: alone(
        (6, 4), sensitivity=losses(densities=(0.5,), groups=("a" * 80,))
    ),
    "hubs_agree": lambda: by_hand([3, 9, 7, 5, 2], [0.5] * 5),
}


@pytest.fixture(scope="module", params=REPORTS)
def found(request):
    return REPORTS[request.param]()


# Charts: boxes are (left, top, right, bottom) --------------------------------------
def label(text):
    """The box of a label."""
    kind = text.get("class").split()
    size = 10 if "tick" in kind else 11
    wide = size * 0.62 * len(text.text)
    if "tick" in kind:
        wide = charts.wide(text.text)
    x, y = float(text.get("x")), float(text.get("y"))
    left = x - wide * (1 if "end" in kind else 0.5 if "middle" in kind else 0)
    if text.get("transform"):  # turned to the left about where it stands
        assert "middle" in kind
        return x - 0.75 * size, y - wide / 2, x + 0.25 * size, y + wide / 2
    return left, y - 0.75 * size, left + wide, y + 0.25 * size


def marks(root):
    """Kind and box of everything that shows data."""
    for e in root.iter():
        kind = e.get("class") or ""
        if e.tag == "rect":
            x, y, w, h = (float(e.get(n)) for n in ("x", "y", "width", "height"))
            yield kind, (x, y, x + w, y + h)
        elif e.tag == "circle":
            x, y = float(e.get("cx")), float(e.get("cy"))
            yield kind, (x - 3, y - 3, x + 3, y + 3)
        elif e.tag == "path":
            for x, y in re.findall(r"M([\d.-]+) ([\d.-]+)", e.get("d")):
                x, y = float(x), float(y)
                yield kind, (x - 2.5, y - 2.5, x + 2.5, y + 2.5)
        elif e.tag == "line" and kind not in ("grid", "axis", "halo"):
            x = sorted(float(e.get(n)) for n in ("x1", "x2"))
            y = sorted(float(e.get(n)) for n in ("y1", "y2"))
            yield kind, (x[0], y[0], x[1], y[1])


def overlap(one, other, slack=0.0):
    return all(
        one[i] < other[i + 2] - slack and other[i] < one[i + 2] - slack for i in (0, 1)
    )


def drawn(report):
    """Every chart of a page, with its figure."""
    for figure in re.findall(r"<figure.*?</figure>", report.html(), re.DOTALL):
        if "<svg" in figure:
            yield figure, xml.fromstring(re.search(r"<svg.*?</svg>", figure)[0])


@pytest.mark.sampled(2)
def test_no_label_lies_over_a_mark_or_a_label(found):
    for _, root in drawn(found):
        boxes = [(e.text, label(e)) for e in root.iter("text")]
        data = list(marks(root))
        assert len(boxes) >= 4 and data
        for i, (text, box) in enumerate(boxes):
            assert not [kind for kind, mark in data if overlap(box, mark)], text
            for other, second in boxes[:i]:
                assert not overlap(box, second), (text, other)


@pytest.mark.sampled(6)
def test_labels_and_marks_are_whole(found):
    for _, root in drawn(found):
        for what, box in [*((e.text, label(e)) for e in root.iter("text"))]:
            assert box[0] >= 0 and box[1] >= 0, what
            assert box[2] <= charts.WIDTH + 0.1 and box[3] <= charts.HEIGHT, what
        for kind, box in marks(root):
            assert box[0] >= charts.LEFT - 4 and box[1] >= 0, kind
            assert box[2] <= charts.WIDTH, kind
            assert box[3] <= charts.HEIGHT - charts.BOTTOM + 4, kind


def test_the_check_of_labels_sees_one_over_a_bar():
    bar, words_ = (100, 20, 140, 100), (120, 30, 150, 40)
    assert overlap(bar, words_) and not overlap(bar, (141, 30, 170, 40))
    root = xml.fromstring('<text class="label" x="120" y="39">mean</text>')
    assert overlap(label(root), bar)


def test_every_mark_has_an_entry_in_the_legend_and_a_style(found):
    style = re.search(r"<style>.*?</style>", found.html(), re.DOTALL)[0]
    for figure, root in drawn(found):
        kinds = {re.sub(" (one|some|many)$", "", kind) for kind, _ in marks(root)}
        keys = re.findall(r'<li><i class="key ([a-z ]+)"></i>([^<]+)</li>', figure)
        named = {re.sub(" (one|some|many)$", "", kind) for kind, _ in keys}
        assert named == kinds and all(text for _, text in keys)
        for kind, _ in keys:
            for part in kind.split():
                assert re.search(rf"\.key\.(dot\.)?{part}\b", style), kind


def test_every_figure_has_a_title_and_every_chart_names_its_axes(found):
    for figure in re.findall(r"<figure.*?</figure>", found.html(), re.DOTALL):
        assert re.search(r"<figcaption>[A-Z][^<]+<small>[^<]+</small>", figure)
    for _, root in drawn(found):
        names = [e for e in root.iter("text") if "name" in e.get("class")]
        assert len(names) == 2 and all(e.text for e in names)
        turned = [e for e in names if e.get("transform")]
        assert len(turned) == 1


def test_ticks_of_on_rates_are_round_and_at_their_places():
    for low, high in [(-6.9, 6.9), (-2.0, 1.0), (-0.16, -0.13), (-7.0, -6.8)]:
        shown = charts._rate_ticks((low, high))
        assert shown
        for x, text in shown:
            rate = float(text.strip("≤≥"))
            assert x == pytest.approx(np.log(rate / (1 - rate)), abs=1e-3)
            assert low - 1e-6 <= x <= high + 1e-6 and len(text) <= 7
    assert charts._rate_ticks((-7.2, 7.2))[0][1] == "≤0.001"
    assert charts._rate_ticks((-7.2, 7.2))[-1][1] == "≥0.999"


@pytest.mark.parametrize("scheme", [0, 1])
def test_marks_stand_out_where_they_are_half_transparent(scheme):
    text = reported("mlp").html()
    colours = dict(re.findall(r"--([a-z-]+): (#\w{6})", schemes(text)[scheme]))
    (opacity,) = re.findall(r"\.chart path\.one \{ stroke-opacity: (\.\d+); \}", text)
    for kind in ("units", "dim"):
        both = (
            np.array([int(colours[c][i : i + 2], 16) for i in (1, 3, 5)])
            for c in (kind, "card")
        )
        mark, card = both
        seen = float(opacity) * mark + (1 - float(opacity)) * card
        blended = "#" + bytes(np.rint(seen).astype(np.uint8)).hex()
        assert contrast(blended, colours["card"]) >= 3, kind
    assert contrast(colours["units"], colours["meter"]) >= 3


# Masks ---------------------------------------------------------------------------
def shares(mask, block):
    """Kept share of each block, by a loop."""
    rows = range(0, mask.shape[0], block[0])
    columns = range(0, mask.shape[1], block[1])
    return np.array(
        [
            [mask[i : i + block[0], j : j + block[1]].mean() for j in columns]
            for i in rows
        ]
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_inputs_and_shades_are_shares(shape):
    report = alone(shape, 0.3)
    (picture,) = report["w"].pictures
    page = Page(report.html())
    (image,) = page.all("img")
    data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    pixels, opacity = decoded(data)
    want = shares(masked(shape, 0.3), picture.block)
    assert pixels.shape == want.shape == picture.share.shape
    step = 255 / (len(opacity) - 1)
    level = np.sqrt(want) * (len(opacity) - 1)
    near = np.abs(level - pixels) <= 0.5 + 1e-4
    assert (near | ((pixels == 1) & (want > 0) & (level < 0.5))).all()
    np.testing.assert_allclose(opacity, np.rint(step * np.arange(len(opacity))))
    rows, columns = (f"{n:,} {side} unit" for n, side in zip(shape, SIDES, strict=True))
    assert re.search(f"rows: {rows}s?; columns: {columns}", page.text)


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_neither_slivers_nor_cut_off(shape):
    report = alone(shape, 0.3)
    (picture,) = report["w"].pictures
    width, height = masks.size(picture)
    rows, columns = picture.share.shape
    assert width % columns == 0 and height % rows == 0  # all pixels of one size
    assert max(width, height) <= masks.LONG and min(width, height) >= 99
    if shape[0] != shape[1]:
        assert (width > height) == (shape[1] > shape[0])
    (image,) = Page(report.html()).all("img")
    assert (image["width"], image["height"]) == (str(width), str(height))


def test_axes_of_masks_are_named():
    text = alone((1024, 128)).html()
    across = re.search(r'<div class="along across".*?</div>', text)[0]
    down = re.search(r'<div class="along down".*?</div>', text)[0]
    said = [re.findall(r"<span>(.*?)</span>", part) for part in (across, down)]
    assert said[0] == ["0", "output unit →", "127"]
    assert said[1] == ["0", "input unit →", "1,023"]


def test_the_legend_of_a_picture_gives_the_share_of_each_shade():
    text = alone((1024, 128)).html()
    keys = re.findall(r'style="opacity:([\d.]+)"></span></i>([\d.]+) %</li>', text)
    assert len(keys) == 6 and keys[0][1] == "0" and keys[-1][1] == "100"
    for opacity, share in keys:
        assert 100 * float(opacity) ** 2 == pytest.approx(float(share), abs=0.5)
    assert "pruned edge" in alone((6, 4)).html()
    assert "4 x 1 edges" in text


def test_captions_name_groups():
    picture = Picture((), np.ones((4, 3), np.float32), (1, 1), (4, 3), groups=2)
    assert masks.caption(picture).startswith(
        "rows: 4 input units in 2 groups; columns: 3 output units of the same group; "
    )


RANGES = {" ": (0, 0), "·": (0, 0.05), ":": (0.05, 0.1), "░": (0.1, 0.2)}
RANGES |= {"▒": (0.2, 0.5), "▓": (0.5, 1), "█": (1, 1)}


def agrees(shade, share):
    low, high = RANGES[shade]
    if low == high:
        return share == low
    return low < share + 1e-6 and share <= high + 1e-6 and 0 < share < 1


@pytest.mark.parametrize("share", [0.0, 0.03, 0.1, 0.4, 0.9, 1.1])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_terminal_shades_are_the_shares_of_their_blocks(shape, share):
    report = alone(shape, share)
    mask = masked(shape, share)
    text = terminal(report, 100)
    lines = re.findall(r"^│(.*?)│", text, re.MULTILINE)
    (down, across) = (1, 1)
    if "1 cell = 1 edge" not in squeezed(text):
        cell = re.search(r"1 cell = ([\d,]+) x ([\d,]+) edges", squeezed(text))
        down, across = (int(n.replace(",", "")) for n in cell.groups())
    want = shares(mask, (down, across))
    times = len(lines[0]) // want.shape[1]
    assert len(lines) == len(want) and times in (1, 2)
    assert {len(line) for line in lines} == {times * want.shape[1]}
    for line, row in zip(lines, want, strict=True):
        for j, value in enumerate(row):
            (shade,) = set(line[times * j : times * (j + 1)])
            assert agrees(shade, value), (shade, value)
    assert len(lines) <= 16 and len(lines[0]) <= 44


def test_the_terminal_gives_density_axes_and_shades():
    text = squeezed(terminal(alone((1024, 128)), 120))
    kept = int(masked((1024, 128)).sum())
    assert f"{kept:,} of 131,072 edges kept ({100 * kept / 131072:.2f} %)" in text
    assert "rows: 1,024 input units; columns: 128 output units" in text
    for shade, (low, high) in RANGES.items():
        said = f"up to {100 * high:.0f} %"
        special = {" ": "none", "▓": "less than all", "█": "all edges kept"}
        assert f"[{shade}] {special.get(shade, said)}" in text, (shade, low)
    assert "[█] kept edge" in terminal(alone((6, 4)))


def test_coarser_pictures_are_exact_with_ragged_blocks():
    mask = masked((1000, 513), 0.2)
    report = bb.report({"w": mask}, bb.Units((dense(1000, 513),)))
    (picture,) = report["w"].pictures
    small = masks.coarser(picture, 7, 11)
    np.testing.assert_allclose(small.share, shares(mask, small.block), rtol=1e-6)
    assert small.share.shape[0] <= 7 and small.share.shape[1] <= 11
    assert masks.kept(small).sum() == mask.sum()


# Tables --------------------------------------------------------------------------
def tables(report):
    text = report.html()
    return re.findall(r'<table aria-label="([^"]*)">(.*?)</table>', text, re.DOTALL)


def test_no_two_tables_are_the_same(found):
    given = tables(found)
    assert len(given) >= 2
    labels, contents = zip(*given, strict=True)
    assert len(set(labels)) == len(labels)
    assert len(set(contents)) == len(contents)


def test_hubs_are_one_table_with_both_ranks():
    side = by_hand([3, 9, 9, 2, 5, 1, 7], [0.9, 0.1, 0.5, 0.9, 0.8, 0.2, 0.3])[
        "w"
    ].sides[0]
    title, head, rows, _ = words.hub_table(side)
    assert title == "Hubs among the output units"
    assert head[-2:] == ["traffic rank", "degree rank"]
    names = [row[0] for row in rows]
    assert names == [f"unit {n}" for n in (2, 4, 0, 6, 3, 1)]
    assert [row[-2] for row in rows] == ["1", "2", "3", "4", "5", "–"]
    assert [row[-1] for row in rows] == ["2", "4", "5", "3", "–", "1"]


def test_units_without_edges_are_no_hubs():
    mask = np.zeros((6, 4), bool)
    mask[2, 1] = True
    report = bb.report({"w": mask}, bb.Units((dense(6, 4),)))
    assert words.hub_table(report["w"].sides[0]).rows == [["unit 1", "1", "1"]]


def test_whole_numbers_of_a_shrunk_model_keep_their_digits():
    report = alone((6, 4), shrunk={"parameters": (12432, 9001), "ms": (1.2345, 0.5)})
    ((_, _, rows, _),) = words.other_tables(report)
    assert rows[0][1:3] == ("12,432", "9,001") and rows[1][1:3] == ("1.23", "0.5")


# Scrolling -----------------------------------------------------------------------
def test_wide_tables_scroll_with_a_cue_and_by_keyboard(found):
    text, page = found.html(), Page(found.html())
    boxes = [a for a in page.all("div") if a.get("class") == "sheet"]
    assert len(boxes) == len(page.all("table")) == text.count('class="hint"')
    labels = [box["aria-label"] for box in boxes]
    assert len(set(labels)) == len(labels) and all(labels)
    assert all(b["tabindex"] == "0" and b["role"] == "region" for b in boxes)
    sheet = re.search(r"\n\.sheet \{(.*?)\n\}", text, re.DOTALL)[1]
    assert "overflow-x: auto" in sheet and sheet.count(" local") == 2
    assert sheet.count("var(--shade)") == 2 and sheet.count(" scroll") == 2
    assert ":focus-visible { outline:" in text and "scroll sideways" in page.text


# The terminal --------------------------------------------------------------------
@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_terminal_explains_its_words(found, width):
    file = io.StringIO()
    found.show(Console(file=file, width=width))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "What the words mean" in text
    flat = squeezed(text)
    for kernel in found:
        for side in kernel.sides:
            units, edges = words.MEANING[side.side]
            assert f"Degrees of {units}" in text and f"degree k ({edges})" in flat
    low = found.kernels[0].sides[0].whole
    assert re.search(
        rf"^{low.degree_min:,} \S.* {low.degree_max:,}\s*$", text, re.MULTILINE
    )


@pytest.mark.parametrize("width", [60, 80, 120])
def test_long_paths_are_whole_in_a_terminal(width):
    paths = [f"model/{'a_long_name/' * 9}layer_{i}/kernel" for i in range(2)]
    kernels = tuple(dense(6, 4, path) for path in paths)
    report = bb.report(dict.fromkeys(paths, MASK), bb.Units(kernels))
    text = terminal(report, width)
    assert "…" not in text
    assert all(path in re.sub(r"\s", "", text) for path in paths)


def test_one_of_a_kind_is_singular():
    text = alone((1, 1), 1.1).html()
    assert "rows: 1 input unit; columns: 1 output unit; 1 of 1 edge kept" in text
    assert "1 output unit, each with up to 1 incoming edge<" in text


def test_words_are_those_of_the_vocabulary(found):
    said = (Page(found.html()).text + terminal(found)).lower()
    for word in ("unheard", "silent", "nobody", "sparsity", "neuron", "fan in"):
        assert word not in said, word


@pytest.mark.long
def test_notebooks_show_the_whole_page():
    report = alone((6, 4))
    (frame,) = Page(report._repr_html_()).all("iframe")
    assert frame["srcdoc"] == report.html() and frame["title"] == "Pruning report"
    assert "width:100%" in frame["style"] and MASK.shape == (6, 4)
