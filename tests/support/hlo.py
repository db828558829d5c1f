"""Reads the loops of a compiled program, and what moves between devices inside them.

A program is a list of computations, a loop names two of them:

    %body (carry: ...) -> (...) {                    computations
      ... all-reduce(...), to_apply=%add, ...
    }
    ENTRY %main (...) -> ... {
      %out = (s32[], u8[8,64]) while(%start), condition=%more, body=%body

`loops` gives for each `while` the types that it carries and the text of its body with
everything that it calls. A refresh is the one loop that carries masks, which are the
only `u8` arrays of a step; the loops of a scanned model carry none.
"""

import math
import re
from typing import NamedTuple

_HEAD = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .* \{$")
_WHILE = re.compile(r"= (?P<carry>.*?) while\(.*body=%?(?P<body>[\w.\-]+)")
_NAME = re.compile(r"[\w.\-]+")
_COLLECTIVE = re.compile(
    r"= (?P<type>.*?) (?P<op>all-gather|all-reduce|all-to-all|collective-permute|"
    r"reduce-scatter|collective-broadcast|ragged-all-to-all)(-start)?\("
)
_ARRAY = re.compile(r"(pred|[a-z]+)(\d*)\w*\[([\d,]*)\]")


class Loop(NamedTuple):
    carry: str
    body: str


def sizes(types: str) -> list[int]:
    """Bytes of every array in a type, or in several."""
    return [
        (1 if kind == "pred" else int(bits) // 8)
        * math.prod(int(n) for n in lengths.split(",") if n)
        for kind, bits, lengths in _ARRAY.findall(types)
    ]


def computations(hlo: str) -> dict[str, str]:
    """The computations of a program by name."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        head = _HEAD.match(line)
        if head:
            lines = found.setdefault(head["name"], [])
        lines.append(line)
    return {name: "\n".join(text) for name, text in found.items()}


def _with_calls(name: str, among: dict[str, str]) -> str:
    seen, left = set(), [name]
    while left:
        here = left.pop()
        seen.add(here)
        left += (among.keys() & set(_NAME.findall(among[here]))) - seen - set(left)
    return "\n".join(among[each] for each in sorted(seen))


def loops(hlo: str) -> list[Loop]:
    """Every loop of a program, inner ones too."""
    among = computations(hlo)
    return [
        Loop(match["carry"], _with_calls(match["body"], among))
        for text in among.values()
        for match in _WHILE.finditer(text)
    ]


def refresh(hlo: str) -> str:
    """The body of the refresh of a train step: the outermost loop of masks."""
    bodies = [loop.body for loop in loops(hlo) if "u8[" in loop.carry]
    outermost = max(bodies, key=len)
    assert all(
        body in outermost or set(body.splitlines()) <= set(outermost.splitlines())
        for body in bodies
    )
    return outermost


def collectives(hlo: str) -> list[tuple[str, int]]:
    """The collectives of a compiled program: pairs of a name and a size in bytes."""
    return [
        (match["op"], size)
        for match in _COLLECTIVE.finditer(hlo)
        for size in sizes(match["type"])
    ]
