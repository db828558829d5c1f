"""Rules: the class, its arguments and its results.

A rule decides *which* edges are kept. It is a frozen record of a `select` function and
of what that function needs. The function takes a `Candidates` view of one kernel and
returns a mask; where edges compete across kernels (`joint`), it takes a `Group` of such
views and returns as many masks. `bb.transform` and `bb.prune` do everything else:
schedules, dormant weights, state, statistics. Most rules are made of the parts in
`bbjax.rules.parts.selection`, which respect budgets, N:M patterns, prune-only runs and
meshes.

Names of shapes in signatures:

    *stack    `kernel.stack_shape`, one entry per slice
    *units    `stack + units`, of the side that is meant; flat in each slice:
              `*stack units`
    *edges    `kernel.edge_shape`, one entry per edge
    *split    `kernel.split`, that of weights: edges and the window of a convolution
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Shaped

from bbjax.arrays.types import Number
from bbjax.model.units import Actuator, Kernel, Side
from bbjax.rules.patterns import Pattern


@dataclasses.dataclass(frozen=True)
class Candidates:
    """One kernel at a refresh: the argument of a rule.

    Arrays "per edge" have shape `kernel.edge_shape`; weights also have the window axes
    of a convolution (`kernel.split`).

    Attributes:
      kernel: the kernel.
      actuators: sides whose edges the budget counts.
      weights: latent weights, shape `kernel.split`; a pruned weight has the value that
        it would come back with (0 where nothing comes back).
      mask: edges kept so far, per edge.
      statistics: averages by `"side.statistic"`, shape `stack + units` (see
        `bb.activity` for those of other shapes).
      budget: edges to keep, int32, shape `kernel.stack_shape`; all of them where the
        density is an outcome of the rule.
      k_min: least degree of a unit.
      regrow: whether pruned edges may return.
      step: number of the update, int32; 0 in `bb.prune`.
      grads: dense gradients, shape `kernel.split`, if the rule needs them.
      index: position of the kernel among the budgeted ones, for noise of its own.
      bias: the bias of the output units, `stack + units`, or None.
      pattern: groups that the edges of a unit are kept in, or None.
      hysteresis: share by which the scores of kept edges are raised; see
        `bbjax.rules.parts.hysteresis`.
    """

    kernel: Kernel
    actuators: tuple[Actuator, ...]
    weights: Float[Array, "*split"]
    mask: Bool[Array, "*edges"]
    statistics: Mapping[str, Float[Array, "..."]]
    budget: Int[Array, "*stack"]
    k_min: int
    regrow: bool
    step: Int[Array, ""]
    grads: Float[Array, "*split"] | None = None
    index: Int[ArrayLike, ""] = 0
    bias: Float[Array, "*outputs"] | None = None
    pattern: Pattern | None = None
    hysteresis: Number = 0.0

    @property
    def magnitude(self) -> Float[Array, "*edges"]:
        """Score |w| per edge: summed over the window of a convolution, float32."""
        return self.kernel.sum_spatial(jnp.abs(self.weights.astype(jnp.float32)))

    def on_rate(self, actuator: Actuator) -> Float[Array, "*units"]:
        """On-rate of the units whose edges an actuator counts."""
        return self.of_units("on_rate", actuator)

    def of_units(self, statistic: str, actuator: Actuator) -> Float[Array, "*units"]:
        """A statistic of the units whose edges an actuator counts."""
        return self.statistics[f"{side_of(actuator)}.{statistic}"]

    def degrees(
        self, actuator: Actuator, mask: Bool[Array, "*edges"] | None = None
    ) -> Int[Array, "*units"]:
        """Edges of each unit: those kept so far, or those of another mask."""
        edges = self.mask if mask is None else mask
        return self.kernel.gather(edges.astype(jnp.int32), side_of(actuator))

    def flat(self, per_unit: Shaped[Array, "..."]) -> Shaped[Array, "*stack units"]:
        """An array per unit with the units of a slice on one axis."""
        return jnp.reshape(per_unit, (*self.kernel.stack_shape, -1))


_ARRAYS = ("weights", "mask", "statistics", "budget", "step", "grads", "bias")
Static = tuple[tuple[str, Any], ...]


def taken_apart(seen: Candidates) -> tuple[dict[str, Any], Static]:
    """The fields of candidates that hold arrays, and the others, which are static.

    For functions that are compiled once for all kernels of one shape.
    """
    fields = {f.name: getattr(seen, f.name) for f in dataclasses.fields(seen)}
    arrays = {name: fields.pop(name) for name in _ARRAYS}
    return arrays, tuple(fields.items())


def put_together(arrays: Mapping[str, Any], static: Static) -> Candidates:
    """The inverse of `taken_apart`."""
    return Candidates(**arrays, **dict(static))


@dataclasses.dataclass(frozen=True)
class Group:
    """All budgeted kernels at a refresh, for rules whose edges compete across them.

    Attributes:
      members: the kernels.
      pool: from positions of members to the edges they keep together, int32.
    """

    members: tuple[Candidates, ...]
    pool: Callable[[Sequence[int]], Int[Array, ""]]


class Fitted(NamedTuple):
    """The slope that a rule chose on calibration data: float32, `kernel.stack_shape`.

    Attributes:
      spread: slope of the balance, a share of the mean degree per nat of log-odds.
      error: mean square change of the kernel's outputs by pruning.
      level: the same with slope 0.
    """

    spread: Float[Array, "*stack"]
    error: Float[Array, "*stack"]
    level: Float[Array, "*stack"]


class Choice(NamedTuple):
    """A mask and more: what a rule may return in place of a mask.

    Attributes:
      mask: edges to keep, per edge.
      weights: new values of the kept weights, `kernel.split`, or None (one-shot).
      bias: which output units keep their bias, bool `stack + units`, or None for all
        (one-shot).
      fitted: the slope that was chosen on calibration data, or None (one-shot).
    """

    mask: Bool[Array, "*edges"]
    weights: Float[Array, "*split"] | None = None
    bias: Bool[Array, "*outputs"] | None = None
    fitted: Fitted | None = None


Chosen = Bool[Array, "*edges"] | Choice
Select = Callable[[Candidates], Chosen]
JointSelect = Callable[[Group], Sequence[Chosen]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """How edges are chosen. Made by the factories of `bb.rules`.

    Attributes:
      name: for tables and messages.
      select: from `Candidates` to the mask of kept edges, per edge; from a `Group` to
        one mask per member if `joint`.
      needs: statistics that it reads: names of `bb.activity.STATISTICS` for the units
        that the actuator counts, `"inputs.<name>"` or `"outputs.<name>"` for one side
        of a kernel, `"grads"` for dense gradients.
      revive: value of a weight that comes back: its old one (`"dormant"`) or 0
        (`"zero"`).
      joint: whether edges compete across kernels.
      free: whether the density is an outcome, so that none is asked for.
      one_shot: whether it can only prune once (`bb.prune`), not while training.
      patterned: whether it can keep edges in N:M patterns.
      one_sided: whether it can budget one side of a kernel only.
      favours: whether it can raise the scores of kept edges (hysteresis).
      fits: whether it chooses its slope on calibration data (`bb.spreads`).
      alike: whether kernels that differ in nothing but numbers in their paths
        (`layer_0/up`, `layer_1/up`) may share one compiled program in a refresh. The
        rule then sees the path `layer_*/up`. False for a rule that looks paths up.
    """

    name: str
    select: Callable[[Any], Any]  # `Select`, or `JointSelect` if `joint`
    needs: tuple[str, ...] = ()
    revive: Literal["dormant", "zero"] = "dormant"
    joint: bool = False
    free: bool = False
    one_shot: bool = False
    patterned: bool = True
    one_sided: bool = False
    favours: bool = True
    fits: bool = False
    alike: bool = True

    @property
    def reads_activity(self) -> bool:
        """Whether it needs statistics of activity, not gradients alone."""
        return any(need != "grads" for need in self.needs)

    def choose(self, group: Group) -> list[Choice]:
        """The choices for all members of a group."""
        if self.joint:
            made = list(self.select(group))
        else:
            made = [self.select(seen) for seen in group.members]
        return [as_choice(one) for one in made]


def as_choice(chosen: Chosen) -> Choice:
    """A mask alone as a choice."""
    return chosen if isinstance(chosen, Choice) else Choice(chosen)


def side_of(actuator: Actuator) -> Side:
    """The side of the units whose edges an actuator counts."""
    return "outputs" if actuator == "in" else "inputs"


def side_in(name: str) -> Side:
    """The side of a running mean `"side.statistic"`."""
    return "inputs" if name.startswith("inputs.") else "outputs"


def tracked(rule: Rule, actuators: tuple[Actuator, ...]) -> tuple[str, ...]:
    """Names `"side.statistic"` that a rule reads of a kernel, on-rates included."""
    sides = [side_of(a) for a in actuators]
    wanted = {f"{side}.on_rate" for side in sides}
    return tuple(sorted(wanted | set(needed(rule, actuators))))


def needed(rule: Rule, actuators: tuple[Actuator, ...]) -> tuple[str, ...]:
    """Names `"side.statistic"` that a rule needs of a kernel."""
    sides = [side_of(a) for a in actuators]
    wanted: set[str] = set()
    for need in rule.needs:
        if need != "grads":
            wanted |= {need} if "." in need else {f"{side}.{need}" for side in sides}
    return tuple(sorted(wanted))
