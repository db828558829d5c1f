"""What a state belongs to: its kernels with their actuators, and the rule.

A plan is a part of every pruning state, without leaves. It is written as JSON, because
serializers of training states (msgpack in Flax) take arrays and strings and no objects
of other libraries. Of a kernel it has what is needed to read masks and means: path,
shape, dtype and the roles of the axes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from bbjax.model.units import Actuator, Kernel

Budgeted = tuple[tuple[Kernel, tuple[Actuator, ...]], ...]
_FIELDS = (
    "path shape dtype fan_in fan_out spatial stack groups split roles".split()
)  # of `Kernel`


@jax.tree_util.register_static
class Plan(NamedTuple):
    """What a transform was built for: static, without leaves.

    Attributes:
      text: JSON with the name of the rule and the kernels.

    Example:
      >>> kernel = Kernel("w", (2, 3), fan_in=(0,), fan_out=(1,))
      >>> plan = Plan.of("magnitude", [(kernel, ("in",))])
      >>> plan.rule, plan.kernels == ((kernel, ("in",)),)
      ('magnitude', True)
    """

    text: str

    @classmethod
    def of(
        cls, rule: str, budgeted: Iterable[tuple[Kernel, tuple[Actuator, ...]]]
    ) -> Plan:
        """The plan of a rule, by name, and of kernels with their actuators."""
        kernels = [
            {name: getattr(kernel, name) for name in _FIELDS} | {"actuators": actuators}
            for kernel, actuators in budgeted
        ]
        content = {"rule": rule, "kernels": kernels}
        return cls(json.dumps(content, separators=(",", ":")))

    @property
    def rule(self) -> str:
        """The name of the rule."""
        return _read(self.text)[0]

    @property
    def kernels(self) -> Budgeted:
        """The kernels with their actuators."""
        return _read(self.text)[1]

    def __repr__(self) -> str:
        return f"Plan(rule {self.rule!r}, {len(self.kernels)} kernels)"


@functools.lru_cache(maxsize=128)
def _read(text: str) -> tuple[str, Budgeted]:
    content = json.loads(text)
    kernels = tuple(
        (
            Kernel(**{name: _tuples(kernel[name]) for name in _FIELDS}),
            tuple(kernel["actuators"]),
        )
        for kernel in content["kernels"]
    )
    return content["rule"], kernels


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
