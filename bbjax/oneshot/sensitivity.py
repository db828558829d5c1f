"""Which layers can be pruned most: the loss with one of them pruned at a time.

    s = bb.sensitivity(loss_fn, units, params, batches, rule, stats=stats)
    print(s)                                         losses by row and density
    bb.prune(params, units, rule, s.allocate(0.5), stats=stats)

A row is one kernel, one slice of a stacked kernel (a layer of a scan), or one layer
that several kernels make. It is pruned to each of some densities, with all others
dense, and the loss is measured. `allocate` shares one budget out over the rows so that
the increases of the loss, taken to add up, are least (`bbjax.budgets.curves`).

References: Han, Pool, Tran, Dally, "Learning both Weights and Connections for Efficient
Neural Networks", arXiv 1506.02626 (sensitivity, layer by layer); Shoham, Gersho,
"Efficient bit allocation for an arbitrary set of quantizers", 1988 (hulls).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.activity.calibrate import calibrate
from bbjax.activity.stream import tuples
from bbjax.budgets import curves
from bbjax.budgets.allocation import Uneven
from bbjax.budgets.outliers import by_layer
from bbjax.model.checks import check_values
from bbjax.model.leaves import Leaves
from bbjax.model.numbers import check_number
from bbjax.model.text import table
from bbjax.model.units import Kernel, Units
from bbjax.oneshot.prune import Job, put, slice_of
from bbjax.rules.base import Rule
from bbjax.rules.patterns import Pattern
from bbjax.tracing.call import call
from bbjax.training import arguments, observations


class Row(NamedTuple):
    """What was pruned at a time, and the losses.

    Attributes:
      group: path of the kernel; what the paths of several have in common.
      at: index of the stack slice; empty without stack axes.
      edges: number of edges of it.
      losses: with it pruned to each density, float64.
      parts: path, number of the slice and edges of each kernel in it.
    """

    group: str
    at: tuple[int, ...]
    edges: int
    losses: np.ndarray
    parts: tuple[tuple[str, int, int], ...]

    @property
    def name(self) -> str:
        """The group, with the index of the slice: `layers/up/kernel[3]`."""
        index = ", ".join(map(str, self.at))
        return f"{self.group}[{index}]" if self.at else self.group


@dataclasses.dataclass(frozen=True, eq=False)
class Sensitivity:
    """The loss against the density of one row at a time; made by `bb.sensitivity`.

    Attributes:
      dense: loss of the dense model.
      densities: that were measured, from high to low.
      rows: in the order of the model.
    """

    dense: float
    densities: tuple[float, ...]
    rows: tuple[Row, ...]

    @property
    def losses(self) -> dict[str, np.ndarray]:
        """The losses at each density, float64, by the name of the row."""
        return {row.name: row.losses for row in self.rows}

    @property
    def edges(self) -> dict[str, int]:
        """The number of edges, by the name of the row."""
        return {row.name: row.edges for row in self.rows}

    def allocate(self, density: float, *, floor: float = 0.0) -> Uneven:
        """Shares one budget out over the rows, so that the loss rises least.

        Each row has the lower convex hull of its losses, and the increases of all rows
        are taken to add up. Rows get at least the lowest density that was measured:
        nothing is known of lower ones.

        Args:
          density: kept share of the edges of all rows together, in (0, 1].
          floor: least density of a row, in [0, 1).

        Returns:
          What `density=` of `bb.transform` and `bb.prune` takes, for the same kernels.
          Budgets add up to `round(density * edges)`; each is as computed here up to
          some 2e6 edges, beyond which float32 may move a few of them.

        Raises:
          TypeError: no number, or a traced one.
          ValueError: a value out of range, or a density below what the rows get at
            least.

        Example:
          >>> losses = np.array([1.0]), np.array([9.0])
          >>> rows = (
          ...     Row("a", (), 100, losses[0], (("a", 0, 100),)),
          ...     Row("b", (), 100, losses[1], (("b", 0, 100),)),
          ... )
          >>> dict(Sensitivity(0.0, (0.5,), rows).allocate(0.75).raised)
          {'a': (0.5,), 'b': (1.0,)}
        """
        for name, value in (("density", density), ("floor", floor)):
            if isinstance(value, jax.core.Tracer):
                raise TypeError(
                    f"expected {name} with a value, got a traced one; call allocate "
                    "outside of jit"
                )
        share = check_number("density", density, "(0, 1]", "e.g. 0.5")
        least = check_number("floor", floor, "[0, 1)", "it is a share of each row")
        sizes = [row.edges for row in self.rows]
        total, everything = round(share * sum(sizes)), sum(sizes)
        floors = [math.ceil(least * size) for size in sizes]
        measured = [self._curve(row) for row in self.rows]
        lowest = sum(
            max(int(c.edges.min()), low)
            for c, low in zip(measured, floors, strict=True)
        )
        if total < lowest:
            raise ValueError(
                f"expected a density of at least {lowest / everything:.4g}, which the "
                f"rows get at least (the lowest that was measured, "
                f"{self.densities[-1]:.4g}, or floor={floor!r}), got {density!r}; "
                "measure lower densities, or lower floor"
            )
        given = curves.spend(measured, total, floors)
        shares: dict[str, dict[int, float]] = {}
        for row, edges in zip(self.rows, given.tolist(), strict=True):
            for path, at, _ in row.parts:
                shares.setdefault(path, {})[at] = edges / row.edges
        raised = tuple(
            (path, tuple(found[at] for at in range(len(found))))
            for path, found in shares.items()
        )
        # The density that is met: another one moves every budget by a part of an edge.
        return Uneven(total / everything, raised)

    def _curve(self, row: Row) -> curves.Curve:
        """Losses by number of edges, the dense model included."""
        edges = [round(density * row.edges) for density in self.densities]
        return curves.Curve(
            np.array([*edges, row.edges]), np.array([*row.losses, self.dense])
        )

    def __str__(self) -> str:
        head = ("row", "edges", *(f"at {density:.4g}" for density in self.densities))
        lines = [
            (row.name, str(row.edges), *(f"{x - self.dense:+.3g}" for x in row.losses))
            for row in self.rows
        ]
        first = f"dense loss {self.dense:.6g}; increases with one row pruned at a time:"
        return f"{first}\n{table(head, lines)}"


def sensitivity(
    fn: Callable[..., Any],
    units: Units,
    params: Any,
    batches: Iterable[tuple[Any, ...]],
    rule: Rule,
    *,
    densities: Sequence[float] = (0.8, 0.6, 0.4, 0.2),
    stats: Any = None,
    grads: Any = None,
    by: str = "kernel",
    pattern: Pattern | None = None,
    k_min: int = 1,
) -> Sensitivity:
    r"""Measures the loss with one kernel at a time pruned, the others dense.

    Costs `rows * densities + 1` passes over the batches, and one compilation for each
    shape of batch. Every slice of a stacked kernel (a layer of a scan) is a row; the
    kernel is pruned once per density for all of them.

    Args:
      fn: loss of `(params, *args)`, a scalar; deterministic, as in evaluation.
      units: from `bb.trace`, with the selection that is pruned.
      params: the parameters before pruning; they are not changed.
      batches: tuples of the arguments after `params`; kept in memory if they come from
        an iterator. The loss is the plain mean over them.
      rule: from `bb.rules`, one that takes a density.
      densities: to measure, in (0, 1).
      stats: activity, where the rule reads it; by default measured with `fn` on the
        same batches (`bb.calibrate`), once.
      grads: tree of dense gradients, where the rule reads them.
      by: `"kernel"`, or a regular expression: kernels in whose paths it finds the same
        text are one row, pruned together, slice by slice (`r"layer_\d+"`).
      pattern: groups that edges are kept in; then `densities` is `(pattern.density,)`.
      k_min: least number of edges of a unit.

    Returns:
      `Sensitivity`: the losses, a table (`print`), `allocate(density)` for budgets from
      them, and a picture in `bb.report(..., sensitivity=)`.

    Raises:
      TypeError: an argument of the wrong kind, a function without a scalar result.
      ValueError: as `bb.prune` for any of the densities; a rule whose density is an
        outcome, or whose edges compete across the slices of a stack; no batch; a loss
        that is not finite.

    Example:
      >>> import bbjax as bb
      >>> def loss(params, x):
      ...     hidden = jax.nn.relu(x @ params["up"])
      ...     return jnp.mean((hidden @ params["down"] - x) ** 2)
      >>> params = {"up": jnp.eye(2), "down": jnp.full((2, 2), 0.5)}
      >>> x = jnp.ones((8, 2))
      >>> units = bb.trace(loss, params, x).select("up|down")
      >>> rule = bb.rules.magnitude()
      >>> found = sensitivity(loss, units, params, [(x,)], rule, densities=[0.5])
      >>> print(found)
      dense loss 0; increases with one row pruned at a time:
      row   edges  at 0.5
      ----  -----  ------
      up    4      +0
      down  4      +0.25
      >>> _, masks = bb.prune(params, units, rule, found.allocate(0.75))
      >>> int(masks["up"].sum()), int(masks["down"].sum())
      (2, 4)
    """
    arguments.check_units(units)
    arguments.check_rule(rule)
    budgeted = arguments.check_kernels(units, rule, k_min, pattern)
    levels = _levels(densities, rule, pattern)
    data = list(tuples(batches))
    if not data:
        raise ValueError(
            "expected at least one batch, got none; pass a list of argument tuples"
        )
    kernels = [kernel for kernel, _ in budgeted]
    groups = by_layer(kernels, None if by == "kernel" else by, "by")
    jobs = {
        name: _jobs(units, group, rule, levels, pattern, k_min)
        for name, group in groups.items()
    }
    observations.check_call(rule, stats or data, grads, "bb.sensitivity")
    tree = Leaves.of(params)
    check_values(tree.named(), "parameters")
    loss = _Loss(fn, data)
    dense = loss(tree.tree())
    if not math.isfinite(dense):
        raise ValueError(
            f"expected a finite loss of the dense model, got {dense}; check the "
            "parameters and the batches"
        )
    if stats is None and rule.reads_activity:
        stats = calibrate(fn, units, params, data, needs=rule.needs)
    rows: list[Row] = []
    for name, group in groups.items():
        found = [
            _losses(loss, params, job, stats, grads, f"{name!r} at density {level}")
            for job, level in zip(jobs[name], levels, strict=True)
        ]
        rows += _rows(name, group, np.array(found))
    return Sensitivity(dense, tuple(levels), tuple(rows))


def _levels(densities: Any, rule: Rule, pattern: Pattern | None) -> list[float]:
    """The densities to measure, from high to low."""
    if rule.free:
        raise ValueError(
            f"expected a rule that takes a density, got {rule.name!r}, whose density "
            "is an outcome; use another rule, e.g. bb.rules.magnitude()"
        )
    if isinstance(densities, str) or not isinstance(densities, Iterable):
        raise TypeError(
            f"expected densities as a sequence of numbers, got {densities!r}; e.g. "
            "(0.8, 0.6, 0.4, 0.2)"
        )
    given = [
        check_number("a density", one, "(0, 1)", "the dense loss is measured anyway")
        for one in densities
    ]
    if not given or len(set(given)) < len(given):
        raise ValueError(
            f"expected at least one density, and none twice, got {given}; e.g. "
            "(0.8, 0.6, 0.4, 0.2)"
        )
    if pattern is not None and given != [pattern.density]:
        raise ValueError(
            f"expected densities=({pattern.density},) with the pattern {pattern}, got "
            f"{given}; it has no other"
        )
    return sorted(given, reverse=True)


def _jobs(
    units: Units,
    group: Sequence[Kernel],
    rule: Rule,
    levels: Sequence[float],
    pattern: Pattern | None,
    k_min: int,
) -> list[Job]:
    """What prunes the kernels of a group to each density."""
    if rule.joint and group[0].stack_shape:
        raise ValueError(
            f"expected a rule that chooses slice by slice for {group[0].path!r}, which "
            f"has stack axes, got {rule.name!r}, whose edges compete across slices; "
            'use another one, e.g. scope="layer"'
        )
    paths = {kernel.path for kernel in group}
    chosen = tuple(one for one in units.selected if one.path in paths)
    part = dataclasses.replace(units, selection=chosen)
    return [Job.of(part, rule, level, pattern, None, k_min) for level in levels]


def _losses(
    loss: _Loss, params: Any, job: Job, stats: Any, grads: Any, where: str
) -> list[float]:
    """The loss with each slice of the job's kernels pruned, the others dense."""
    choices = list(job.choices(Leaves.of(params), stats, grads))
    found = []
    for at in range(math.prod(choices[0][0].stack_shape)):
        tree = Leaves.of(params)
        for kernel, choice in choices:
            put(tree, kernel, slice_of(kernel, at, choice, tree))
        found.append(loss(tree.tree()))
        if not math.isfinite(found[-1]):
            raise ValueError(
                f"expected a finite loss with {where}, got {found[-1]} (slice {at}); "
                "leave lower densities out"
            )
    return found


