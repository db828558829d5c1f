"""Statistics of a model on a stream of batches, for pruning in one shot.

    total = sum of the sums over batches;   statistics = total / count

Each batch goes through the function once, up to the last value that is measured, in one
compiled program per shape of batch. Its results are sums of the size of the statistics.
Sums and counts are added together with their rounding errors (two-sum, Knuth, TAOCP 2,
4.2.2), so that long streams and more than 2**24 samples lose no counts. Gram matrices
and edges, which are large, are added without. The result is that of one big batch, up
to rounding within a batch, for any division of the data into batches and over devices.

`merge` combines the results of hosts that measured parts of the data.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bbjax.activity import statistics as stats
from bbjax.activity.convolution import Geometry
from bbjax.activity.evaluate import (
    Probe,
    Sides,
    by_side,
    finished,
    geometries,
    same_maps,
)
from bbjax.activity.observe import Where, check, measured_paths, wanted
from bbjax.activity.on import On, positive
from bbjax.activity.statistics import MEANS, Activity, Asked, Raw, Statistics
from bbjax.model.units import Units
from bbjax.tracing import jaxprs
from bbjax.tracing.call import Call, call, traced
from bbjax.tracing.trace import analyse

_TWO_SUM = (*MEANS, "count", "samples", "abs_map")
Flags = dict[str, dict[str, Bool[Array, ""]]]  # side -> statistic -> is it sound


def calibrate(
    fn: Callable[..., Any],
    units: Units,
    params: Any,
    batches: Iterable[tuple[Any, ...]],
    *,
    needs: Sequence[str] = ("on_rate",),
    where: Where = None,
    on: On = positive,
) -> dict[str, Activity]:
    """Measures the activity of the units on a stream of batches.

    Args:
      fn: the function that was traced, of `(params, *args)`; its result is not used,
        and what only the result needs is not computed.
      units: from `bb.trace`; activity is measured at the selected kernels, at all
        kernels if nothing was selected. Then Gram matrices, maps and what edges
        contribute are measured only at kernels that `bb.prune` would take.
      params: the parameters to measure with; they are not changed, nor is the state of
        an `nnx.Module`.
      batches: tuples of the arguments after `params`; a generator will do. Samples
        count the same in whatever batch they are.
      needs: statistics to measure, a rule's `rule.needs`; see `bb.activity`.
      where: padding mask, True where real, over leading batch and position axes of the
        activity; or a function of the arguments after `params` that gives it.
      on: what counts as on, elementwise to [0, 1]; see `bb.on`. (A threshold relative
        to the RMS of a layer is taken batch by batch.)

    Returns:
      The activity as `bb.observe` returns it: path of each kernel -> `inputs` and
      `outputs`, float32 `bb.activity.Statistics`.

    Raises:
      TypeError: `units` is no `Units`, `fn` or `on` is not callable, a batch is not a
        tuple.
      ValueError: no batch at all, a kernel that is never measured, activity that is not
        finite, an unknown statistic or one that a kernel does not have, maps of
        different sizes, a mask that fits no activity.

    Example:
      >>> import bbjax as bb
      >>> def loss(params, x):
      ...     return jnp.sum(jax.nn.relu(x @ params["up"]) @ params["down"])
      >>> params = {"up": jnp.eye(2), "down": jnp.ones((2, 1))}
      >>> units = bb.trace(loss, params, jnp.ones((1, 2)))
      >>> batches = [(jnp.array([[1.0, -1.0]]),), (jnp.array([[1.0, 1.0]]),)]
      >>> stats = calibrate(loss, units, params, batches, needs=["mean_abs"])
      >>> stats["up"].outputs.on_rate.tolist(), stats["up"].inputs.mean_abs.tolist()
      ([1.0, 0.5], [1.0, 1.0])
    """
    return Meter.of(fn, units, needs, where, on).measure(params, batches)


def merge(
    first: dict[str, Activity], second: dict[str, Activity]
) -> dict[str, Activity]:
    """Combines two calibrations of the same model on different data.

    Up to rounding, the order in which hosts are merged does not matter.

    Args:
      first: from `calibrate` (or `bb.observe`).
      second: likewise, with the same kernels and statistics.

    Returns:
      The activity on all data of both; every sample counts the same.

    Raises:
      TypeError: an argument that is no activity.
      ValueError: kernels, statistics, shapes or (for `fro_of_mean`) weights differ.

    Example:
      >>> seen = [
      ...     Statistics(jnp.array([r]), jnp.array([n])) for r, n in ((1, 1), (0, 3))
      ... ]
      >>> one, other = ({"w": Activity(s, s)} for s in seen)
      >>> merge(one, other)["w"].inputs.on_rate.tolist()
      [0.25]
    """
    for each in (first, second):
        if not isinstance(each, dict) or not all(
            isinstance(a, Activity) for a in each.values()
        ):
            raise TypeError(
                f"expected activity by kernel path, got {type(each).__name__}; merge "
                "two results of bb.calibrate"
            )
    differences = _differences(first, second)
    if differences:
        raise ValueError(
            "expected two calibrations of the same kernels and statistics, got "
            f"{'; '.join(differences)}; calibrate both with the same model, units and "
            "needs"
        )
    return {
        path: Activity(*map(_merged, activity, second[path]))
        for path, activity in first.items()
    }


@jax.jit
def _merged(first: Statistics, second: Statistics) -> Statistics:
    geometry = first.geometry
    one, other = (stats.unfinished(s, geometry) for s in (first, second))
    return stats.finish(stats.combine(one, other), geometry)


def _differences(first: dict[str, Activity], second: dict[str, Activity]) -> list[str]:
    found = [f"{p!r} in one of them only" for p in sorted(first.keys() ^ second.keys())]
    for path in first.keys() & second.keys():
        for side in Activity._fields:
            one, other = (getattr(a[path], side) for a in (first, second))
            found += [f"{side} of {path!r}: {why}" for why in _unequal(one, other)]
    return found


def _unequal(first: Statistics, second: Statistics) -> Iterator[str]:
    one, other = first.arrays(), second.arrays()
    if "count" not in one.keys() | other.keys():
        yield "no count"
    for name in sorted(one.keys() ^ other.keys()):
        yield f"{name} in one of them only"
    for name in one.keys() & other.keys():
        shapes = jnp.shape(one[name]), jnp.shape(other[name])
        if shapes[0] != shapes[1]:
            yield f"{name} of shape {shapes[0]} and {shapes[1]}"
    if first.geometry != second.geometry:
        yield f"{first.geometry} and {second.geometry}"
    elif "windows" in one.keys() & other.keys():
        if not np.array_equal(one["windows"], other["windows"]):
            yield "different weights"


# The stream ----------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Meter:
    """A calibration that is compiled once, for any number of streams.

    Made by `Meter.of`; arguments as for `calibrate`. With `terms`, outputs are measured
    before they meet units of other kernels: as the terms of sums.
    """

    fn: Callable[..., Any]
    units: Units
    asked: dict[str, Asked]
    where: Where
    on: On
    terms: bool = False
    geometries: dict[str, Geometry] = dataclasses.field(default_factory=dict)
    programs: dict[Hashable, _Program] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        fn: Callable[..., Any],
        units: Units,
        needs: Sequence[str],
        where: Where,
        on: On,
        *,
        terms: bool = False,
    ) -> Meter:
        """A meter that has compiled nothing yet."""
        check(units, on)
        asked = _asked(units, stats.asked_for(needs))
        return cls(fn, units, asked, where, on, terms)

    def measure(
        self, params: Any, batches: Iterable[tuple[Any, ...]]
    ) -> dict[str, Activity]:
        """The activity on a stream, of parameters with the shapes of those before."""
        total: Sides | None = None
        lost: Sides = {}
        for batch in as_tuples(batches):
            sums = self._sums(params, batch)
            if total is None:
                total, lost = sums, _no_error(sums)
            else:
                total, lost = _added(total, lost, sums)
        if total is None:
            raise ValueError(
                "expected at least one batch, got none; pass an iterable of argument "
                "tuples (a generator can be used only once)"
            )
        paths = measured_paths(self.units)
        made, flags = _finished(total, lost, tuple(self.geometries.items()), paths)
        for path in paths:
            _check_measured(path, flags[path])
        return {path: made[path] for path in paths}

    def _sums(self, params: Any, batch: tuple[Any, ...]) -> Sides:
        """Runs one batch, compiled once per kind of batch."""
        this = call(self.fn, params, batch, {})
        where = self.where
        mask = where(*batch) if callable(where) else where
        if this.key not in self.programs:
            self.programs[this.key] = self._program(this)
        return self.programs[this.key](this.arrays, mask)

    def _program(self, this: Call) -> _Program:
        """The compiled program for a kind of batch."""
        prepared = traced(this)
        taps = wanted(self.units, analyse(prepared, terms=self.terms))
        found = geometries(taps, self.units, self.asked)
        for path, geometry in found.items():
            first = self.geometries.setdefault(path, geometry)
            names = {name for side in self.asked[path].values() for name in side}
            if names & {*stats.BY_SAMPLE, "positions"}:
                same_maps(path, first, geometry)
        probe = Probe(taps, found, self.asked, self.on)
        jaxpr, consts = jaxprs.opened(prepared.jaxpr)

        def sums(consts, arrays, mask):
            here = dataclasses.replace(
                probe, where=None if mask is None else jnp.asarray(mask)
            )
            return by_side(here, self.units, here.run(jaxpr, consts, arrays, ())[1])

        return _Program(this.others, jax.jit(sums), consts)


def _asked(units: Units, asked: Asked) -> dict[str, Asked]:
    """The statistics of each kernel: larger ones only where it would be pruned."""
    small: Asked = {
        side: tuple(n for n in names if n not in stats.SIDED)
        for side, names in asked.items()
    }
    paths = measured_paths(units)
    pruned = set(units.budgeted) or set(paths)
    return {path: asked if path in pruned else small for path in paths}


@dataclasses.dataclass(frozen=True)
class _Program:
    """A compiled function from the arrays of a batch to its sums.

    It holds references to the arguments that are no arrays, since the key of a call may
    contain their identity alone. It holds no arrays, which are new at every call.
    """

    others: tuple[Any, ...]
    run: Callable[..., Sides]
    consts: Sequence[Any]

    def __call__(self, arrays: Sequence[Any], mask: Any) -> Sides:
        return self.run(self.consts, arrays, mask)


def as_tuples(batches: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """The batches, each checked when it comes.

    Raises:
      TypeError: not an iterable, or a batch that is no tuple.
    """
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"expected an iterable of batches, got {type(batches).__name__}; pass a "
            "list or a generator of tuples of arguments"
        )
    for batch in batches:
        if not isinstance(batch, tuple):
            raise TypeError(
                f"expected a tuple of the arguments after params, got a batch of type "
                f"{type(batch).__name__}; wrap a single argument as (x,), and pass a "
                "list of such tuples"
            )
        yield batch


# Sums ----------------------------------------------------------------------------
@jax.jit
def _no_error(sums: Sides) -> Sides:
    return {
        key: {n: jnp.zeros_like(v) for n, v in raw.items() if n in _TWO_SUM}
        for key, raw in sums.items()
    }


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _added(total: Sides, lost: Sides, sums: Sides) -> tuple[Sides, Sides]:
    """Totals with one batch more, and the rounding errors so far."""
    new = {key: stats.combine(total[key], sums[key]) for key in total}
    errors = {
        key: {
            n: error + _rounding(total[key][n], sums[key][n], new[key][n])
            for n, error in lost[key].items()
        }
        for key in lost
    }
    return new, errors


def _rounding(
    first: Float[Array, "*shape"],
    second: Float[Array, "*shape"],
    total: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """The exact rounding error of `total = first + second`."""
    there = total - first
    return (first - (total - there)) + (second - there)


def _corrected(total: Sides, lost: Sides) -> Sides:
    def of(key: Any, raw: Raw) -> Raw:
        return raw | {n: raw[n] + error for n, error in lost[key].items()}

    return {key: of(key, raw) for key, raw in total.items()}


@functools.partial(jax.jit, static_argnames=("geometries", "paths"))
def _finished(
    total: Sides,
    lost: Sides,
    geometries: tuple[tuple[str, Geometry], ...],
    paths: tuple[str, ...],
) -> tuple[dict[str, Activity], dict[str, Flags]]:
    """The statistics of a stream, and whether each of them is sound."""
    made = finished(_corrected(total, lost), dict(geometries), paths)
    return made, {path: _flags(made[path]) for path in paths}


def _flags(activity: Activity) -> Flags:
    """For each statistic, whether it is finite; for counts, whether there are any."""

    def of(statistics: Statistics) -> dict[str, Bool[Array, ""]]:
        arrays = statistics.arrays()
        flags = {n: jnp.all(jnp.isfinite(v)) for n, v in arrays.items()}
        return flags | {"count": jnp.any(arrays["count"] > 0)}

    return {side: of(value) for side, value in activity._asdict().items()}


def _check_measured(path: str, flags: Flags) -> None:
    """Raises an error if statistics are not finite, or of no samples."""
    for side, names in flags.items():
        broken = [n for n, good in names.items() if not np.asarray(good)]
        if broken == ["count"]:
            raise ValueError(
                f"expected samples of the {side} of {path!r}, got none; all were "
                "padding, or the function never ran this kernel"
            )
        if broken:
            raise ValueError(
                f"expected finite activity, got NaN or infinity in {broken} of the "
                f"{side} of {path!r}; check the batches and the forward pass"
            )
