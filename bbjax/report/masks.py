"""Mask pictures: small PNG files, transparent where edges are pruned.

The colour of a pixel is fixed and its opacity is the kept share of its block of edges,
so the same picture suits a light and a dark page:

    level = ceil(top * share / largest share),   opacity = level / top

with `top` = 1 where a pixel is one edge and 15 else; `ceil`, so that no block with a
kept edge is invisible. Reference: PNG, W3C Recommendation, third edition.
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

from bbjax.report.data import Picture
from bbjax.report.words import at, percent

COLOUR = (0x2F, 0x7F, 0xD0)
_SHADES = " ░▒▓█"


def levels(share: np.ndarray, top: int) -> np.ndarray:
    """Whole levels 0..top of shares, relative to the largest; 0 for 0 alone.

    Example:
      >>> levels(np.array([[0.0, 0.01, 0.5]]), 15).tolist()
      [[0, 1, 15]]
    """
    largest = float(share.max()) or 1.0
    return np.ceil(top * share / np.float32(largest)).clip(0, top).astype(np.uint8)


def png(picture: Picture) -> bytes:
    """A palette of opacities, one or four bits a pixel."""
    depth = 1 if picture.block == (1, 1) else 4
    top = 2**depth - 1
    pixels = levels(picture.share, top)
    bits = np.unpackbits(pixels[..., None], axis=-1)[..., -depth:]
    rows = np.packbits(bits.reshape(len(pixels), -1), axis=-1)
    lines = np.concatenate([np.zeros((len(rows), 1), np.uint8), rows], axis=1)
    head = struct.pack(">IIBBBBB", *pixels.shape[::-1], depth, 3, 0, 0, 0)
    opacities = bytes(255 * level // top for level in range(top + 1))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            _chunk(b"IHDR", head),
            _chunk(b"PLTE", bytes(COLOUR) * (top + 1)),
            _chunk(b"tRNS", opacities),
            _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def address(picture: Picture) -> str:
    """The picture as the address of an image."""
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode("ascii")


def scale(picture: Picture) -> str:
    """What a pixel and its colour mean."""
    down, across = picture.block
    if picture.block == (1, 1):
        return "1 pixel = 1 edge, coloured if kept"
    largest = percent(float(picture.share.max()))
    return f"1 pixel = {down} x {across} edges; full colour = {largest} of them kept"


def upright(picture: Picture) -> Picture:
    """The picture with its longer side across, turned if need be."""
    rows, columns = picture.edges
    if columns >= rows:
        return picture
    turned = picture.block[::-1], picture.edges[::-1]
    return Picture(picture.layer, picture.share.T, *turned, not picture.turned)


def caption(picture: Picture) -> str:
    """What the picture shows."""
    rows, columns = picture.edges
    layer = f"layer {at(picture.layer)}: " if picture.layer else ""
    names = ("outputs", "inputs") if picture.turned else ("inputs", "outputs")
    return f"{layer}{rows:,} {names[0]} down, {columns:,} {names[1]} across"


def size(picture: Picture, width: int) -> tuple[int, int]:
    """Width and height to show it at: true to its edges, but never a mere line."""
    rows, columns = picture.edges
    return width, max(round(width * rows / columns), width // 6)


def shading(picture: Picture, rows: int, columns: int) -> list[str]:
    """The picture as lines of shaded blocks, for a terminal."""
    share = picture.share
    shape = (min(rows, share.shape[0]), min(columns, share.shape[1]))
    total, count = share, np.ones_like(share)
    for axis in (0, 1):
        starts = np.arange(shape[axis]) * share.shape[axis] // shape[axis]
        total = np.add.reduceat(total, starts, axis=axis)
        count = np.add.reduceat(count, starts, axis=axis)
    return ["".join(_SHADES[i] for i in line) for line in levels(total / count, 4)]