def _rows(name: str, group: Sequence[Kernel], losses: np.ndarray) -> list[Row]:
    """The rows of a group, from losses by density and slice."""
    shape = group[0].stack_shape
    edges = sum(kernel.edge_count for kernel in group)
    return [
        Row(
            group=name or "all",
            at=tuple(int(n) for n in np.unravel_index(at, shape)) if shape else (),
            edges=edges,
            losses=losses[:, at],
            parts=tuple((kernel.path, at, kernel.edge_count) for kernel in group),
        )
        for at in range(losses.shape[1])
    ]


@dataclasses.dataclass(frozen=True)
class _Loss:
    """The mean loss over batches, compiled once for each kind of batch."""

    fn: Callable[..., Any]
    batches: list[tuple[Any, ...]]
    programs: dict[Any, tuple[Any, Any]] = dataclasses.field(default_factory=dict)

    def __call__(self, params: Any) -> float:
        values = [self._of(params, batch) for batch in self.batches]
        return math.fsum(map(float, values)) / len(values)

    def _of(self, params: Any, batch: tuple[Any, ...]) -> jax.Array:
        this = call(_scalar(self.fn), params, batch, {})
        if this.key not in self.programs:
            program = jax.jit(lambda *arrays: this.fn(*arrays)[0])
            self.programs[this.key] = (
                program,
                this.others,
            )  # the key may name them by id
        return self.programs[this.key][0](*this.arrays)


def _scalar(fn: Callable[..., Any]) -> Callable[..., jax.Array]:
    """The function, with a check of its result while it is traced."""
    if not callable(fn):
        return fn  # `call` raises the error

    @functools.wraps(fn)
    def checked(*args: Any) -> jax.Array:
        out = fn(*args)
        if not isinstance(out, jax.Array | np.generic | float | int) or np.ndim(out):
            got = f"shape {np.shape(out)}" if isinstance(out, jax.Array) else type(out)
            raise TypeError(
                f"expected fn to return a loss, one number, got {got}; return the mean "
                "over the batch, without side outputs"
            )
        return jnp.asarray(out)

    return checked
