"""Reads a compiled program: what moves between chips, and what a refresh makes.

A program is a list of computations; a loop names two of them, a fusion one:

    %body (carry: ...) -> (...) {
      %sum = s32[24,512]{1,0:T(8,128)S(1)} all-reduce(%count), to_apply=%add
      %mask = pred[24,512,128]{2,1,0:T(8,128)} fusion(%sum, %key), calls=%fused
    }
    %out = (pred[], u8[24,64,128]) while(%start), condition=%more, body=%body,
        metadata={op_name="jit(pruned)/bb_update/while"}

The refresh is every computation that a loop named after the update calls, directly or
not. A type gives sizes, order of axes and tiles: arrays are padded to whole tiles, and
`S(1)` lie in the memory on the chip, not in HBM. Sizes are those on one chip.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

_HEAD = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_LINE = re.compile(
    r"^\s*(?:ROOT )?%(?P<name>[\w.\-]+) = (?P<type>.*?) (?P<op>[a-z][\w\-]*)\("
)
_CALLS = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-]+)"
    r"|(?:called_computations|branch_computations)=\{([^}]*)\}"
)
_SCOPE = re.compile(r'op_name="([^"]*)"')
_ARRAY = re.compile(
    r"\b(pred|bf16|[sufc]\d+)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?"
)
_TILE = re.compile(r"T\(([\d,]+)\)")
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
# Operations that make no array of their own.
_VIEWS = {
    *("parameter", "tuple", "get-tuple-element", "bitcast", "while", "call"),
    *("conditional", "copy-done", "slice-start", "slice-done", "async-done"),
}


class Op(NamedTuple):
    """An operation: what it is called, its kind and type, and where it comes from."""

    name: str
    kind: str
    type: str
    scope: str
    calls: tuple[str, ...]


class Made(NamedTuple):
    """An array: its bytes, those with its padding, whether in HBM, and its type."""

    bytes: int
    padded: int
    in_hbm: bool
    type: str


Program = Mapping[str, list[Op]]


def read(text: str) -> dict[str, list[Op]]:
    """The computations of a program by name."""
    found: dict[str, list[Op]] = {}
    ops: list[Op] = []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            ops = found.setdefault(head["name"], [])
        elif match := _LINE.match(line):
            calls = [a or b for a, b in _CALLS.findall(line)]
            names = tuple(re.findall(r"[\w.\-]+", " ".join(calls)))
            found_scope = _SCOPE.search(line)
            scope = found_scope[1] if found_scope else ""
            ops.append(Op(*match.group("name", "op", "type"), scope, names))
    return found


def refresh(program: Program, update: str) -> set[str]:
    """The computations that run only when a refresh is due."""
    roots = [
        name
        for ops in program.values()
        for op in ops
        if op.kind == "while" and f"{update}/" in op.scope
        for name in op.calls
    ]
    if not roots:
        raise ValueError(
            f"expected a loop in the scope {update!r}, got none; name the scope of the "
            "update, and look at what the compiler made of the loop"
        )
    return _reached(program, roots)


def _reached(program: Program, roots: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    left = list(roots)
    while left:
        here = left.pop()
        if here not in seen:
            seen.add(here)
            left += [name for op in program[here] for name in op.calls]
    return seen


def arrays(kind: str) -> list[Made]:
    """The arrays of a type."""
    return [_array(match) for match in _ARRAY.finditer(kind)]


def _array(match: re.Match[str]) -> Made:
    sizes = [int(n) for n in match[2].split(",") if n]
    width = 1 if match[1] == "pred" else int(match[1].lstrip("bsufc")) // 8
    layout = match[4] or ""
    tile = _TILE.search(layout)
    whole = list(sizes)
    if tile and match[3]:
        minor = [int(a) for a in match[3].split(",")]  # axes, the fastest first
        tiles = [int(n) for n in tile[1].split(",")][::-1]
        for axis, n in zip(minor, tiles, strict=False):
            whole[axis] = -(-whole[axis] // n) * n
    size, padded = (width * math.prod(shape) for shape in (sizes, whole))
    return Made(size, padded, "S(1)" not in layout, match[0].split("{")[0])


def collectives(program: Program, inside: Iterable[str]) -> dict[str, dict[str, Any]]:
    """By kind: how many there are, and the largest array that one of them moves."""
    found: dict[str, dict[str, Any]] = {}
    for op in (op for name in inside for op in program[name]):
        kind = op.kind.removesuffix("-start")
        if kind not in _COLLECTIVES:
            continue
        largest = max(arrays(op.type), key=lambda made: made.bytes)
        row = found.setdefault(kind, {"count": 0, "largest_bytes": 0})
        row["count"] += 1
        if largest.bytes >= row["largest_bytes"]:
            row |= {"largest_bytes": largest.bytes, "type": largest.type}
            row["scope"] = op.scope
    return dict(sorted(found.items()))


def largest(program: Program, inside: Iterable[str], n: int) -> list[dict[str, Any]]:
    """The largest arrays that are written, fusions taken as one operation."""
    fused = _fused(program)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for op in (op for name in inside if name not in fused for op in program[name]):
        if op.kind in _VIEWS:
            continue
        for made in arrays(op.type):
            key = (made.type, op.scope)
            row = found.setdefault(
                key, made._asdict() | {"op": op.kind, "scope": op.scope, "count": 0}
            )
            row["count"] += 1
            row["padded"] = max(row["padded"], made.padded)
            row["in_hbm"] |= made.in_hbm
    return sorted(found.values(), key=lambda row: -row["padded"])[:n]


def copies(program: Program, inside: Iterable[str], least: int) -> dict[str, int]:
    """Plain copies of large arrays: their number, and their bytes together."""
    fused = _fused(program)
    sizes = [
        made.bytes
        for name in inside
        if name not in fused
        for op in program[name]
        if op.kind == "copy"
        for made in arrays(op.type)
        if made.bytes >= least
    ]
    return {"count": len(sizes), "bytes": sum(sizes)}


def _fused(program: Program) -> set[str]:
    return {
        name
        for ops in program.values()
        for op in ops
        if op.kind == "fusion"
        for name in op.calls
    }
