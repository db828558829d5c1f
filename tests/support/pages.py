"""Reads what a report shows: the elements of its page, its colours and its pictures."""

import io
import re
import zlib
from html.parser import HTMLParser

import numpy as np
from rich.console import Console


class Page(HTMLParser):
    """Elements with their attributes, text, and that every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.text, self.rows = [], [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs)
        self.found.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data + " "

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def squeezed(text):
    return re.sub(r"\s+", " ", text)


def terminal(report, width=180, **options):
    file = io.StringIO()
    report.show(Console(file=file, width=width), **options)
    return file.getvalue()


def schemes(text):
    return re.findall(r":root \{(.*?)\}", text, re.DOTALL)[:2]


def luminance(colour):
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def decoded(data):
    """Levels of a palette PNG without filters, and the opacity of each."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        check = int.from_bytes(data[at + 8 + size : at + 12 + size], "big")
        assert check == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + size
    width, height = np.frombuffer(chunks[b"IHDR"][:8], ">u4").tolist()
    depth, colour, *rest = chunks[b"IHDR"][8:]
    assert colour == 3 and rest == [0, 0, 0]
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8)
    lines = lines.reshape(height, -1)
    assert (lines[:, 0] == 0).all()
    bits = np.unpackbits(lines[:, 1:], axis=1)[:, : width * depth]
    pixels = bits.reshape(height, width, depth) @ (1 << np.arange(depth)[::-1])
    return pixels, np.frombuffer(chunks[b"tRNS"], np.uint8)
