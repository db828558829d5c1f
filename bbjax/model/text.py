"""Plain text: tables in columns, shapes as words, foreign text made safe to show."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

_GAP = "  "


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None
) -> str:
    """Text in columns, with a line under the head.

    Args:
      head: names of the columns.
      rows: a cell for each column; control characters are escaped.
      width: longest line; the cells of the widest columns are wrapped.

    Example:
      >>> print(table(("kernel", "shape"), [("up", "3x8"), ("down", "8x2")]))
      kernel  shape
      ------  -----
      up      3x8
      down    8x2
      >>> print(table(("kernel", "shape"), [("layers/0/up", "3x8")], width=15))
      kernel    shape
      --------  -----
      layers/0  3x8
      /up
    """
    head = [printable(cell) for cell in head]
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    while width is not None and sum(widths) + len(_GAP) * (len(widths) - 1) > width:
        widest = widths.index(max(widths))
        if widths[widest] <= len(head[widest]):
            break
        widths[widest] -= 1
    lines: list[Sequence[str]] = [head, ["-" * n for n in widths]]
    for row in rows:
        cells = [_wrapped(cell, n) for cell, n in zip(row, widths, strict=True)]
        lines += itertools.zip_longest(*cells, fillvalue="")
    return "\n".join(
        _GAP.join(c.ljust(n) for c, n in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _wrapped(text: str, width: int) -> list[str]:
    """Text in lines, broken at spaces; longer words before slashes or anywhere."""
    if len(text) <= width:
        return [text]
    lines = [""]
    for word in text.split():
        parts = re.findall("/?[^/]+|/", word) if len(word) > width else [word]
        parts = [p[i : i + width] for p in parts for i in range(0, len(p), width)]
        for number, part in enumerate(parts):
            space = " " if lines[-1] and not number else ""
            if lines[-1] and len(lines[-1] + space + part) > width:
                lines.append(part)
            else:
                lines[-1] += space + part
    return lines


def printable(text: str) -> str:
    r"""Text with its control characters escaped, as Python shows them.

    Paths, titles and names may come from anywhere. A terminal obeys some characters, a
    newline breaks a table, and others turn the direction of writing around.

    Example:
      >>> print(printable("up\x1b[2J\nü"))
      up\x1b[2J\nü
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def shortened(text: str, most: int) -> str:
    """Text of at most so many characters: its beginning and its end.

    Args:
      text: of any length.
      most: at least 50 characters.

    Example:
      >>> shortened("layers/" * 1000, 60)
      'layers/layer [... 6,976 characters ...] yers/layers/'
    """
    if len(text) <= most:
        return text
    left = (most - 36) // 2
    gap = f" [... {len(text) - 2 * left:,} characters ...] "
    return text[:left] + gap + text[-left:]


def size(shape: tuple[int, ...]) -> str:
    """A shape as "3x8"; "1" for that of a number."""
    return "x".join(map(str, shape)) or "1"


def regular(pattern: str) -> re.Pattern[str]:
    """A pattern, compiled.

    Raises:
      ValueError: it is not a regular expression.

    Example:
      >>> regular("up$").search("mlp/up") is not None
      True
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"expected a regular expression, got {pattern!r} ({error}); escape "
            'special characters with a backslash, and write ".*" for anything'
        ) from error
