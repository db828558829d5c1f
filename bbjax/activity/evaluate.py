"""The activity of the units of a jaxpr, measured while it is evaluated.

The taps are values of kernels (`bbjax.tracing.flow.kernels`); the evaluation itself is
that of `bbjax.activity.tapped`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Num, Shaped

from bbjax.activity import in_rows
from bbjax.activity import statistics as stats
from bbjax.activity.convolution import Geometry
from bbjax.activity.on import On
from bbjax.activity.order import arranged
from bbjax.activity.per_edge import (
    geometry_of,
    gram_sum,
    map_sums,
    refuse,
    refuse_gram,
)
from bbjax.activity.per_group import Members
from bbjax.activity.per_unit import Over, unit_sums, valid_entries
from bbjax.activity.statistics import BY_SAMPLE, PER_EDGE, PER_UNIT, Asked, Raw
from bbjax.activity.tapped import Env, Tapped, constant
from bbjax.model.units import Side, Units
from bbjax.tracing.flow.kernels import Tap
from bbjax.tracing.flow.order import Order
from bbjax.tracing.flow.walk import Scope

Sides = dict[tuple[str, Side], Raw]


@dataclasses.dataclass(frozen=True)
class Probe(Tapped[Tap]):
    """The evaluation of a jaxpr with taps at its kernels.

    Attributes:
      geometries: how each kernel moves, by path.
      asked: which statistics, by kernel and side.
      on: what counts as on.
      where: padding mask, or None.
      masks: the same for rows that enclosing scopes have sorted by expert.
    """

    geometries: dict[str, Geometry]
    asked: Mapping[str, Asked]
    on: On
    where: Shaped[Array, "..."] | None = None
    masks: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def reads(self, here: Mapping[int, Tap], scope: Scope) -> Sequence[Any]:
        """The variables of a scope that measurements read."""
        found = [v for t in here.values() for v in self._read_by(t)]
        return found + [v for o in self._sorted_in(scope) for v in in_rows.read_by(o)]

    def inside(self, jaxpr: Any, index: int, env: Env, scope: Scope) -> Probe:
        """The evaluation of the bodies of a call, with masks of rows sorted here."""
        read_there = self._keys_inside(scope, index)
        masks = {
            _key(order): self._row_mask(order, env, jaxpr)
            for order in self._sorted_in(scope)
            if _key(order) in read_there
        }
        return dataclasses.replace(self, masks=self.masks | masks)

    def _weights(self, tap: Tap) -> Any:
        """The operand with the weights, if contributions of edges are asked for."""
        if tap.side == "outputs" or not set(self.asked[tap.kernel][tap.side]) & set(
            PER_EDGE
        ):
            return None
        return tap.use.eqn.invars[1 - tap.use.operand]

    def _read_by(self, tap: Tap) -> list[Any]:
        """The variables that a measurement reads."""
        sizes = None if tap.rows is None else tap.rows.sizes
        return [tap.var, sizes, self._weights(tap)]

    def _sorted_in(self, scope: Scope) -> list[Order]:
        """How rows are sorted in a scope, if a mask has to follow them."""
        if self.where is None:
            return []
        orders = [t.rows.order for t in self.taps if t.rows and t.rows.order]
        found = {_key(o): o for o in orders if o.scope == scope and not o.why_not}
        return list(found.values())

    def _keys_inside(self, scope: Scope, index: int) -> set[Any]:
        """Keys of the orders of rows that are measured inside of a call."""
        depth = len(scope)
        return {
            _key(t.rows.order)
            for t in self.taps
            if t.rows and t.rows.order and t.scope[:depth] == scope
            if len(t.scope) > depth and t.scope[depth][0] == index
        }

    def _row_mask(self, order: Order, env: Env, jaxpr: Any) -> Any:
        """The padding mask of sorted rows."""
        assert self.where is not None
        read = functools.partial(constant, env)
        return in_rows.row_mask(self.where, order, jaxpr, read)

    def measure(self, here: Mapping[int, Tap], env: Env, jaxpr: Any) -> dict[int, Raw]:
        """Statistics at the taps of a scope."""
        done: dict[Any, Raw] = {}
        raw = {}
        for i, tap in here.items():
            x = constant(env, tap.var)
            over = self._over(x, tap, env, jaxpr)
            names = tuple(n for n in self.asked[tap.kernel][tap.side] if n in PER_UNIT)
            key = (id(tap.var), tap.axes, names, tap.rows and id(tap.rows.sizes))
            if key not in done:
                done[key] = unit_sums(x, over, on=self.on, statistics=names)
            raw[i] = done[key] | self._larger(x, tap, over, done[key], env)
        return raw

    def _over(self, x: Num[Array, "..."], tap: Tap, env: Env, jaxpr: Any) -> Over:
        """Which entries of a value are of which unit."""
        where, valid = self.where, None
        if tap.rows is None:
            if where is not None:
                valid = valid_entries(where, x.shape, tap.axes, tap.kernel)
            return Over(tap.axes, x.shape, valid)
        if where is not None:
            order = tap.rows.order
            assert order is not None
            mask = self.masks.get(_key(order))
            if order.scope == tap.scope and not order.why_not:
                mask = self._row_mask(order, env, jaxpr)
            valid = in_rows.valid_rows(mask, x.ndim, tap)
        sizes = constant(env, tap.rows.sizes)
        return Members(tap.axes, x.shape, valid, tap.rows, sizes)

    def _larger(
        self,
        x: Num[Array, "..."],
        tap: Tap,
        over: Over,
        units: Raw,
        env: Env,
    ) -> Raw:
        """Statistics that are more than one number per unit."""
        names, raw = self.asked[tap.kernel][tap.side], {}
        if "gram" in names:
            raw["gram"] = gram_sum(x, tap, over)
        if set(names) & set(BY_SAMPLE):
            atom = self._weights(tap)
            raw |= map_sums(
                x,
                None if atom is None else constant(env, atom),
                tap,
                self.geometries[tap.kernel],
                over=over,
                count=units["count"],
                statistics=names,
            )
        return raw


def _key(order: Order) -> tuple[Scope, int]:
    return order.scope, id(order.rows)


# Results -------------------------------------------------------------------------
def geometries(
    taps: Sequence[Tap], units: Units, asked: Mapping[str, Asked]
) -> dict[str, Geometry]:
    """How each kernel moves over positions, after a check of what is asked for.

    Args:
      taps: of the kernels to measure.
      units: that have them.
      asked: which statistics, by kernel and side.

    Raises:
      ValueError: a product without such statistics, or maps of a kernel whose uses move
        differently.
    """
    found: dict[str, Geometry] = {}
    each = [geometry_of(tap, units[tap.kernel]) for tap in taps]
    refuse_gram(
        g for t, g in zip(taps, each, strict=True) if "gram" in asked[t.kernel][t.side]
    )
    for tap, geometry in zip(taps, each, strict=True):
        names = asked[tap.kernel][tap.side]
        refuse(tap, geometry, names)
        first = found.setdefault(tap.kernel, geometry)
        if set(names) & {*BY_SAMPLE, "positions"}:
            same_maps(tap.kernel, first, geometry)
    return found


def same_maps(path: str, first: Geometry, second: Geometry) -> None:
    """Raises an error if two uses of a kernel make maps that cannot be added."""
    for name in (f.name for f in dataclasses.fields(Geometry)):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            raise ValueError(
                f"expected maps of one size and kind at {path!r}, got {name} {one} and "
                f"{other}; measure maps on inputs of one size, or leave the kernel out"
            )


def by_side(probe: Probe, units: Units, raw: dict[int, Raw]) -> Sides:
    """Partial measurements of each side of each kernel, in the kernel's own order."""
    sides: Sides = {}
    for i, tap in enumerate(probe.taps):
        kernel = units[tap.kernel]
        placed = {k: arranged(k, v, tap, kernel) for k, v in raw[i].items()}
        if "positions" in probe.asked[tap.kernel][tap.side]:
            positions = float(probe.geometries[tap.kernel].positions)
            placed["positions"] = jnp.full(placed["count"].shape, positions)
        key = (tap.kernel, tap.side)
        sides[key] = stats.combine(sides[key], placed) if key in sides else placed
    return sides


def finished(
    sides: Sides, found: dict[str, Geometry], paths: Sequence[str]
) -> dict[str, stats.Activity]:
    """From sums to the activity of each kernel."""

    def of(path: str, side: Side) -> stats.Statistics:
        raw = sides[path, side]
        mapped = raw.keys() & {"samples", "positions"}
        return stats.finish(raw, found[path] if mapped else None)

    return {p: stats.Activity(of(p, "inputs"), of(p, "outputs")) for p in paths}
