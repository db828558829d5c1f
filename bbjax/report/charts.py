"""Charts of a report as small inline SVG: crisp at any size, coloured by the page.

Marks carry classes (`bar`, `dot`, `fit`, ...) and no colours, so that one style sheet
draws them in light and dark. Dots that fall on the same spot become one, darker with
their number: a chart of a hundred thousand units is no larger than one of a thousand.

    activity against degree    x = log((1 - a) / a), reversed: rare left, busy right
                               y = k;  a balanced layer lies on a falling line
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from html import escape

import numpy as np

from bbjax.metrics import DEAD
from bbjax.report.data import Histogram, Measures, SideFacts
from bbjax.report.words import MEANING, number

WIDTH, HEIGHT = 280, 186
LEFT, RIGHT, TOP, BOTTOM = 45, 10, 10, 40
SPOT = 2.5  # pixels within which dots are one
_RATES = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
_EMPTY = ("circle", "img", "line", "meta", "path", "rect")  # nothing need be in them
_FINER = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


@dataclasses.dataclass(frozen=True)
class Axes:
    """A frame and its scales.

    Attributes:
      x: values at its left and right end.
      y: values at its lower and upper end.
    """

    x: tuple[float, float]
    y: tuple[float, float]

    def px(self, value: float) -> float:
        """Pixels from the left."""
        share = (value - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def py(self, value: float) -> float:
        """Pixels from the top."""
        share = (value - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def tag(name: str, content: str = "", **attributes: object) -> str:
    """An element that HTML and XML both read; attributes are escaped, content is not.

    Example:
      >>> tag("line", class_="axis", x1=0, label="a<b")
      '<line class="axis" x1="0" label="a&lt;b"/>'
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for key, value in attributes.items()
    )
    if not content and name in _EMPTY:
        return f"<{name}{given}/>"
    return f"<{name}{given}>{content}</{name}>"


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _words(x: float, y: float, text: str, **attributes: object) -> str:
    return tag("text", escape(text), x=round(x, 1), y=round(y, 1), **attributes)


def ticks(low: float, high: float, most: int = 5) -> list[int]:
    """Round whole numbers within a range, at most one more than asked for.

    Example:
      >>> ticks(0, 128), ticks(1, 3)
      ([0, 50, 100], [1, 2, 3])
    """
    span = max(high - low, 1)
    scale = 10 ** max(math.floor(math.log10(span / most)), 0)
    step = next(m * scale for m in (1, 2, 5, 10) if span <= most * m * scale)
    first = math.ceil(low / step) * step
    return list(range(first, math.floor(high) + 1, step))


def _frame(
    axes: Axes,
    marks: Iterable[str],
    x_ticks: Iterable[tuple[float, str]],
    names: tuple[str, str],
    summary: str,
) -> str:
    """The chart around its marks: grid, ticks, names of the axes."""
    parts = [tag("title", escape(summary))]
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for k in ticks(*axes.y, most=4):
        y = round(axes.py(k), 1)
        parts.append(tag("line", class_="grid", x1=LEFT, x2=right, y1=y, y2=y))
        parts.append(_words(LEFT - 6, y + 3.5, f"{k:,}", class_="tick end"))
    free = 0.0  # up to where words are set
    for value, text in x_ticks:
        x = round(axes.px(value), 1)
        parts.append(tag("line", class_="axis", x1=x, x2=x, y1=bottom, y2=bottom + 4))
        half = 3.2 * len(text)
        if x - half > free:
            parts.append(_words(x, bottom + 15, text, class_="tick middle"))
            free = x + half + 4
    parts += marks
    parts.append(tag("line", class_="axis", x1=LEFT, x2=right, y1=bottom, y2=bottom))
    parts.append(_words((LEFT + right) / 2, HEIGHT - 7, names[0], class_="name middle"))
    middle = (TOP + bottom) / 2
    turned = {"class_": "name middle", "transform": f"rotate(-90 11 {middle:.4g})"}
    parts.append(_words(11, middle, names[1], **turned))
    box = f"0 0 {WIDTH} {HEIGHT}"
    label = {"role": "img", "aria_label": summary}
    return tag("svg", "".join(parts), class_="chart", viewBox=box, **label)


# Degrees -------------------------------------------------------------------------
def degrees(side: SideFacts) -> str:
    """Histogram of the degrees, with their mean."""
    bins, mean = side.histogram, side.whole.degree_mean
    end = bins.start + bins.width * len(bins.counts)
    # A bar stands over whole numbers: it reaches half a degree to either side.
    axes = Axes((bins.start - 0.5, end - 0.5), (0, max(bins.counts)))
    marks = list(_bars(axes, bins))
    x = round(axes.px(mean), 1)
    marks.append(tag("line", class_="mean", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM))
    right = x > (LEFT + WIDTH) / 2
    words = {"class_": "label end" if right else "label"}
    marks.append(_words(x - 5 if right else x + 5, TOP + 9, "mean", **words))
    units, edges = MEANING[side.side]
    m = side.whole
    summary = (
        f"Degrees of {m.units:,} {units}: least {m.degree_min:,}, mean "
        f"{number(mean)}, largest {m.degree_max:,}"
    )
    at = [(float(t), f"{t:,}") for t in ticks(bins.start, end - 1)]
    return _frame(axes, marks, at, (f"degree: kept {edges}", "units"), summary)


