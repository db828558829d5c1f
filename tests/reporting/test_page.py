"""The page and the terminal: well formed, self-contained, escaped, and in agreement."""

import base64
import builtins
import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as xml

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import bbjax as bb
from bbjax.reporting import charts, formats, masks, words
from bbjax.reporting.data import Picture
from tests.support.pages import Page, contrast, decoded, schemes, squeezed, terminal
from tests.support.reports import MASK, UNITS, reported
from tests.support.runs import activity, dense, select

NASTY = "<b>\"w\" & 'v'</b>"


@pytest.fixture(scope="module", params=["mlp", "both", "conv", "stack"])
def found(request):
    more = {"latency": {"dense <1>": 3.25}, "shrunk": {"bytes": (1000, 250)}}
    return reported(request.param, **more)


# The page ------------------------------------------------------------------------
@pytest.mark.long
def test_page_is_well_formed_and_fetches_nothing(found):
    text = found.html()
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>") and page.all("html")[0]["lang"] == "en"
    assert not [t for t, _ in page.found if t in ("script", "link", "iframe", "object")]
    assert "@import" not in text and "url(" not in text and "http" not in text
    for _, attributes in page.found:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "data"):
            address = attributes.get(name, "#")
            assert address.startswith(("#", "data:image/png;base64,"))


@pytest.mark.sampled(1)
def test_links_lead_somewhere(found):
    page = Page(found.html())
    ids = [a["id"] for _, a in page.found if "id" in a]
    assert len(set(ids)) == len(ids)
    targets = {a["href"][1:] for a in page.all("a")}
    assert targets <= set(ids)
    assert {f"kernel-{i}" for i in range(len(found.kernels))} <= targets


@pytest.mark.long
def test_charts_are_xml_with_a_name(found):
    drawn = re.findall(r"<svg.*?</svg>", found.html(), re.DOTALL)
    assert len(drawn) >= 3 * len(found.kernels)
    for chart in drawn:
        root = xml.fromstring(chart)
        assert root.attrib["role"] == "img" and root.attrib["aria-label"]
        width, height = map(float, root.attrib["viewBox"].split()[2:])
        for mark in root.iter():
            assert 0 <= float(mark.get("x", 0)) <= width
            assert 0 <= float(mark.get("y", 0)) <= height


@pytest.mark.long
def test_pictures_and_tables_have_names_for_screen_readers(found):
    page = Page(found.html())
    assert all(image["alt"] for image in page.all("img"))
    assert all(table["aria-label"] for table in page.all("table"))
    assert {cell["scope"] for cell in page.all("th")} == {"col", "row"}


@pytest.mark.long
def test_both_schemes_and_print_have_a_style(found):
    text = found.html()
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    used = set(re.findall(r"var\((--[a-z-]+)\)", text))
    light, dark = (set(re.findall(r"(--[a-z-]+):", part)) for part in schemes(text))
    assert used <= light and dark <= light and used - {"--rule"} <= dark | {"--rule"}


@pytest.mark.long
@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_stand_out(scheme):
    """WCAG 2: 4.5 for text, 3 for marks."""
    colours = dict(
        re.findall(r"--([a-z-]+): (#\w{6})", schemes(reported("mlp").html())[scheme])
    )
    for ground in ("ground", "card"):
        for text in ("ink", "dim", "units"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["ink"], colours["warn"]) >= 4.5
    assert contrast(colours["fit"], colours["card"]) >= 3
    mask = "#" + bytes(masks.COLOUR).hex()
    assert contrast(mask, colours["card"]) >= 3


@pytest.mark.long
def test_the_same_report_gives_the_same_bytes(found, tmp_path):
    found.save(tmp_path / "one.html")
    found.save(tmp_path / "two.html")
    one, two = ((tmp_path / f"{n}.html").read_bytes() for n in ("one", "two"))
    assert one == two == found.html().encode()


@pytest.mark.long
def test_paths_titles_and_names_are_escaped():
    kernel = dense(6, 4, NASTY)
    found = bb.report(
        {NASTY: MASK, "<i>": np.ones(3, bool)},
        bb.Units((kernel,)),
        title="<script>alert(1)</script>",
        latency={"<u>": 1.0},
    )
    page = Page(found.html())
    assert not [t for t, _ in page.found if t in ("script", "b", "u")]
    assert not any(not attributes for attributes in page.all("i"))
    assert "<script>alert(1)</script>" in page.text and NASTY in page.text
    assert any(NASTY in image["alt"] for image in page.all("img"))
    assert NASTY in terminal(found) and "<u>" in terminal(found)
    framed = found._repr_html_()
    assert "<script" not in framed and framed.count("<") == 2


@pytest.mark.long
def test_terminal_markup_in_paths_is_text():
    found = bb.report({"a[bold]b": MASK}, bb.Units((dense(6, 4, "a[bold]b"),)))
    assert "a[bold]b" in terminal(found)


