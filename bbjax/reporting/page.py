"""The page: one HTML file that needs nothing else, no script and no network.

    headline and cards -> table of kernels -> one section a kernel -> sizes, latency,
    other masks -> what the words mean

Sections are `<details>`, which browsers fold by themselves; the table links to them.
Everything that comes from outside (paths, titles, names) is escaped. The same report
gives the same bytes: nothing of the time or the machine is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from bbjax.model.version import __version__
from bbjax.reporting import charts, masks, words
from bbjax.reporting.charts import Chart, tag
from bbjax.reporting.data import KernelFacts, Picture, Report, SideFacts
from bbjax.reporting.facts import LAYERS, MANY, evenly
from bbjax.reporting.style import CSS

OPEN = 12  # kernels up to which all sections are open
HINT = "scroll sideways →"


def page(report: Report) -> str:
    """The whole page."""
    head = (
        '<meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{CSS}</style>"
    )
    parts = [
        tag("h1", escape(report.title)),
        tag("p", escape(words.headline(report)), class_="dim"),
        *(tag("p", escape(note), class_="note", role="note") for note in report.notes),
        _cards(report),
        tag("div", _summary(report), id="kernels"),
        *(_kernel(report, i) for i in range(len(report.kernels))),
        _extras(report),
        _glossary(),
        _footer(),
    ]
    body = tag("main", "\n".join(part for part in parts if part))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n'
        f"<body>{body}</body></html>\n"
    )


def notebook(report: Report) -> str:
    """The page in a frame of its own, so that its style stays in it."""
    return tag(
        "iframe",
        srcdoc=page(report),
        title=report.title,
        style="width:100%;height:720px;border:0",
    )


def _cards(report: Report) -> str:
    found = [
        tag("div", tag("dt", name) + tag("dd", said + _small(remark)), class_="card")
        for name, said, remark in words.cards(report)
    ]
    return tag("dl", "".join(found), class_="cards")


def _small(text: str) -> str:
    return tag("small", escape(text)) if text else ""


def _footer() -> str:
    return tag("footer", f"bbjax {__version__}")


# Tables --------------------------------------------------------------------------
def table(
    name: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    of: str = "",
    right: Sequence[int] | None = None,
    level: str = "h3",
) -> str:
    """A titled table in a box that scrolls by itself where it is too wide.

    A hint beside the title appears while the box scrolls, and the keyboard reaches it.

    Args:
      name: the title.
      head: text of the header cells.
      rows: HTML of the cells; the first of a row is its header.
      of: path of the kernel; part of the name that screen readers read out.
      right: columns set flush right; None for all but the first.
      level: element of the title.
    """
    flush = range(1, len(head)) if right is None else right

    def cell(name: str, i: int, content: str, **more: str) -> str:
        side = {"class_": "right"} if i in flush else {}
        return tag(name, content, **side, **more)

    top = [cell("th", i, escape(h), scope="col") for i, h in enumerate(head)]
    lines = []
    for row in rows:
        cells = [
            cell("td", i, c) if i else cell("th", 0, c, scope="row")
            for i, c in enumerate(row)
        ]
        lines.append(tag("tr", "".join(cells)))
    content = tag("thead", tag("tr", "".join(top))) + tag("tbody", "".join(lines))
    label = f"{name} of {of}" if of else name
    made = tag("table", content, aria_label=label)
    region = {"role": "region", "aria_label": label, "tabindex": 0}
    hint = tag("span", HINT, class_="hint", aria_hidden="true")
    title = tag("div", tag(level, escape(name)) + hint, class_="titled")
    return tag("div", title + tag("div", made, class_="sheet", **region), class_="box")


def _escaped(rows: Iterable[Sequence[str]]) -> list[list[str]]:
    return [[escape(cell) for cell in row] for row in rows]


def _summary(report: Report) -> str:
    places = {id(kernel): i for i, kernel in enumerate(report.kernels)}
    got = words.HEAD.index("density got")
    found = []
    for row in words.rows(report):
        cells = [escape(cell) for cell in row.cells]
        link = f"#kernel-{places[id(row.kernel)]}"
        room = f"min-width:{min(len(row.kernel.path), 20)}ch"
        cells[0] = tag("a", cells[0], href=link, class_="path", style=room)
        width = f"width:{100 * row.kernel.got:.4g}%"
        width += ";min-width:2px" if row.kernel.kept else ""
        bar = f'<span class="bar-of" aria-hidden="true"><i style="{width}"></i></span>'
        cells[got] += bar
        found.append(cells)
    right = [i for i, name in enumerate(words.HEAD) if name in words.RIGHT]
    return table("Kernels", words.HEAD, found, right=right, level="h2")


# One kernel ----------------------------------------------------------------------
def _kernel(report: Report, place: int) -> str:
    kernel = report.kernels[place]
    dead = f"{words.count(kernel.dead)} dead" if kernel.dead else "no dead unit"
    said = f"{kernel.kind} · {words.percent(kernel.got)} kept · {dead}"
    name = tag("strong", escape(kernel.path), class_="path")
    top = tag("summary", name + tag("span", escape(said)))
    most = LAYERS if len(report.kernels) <= MANY else LAYERS // 2
    inside = [_facts(kernel, report.since), _figures(kernel, most), _tables(kernel)]
    # The target of links is within: browsers then open the section by themselves.
    body = tag("div", "".join(inside), class_="inside", id=f"kernel-{place}")
    opened = {"open": "open"} if len(report.kernels) <= OPEN else {}
    return tag("details", top + body, **opened)


def _facts(kernel: KernelFacts, since: str) -> str:
    lines = words.kernel_lines(kernel, since)
    pairs = (tag("dt", escape(n)) + tag("dd", escape(text)) for n, text in lines)
    return tag("dl", "".join(pairs), class_="facts")


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
        units, edges = words.MEANING[side.side]
        small = f"{words.counted(side.whole.units, units)}, each with up to "
        small += words.counted(side.fan, edges)
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
    down, across = (words.count(edges - 1) for edges in picture.edges)
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
    units, _ = words.MEANING[side.side]
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
        small = f"{which}{words.counted(m.units, units)}; {words.line(m)}"
        found.append(_chart(name, small, charts.activity(side, layer)))
    return found


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
    both = words.side_table(kernel)
    left = [table("Units", both[0], _escaped(both[1]), kernel.path)]
    right: list[str] = []
    for side in kernel.sides:
        hubs = words.hub_table(side)
        if hubs is not None:
            column = right if side in kernel.main else left
            name, head, rows = hubs
            column.append(table(name, head, _escaped(rows), kernel.path))
    columns = (tag("div", "".join(column)) for column in (left, right) if column)
    found = [tag("div", "".join(columns), class_="tables")]
    for side in kernel.main if kernel.stack_shape else ():
        name = f"Layers, {words.MEANING[side.side][0]}"
        cells = _escaped(words.layer_rows(kernel, side))
        found.append(table(name, words.LAYER_HEAD, cells, kernel.path))
    found.append(tag("p", tag("a", "back to all kernels", href="#kernels")))
    return "".join(found)


# What else is known --------------------------------------------------------------
def _extras(report: Report) -> str:
    found = [
        table(name, head, _escaped(rows), level="h2")
        for name, head, rows in words.extras(report)
    ]
    return "".join(found)


def _glossary() -> str:
    pairs = (tag("dt", escape(a)) + tag("dd", escape(b)) for a, b in words.GLOSSARY)
    content = tag("dl", "".join(pairs), class_="facts words")
    return tag("h2", "What the words mean") + content
