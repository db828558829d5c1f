"""The losses of `bb.sensitivity` in a report: curves, maps, tables and numbers."""

import json
import re
import xml.etree.ElementTree as xml

import numpy as np
import pytest

import bbjax as bb
from bbjax.reporting import charts
from bbjax.reporting import losses as drawn
from bbjax.reporting.figures import loss_facts
from tests.support.pages import Page, contrast, schemes, squeezed, terminal
from tests.support.reports import MASK, UNITS, losses, reported


def report(found, **more):
    return bb.report({"w": MASK}, UNITS, sensitivity=found, **more)


def points(path):
    """Places of the corners of a line."""
    return np.array([p.split() for p in re.split("[ML]", path)[1:]], float)


def named(element):
    return element.find("title").text.split(":")[0]


def test_lines_go_through_what_was_measured():
    found = losses(5, densities=(0.9, 0.5, 0.3, 0.1))
    chart = drawn.curves(loss_facts(found))
    lines = {named(e): e for e in xml.fromstring(chart.svg).iter("path")}
    assert lines.keys() == found.losses.keys() and len(lines) == 10
    seen, given = [], []
    for name, element in lines.items():
        corners = points(element.get("d"))
        assert len(corners) == 5 and (np.diff(corners[:, 0]) > 0).all()
        seen += corners.tolist()
        rises = [*(found.losses[name] - found.dense)[::-1], 0.0]
        given += zip((0.1, 0.3, 0.5, 0.9, 1.0), rises, strict=True)
    # Places are linear in what they stand for, and upwards is a larger loss.
    for side, sign in ((0, 1), (1, -1)):
        place, value = np.array(seen)[:, side], np.array(given)[:, side]
        slope, start = np.polyfit(value, place, 1)
        assert slope * sign > 0
        np.testing.assert_allclose(place, start + slope * value, atol=0.11)
    inside = np.array(seen)
    assert (inside >= [charts.LEFT, charts.TOP - 0.1]).all()
    assert (inside <= [charts.WIDTH, charts.HEIGHT - charts.BOTTOM + 0.1]).all()


def test_the_rows_that_rise_most_are_named():
    found = losses(5)
    chart = drawn.curves(loss_facts(found))
    tops = sorted(found.losses, key=lambda name: -found.losses[name].max())[:4]
    assert [text for _, text in chart.legend] == [*tops, "6 other rows"]
    kinds = {named(e): e.get("class") for e in xml.fromstring(chart.svg).iter("path")}
    for (kind, name), _ in zip(chart.legend, range(4), strict=False):
        assert kinds[name] == kind
    assert sum(kind == "curve other" for kind in kinds.values()) == 6
    assert [text for _, text in drawn.curves(loss_facts(losses())).legend] == [
        "layers/down",
        "layers/up",
    ]


@pytest.mark.parametrize("shape", [(7,), (2, 3)])
def test_cells_of_a_map_are_layers_and_densities(shape):
    facts = loss_facts(losses(*shape))
    assert list(facts.stacks) == ["layers/up", "layers/down"]
    most = max(x for row in facts.rows for x in row.increases)
    for group, rows in facts.stacks.items():
        root = xml.fromstring(drawn.heat_map(facts, group).svg)
        cells = list(root.iter("rect"))
        assert len(cells) == len(rows) * 3
        for cell in cells:
            name, density = re.match(
                r"(.*) at ([\d.]+):", cell.find("title").text
            ).groups()
            row = next(row for row in rows if row.name == name)
            x = row.increases[facts.densities.index(float(density))]
            share = max(x, 0) / most
            assert float(cell.get("fill-opacity")) ** 2 == pytest.approx(
                share, abs=2e-3
            )
        places = np.array([[float(c.get(k)) for k in ("x", "y")] for c in cells])
        columns = places[:, 0].reshape(len(rows), 3)
        lines = places[:, 1].reshape(len(rows), 3)
        assert (columns == columns[:, :1]).all() and (np.diff(columns[:, 0]) > 0).all()
        assert (lines == lines[:1]).all() and (np.diff(lines[0]) > 0).all()
        texts = [e.text for e in root.iter("text")]
        assert texts[:3] == ["0.8", "0.5", "0.2"] and texts[-2:] == ["layer", "density"]


def test_scales_are_round_and_hold_what_they_show():
    for low, high in [(0, 1), (-0.3, 2.2), (0, 0), (-5, 0), (0, 3.7e-5), (-1e4, 1e6)]:
        bottom, top, marked = drawn._scale(low, high)
        values = [value for value, _ in marked]
        assert bottom <= low and top >= high and bottom < top
        assert 2 <= len(marked) <= 7 and values == sorted(values)
        assert all(bottom - 1e-9 <= v <= top * (1 + 1e-9) for v in values)
        step = values[1] - values[0]
        assert f"{step:.5e}"[0] in "125" and set(f"{step:.5e}"[2:7]) == {"0"}


@pytest.mark.long
def test_the_page_has_charts_maps_and_numbers():
    found = losses(3)
    page = Page(report(found).html())
    titles = [a.get("aria-label", "") for a in page.all("svg")]
    assert sum("Increase of the loss" in title for title in titles) == 3
    text = squeezed(page.text)
    assert "6 rows, one at a time pruned to density 0.8, 0.5, 0.2; dense loss 2" in text
    for row in loss_facts(found).rows:
        assert row.name in text
    assert "Sensitivity" not in Page(reported("mlp").html()).text


def test_names_of_rows_are_escaped():
    html = report(losses(2, groups=("<b>&",))).html()
    assert "<b>&" not in html and "&lt;b&gt;&amp;[1]" in html
    Page(html)


@pytest.mark.parametrize("scheme", [0, 1])
def test_lines_with_a_name_stand_out(scheme):
    html = report(losses()).html()
    colours = dict(re.findall(r"--([a-z-]+): (#\w{6})", schemes(html)[scheme]))
    for name in ("units", "fit", "third", "fourth"):
        assert contrast(colours[name], colours["card"]) >= 3, name


def test_the_terminal_has_numbers_and_bars():
    found = losses(2, groups=("up",), densities=(0.9, 0.2))
    text = terminal(report(found), 100)
    line = next(line for line in text.splitlines() if line.strip().startswith("up[1]"))
    rises = found.losses["up[1]"] - 2
    cells = line.split()[:4]
    assert cells == ["up[1]", "60", f"{rises[0]:.3g}", f"+{rises[1]:.3g}"]
    assert line.rstrip().endswith("| █|")  # no bar for a loss that falls
    assert "full bar: " in text and "2 rows, one at a time" in text
    assert "rows, one at a time" not in terminal(reported("mlp"), 100)


def test_numbers_are_json():
    found = losses(2)
    numbers = report(found).to_dict()
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    given = numbers["sensitivity"]
    assert given["dense_loss"] == 2.0 and given["densities"] == [0.8, 0.5, 0.2]
    for row, (name, values) in zip(given["rows"], found.losses.items(), strict=True):
        assert row["name"] == name and row["edges"] == 60
        np.testing.assert_allclose(row["increases"], values - 2.0)
    assert reported("mlp").to_dict()["sensitivity"] is None


def test_what_is_no_sensitivity_is_refused():
    with pytest.raises(
        TypeError, match="sensitivity as bb.sensitivity returns it, got"
    ):
        report({"w": 0.5})