@pytest.mark.long
def test_sections_fold_where_there_are_many():
    kernels = [dense(6, 4, f"layer_{i}") for i in range(13)]
    units, held = bb.Units(tuple(kernels)), {k.path: MASK for k in kernels}
    many = bb.report(held, units)
    assert not any("open" in a for a in Page(many.html()).all("details"))
    few = bb.report({k.path: MASK for k in kernels[:12]}, units)
    assert all("open" in a for a in Page(few.html()).all("details"))
    assert "outgoing edges" in terminal(few, details=True)
    assert "outgoing edges" not in terminal(few)


@pytest.mark.long
def test_a_page_of_sixty_kernels_stays_small():
    rng = np.random.default_rng(0)
    kernels = [dense(300, 200, f"layer_{i}") for i in range(60)]
    held = {k.path: rng.random(k.shape) < 0.1 for k in kernels}
    seen = {}
    for k in kernels:
        seen |= activity(k, outputs=rng.random(200))
    text = bb.report(held, bb.Units(tuple(kernels)), activity=seen).html()
    assert len(text) < 2_000_000 and text.count("<svg") == 180


@pytest.mark.long
def test_a_page_without_activity_gives_the_reason():
    page = Page(bb.report({"w": MASK}, UNITS).html())
    assert "No figure: masks alone carry no on-rates" in page.text
    assert len(page.all("svg")) == 2


@pytest.mark.long
def test_notes_stand_on_top():
    tx = bb.transform(select(dense(6, 4)))
    found = bb.report(tx.init({"w": jnp.ones((6, 4))}))
    assert {a.get("role") for a in Page(found.html()).all("p")} == {None, "note"}
    for text in (found.html(), squeezed(terminal(found)), str(found)):
        assert "Nothing is pruned yet" in text


# Agreement -----------------------------------------------------------------------
@pytest.mark.long
def test_page_and_terminal_have_the_same_figures(found):
    page, text = Page(found.html()).text, terminal(found)
    for row in words.kernels_table(found).rows:
        for cell in row:
            assert cell in page and cell in text and cell in str(found)
    for facts in found:
        layers = list(words.layer_tables(facts))
        assert len(layers) == sum(len(side.layers) > 0 for side in facts.main)
        for table in (words.units_table(facts), *layers):
            for line in (table.head, *table.rows):
                assert all(cell in page and cell in text for cell in line)
    for _, figure, remark in words.cards(found):
        assert figure in page and figure in text and remark in text
    assert "3.25" in page and "3.25" in text and "25.00 %" in page


@pytest.mark.sampled(2)
@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_terminal_fits_its_width(found, width):
    text = terminal(found, width)
    assert max(map(len, text.splitlines())) <= width
    assert all(facts.path in text for facts in found)


@pytest.mark.long
def test_print_is_plain_text_without_rich(monkeypatch, capsys):
    found = reported("mlp")
    block(monkeypatch, "rich")
    builtins.print(found)
    assert "edges kept" in capsys.readouterr().out
    with pytest.raises(ImportError, match=r'got none; pip install "bbjax\[report\]"'):
        found.show()
    assert "<html" in found.html()


def block(monkeypatch, name):
    """Makes a package look as if it was not installed."""
    monkeypatch.delitem(sys.modules, "bbjax.reporting.terminal", raising=False)
    monkeypatch.delattr(sys.modules["bbjax.reporting"], "terminal", raising=False)
    monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.long
def test_a_broken_terminal_module_is_not_blamed_on_rich(monkeypatch):
    block(monkeypatch, "numpy.nothing")
    monkeypatch.setitem(sys.modules, "bbjax.reporting.masks", None)
    monkeypatch.delattr(sys.modules["bbjax.reporting"], "masks", raising=False)
    with pytest.raises(ImportError, match="bbjax.reporting.masks"):
        reported("mlp").show()


@pytest.mark.long
def test_rich_prints_a_report():
    file = io.StringIO()
    Console(file=file, width=120).print(reported("conv"))
    assert "Degree against on-rate, output units" in file.getvalue()


