"""Figures as text: the one place where numbers of a report are formatted.

Counts as 12,345, shares in percent with two digits, other numbers with three, bytes in
powers of 1000, and an en dash for what is not known.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from bbjax.model.text import printable

NONE = "–"


def escape(text: str) -> str:
    r"""Text for HTML and SVG, in elements and attributes.

    Control characters are escaped as well: XML has none, and some of them change how
    the text around them is shown.

    Example:
      >>> escape("a<b> \x1b[2J")
      'a&lt;b&gt; \\x1b[2J'
    """
    return html.escape(printable(text))


def count(number: int | None) -> str:
    """A whole number.

    Example:
      >>> count(12345), count(None)
      ('12,345', '–')
    """
    return NONE if number is None else f"{number:,}"


def counted(number: int, name: str) -> str:
    """A number of things.

    Example:
      >>> counted(1, "output units"), counted(1200, "output units")
      ('1 output unit', '1,200 output units')
    """
    return f"{count(number)} {name.removesuffix('s') if number == 1 else name}"


def percent(share: float | None, digits: int = 2) -> str:
    """A share; more digits where so few would show nothing.

    Example:
      >>> percent(0.05), percent(0.00012), percent(None), percent(0.05, digits=0)
      ('5.00 %', '0.012 %', '–', '5 %')
    """
    if share is None:
        return NONE
    few = 0 < share < 5 * 10.0 ** (-2 - digits)
    return f"{100 * share:.2g} %" if few else f"{100 * share:.{digits}f} %"


def number(value: float | None) -> str:
    """Any number, with three digits.

    Example:
      >>> number(0.058413), number(1489.16), number(float("nan"))
      ('0.0584', '1,490', '–')
    """
    if value is None or not math.isfinite(value):
        return NONE
    if abs(value) >= 999.5:
        digits = 2 - math.floor(math.log10(abs(value)))
        return f"{round(value, digits):,.0f}"
    return f"{value:.3g}"


def signed(value: float) -> str:
    """Any number, with its sign; none for 0.

    Example:
      >>> signed(0.25), signed(-1234.5), signed(0.0)
      ('+0.25', '-1,230', '0')
    """
    return f"+{number(value)}" if value > 0 else number(value)


def exact(value: float) -> str:
    """All digits of a whole number, three of another.

    Example:
      >>> exact(12432.0), exact(1.2345)
      ('12,432', '1.23')
    """
    return count(int(value)) if value.is_integer() else number(value)


def size(bytes_: float) -> str:
    """Bytes.

    Example:
      >>> size(999), size(54096), size(2.5e9)
      ('999 B', '54.1 kB', '2.5 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if bytes_ < 999.5 or unit == "GB":
            break
        bytes_ /= 1000
    return f"{number(bytes_)} {unit}"


def at(index: Sequence[int]) -> str:
    """An index, `3` or `3, 5`."""
    return ", ".join(map(str, index))


def shape(sizes: Sequence[int]) -> str:
    """A shape, `3 x 3 x 8`; `1` for that of a number."""
    return " x ".join(map(str, sizes)) or "1"
