"""Evaluates a jaxpr with taps: its outputs, and the activity of its units.

A tap is a value that is measured. The jaxpr is evaluated equation by equation, through
the public `jaxpr_as_fun`, with extra reductions at the taps. Bodies that hold a tap are
wrapped again in the public transformation that made them (`jax.checkpoint`, `lax.scan`,
`lax.switch`), with the statistics as additional outputs. A function with its own
derivative is bound as it is, and its body is evaluated once more beside it. Every other
equation is bound as it is. Taps have no gradients.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
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
from bbjax.model.units import Side, Units
from bbjax.tracing import interpreter, jaxprs
from bbjax.tracing.flow.kernels import Tap
from bbjax.tracing.flow.order import Order
from bbjax.tracing.flow.walk import Scope
from bbjax.tracing.interpreter import Body, NestedCall
from bbjax.tracing.primitives import REMAT

Sides = dict[tuple[str, Side], Raw]


@dataclasses.dataclass(frozen=True)
class Probe:
    """The evaluation of a jaxpr with taps.

    Attributes:
      taps: where to measure.
      geometries: how each kernel moves, by path.
      asked: which statistics, by kernel and side.
      on: what counts as on.
      where: padding mask, or None.
      masks: the same for rows that enclosing scopes have sorted by expert.
    """

    taps: tuple[Tap, ...]
    geometries: dict[str, Geometry]
    asked: Mapping[str, Asked]
    on: On
    where: Shaped[Array, "..."] | None = None
    masks: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def run(
        self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], scope: Scope
    ) -> tuple[list[Any], dict[int, Raw]]:
        """Outputs of a scope, and the partial measurements taken in it, by tap."""
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=False))
        env.update(zip(jaxpr.invars, args, strict=True))
        here = {i: t for i, t in enumerate(self.taps) if t.scope == scope}
        inside = self._calls(jaxpr, scope)
        sorted_here = self._sorted_in(scope)
        read = [v for t in here.values() for v in self._read_by(t)]
        read += [v for order in sorted_here for v in in_rows.read_by(order)]
        last = _last_reads(jaxpr, read)
        raw: dict[int, Raw] = {}
        start = 0
        for stop in [*sorted(inside), len(jaxpr.eqns)]:
            _run_plain(jaxpr, start, stop, env, last)
            if stop < len(jaxpr.eqns):
                read_there = self._keys_inside(scope, stop)
                masks = {
                    _key(order): self._row_mask(order, env, jaxpr)
                    for order in sorted_here
                    if _key(order) in read_there
                }
                inner = dataclasses.replace(self, masks=self.masks | masks)
                raw |= inner._call(jaxpr, stop, env, scope, last)
            start = stop + 1
        raw |= self._measure(here, env, jaxpr)
        return [_read(env, a) for a in jaxpr.outvars], raw

    def _calls(self, jaxpr: Any, scope: Scope) -> set[int]:
        """Equations of a scope with a tap somewhere inside."""
        depth = len(scope)
        return {
            t.scope[depth][0]
            for t in self.taps
            if len(t.scope) > depth and t.scope[:depth] == scope
        }

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

    def _row_mask(self, order: Order, env: dict[Any, Any], jaxpr: Any) -> Any:
        """The padding mask of sorted rows."""
        assert self.where is not None
        read = functools.partial(_constant, env)
        return in_rows.row_mask(self.where, order, jaxpr, read)

    def _measure(
        self, here: dict[int, Tap], env: dict[Any, Any], jaxpr: Any
    ) -> dict[int, Raw]:
        done: dict[Any, Raw] = {}
        raw = {}
        for i, tap in here.items():
            x = _constant(env, tap.var)
            over = self._over(x, tap, env, jaxpr)
            names = tuple(n for n in self.asked[tap.kernel][tap.side] if n in PER_UNIT)
            key = (id(tap.var), tap.axes, names, tap.rows and id(tap.rows.sizes))
            if key not in done:
                done[key] = unit_sums(x, over, on=self.on, statistics=names)
            raw[i] = done[key] | self._larger(x, tap, over, done[key], env)
        return raw

    def _over(
        self, x: Num[Array, "..."], tap: Tap, env: dict[Any, Any], jaxpr: Any
    ) -> Over:
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
        sizes = _constant(env, tap.rows.sizes)
        return Members(tap.axes, x.shape, valid, tap.rows, sizes)

    def _larger(
        self,
        x: Num[Array, "..."],
        tap: Tap,
        over: Over,
        units: Raw,
        env: dict[Any, Any],
    ) -> Raw:
        """Statistics that are more than one number per unit."""
        names, raw = self.asked[tap.kernel][tap.side], {}
        if "gram" in names:
            raw["gram"] = gram_sum(x, tap, over)
        if set(names) & set(BY_SAMPLE):
            atom = self._weights(tap)
            raw |= map_sums(
                x,
                None if atom is None else _constant(env, atom),
                tap,
                self.geometries[tap.kernel],
                over=over,
                count=units["count"],
                statistics=names,
            )
        return raw

    # Calls with taps inside ------------------------------------------------------
    def _call(
        self,
        jaxpr: Any,
        index: int,
        env: dict[Any, Any],
        scope: Scope,
        last: dict[Any, int],
    ) -> dict[int, Raw]:
        """Evaluates a call, with the taps in its bodies."""
        eqn = jaxpr.eqns[index]
        args = [_read(env, a) for a in eqn.invars]
        call = interpreter.call_of(eqn)
        assert call is not None, eqn
        runs = [self._body(b, (*scope, (index, b.number))) for b in call.bodies]
        if call.kind == "scan":
            outs, raw = self._scan(call, eqn, args, (*scope, (index, 0)))
        elif call.kind == "cond":
            outs, raw = self._cond(runs, args)
        elif eqn.primitive.name in REMAT:
            policy = {k: eqn.params[k] for k in ("prevent_cse", "policy")}
            outs, raw = jax.checkpoint(runs[0], **policy)(*args)
        elif call.kind == "inline":
            args = _constrained(args, eqn.params.get("in_shardings"))
            outs, raw = runs[0](*args)
            outs = _constrained(outs, eqn.params.get("out_shardings"))
        else:  # with its own derivative: bound as it is, measured beside it
            _run_plain(jaxpr, index, index + 1, env, last)
            return runs[0](*[lax.stop_gradient(a) for a in args])[1]
        env.update(zip(eqn.outvars, outs, strict=True))
        return raw

    def _body(self, body: Body, scope: Scope):
        """`run` with its operands spread, as transformations want them."""

        def run(*args: Any):
            return self.run(body.jaxpr, body.consts, args, scope)

        return run

    def _scan(self, call: NestedCall, eqn: Any, args: Sequence[Any], scope: Scope):
        (body,) = call.bodies
        given: dict[str, list[Any]] = {"held": [], "carried": [], "sliced": []}
        for operand, way in body.entries:
            given[way].append(args[operand])

        def step(carry, xs):
            inside = [*given["held"], *carry, *xs]
            outs, raw = self.run(body.jaxpr, body.consts, inside, scope)
            return list(outs[: call.stacked]), (list(outs[call.stacked :]), raw)

        settings = {k: eqn.params[k] for k in ("length", "reverse", "unroll")}
        carry, (ys, raw) = lax.scan(step, given["carried"], given["sliced"], **settings)
        kept = {
            i: stats.over_iterations(r)
            if dict(self.taps[i].layers)[scope] is None
            else r
            for i, r in raw.items()
        }
        return [*carry, *ys], kept

    def _cond(self, branches: Sequence[Callable[..., Any]], args: Sequence[Any]):
        choice, *operands = args
        shapes: dict[int, Any] = {}
        for branch in branches:
            shapes |= jax.eval_shape(lambda *a, f=branch: f(*a)[1], *operands)

        def complete(branch):
            def run(*operands):
                outs, raw = branch(*operands)
                for i, like in shapes.items():
                    if i not in raw:
                        raw[i] = jax.tree.map(
                            lambda s: jnp.zeros(s.shape, s.dtype), like
                        )
                return outs, dict(sorted(raw.items()))

            return run

        return lax.switch(choice, [complete(b) for b in branches], *operands)


def _key(order: Order) -> tuple[Scope, int]:
    return order.scope, id(order.rows)


def _read(env: dict[Any, Any], atom: Any) -> Any:
    return atom.val if jaxprs.is_literal(atom) else env[atom]


def _constant(env: dict[Any, Any], atom: Any) -> Num[Array, "..."]:
    """A value to measure: an array without a gradient."""
    return lax.stop_gradient(jnp.asarray(_read(env, atom)))


def _last_reads(jaxpr: Any, tapped: Sequence[Any]) -> dict[Any, int]:
    """For each variable, the last equation that reads it (the end, for outputs)."""
    last: dict[Any, int] = {}
    for i, eqn in enumerate(jaxpr.eqns):
        last.update({a: i for a in eqn.invars if not jaxprs.is_literal(a)})
    end = len(jaxpr.eqns)
    kept = [a for a in [*jaxpr.outvars, *tapped] if a is not None]
    last.update({a: end for a in kept if not jaxprs.is_literal(a)})
    return last


def _run_plain(
    jaxpr: Any, start: int, stop: int, env: dict[Any, Any], last: dict[Any, int]
) -> None:
    """Evaluates equations `start` to `stop` as they are."""
    eqns = jaxpr.eqns[start:stop]
    if not eqns:
        return
    made = [v for e in eqns for v in e.outvars]
    outs = [v for v in made if last.get(v, -1) >= stop]
    own = set(made)
    read = dict.fromkeys(
        a for e in eqns for a in e.invars if not jaxprs.is_literal(a) and a not in own
    )
    run = jaxprs.segment(jaxpr, list(read), outs, eqns)
    env.update(zip(outs, run(*[env[v] for v in read]), strict=True))


def _constrained(values: Sequence[Any], shardings: Any) -> list[Any]:
    """Keeps the shardings that an inner `jit` asks for."""
    if shardings is None:
        return list(values)
    return [
        lax.with_sharding_constraint(v, s)
        if isinstance(s, jax.sharding.Sharding)
        else v
        for v, s in zip(values, shardings, strict=True)
    ]


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
