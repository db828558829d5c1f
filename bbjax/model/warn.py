"""Warnings that point at the user's own line."""

from __future__ import annotations

import sys
import warnings

_OWN = __name__.split(".")[0]


def warn(text: str) -> None:
    """Gives a `UserWarning` for the line that called the library."""
    level, depth, frame = 2, 2, sys._getframe(1)
    while frame.f_back is not None:
        depth += 1
        module = frame.f_globals.get("__name__", "")
        if module == _OWN or module.startswith(f"{_OWN}."):
            level = depth
        frame = frame.f_back
    warnings.warn(text, stacklevel=level)
