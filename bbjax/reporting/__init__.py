"""Reports on pruning: one page, a terminal, or numbers; and comparisons of masks.

    sources    optimizer states, masks or saved files -> masks and on-rates by kernel
    figures    masks and on-rates -> figures
    data       the figures: frozen classes, the outermost of them `Facts`
    formats    figures -> text
    words      figures -> the names, sentences and tables of page and terminal
    numbers    figures -> JSON
    page       figures -> one HTML file, with charts (SVG), masks (PNG) and page.css
    losses     charts of losses with one row pruned
    terminal   figures -> a terminal, with rich
    forks      refuses forked processes in which JAX hangs
    build      all of it together: `bb.report`, and its result `Report`
    compare    sets of masks side by side, without figures
    groups     a drawing of the unit graph

Modules that draw (`page`, `terminal`, `groups`) are loaded when they draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bbjax.reporting.build import Report, report
from bbjax.reporting.data import Facts, KernelFacts

if TYPE_CHECKING:
    from bbjax.reporting.groups import draw_graph

__all__ = ["Facts", "KernelFacts", "Report", "draw_graph", "report"]


def __getattr__(name: str) -> object:
    if name == "draw_graph":
        from bbjax.reporting.groups import draw_graph

        return draw_graph
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
