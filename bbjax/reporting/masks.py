"""Pictures of masks: rows are input units, columns output units, shades kept shares.

On the page a picture is a small PNG file of one colour, whose opacity is that of the
kept share of a block of edges, so that it suits a light and a dark page:

    level = round(15 sqrt(share)), at least 1 where share > 0;   opacity = level / 15

The same shade is the same share in all pictures, and the square root keeps small shares
apart. Where a pixel is one edge, it is coloured or not. In a terminal `RAMP` has a
character for each range of shares. Reference: PNG, W3C Recommendation, third edition.
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

from bbjax.reporting.data import Picture
from bbjax.reporting.figures import block_sizes, block_sums
from bbjax.reporting.formats import at, count, counted, percent

COLOUR = (0x2F, 0x7F, 0xD0)
TOP = 15  # the level of a block that is kept whole
RAMP = (  # shade, and the largest share that it stands for
    *((" ", 0.0), ("·", 0.05), (":", 0.1), ("░", 0.2), ("▒", 0.5)),
    *(("▓", 1.0), ("█", 1.0)),
)
LONG, SHORT = 256, 100  # pixels of a picture: its longer side, and the least


def levels(share: np.ndarray) -> np.ndarray:
    """Whole levels 0..15 of shares; 0 for 0 alone.

    Example:
      >>> levels(np.array([[0.0, 0.001, 0.1, 0.25, 1.0]])).tolist()
      [[0, 1, 5, 8, 15]]
    """
    found = np.rint(TOP * np.sqrt(share)).clip(0, TOP)
    return np.maximum(found, share > 0).astype(np.uint8)


def png(picture: Picture) -> bytes:
    """A palette of opacities, one or four bits a pixel."""
    depth = 1 if single(picture) else 4
    top = 2**depth - 1
    pixels = levels(picture.share) * top // TOP
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


def single(picture: Picture) -> bool:
    """Whether a pixel is one edge."""
    return picture.block == (1, 1)


def kept(picture: Picture) -> np.ndarray:
    """Kept edges of each block."""
    sizes = block_sizes(picture.edges, picture.block)
    return np.rint(picture.share * sizes).astype(np.int64)


# Words ---------------------------------------------------------------------------
def title(picture: Picture) -> str:
    """What the picture shows."""
    return f"Mask of layer {at(picture.layer)}" if picture.layer else "Mask"


def caption(picture: Picture) -> str:
    """Which axis is which, and the density of what is shown."""
    rows, columns = picture.edges
    number = int(kept(picture).sum())
    groups = f" in {picture.groups} groups" if picture.groups > 1 else ""
    same = " of the same group" if groups else ""
    return (
        f"rows: {counted(rows, 'input units')}{groups}; "
        f"columns: {counted(columns, 'output units')}{same}; "
        f"{count(number)} of {counted(rows * columns, 'edges')} kept "
        f"({percent(number / (rows * columns))})"
    )


def scale(block: tuple[int, int], name: str = "pixel") -> str:
    """What one pixel is."""
    if block == (1, 1):
        return f"1 {name} = 1 edge"
    return f"1 {name} = {count(block[0])} x {count(block[1])} edges"


def legend(picture: Picture) -> list[tuple[float, str]]:
    """Opacities and the kept shares that they stand for."""
    if single(picture):
        return [(0.0, "pruned edge"), (1.0, "kept edge")]
    return [(n / TOP, percent((n / TOP) ** 2, 0)) for n in (0, 3, 5, 8, 11, 15)]


def size(picture: Picture) -> tuple[int, int]:
    """Width and height in pixels: a whole number for each block.

    The longer side is the one with more edges; the other is in proportion, but at least
    `SHORT` pixels.
    """
    blocks = dict(enumerate(picture.share.shape))
    longer = int(picture.edges[1] > picture.edges[0])
    long = blocks[longer] * max(LONG // blocks[longer], 1)
    edges, other = picture.edges, blocks[1 - longer]
    room = long * edges[1 - longer] / edges[longer]
    whole = max(round(room / other), -(-SHORT // other))
    short = other * max(min(whole, long // other), 1)
    return (long, short) if longer else (short, long)


# The terminal --------------------------------------------------------------------
def coarser(picture: Picture, rows: int, columns: int) -> Picture:
    """The picture in at most so many rows and columns, with exact shares."""
    found = kept(picture)
    times = (-(-found.shape[0] // rows), -(-found.shape[1] // columns))
    block = (picture.block[0] * times[0], picture.block[1] * times[1])
    share = block_sums(found, times) / block_sizes(picture.edges, block)
    return picture._replace(block=block, share=share.astype(np.float32))


def shading(picture: Picture) -> list[str]:
    """The picture as lines of shades, one character for each block."""
    bounds = np.asarray([share for _, share in RAMP[:-1]], np.float32)
    place = np.searchsorted(bounds, picture.share, side="left")
    place = np.where(picture.share == 1, len(RAMP) - 1, place)
    return ["".join(RAMP[i][0] for i in line) for line in place]


def ramp(picture: Picture) -> list[tuple[str, str]]:
    """Shades and their meaning."""
    if single(picture):
        return [(" ", "pruned edge"), ("█", "kept edge")]
    texts = [f"up to {percent(share, 0)}" for _, share in RAMP]
    texts[0], texts[-2], texts[-1] = "none", "less than all", "all edges kept"
    return [(shade, text) for (shade, _), text in zip(RAMP, texts, strict=True)]