def _bars(axes: Axes, bins: Histogram) -> Iterator[str]:
    for i, count in enumerate(bins.counts):
        if not count:
            continue
        low = bins.start + i * bins.width
        left, right = axes.px(low - 0.5), axes.px(low + bins.width - 0.5)
        gap = min(1.0, (right - left) / 8)
        y = axes.py(count)
        high = low + bins.width - 1
        span = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        yield tag(
            "rect",
            tag("title", f"degree {span}: {count:,} unit{'s' * (count != 1)}"),
            class_="bar",
            x=round(left + gap / 2, 1),
            y=round(y, 1),
            width=round(max(right - left - gap, 0.5), 1),
            height=round(HEIGHT - BOTTOM - y, 1),
        )


def by_layer(side: SideFacts) -> str:
    """Range and mean of the degrees, layer by layer."""
    layers = side.layers
    top = max(m.degree_max for m in layers)
    axes = Axes((-0.6, len(layers) - 0.4), (0, max(top, 1)))
    marks = []
    for i, m in enumerate(layers):
        x = round(axes.px(i), 1)
        ends = {"y1": axes.py(m.degree_min), "y2": axes.py(m.degree_max)}
        ends = {name: round(y, 1) for name, y in ends.items()}
        said = f"layer {i}: {m.degree_min:,} / {number(m.degree_mean)} / "
        title = tag("title", f"{said}{m.degree_max:,}")
        marks.append(tag("line", title, class_="range", x1=x, x2=x, **ends))
        y = round(axes.py(m.degree_mean), 1)
        marks.append(tag("circle", class_="dot", cx=x, cy=y, r=3))
    units, edges = MEANING[side.side]
    summary = f"Least, mean and largest degree of the {units} of {len(layers)} layers"
    at = [(float(t), str(t)) for t in ticks(0, len(layers) - 1, most=8)]
    return _frame(axes, marks, at, ("layer", f"degree: {edges}"), summary)


# Activity ------------------------------------------------------------------------
def _odds(rate: float) -> float:
    """log(a / (1 - a)), so that busy units are on the right."""
    held = min(max(rate, DEAD), 1 - DEAD)
    return math.log(held / (1 - held))


def activity(side: SideFacts, layer: int | None) -> str:
    """On-rate against degree, with the fitted line.

    Args:
      side: with on-rates.
      layer: which stack slice; None for a kernel without a stack.
    """
    assert side.rate is not None
    m = side.whole if layer is None else side.layers[layer]
    row = 0 if layer is None else layer
    rate, degree, free = side.rate[row], side.degree[row], side.free[row]
    odds = np.array([_odds(float(a)) for a in rate])
    low, high = float(odds.min()), float(odds.max())
    room = max(0.05 * (high - low), 0.1)
    most = max(int(degree.max()), 1)
    axes = Axes((low - room, high + room), (0, most * 1.04))
    marks = list(_dots(axes, odds[~free], degree[~free], "dot bound"))
    marks += _dots(axes, odds[free], degree[free], "dot")
    marks += _fit(axes, m)
    at = _rate_ticks(axes.x)
    units, edges = MEANING[side.side]
    fit = "no line fitted" if m.slope is None else f"slope beta {number(m.slope)}"
    r2 = "" if m.r2 is None else f", R2 {number(m.r2)}"
    summary = f"On-rate against degree of {m.units:,} {units}: {fit}{r2}"
    return _frame(axes, marks, at, ("on-rate a", f"degree k: {edges}"), summary)


def _rate_ticks(ends: tuple[float, float]) -> list[tuple[float, str]]:
    """Round on-rates within the frame; its ends where they are too much alike."""
    for rates in (_RATES, _FINER):
        shown = [(_odds(a), f"{a:g}") for a in rates if ends[0] <= _odds(a) <= ends[1]]
        if len(shown) > 2:
            return shown
    return [(x, number(1 / (1 + math.exp(-x)))) for x in ends]


def _dots(axes: Axes, x: np.ndarray, y: np.ndarray, kind: str) -> Iterator[str]:
    """Dots as zero-length strokes, one path for each level of darkness."""
    spots = Counter(
        (round(axes.px(a) / SPOT), round(axes.py(b) / SPOT))
        for a, b in zip(x.tolist(), y.tolist(), strict=True)
    )
    levels: dict[str, list[str]] = {"one": [], "some": [], "many": []}
    for (column, row), count in sorted(spots.items()):
        level = "one" if count == 1 else "some" if count < 4 else "many"
        levels[level].append(f"M{column * SPOT:g} {row * SPOT:g}h.01")
    for level, strokes in levels.items():
        if strokes:
            yield tag("path", class_=f"{kind} {level}", d="".join(strokes))


def _fit(axes: Axes, m: Measures) -> Iterator[str]:
    """The fitted line within the frame: k = d0 - x / beta, for x = log(a / (1 - a))."""
    if m.slope is None or m.d0 is None:
        return
    at_ends = [(m.d0 - y) * m.slope for y in axes.y]  # where it crosses the frame
    low, high = max(axes.x[0], min(at_ends)), min(axes.x[1], max(at_ends))
    if low >= high:
        return
    ends = [(axes.px(x), axes.py(m.d0 - x / m.slope)) for x in (low, high)]
    (x1, y1), (x2, y2) = ((round(x, 1), round(y, 1)) for x, y in ends)
    yield tag("line", class_="fit", x1=x1, y1=y1, x2=x2, y2=y2)
