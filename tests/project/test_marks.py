"""Which tests run by default, and in which order the others do."""

from pathlib import Path

import pytest

from tests.support.order import Order
from tests.support.sampled import Sampled, sample


class Item:
    """A collected test, as far as the plugins look at it."""

    def __init__(self, nodeid, *marks):
        self.nodeid, self.path = nodeid, Path(nodeid.split("::")[0])
        self.marks = {mark.name: mark for mark in marks}

    def get_closest_marker(self, name):
        return self.marks.get(name)

    def add_marker(self, mark):
        self.marks[mark.name] = mark


@pytest.mark.parametrize("count", [0, 1, 2, 7, 50])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_sample_is_spread_from_the_first_case_on(count, n):
    chosen = sorted(sample(count, n))
    assert len(chosen) == min(n, count)
    assert all(0 <= i < count for i in chosen)
    if chosen:
        gaps = [b - a for a, b in zip(chosen, [*chosen[1:], count], strict=True)]
        assert chosen[0] == 0 and max(gaps) - min(gaps) <= 1


def test_of_sampled_cases_the_others_are_long():
    slow, sampled = pytest.mark.slow.mark, pytest.mark.sampled(2).mark
    cases = [Item(f"a.py::f[{i}]", sampled) for i in range(4)]
    late = [Item("a.py::f[4]", sampled, slow), Item("a.py::g")]
    # Fixtures of a module may order its tests by case.
    items = [cases[0], late[1], *cases[1:], late[0]]
    Sampled().pytest_collection_modifyitems(items)
    assert [i.nodeid for i in items if "long" in i.marks] == [
        "a.py::f[1]",
        "a.py::f[3]",
    ]


def test_an_order_of_modules_keeps_all_tests_and_their_order(monkeypatch):
    names = [f"{module}.py::{test}" for module in "abcdefgh" for test in "xyz"]
    found = {}
    for text in ("", "one", "two", "one "):
        monkeypatch.setenv("BBJAX_ORDER", text)
        items = [Item(name) for name in names]
        Order().pytest_collection_modifyitems(items)
        found[text] = [item.nodeid for item in items]
        assert sorted(found[text]) == names
        assert [n[-1] for n in found[text]] == list("xyz" * 8)
    assert found[""] == names
    assert len({tuple(order) for order in found.values()}) == 4
