"""The page: one HTML file that needs nothing else, no script and no network.

    headline and cards -> table of kernels -> one section a kernel -> losses with one
    row pruned -> what the caller gave, other masks -> what the words mean

Sections are `<details>` elements, which browsers can fold; the table links to them.
Paths, titles and names are escaped. The same report gives the same bytes: the page
contains neither the time nor anything about the machine.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from bbjax.model.version import __version__
from bbjax.reporting import charts, losses, masks, words
from bbjax.reporting.charts import Chart, tag
from bbjax.reporting.data import Facts, KernelFacts, LossFacts, Picture, SideFacts
from bbjax.reporting.figures import LAYERS, MANY, evenly
from bbjax.reporting.formats import count, counted, escape, percent
from bbjax.reporting.words import MEANING, Table

MAPS = 12  # stacks up to which all have a heat map
OPEN = 12  # kernels up to which all sections are open
HINT = "scroll sideways →"
_CSS = Path(__file__).with_name("page.css").read_text("utf-8")


def page(facts: Facts) -> str:
    """The whole page."""
    head = (
        '<meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(facts.title)}</title><style>{_CSS}</style>"
    )
    parts = [
        tag("h1", escape(facts.title)),
        tag("p", escape(words.headline(facts)), class_="dim"),
        *(tag("p", escape(note), class_="note", role="note") for note in facts.notes),
        _cards(facts),
        tag("div", _kernels_table(facts), id="kernels"),
        *(_kernel(facts, i) for i in range(len(facts.kernels))),
        "" if facts.losses is None else _losses(facts.losses),
        "".join(_table(table, level="h2") for table in words.other_tables(facts)),
        tag("h2", "What the words mean") + _pairs(words.GLOSSARY, "facts words"),
        tag("footer", f"bbjax {__version__}"),
    ]
    body = tag("main", "\n".join(part for part in parts if part))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n'
        f"<body>{body}</body></html>\n"
    )


def notebook(facts: Facts) -> str:
    """The page in a frame, so that its style does not change the notebook.

    The frame is a sandbox: nothing in it can run, send anything, or reach the notebook.
    """
    frame = tag(
        "iframe",
        sandbox="",
        title=facts.title,
        style="width:100%;height:720px;border:0",
    )
    # The lines of the page stay lines; its texts are escaped already.
    srcdoc = f' srcdoc="{html.escape(page(facts))}">'
    return frame.replace(">", srcdoc, 1)


def _cards(facts: Facts) -> str:
    found = [
        tag("div", tag("dt", name) + tag("dd", figure + _small(remark)), class_="card")
        for name, figure, remark in words.cards(facts)
    ]
    return tag("dl", "".join(found), class_="cards")


def _small(text: str) -> str:
    return tag("small", escape(text)) if text else ""


def _pairs(pairs: Iterable[tuple[str, str]], kind: str) -> str:
    """A list of names with their texts."""
    found = (tag("dt", escape(a)) + tag("dd", escape(b)) for a, b in pairs)
    return tag("dl", "".join(found), class_=kind)


# Tables --------------------------------------------------------------------------
def _table(
    table: Table,
    of: str = "",
    level: str = "h3",
    cells: Sequence[Sequence[str]] | None = None,
) -> str:
    """A titled table in a box that scrolls sideways if the table is too wide.

    Where the box can scroll, a hint appears beside the title. The box can be scrolled
    by keyboard.

    Args:
      table: its title and text.
      of: path of the kernel; part of the name for screen readers.
      level: element of the title.
      cells: HTML of the cells, in place of their text.
    """

    def cell(kind: str, i: int, content: str, **more: str) -> str:
        side = {} if i < table.left else {"class_": "right"}
        return tag(kind, content, **side, **more)

    top = [cell("th", i, escape(h), scope="col") for i, h in enumerate(table.head)]
    lines = []
    for row in cells or ([escape(text) for text in row] for row in table.rows):
        first = cell("th", 0, row[0], scope="row")
        rest = (cell("td", i, content) for i, content in enumerate(row) if i)
        lines.append(tag("tr", first + "".join(rest)))
    content = tag("thead", tag("tr", "".join(top))) + tag("tbody", "".join(lines))
    label = f"{table.title} of {of}" if of else table.title
    made = tag("table", content, aria_label=label)
    region = {"role": "region", "aria_label": label, "tabindex": 0}
    hint = tag("span", HINT, class_="hint", aria_hidden="true")
    title = tag("div", tag(level, escape(table.title)) + hint, class_="titled")
    return tag("div", title + tag("div", made, class_="sheet", **region), class_="box")


def _kernels_table(facts: Facts) -> str:
    """The table of kernels, with links to their sections and bars of densities."""
    table = words.kernels_table(facts)
    got = table.head.index("density got")
    places = [i for i, kernel in enumerate(facts) for _ in kernel.main]
    found = []
    for place, row in zip(places, table.rows, strict=True):
        kernel = facts.kernels[place]
        cells = [escape(cell) for cell in row]
        room = f"min-width:{min(len(kernel.path), 20)}ch"
        link = {"href": f"#kernel-{place}", "class_": "path", "style": room}
        cells[0] = tag("a", cells[0], **link)
        width = f"width:{100 * kernel.got:.4g}%"
        width += ";min-width:2px" if kernel.kept else ""
        bar = f'<span class="bar-of" aria-hidden="true"><i style="{width}"></i></span>'
        cells[got] += bar
        found.append(cells)
    return _table(table, level="h2", cells=found)


# One kernel ----------------------------------------------------------------------
def _kernel(facts: Facts, place: int) -> str:
    kernel = facts.kernels[place]
    dead = f"{count(kernel.dead)} dead" if kernel.dead else "no dead unit"
    short = f"{kernel.kind} · {percent(kernel.got)} kept · {dead}"
    name = tag("strong", escape(kernel.path), class_="path")
    top = tag("summary", name + tag("span", escape(short)))
    most = LAYERS if len(facts.kernels) <= MANY else LAYERS // 2
    lines = _pairs(words.kernel_lines(kernel, facts.since), "facts")
    inside = [lines, _figures(kernel, most), _tables(kernel)]
    # The target of links is within: browsers then open the section by themselves.
    body = tag("div", "".join(inside), class_="inside", id=f"kernel-{place}")
    opened = {"open": "open"} if len(facts.kernels) <= OPEN else {}
    return tag("details", top + body, **opened)


def _figures(kernel: KernelFacts, most: int) -> str:
    """Degrees, activity and mask: in one grid, or one each for a stack of layers."""
    activity = [f for side in kernel.main for f in _activity(side, most)]
    shown = evenly(len(kernel.pictures), most)
    pictures = [_picture(kernel, kernel.pictures[i]) for i in shown]
    rows = [_degrees(kernel), activity, pictures]
    if not kernel.stack_shape:
        rows = [sum(rows, [])]
    return "".join(tag("div", "".join(row), class_="figures") for row in rows)


def _degrees(kernel: KernelFacts) -> list[str]:
    found = []
    for side in kernel.sides:
        units, edges = MEANING[side.side]
        small = f"{counted(side.whole.units, units)}, each with up to "
        small += counted(side.fan, edges)
        name = f"Degrees of {units}"
        found.append(_chart(name, small, charts.degrees(side)))
        if len(side.layers) > 1 and side in kernel.main:
            small = f"{edges} that the units of each layer keep"
            found.append(_chart(f"{name}, by layer", small, charts.by_layer(side)))
    return found


def _picture(kernel: KernelFacts, picture: Picture) -> str:
    """The mask between its axes: input units down, output units across."""
    width, height = masks.size(picture)
    image = tag(
        "img",
        src=masks.address(picture),
        alt=f"{masks.title(picture)} of {kernel.path}; {masks.caption(picture)}",
        width=width,
        height=height,
        style=f"width:{width}px;height:{height}px",
    )
    down, across = (count(edges - 1) for edges in picture.edges)
    axes = [
        _axis("across", f"min-width:{width}px", "output unit", across),
        _axis("down", f"min-height:{height}px", "input unit", down),
    ]
    framed = tag("div", "".join(axes) + image, class_="framed")
    keys = [
        (_key("shade", tag("span", style=f"opacity:{opacity:.3g}")), text)
        for opacity, text in masks.legend(picture)
    ]
    if not masks.single(picture):
        keys.insert(0, ("", "kept share of the edges of a pixel:"))
    small = f"{masks.caption(picture)}; {masks.scale(picture.block)}"
    return _figure(masks.title(picture), small, framed + _legend(keys), "mask")


def _axis(kind: str, size: str, name: str, last: str) -> str:
    """An axis of a picture: its first unit, its name, its last unit."""
    parts = ("0", f"{name} →", last) if last != "0" else (f"{name} 0",)
    spans = "".join(tag("span", part) for part in parts)
    return tag("div", spans, class_=f"along {kind}", style=size, aria_hidden="true")


def _activity(side: SideFacts, most: int) -> list[str]:
    units, _ = MEANING[side.side]
    name = "Degree against on-rate"
    if side.rate is None:
        why = tag("p", escape(f"No figure: {side.why_no_activity}."), class_="dim")
        return [_figure(name, units, why)]
    layers: Sequence[int | None] = [None]
    if side.layers:
        layers = evenly(len(side.layers), most)
    found = []
    for layer in layers:
        m = side.whole if layer is None else side.layers[layer]
        which = "" if layer is None else f"layer {layer}: "
        small = f"{which}{counted(m.units, units)}; {words.line(side, m)}"
        found.append(_chart(name, small, charts.activity(side, layer)))
    return found


def _losses(found: LossFacts) -> str:
    """Charts and numbers of a sensitivity analysis."""
    drawn = [
        _chart("Increase of the loss", words.losses_line(found), losses.curves(found))
    ]
    for group, rows in list(found.stacks.items())[:MAPS]:
        small = f"{counted(len(rows), 'layers')}, one at a time pruned to each density"
        drawn.append(_chart(f"Layers of {group}", small, losses.heat_map(found, group)))
    figures = tag("div", "".join(drawn), class_="figures")
    table = _table(words.losses_table(found), level="h3")
    return tag("h2", "Sensitivity", id="sensitivity") + figures + table


def _chart(name: str, small: str, chart: Chart) -> str:
    keys = [(_key(kind), text) for kind, text in chart.legend]
    return _figure(name, small, chart.svg + _legend(keys))


def _key(kind: str, content: str = "") -> str:
    return tag("i", content, class_=f"key {kind}")


def _legend(keys: Iterable[tuple[str, str]]) -> str:
    """Marks and what they mean."""
    items = (tag("li", mark + escape(text)) for mark, text in keys)
    return tag("ul", "".join(items), class_="legend")


def _figure(name: str, small: str, content: str, kind: str = "") -> str:
    caption = tag("figcaption", escape(name) + _small(small))
    more = {"class_": kind} if kind else {}
    return tag("figure", caption + tag("div", content), **more)


def _tables(kernel: KernelFacts) -> str:
    left = [_table(words.units_table(kernel), kernel.path)]
    right: list[str] = []
    for side in kernel.sides:
        hubs = words.hub_table(side)
        if hubs is not None:
            column = right if side in kernel.main else left
            column.append(_table(hubs, kernel.path))
    columns = (tag("div", "".join(column)) for column in (left, right) if column)
    found = [tag("div", "".join(columns), class_="tables")]
    found += [_table(table, kernel.path) for table in words.layer_tables(kernel)]
    found.append(tag("p", tag("a", "back to all kernels", href="#kernels")))
    return "".join(found)