@pytest.mark.long
def test_importing_bbjax_loads_nothing_that_draws():
    code = (
        "import sys, flax.linen, flax.nnx, optax; before = set(sys.modules)\n"
        "import bbjax; new = set(sys.modules) - before\n"
        "found = {m.split('.')[0] for m in new} & {'rich', 'matplotlib'}\n"
        "found |= new & {'bbjax.reporting.page', 'bbjax.reporting.terminal'}\n"
        "sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Files ---------------------------------------------------------------------------
@pytest.mark.long
def test_saving_by_the_suffix(tmp_path):
    found = bb.report({"w": MASK}, UNITS, file=tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text("utf-8") == found.html()
    found.save(str(tmp_path / "page.JSON"))
    assert json.loads((tmp_path / "page.JSON").read_text()) == found.to_dict()


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="to end in .html or .json, got .*page.txt"):
        bb.report({"w": MASK}, UNITS, file=tmp_path / "page.txt")
    with pytest.raises(ValueError, match=r"print\(report\) is the text"):
        bb.report({"w": MASK}, UNITS).save(tmp_path / "page")
    assert not list(tmp_path.iterdir())


# Pictures ------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(6, 4), (1, 1), (3, 17)])
def test_png_of_single_edges(shape):
    mask = np.random.default_rng(1).random(shape) < 0.5
    picture = Picture((), mask.astype(np.float32), (1, 1), shape)
    pixels, opacity = decoded(masks.png(picture))
    np.testing.assert_array_equal(pixels, mask)
    assert opacity.tolist() == [0, 255]
    assert masks.scale(picture.block) == "1 pixel = 1 edge"


@pytest.mark.long
def test_png_of_blocks_keeps_what_is_rare_visible():
    share = np.array([[0, 1 / 64, 0.1, 0.25, 0.0001, 1]], np.float32)
    picture = Picture((2,), share, (8, 8), (8, 48))
    pixels, opacity = decoded(masks.png(picture))
    assert pixels.tolist() == [[0, 2, 5, 8, 1, 15]]
    assert (np.diff(opacity.astype(int)) == 17).all()
    assert masks.scale(picture.block) == "1 pixel = 8 x 8 edges"
    assert masks.title(picture) == "Mask of layer 2"
    assert masks.caption(picture) == (
        "rows: 8 input units; columns: 48 output units; 87 of 384 edges kept (22.66 %)"
    )


@pytest.mark.long
def test_the_page_shows_the_mask():
    found = bb.report({"w": MASK}, UNITS)
    (image,) = Page(found.html()).all("img")
    data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(decoded(data)[0], MASK)
    assert image["alt"] == (
        "Mask of w; rows: 6 input units; columns: 4 output units; 9 of 24 edges kept "
        "(37.50 %)"
    )


# Charts --------------------------------------------------------------------------
@pytest.mark.parametrize("low, high", [(0, 1), (0, 7), (3, 3), (0, 1000), (17, 4096)])
def test_ticks_are_round_and_few(low, high):
    values = charts.ticks(low, high)
    assert 1 <= len(values) <= 6 and low <= values[0] and values[-1] <= high
    steps = set(np.diff(values).tolist())
    assert len(steps) <= 1 and all(str(s).strip("0") in "125" for s in steps)


@pytest.mark.long
def test_bars_are_as_high_as_their_counts():
    side = bb.report({"w": MASK}, UNITS)["w"].sides[1]  # degrees 2 1 3 0 2 1
    root = xml.fromstring(charts.degrees(side).svg)
    heights = [float(bar.attrib["height"]) for bar in root.iter("rect")]
    assert np.allclose(np.array(heights) / heights[0], [1, 2, 2, 1], rtol=0.01)
    assert [bar[0].text for bar in root.iter("rect")][0] == "degree 0: 1 unit"


@pytest.mark.long
def test_the_fitted_line_goes_through_a_planted_one():
    k = np.arange(1, 6)
    rate = 1 / (1 + np.exp(0.5 * (k - 3.0)))
    mask = np.arange(7)[:, None] < k
    seen = activity(dense(7, 5), outputs=rate)
    side = bb.report({"w": mask}, bb.Units((dense(7, 5),)), activity=seen)["w"].sides[0]
    root = xml.fromstring(charts.activity(side, None).svg)
    (line,) = [e for e in root.iter("line") if e.get("class") == "fit"]
    x1, y1, x2, y2 = (float(line.attrib[n]) for n in ("x1", "y1", "x2", "y2"))
    dots = "".join(e.attrib["d"] for e in root.iter("path"))
    spots = np.array(re.findall(r"M([\d.]+) ([\d.]+)", dots), float)
    assert len(spots) == 5
    off = y1 + (spots[:, 0] - x1) * (y2 - y1) / (x2 - x1) - spots[:, 1]
    assert np.abs(off).max() <= 1.5 * charts.SPOT
    assert (np.diff(spots[np.argsort(spots[:, 0]), 1]) > 0).all()  # busy: few edges


@pytest.mark.long
def test_no_line_is_drawn_where_none_was_fitted():
    seen = activity(dense(6, 4), outputs=np.full(4, 0.5))
    side = bb.report({"w": MASK}, UNITS, activity=seen)["w"].sides[0]
    root = xml.fromstring(charts.activity(side, None).svg)
    assert not [e for e in root.iter("line") if e.get("class") == "fit"]
    assert "no line fitted" in root.attrib["aria-label"]


# Words ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "bytes_, text",
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_600, "1 MB"),
        (10**13, "10,000 GB"),
    ],
)
def test_bytes(bytes_, text):
    assert formats.size(bytes_) == text


@pytest.mark.parametrize(
    "value, text",
    [(0.0, "0"), (1e-9, "1e-09"), (999.6, "1,000"), (1234.5, "1,230"), (-2.5, "-2.5")],
)
def test_numbers(value, text):
    assert formats.number(value) == text


def test_shares():
    assert [formats.percent(x) for x in (0.0, 1.0, 0.5, 4e-4)] == [
        "0.00 %",
        "100.00 %",
        "50.00 %",
        "0.04 %",
    ]
