"""Charts of a report as small inline SVG: crisp at any size, coloured by the page.

Marks carry classes (`bar`, `dot`, `fit`, ...) and no colours, so that one style sheet
draws them in light and dark. Dots in the same spot become one dot, darker with their
number: a chart of a hundred thousand units is no larger than one of a thousand. There
are only marks inside the frame; the legend beside it explains them.

    activity against degree    x = log((1 - a) / a), reversed: rare left, busy right
                               y = k;  a balanced layer lies on a falling line
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from bbjax.reporting.data import Histogram, Measures, SideFacts
from bbjax.reporting.formats import count, counted, escape, number
from bbjax.reporting.words import MEANING
from bbjax.reporting.words import degrees as min_mean_max
from bbjax.training.metrics import DEAD

WIDTH, HEIGHT = 280, 186
LEFT, RIGHT, TOP, BOTTOM = 38, 10, 10, 40
LETTER = 6.5  # pixels that a digit takes, at most
FEWEST = 6  # bars that have room in a histogram, at least
SPOT = 2.5  # pixels within which dots are one
_RATES = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
_EMPTY = ("circle", "img", "line", "meta", "path", "rect")  # may have no content
_FINER = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


class Chart(NamedTuple):
    """A chart and its legend.

    Attributes:
      svg: the picture.
      legend: class and meaning of every kind of mark in it.
    """

    svg: str
    legend: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Axes:
    """A frame and its scales.

    Attributes:
      x: values at its left and right end.
      y: values at its lower and upper end.
      left: pixels between the left of the picture and the frame.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    left: float = LEFT

    @classmethod
    def counting(cls, x: tuple[float, float], most: int) -> Axes:
        """Upwards from 0 to a round number; the labels of the numbers have room."""
        top = max(most, 1)
        step = _step(0, top, 4)
        top = -(-top // step) * step
        return cls(x, (0, top), max(LEFT, 24 + wide(count(top))))

    def px(self, value: float) -> float:
        """Pixels from the left."""
        share = (value - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        return self.left + share * (WIDTH - self.left - RIGHT)

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


def label(x: float, y: float, text: str, **attributes: object) -> str:
    """Text at a place, escaped."""
    return tag("text", escape(text), x=round(x, 1), y=round(y, 1), **attributes)


def wide(text: str) -> float:
    """Pixels that a number takes, at most."""
    narrow, broad = (sum(map(text.count, signs)) for signs in (".,", "≤≥"))
    return LETTER * (len(text) - narrow / 2 + broad / 3)


def ticks(low: float, high: float, most: int = 5) -> list[int]:
    """Round whole numbers within a range, at most one more than asked for.

    Example:
      >>> ticks(0, 128), ticks(1, 3)
      ([0, 50, 100], [1, 2, 3])
    """
    step = _step(low, high, most)
    first = math.ceil(low / step) * step
    return list(range(first, math.floor(high) + 1, step))


def _step(low: float, high: float, most: int) -> int:
    span = max(high - low, 1)
    scale = 10 ** max(math.floor(math.log10(span / most)), 0)
    return next(m * scale for m in (1, 2, 5, 10) if span <= most * m * scale)


def frame(
    axes: Axes,
    marks: Iterable[str],
    x_ticks: Iterable[tuple[float, str]],
    names: tuple[str, str],
    summary: str,
    y_ticks: Iterable[tuple[float, str]] | None = None,
    grid: bool = True,
) -> str:
    """The chart around its marks: grid, ticks, names of the axes.

    Args:
      axes: its scales.
      marks: elements that show data.
      x_ticks: values and their labels; those without room are left out.
      names: of the axes.
      summary: the chart in a sentence.
      y_ticks: as `x_ticks`; None for round whole numbers.
      grid: whether a line goes through the marks at each of these.
    """
    parts = [tag("title", escape(summary))]
    left, bottom, right = round(axes.left, 1), HEIGHT - BOTTOM, WIDTH - RIGHT
    if y_ticks is None:
        y_ticks = [(float(k), count(k)) for k in ticks(*axes.y, most=4)]
    for value, text in y_ticks:
        y = round(axes.py(value), 1)
        if grid:
            parts.append(tag("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
        parts.append(label(left - 5, y + 3.5, text, class_="tick end"))
    free = 0.0  # up to where labels are set
    for value, text in x_ticks:
        x = round(axes.px(value), 1)
        parts.append(tag("line", class_="axis", x1=x, x2=x, y1=bottom, y2=bottom + 4))
        half = wide(text) / 2
        x = min(x, WIDTH - half)  # whole, at the right end too
        if x - half > free:
            parts.append(label(x, bottom + 15, text, class_="tick middle"))
            free = x + half + 2
    parts += marks
    parts.append(tag("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom))
    parts.append(label((left + right) / 2, HEIGHT - 7, names[0], class_="name middle"))
    middle = (TOP + bottom) / 2
    turned = {"class_": "name middle", "transform": f"rotate(-90 11 {middle:.4g})"}
    parts.append(label(11, middle, names[1], **turned))
    box = f"0 0 {WIDTH} {HEIGHT}"
    about = {"role": "img", "aria_label": summary}
    return tag("svg", "".join(parts), class_="chart", viewBox=box, **about)


# Degrees -------------------------------------------------------------------------
def degrees(side: SideFacts) -> Chart:
    """Histogram of the degrees, with their mean."""
    bins, mean = side.histogram, side.whole.degree_mean
    end = bins.start + bins.width * len(bins.counts)
    room = bins.width * max(FEWEST - len(bins.counts), 0) / 2
    # A bar stands over whole numbers: it reaches half a degree to either side.
    ends = (bins.start - 0.5 - room, end - 0.5 + room)
    axes = Axes.counting(ends, max(bins.counts))
    x = round(axes.px(mean), 1)
    line = [  # the halo sets the mean off from the bars
        tag("line", class_=kind, x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM)
        for kind in ("halo", "mean")
    ]
    units, edges = MEANING[side.side]
    m = side.whole
    summary = (
        f"{count(m.units)} {units} by degree: least {count(m.degree_min)}, mean "
        f"{number(mean)}, largest {count(m.degree_max)}"
    )
    at = [(float(t), count(t)) for t in ticks(bins.start, end - 1)]
    names = (f"degree k: kept {edges}", f"number of {units}")
    svg = frame(axes, [*_bars(axes, bins), *line], at, names, summary)
    each = f"{count(bins.width)} degrees" if bins.width > 1 else "one degree"
    legend = (("bar", f"units, {each} a bar"), ("mean", f"mean degree {number(mean)}"))
    return Chart(svg, legend)


def _bars(axes: Axes, bins: Histogram) -> Iterator[str]:
    for i, units in enumerate(bins.counts):
        if not units:
            continue
        low = bins.start + i * bins.width
        left, right = axes.px(low - 0.5), axes.px(low + bins.width - 0.5)
        gap = min(1.0, (right - left) / 8)
        y = axes.py(units)
        high = low + bins.width - 1
        span = count(low) if low == high else f"{count(low)} to {count(high)}"
        yield tag(
            "rect",
            tag("title", f"degree {span}: {counted(units, 'units')}"),
            class_="bar",
            x=round(left + gap / 2, 1),
            y=round(y, 1),
            width=round(max(right - left - gap, 0.5), 1),
            height=round(HEIGHT - BOTTOM - y, 1),
        )


def by_layer(side: SideFacts) -> Chart:
    """Range and mean of the degrees, layer by layer."""
    layers = side.layers
    ends = (-0.6, len(layers) - 0.4)
    axes = Axes.counting(ends, max(m.degree_max for m in layers))
    marks = []
    for i, m in enumerate(layers):
        x, y = round(axes.px(i), 1), round(axes.py(m.degree_mean), 1)
        low, high = (round(axes.py(k), 1) for k in (m.degree_min, m.degree_max))
        title = tag("title", f"layer {i}: {min_mean_max(m)}")
        marks.append(
            tag("line", title, class_="range", x1=x, x2=x, y1=low + 1, y2=high - 1)
        )
        marks.append(tag("circle", class_="average", cx=x, cy=y, r=3))
    units, edges = MEANING[side.side]
    summary = f"Least, mean and largest degree of the {units} of {len(layers)} layers"
    at = [(float(t), str(t)) for t in ticks(0, len(layers) - 1, most=8)]
    svg = frame(axes, marks, at, ("layer", "degree k"), summary)
    legend = (("range", "least to largest degree"), ("average", "mean degree"))
    return Chart(svg, legend)


# Activity ------------------------------------------------------------------------
def _odds(rate: float) -> float:
    """log(a / (1 - a)), so that busy units are on the right."""
    held = min(max(rate, DEAD), 1 - DEAD)
    return math.log(held / (1 - held))


def activity(side: SideFacts, layer: int | None) -> Chart:
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
    room = max(0.04 * (high - low), 0.1)
    axes = Axes.counting((low - room, high + room), int(degree.max()))
    bound = list(_dots(axes, odds[~free], degree[~free], "dot bound"))
    line = list(_fit(axes, m))
    marks = [*bound, *_dots(axes, odds[free], degree[free], "dot"), *line]
    units, _ = MEANING[side.side]
    fit = "no line fitted" if m.slope is None else f"slope beta {number(m.slope)}"
    r2 = "" if m.r2 is None else f", R2 {number(m.r2)}"
    summary = f"Degree against on-rate of {count(m.units)} {units}: {fit}{r2}"
    names = ("on-rate a (spaced by log-odds)", "degree k")
    svg = frame(axes, marks, _rate_ticks(axes.x), names, summary)
    return Chart(svg, tuple(_activity_legend(free.any(), bound, line)))


def _activity_legend(
    free: bool, bound: list[str], line: list[str]
) -> Iterator[tuple[str, str]]:
    """Legend of the marks that are drawn."""
    if free:
        yield "dot one", "one unit, on no bound; darker: several"
    if bound:
        yield "dot bound one", "unit on a bound, not fitted"
    if line:
        yield "fit", "fitted line"


def _rate_ticks(ends: tuple[float, float]) -> list[tuple[float, str]]:
    """Round on-rates within the frame: few where it is wide, close where it is not."""
    low, high = (1 / (1 + math.exp(-x)) for x in ends)
    low, high = max(low, DEAD), min(high, 1 - DEAD)  # dots beyond stand at these
    scale = 10 ** math.floor(math.log10((high - low) / 2))
    step = next(m * scale for m in (5, 2, 1) if 2 * m * scale <= high - low)
    even = (n * step for n in range(math.ceil(low / step), int(high / step) + 1))
    found: list[tuple[float, str]] = []
    for rates in (_RATES, _FINER, even):
        found = [(_odds(a), _rate(a)) for a in rates if low <= a <= high]
        if len(found) > 2:
            break
    return found


def _rate(rate: float) -> str:
    """An on-rate; the ends stand for all beyond."""
    sign = "≤" if rate <= DEAD else "≥" if rate >= 1 - DEAD else ""
    return f"{sign}{rate:.4g}"


def _dots(axes: Axes, x: np.ndarray, y: np.ndarray, kind: str) -> Iterator[str]:
    """Dots as zero-length strokes, one path for each level of darkness."""
    spots = Counter(
        (round(axes.px(a) / SPOT), round(axes.py(b) / SPOT))
        for a, b in zip(x.tolist(), y.tolist(), strict=True)
    )
    levels: dict[str, list[str]] = {"one": [], "some": [], "many": []}
    for (column, row), dots in sorted(spots.items()):
        level = "one" if dots == 1 else "some" if dots < 4 else "many"
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
