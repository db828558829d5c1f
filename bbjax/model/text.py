"""Plain text: tables in columns, and shapes as words."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text in columns, with a line under the head.

    Example:
      >>> print(table(("kernel", "shape"), [("up", "3x8"), ("down", "8x2")]))
      kernel  shape
      ------  -----
      up      3x8
      down    8x2
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def size(shape: tuple[int, ...]) -> str:
    """A shape as "3x8"; "1" for that of a number."""
    return "x".join(map(str, shape)) or "1"
