"""What a model costs at other numbers of units.

The function is traced once, for its costs as formulas in the numbers of units, and
again with half of the units of every group, to find the groups that `bb.shrink` would
have to leave whole.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bbjax import adapters
from bbjax.model.checks import meant
from bbjax.model.groups import Group
from bbjax.model.numbers import check_int
from bbjax.model.text import printable, table
from bbjax.model.units import Units
from bbjax.shrinking.model import TracedModel
from bbjax.shrinking.retraces import Retraces
from bbjax.shrinking.unitwise.formulas import Formula, entries, flops, total
from bbjax.shrinking.unitwise.groups import free_groups
from bbjax.tracing.call import prepare

KINDS = ("params", "flops", "bytes")
WIDTH = 100  # of the table


@dataclasses.dataclass(frozen=True, eq=False)
class Costs:
    """What a model costs at any numbers of units; made by `bb.unitwise.costs`.

    Attributes:
      groups: the groups that can shrink, by name.
      formulas: by kind of cost: `"params"`, `"flops"` and `"bytes"`.
      retraces: traces the function on smaller parameters.
      whole: by name, why `bb.shrink` leaves groups whole that `units.graph` lists as
        free: a number in the function has their size.
    """

    groups: Mapping[str, Group]
    formulas: Mapping[str, Formula]
    retraces: Retraces
    whole: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """By name of group, the number that its units have in the formulas."""
        groups = self.retraces.model.groups
        return {g.name: n for n, g in groups.items() if not g.fixed}

    @functools.cached_property
    def _all(self) -> dict[int, int]:
        """The size of every factor of the formulas."""
        extents = self.retraces.model.program.extents
        used = {f for formula in self.formulas.values() for f in formula.factors()}
        return {factor: extents.size((factor,)) for factor in used}

    def at(self, units: Mapping[str, int] | None = None) -> dict[str, int]:
        """The costs at some numbers of units.

        Args:
          units: by name of group, how many of its units are left, in each layer of a
            scan; at least 1. Groups that are not there keep all. None: the whole model.

        Returns:
          `"params"` and `"bytes"` of all parameters, and `"flops"` of the products in
          one call, as `bb.shrink` reports them.

        Raises:
          ValueError: an unknown group, or more units than it has.
          TypeError: a number that is no int.

        Example:
          >>> import bbjax as bb, jax, jax.numpy as jnp
          >>> def net(params, x):
          ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
          >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
          >>> units = bb.trace(net, params, jnp.ones((5, 3)))
          >>> costs = bb.unitwise.costs(net, units, params, jnp.ones((5, 3)))
          >>> costs.at({"up[1]": 4})
          {'params': 20, 'flops': 200, 'bytes': 80}
        """
        sizes = dict(self._all)
        for name, number in (units or {}).items():
            if name not in self.groups:
                raise ValueError(
                    f"expected numbers of units of groups that can shrink, got one for "
                    f"{name!r}{meant(name, self.groups)}; they are "
                    f"{list(self.groups)[:8]}"
                )
            most = self.groups[name].size
            what = f"units of {name!r}"
            sizes[self.numbers[name]] = check_int(what, number, 1, most, "it has these")
        return {kind: formula.at(sizes) for kind, formula in self.formulas.items()}

    def refused(self, kept: Mapping[str, np.ndarray]) -> dict[str, str]:
        """Groups that `bb.shrink` would leave whole, with the reason.

        Args:
          kept: by name of group, which units stay: bool, `layers + (units,)`.
        """
        names = {number: name for name, number in self.numbers.items()}
        mine = {self.numbers[name]: keep for name, keep in kept.items()}
        smaller = {number: keep for number, keep in mine.items() if not keep.all()}
        found = self.retraces.to_refuse(smaller)
        return {names[number]: why for number, why in found.items()}

    def __str__(self) -> str:
        lines = [f"{kind:<6} {cost:,}" for kind, cost in self.at().items()]
        if self.whole:
            rows = [(name, printable(why)) for name, why in self.whole.items()]
            lines += ["", table(("bb.shrink leaves whole", "why"), rows, WIDTH)]
        return "\n".join(lines)


def costs(
    fn: Callable[..., Any], units: Units, params: Any, *example_args: Any
) -> Costs:
    """What a model costs at other numbers of units, for a budget of `cut`.

    The costs are exact: parameters and bytes follow from the shapes of the parameters,
    operations from the sizes of all products of the function. Spends no FLOP. The
    function is traced once, and again on the shapes of smaller parameters: once if
    every group can shrink, and a few times more for every kind of group that cannot
    (layers of one kind are tried by the first of them).

    Args:
      fn: function of `(params, *example_args)`, as for `bb.shrink`.
      units: from `bb.trace`, of the same function.
      params: tree of parameters or `nnx.Module`, or their shapes.
      *example_args: arrays or `jax.ShapeDtypeStruct`s. Operations are counted for
        arguments of these sizes.

    Returns:
      `Costs`. `costs.at({"up[1]": 16})` gives parameters, operations and bytes with 16
      units in a group; `print(costs)` lists those of the whole model, and the groups
      that `bb.shrink` leaves whole.

    Raises:
      ValueError: a function with other groups than those of `units`.
      TypeError: `units` is no `Units`.

    Example:
      >>> import bbjax as bb, jax, jax.numpy as jnp
      >>> def net(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
      >>> units = bb.trace(net, params, jnp.ones((5, 3)))
      >>> print(bb.unitwise.costs(net, units, params, jnp.ones((5, 3))))
      params 40
      flops  400
      bytes  160
    """
    known = free_groups(units)
    linen = adapters.loaded("linen")
    fn = fn if linen is None else linen.resized(fn)  # takes sizes of the parameters
    model = TracedModel.of(prepare(fn, params, example_args, {}), params, {})
    here = {g.name: g for g in model.groups.values() if not g.fixed}
    sizes = {name: (*group.layers, group.size) for name, group in known.items()}
    theirs = {name: (*group.layers, group.size) for name, group in here.items()}
    if sizes != theirs:
        differ = sorted(set(sizes.items()) ^ set(theirs.items()))[:4]
        raise ValueError(
            "expected the function that was traced, with the groups "
            f"{list(sizes)[:8]}, got one with others: {differ}; pass the function, "
            "parameters and arguments that were given to bb.trace"
        )
    found = Costs(here, _formulas(model), Retraces(fn, params, example_args, model))
    return dataclasses.replace(found, whole=found.refused(_half(here)))


def _formulas(model: TracedModel) -> dict[str, Formula]:
    program = model.program
    counts = [entries(program.extents, dims) for dims in program.leaves]
    width = [array.dtype.itemsize for array in model.arrays]
    return {
        "params": total(counts),
        "flops": flops(program.extents, program.top),
        "bytes": total(c.times(n) for c, n in zip(counts, width, strict=True)),
    }


def _half(groups: Mapping[str, Group]) -> dict[str, np.ndarray]:
    """Half of the units of every group, in every layer."""

    def first(group: Group) -> np.ndarray:
        kept = np.arange(group.size) < (group.size + 1) // 2
        return np.broadcast_to(kept, (*group.layers, group.size))

    return {name: first(group) for name, group in groups.items()}
