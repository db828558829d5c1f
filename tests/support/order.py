"""Test modules in an order of their own, for runs that end before all have run.

`BBJAX_ORDER=<any text> pytest`: the text decides the order. Tests of one module stay
together, in their order.
"""

import os
import zlib

import pytest


class Order:
    """The pytest plugin."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        text = os.environ.get("BBJAX_ORDER")
        if text:
            items.sort(key=lambda item: zlib.crc32(f"{text} {item.path.name}".encode()))
