"""The stacks of layers of a trace, by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bbjax.model.checks import meant
from bbjax.model.groups import Stack
from bbjax.model.units import Units


def stacks_of(units: Units) -> dict[str, Stack]:
    """The stacks of a trace, by name.

    Raises:
      TypeError: `units` is no `Units`.
      ValueError: the trace found no stack.
    """
    if not isinstance(units, Units):
        raise TypeError(
            f"expected units as bb.trace makes them, got {type(units).__name__}; pass "
            "bb.trace(fn, params, *args)"
        )
    if not units.graph.stacks:
        raise ValueError(
            "expected a scan over stacked layers (lax.scan, nn.scan, nnx.scan), got a "
            "function without one; layers in a Python list are dropped in the code of "
            "the model: skip the block, and leave out its parameters"
        )
    return {stack.name: stack for stack in units.graph.stacks}


def each(given: Any, names: Collection[str], what: str) -> dict[str, Any]:
    """A value for all stacks, or values by name, as values by name.

    Args:
      given: the value, or values by name.
      names: of the stacks.
      what: the values are, for the message.

    Raises:
      ValueError: a name that is none of a stack.
    """
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, given)
    for name in given:
        if name not in names:
            raise ValueError(
                f"expected {what} by name of stack, got one for {name!r}"
                f"{meant(str(name), names)}; they are {list(names)}"
            )
    return dict(given)
