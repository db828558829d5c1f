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

from bbjax.report import charts, masks, words
from bbjax.report.charts import tag
from bbjax.report.data import KernelFacts, Picture, Report, SideFacts
from bbjax.report.facts import LAYERS, MANY, evenly
from bbjax.report.style import CSS

OPEN = 12  # kernels up to which all sections are open
PICTURE = 264  # pixels, the longer side of a mask picture


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
        tag("h2", "Kernels", id="kernels"),
        _summary(report),
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
    import bbjax

    return tag("footer", f"bbjax {bbjax.__version__}")


# Tables --------------------------------------------------------------------------
def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str,
    right: Sequence[int] | None = None,
) -> str:
    """A table with headers, in a box that scrolls by itself where it is too wide.

    Args:
      head: text of the header cells.
      rows: HTML of the cells; the first of a row is its header.
      caption: what it is, for those who listen to it.
      right: columns set flush right; None for all but the first.
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
    made = tag("table", content, aria_label=caption)
    label = {"role": "region", "aria_label": caption, "tabindex": 0}
    return tag("div", made, class_="sheet", **label)


def _escaped(rows: Iterable[Sequence[str]]) -> list[list[str]]:
    return [[escape(cell) for cell in row] for row in rows]


def _summary(report: Report) -> str:
    places = {id(kernel): i for i, kernel in enumerate(report.kernels)}
    got = words.HEAD.index("got")
    found = []
    for row in words.rows(report):
        cells = [escape(cell) for cell in row.cells]
        link = f"#kernel-{places[id(row.kernel)]}"
        cells[0] = tag("a", cells[0], href=link, class_="path")
        width = f"width:{100 * row.kernel.got:.4g}%"
        bar = f'<span class="bar-of" aria-hidden="true"><i style="{width}"></i></span>'
        cells[got] += bar
        found.append(cells)
    right = [i for i, name in enumerate(words.HEAD) if name in words.RIGHT]
    return table(words.HEAD, found, "Kernels", right)


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
    pictures = [
        _picture(kernel, masks.upright(kernel.pictures[i]))
        for i in evenly(len(kernel.pictures), most)
    ]
    rows = [_degrees(kernel), activity, pictures]
    if not kernel.stack_shape:
        rows = [sum(rows, [])]
    return "".join(tag("div", "".join(row), class_="figures") for row in rows)


def _degrees(kernel: KernelFacts) -> list[str]:
    found = []
    for side in kernel.sides:
        units, edges = words.MEANING[side.side]
        small = f"{words.count(side.whole.units)} {units}"
        small += f", full degree {words.count(side.fan)}"
        found.append(_figure(f"Degrees, {edges}", small, charts.degrees(side)))
        if len(side.layers) > 1 and side in kernel.main:
            small = f"least, mean and largest; {units}"
            found.append(_figure("Degrees by layer", small, charts.by_layer(side)))
    return found


def _picture(kernel: KernelFacts, picture: Picture) -> str:
    width, height = masks.size(picture, PICTURE)
    image = tag(
        "img",
        src=masks.address(picture),
        alt=f"Mask of {kernel.path}, {masks.caption(picture)}",
        width=width,
        height=height,
        style=f"width:{width}px;height:{height}px",
    )
    small = f"{masks.caption(picture)}; {masks.scale(picture)}"
    return _figure("Mask", small, image, "mask")


def _activity(side: SideFacts, most: int) -> list[str]:
    units, _ = words.MEANING[side.side]
    if side.rate is None:
        why = tag("p", escape(f"No figure: {side.why_no_activity}."), class_="dim")
        return [_figure("Activity against degree", units, why)]
    layers: Sequence[int | None] = [None]
    if side.layers:
        layers = evenly(len(side.layers), most)
    found = []
    for layer in layers:
        m = side.whole if layer is None else side.layers[layer]
        which = units if layer is None else f"layer {layer}: {units}"
        grey = "" if side.free[layer or 0].all() else "; grey: on a bound, not fitted"
        small = f"{which}; {words.line(m)}{grey}"
        chart = charts.activity(side, layer)
        found.append(_figure("Activity against degree", small, chart))
    return found


def _figure(name: str, small: str, content: str, kind: str = "") -> str:
    caption = tag("figcaption", escape(name) + _small(small))
    more = {"class_": kind} if kind else {}
    return tag("figure", caption + content, **more)


def _tables(kernel: KernelFacts) -> str:
    head, rows = words.side_table(kernel)
    left = [_titled("Units", table(head, _escaped(rows), "Units of both sides"))]
    right: list[str] = []
    for side in kernel.sides:
        column = right if side in kernel.main else left
        units, _ = words.MEANING[side.side]
        for name, hubs in (
            (f"Hubs: highest traffic, {units}", side.busiest),
            (f"Hubs: highest degree, {units}", side.widest),
        ):
            if hubs:
                head, rows = words.unit_table(hubs)
                column.append(_titled(name, table(head, _escaped(rows), name)))
    columns = (tag("div", "".join(column)) for column in (left, right) if column)
    found = [tag("div", "".join(columns), class_="tables")]
    for side in kernel.main if kernel.stack_shape else ():
        name = f"Layers, {words.MEANING[side.side][0]}"
        cells = _escaped(words.layer_rows(kernel, side))
        found.append(_titled(name, table(words.LAYER_HEAD, cells, name)))
    found.append(tag("p", tag("a", "back to all kernels", href="#kernels")))
    return "".join(found)


def _titled(name: str, content: str) -> str:
    return tag("h3", escape(name)) + content


# What else is known --------------------------------------------------------------
def _extras(report: Report) -> str:
    found = [
        tag("h2", escape(name)) + table(head, _escaped(rows), name)
        for name, head, rows in words.extras(report)
    ]
    return "".join(found)


def _glossary() -> str:
    pairs = (tag("dt", escape(a)) + tag("dd", escape(b)) for a, b in words.GLOSSARY)
    content = tag("dl", "".join(pairs), class_="facts words")
    return tag("h2", "What the words mean") + content
