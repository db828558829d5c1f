"""The result of shrinking: smaller parameters, and a report of what was removed.

`Shrunk.cut` cuts any other tree of the old parameters' structure in the same way:
gradients, moments, averaged weights.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bbjax.model.leaves import Leaves
from bbjax.model.text import printable
from bbjax.model.units import Units
from bbjax.shrinking.cut import Cuts, Shapes, cut
from bbjax.shrinking.states import cut_state
from bbjax.tracing.call import Prepared
from bbjax.tracing.trace import followed


class Change(NamedTuple):
    """A group of units, before and after.

    Attributes:
      group: an axis that makes or carries the units, as in `units.graph`.
      before: number of units.
      after: number of units left.
      idle: units without effect that stay.
      why: why they stay.
    """

    group: str
    before: int
    after: int
    idle: int = 0
    why: str = ""


@dataclasses.dataclass(frozen=True)
class ShrinkReport:
    """What was removed, and what that saves.

    Attributes:
      params: number of parameters before and after.
      flops: floating point operations of products in one call, before and after.
      bytes: of the parameters, before and after.
      changes: groups that lost units, or keep some without effect.
      draws: groups that lost units and for which the function draws random numbers
        (dropout): it draws fewer now, and so others.
      fixed: if no group can shrink, the reasons: group and why, as in `units.graph`.
    """

    params: tuple[int, int]
    flops: tuple[int, int]
    bytes: tuple[int, int]
    changes: tuple[Change, ...]
    draws: tuple[str, ...] = ()
    fixed: tuple[tuple[str, str], ...] = ()

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Parameters, flops and bytes, before and after, by name."""
        return {"parameters": self.params, "flops": self.flops, "bytes": self.bytes}

    def __str__(self) -> str:
        lines = [
            f"{name:<11} {before:>14,} -> {after:>14,}  ({_share(before, after)})"
            for name, (before, after) in self.sizes.items()
        ]
        if self.fixed:
            lines.append("no group of units can get smaller:")
            lines += [f"{group}: {why}" for group, why in self.fixed]
        elif not self.changes:
            lines.append(
                "nothing got smaller: every removable unit has edges, in and out "
                "(print(units.graph) lists the groups that can shrink); "
                "bb.unitwise.cut makes masks of whole units"
            )
        for change in self.changes:
            lines.append(f"{change.group}: {change.before} -> {change.after} units")
            if change.idle:
                lines[-1] += f", {change.idle} idle ones stay: {change.why}"
        if self.draws:
            lines.append(f"other random numbers are drawn for {', '.join(self.draws)}")
        return "\n".join(map(printable, lines))


def _share(before: int, after: int) -> str:
    return f"{after / before:.1%}" if before else "none"


@dataclasses.dataclass(frozen=True)
class Shrunk:
    """A smaller model.

    Attributes:
      params: the parameters, a tree of the given kind.
      masks: by path, bool arrays of the new shapes: what stays pruned.
      widths: by path of kernel, its output units before and after.
      report: what was removed, and what that saves.
      cuts: by path, how parameters were cut.
      shapes: by path, the shapes that parameters had.
      fn: the function for these parameters.
      prepared: the function, traced on them.
    """

    params: Any = dataclasses.field(repr=False)
    masks: dict[str, np.ndarray] = dataclasses.field(repr=False)
    widths: dict[str, tuple[int, int]]
    report: ShrinkReport
    cuts: Cuts = dataclasses.field(repr=False)
    shapes: Shapes = dataclasses.field(repr=False)
    fn: Callable[..., Any] = dataclasses.field(repr=False)
    prepared: Prepared = dataclasses.field(repr=False)

    @functools.cached_property
    def units(self) -> Units:
        """The trace of the smaller model, made when it is first asked for."""
        return followed(self.prepared).units

    def cut(self, tree: Any) -> Any:
        """A tree of the old parameters' structure and shapes, cut as they were.

        Args:
          tree: gradients, moments, averages.

        Raises:
          ValueError: the tree does not have the paths or shapes of the parameters
            that were cut.

        Example:
          >>> import bbjax as bb, jax, jax.numpy as jnp
          >>> def net(params, x):
          ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
          >>> params = {"up": jnp.ones((3, 2)), "down": jnp.ones((2, 1))}
          >>> masks = {"down": jnp.array([[True], [False]])}
          >>> small = bb.shrink(net, params, masks, jnp.ones((5, 3)))
          >>> small.cut({"up": jnp.ones((3, 2)), "down": jnp.ones((2, 1))})["up"].shape
          (3, 1)
        """
        leaves = Leaves.of(tree)
        missing = [path for path in self.cuts if path not in leaves.by_path]
        if missing:
            raise ValueError(
                f"expected a tree with the parameters that were cut, got one without "
                f"{missing[:5]}; pass a tree of the structure that was shrunk"
            )
        for path, mine in self.cuts.items():
            array = leaves.at(path)
            if tuple(jnp.shape(array)) != self.shapes[path]:
                raise ValueError(
                    f"expected an array of shape {self.shapes[path]} at {path!r}, as "
                    f"it was before it was cut, got {tuple(jnp.shape(array))}"
                )
            leaves.put_at(path, cut(array, mine))
        return leaves.tree()

    def cut_state(self, opt_state: Any) -> Any:
        """An optimizer state for the smaller parameters, to continue training.

        Moments of any optimizer are cut as their parameters are. A state of
        `bb.transform` keeps its masks, averages and dormant weights; make the transform
        anew from `units` of the smaller model, with the same kernels selected.

        Args:
          opt_state: for the parameters that were shrunk, or for a part of their tree,
            as `variables["params"]`.

        Raises:
          ValueError: a state without copies of the parameters, or with sums over them;
            a pruning state with averages of more than one number per unit.
          TypeError: an optimizer in place of its state.

        Example:
          >>> import bbjax as bb, jax, jax.numpy as jnp, optax
          >>> def net(params, x):
          ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
          >>> params = {"up": jnp.ones((3, 2)), "down": jnp.ones((2, 1))}
          >>> masks = {"down": jnp.array([[True], [False]])}
          >>> small = bb.shrink(net, params, masks, jnp.ones((5, 3)))
          >>> state = small.cut_state(optax.adam(0.1).init(params))
          >>> jax.tree.map(jnp.shape, state[0].mu)
          {'down': (1, 1), 'up': (3, 1)}
        """
        return cut_state(opt_state, self.cuts, self.shapes, self.units)
