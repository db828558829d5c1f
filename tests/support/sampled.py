"""Tests of many cases, of which a few run by default.

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("model", MODELS)
    def test_...(model): ...

Two of the models, the first one and one from the middle, run by default; the others are
marked long. Cases that are slow already do not count.
"""

from collections import defaultdict

import pytest


def sample(count: int, n: int) -> set[int]:
    """Positions of n cases of so many, evenly spread from the first on.

    Example:
      >>> sorted(sample(10, 3))
      [0, 3, 6]
    """
    n = min(n, count)
    return {i * count // n for i in range(n)}


class Sampled:
    """The pytest plugin."""

    @pytest.hookimpl(tryfirst=True)  # before `-m` deselects what is long
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        by_function = defaultdict(list)
        for item in items:
            slow = item.get_closest_marker("slow")
            if item.get_closest_marker("sampled") and not slow:
                by_function[item.nodeid.split("[")[0]].append(item)
        for cases in by_function.values():
            (n,) = cases[0].get_closest_marker("sampled").args
            chosen = sample(len(cases), n)
            for i, item in enumerate(cases):
                if i not in chosen:
                    item.add_marker(pytest.mark.long)
