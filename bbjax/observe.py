"""Evaluates a function with taps: its results, and the activity of its units.

The function is traced on the arguments at hand, its kernels are found again and their
jaxpr is evaluated equation by equation, through the public `jaxpr_as_fun`, with extra
reductions where units are measured. Bodies that hold a tap are re-wrapped in the public
transformation that made them (`jax.checkpoint`, `lax.scan`, `lax.switch`), with the
statistics as additional outputs; a function with its own derivative is bound as it is
and its body evaluated once more beside it; every other equation is bound as it is.
Gradients never see the taps.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bbjax import activity as stats
from bbjax import jaxprs
from bbjax.activity import Activity, Raw
from bbjax.flow.kernels import Tap
from bbjax.flow.values import Part
from bbjax.flow.walk import REMAT, TRANSPARENT, Scope
from bbjax.on import On, positive
from bbjax.trace import analyse, prepare
from bbjax.units import Kernel, Units

Where = jax.Array | Callable[..., jax.Array] | None


def observe(
    fn: Callable[..., Any],
    units: Units,
    *,
    has_aux: bool = False,
    where: Where = None,
    on: On = positive,
    needs: Sequence[str] = (),
) -> Callable[..., Any]:
    """A function that also returns the activity of the units.

    Args:
      fn: the function that was traced, of `(params, *args, **kwargs)`.
      units: from `bb.trace`; activity is measured at the selected kernels, at all
        kernels if nothing was selected.
      has_aux: whether `fn` returns `(out, aux)`.
      where: padding mask, True where real, over leading batch and position axes of
        the activity; or a function of the arguments after `params` that gives it.
      on: what counts as on, elementwise to [0, 1]; see `bb.on`.
      needs: further statistics to measure, out of `mean_abs`, `mean_square`,
        `zero_share`, `max_abs`. A rule names what it needs in `rule.needs`.

    Returns:
      A function of the same arguments that returns `(out, activity)`, or
      `(out, (aux, activity))` with `has_aux`: ready for
      `jax.value_and_grad(..., has_aux=True)`. `activity` maps the path of each kernel
      to its `inputs` and `outputs`; see `bb.activity.Statistics`. Results and
      gradients are those of `fn`.

    Raises:
      TypeError: `units` is no `Units`, `fn` or `on` is not callable.
      ValueError: an unknown statistic, a function without the selected kernels, a
        mask that fits no activity.

    Example:
      >>> import bbjax as bb
      >>> def loss(params, x):
      ...     return jnp.sum(jax.nn.relu(x @ params["up"]) @ params["down"])
      >>> params = {"up": jnp.eye(2), "down": jnp.ones((2, 1))}
      >>> x = jnp.array([[1.0, -1.0], [1.0, 1.0]])
      >>> units = bb.trace(loss, params, x)
      >>> out, activity = bb.observe(loss, units)(params, x)
      >>> activity["up"].outputs.on_rate.tolist()
      [1.0, 0.5]
    """
    _check(units, on)
    statistics = stats.statistics_of(needs)

    @functools.wraps(fn)
    def observed(params, *args, **kwargs):
        prepared = prepare(fn, params, args, kwargs)
        found = analyse(prepared)
        taps = _wanted(units, found)
        mask = where(*args, **kwargs) if callable(where) else where
        probe = _Probe(
            taps=taps,
            on=on,
            where=None if mask is None else jnp.asarray(mask),
            statistics=statistics,
        )
        jaxpr, consts = jaxprs.opened(prepared.jaxpr)
        outs, raw = probe.run(jaxpr, consts, prepared.arrays, ())
        result = prepared.restore(outs)
        activity = _activity(units, taps, raw)
        if not has_aux:
            return result, activity
        out, aux = result
        return out, (aux, activity)

    return observed


def _check(units: Units, on: On) -> None:
    if not isinstance(units, Units):
        raise TypeError(
            f"expected units from bb.trace, got {type(units).__name__}; call "
            "bb.trace(fn, params, *args) first"
        )
    if not callable(on):
        raise TypeError(
            f"expected `on` to be a function of an array, got {on!r}; see bb.on"
        )


def _measured_paths(units: Units) -> tuple[str, ...]:
    if units.selection is None:
        return units.paths
    return tuple(units.budgeted)


def _wanted(units: Units, found: Any) -> tuple[Tap, ...]:
    """The taps of the kernels to measure, after checking that they are the same."""
    here = {k.path: k for k in found.kernels}
    problems = dict(found.problems)
    for path in _measured_paths(units):
        if path not in here:
            why = problems.get(path, "this function does not use it as a kernel")
            raise ValueError(
                f"expected the function that was traced, with kernel {path!r}, got one "
                f"without: {why}; trace the function that you observe"
            )
        kernel, asked = here[path], units[path]
        if (kernel.split, kernel.roles) != (asked.split, asked.roles):
            raise ValueError(
                f"expected kernel {path!r} with axes {asked.roles} of {asked.split}, "
                f"got {kernel.roles} of {kernel.split}; trace the function that you "
                "observe"
            )
    wanted = set(_measured_paths(units))
    return tuple(tap for tap in found.taps if tap.kernel in wanted)


# Evaluation ----------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class _Probe:
    """What to measure, and how; evaluates scopes."""

    taps: tuple[Tap, ...]
    on: On
    where: jax.Array | None
    statistics: tuple[str, ...]

    def run(
        self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], scope: Scope
    ) -> tuple[list[Any], dict[int, Raw]]:
        """Outputs of a scope, and the partial measurements taken in it, by tap."""
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=False))
        env.update(zip(jaxpr.invars, args, strict=True))
        here = {i: t for i, t in enumerate(self.taps) if t.scope == scope}
        inside = self._calls(jaxpr, scope)
        last = _last_reads(jaxpr, [t.var for t in here.values()])
        raw: dict[int, Raw] = {}
        start = 0
        for stop in [*sorted(inside), len(jaxpr.eqns)]:
            _run_plain(jaxpr, start, stop, env, last)
            if stop < len(jaxpr.eqns):
                raw |= self._call(jaxpr, stop, env, scope, last)
            start = stop + 1
        raw |= self._measure(here, env)
        return [_read(env, a) for a in jaxpr.outvars], raw

    def _calls(self, jaxpr: Any, scope: Scope) -> set[int]:
        """Equations of a scope with a tap somewhere inside."""
        depth = len(scope)
        return {
            t.scope[depth][0]
            for t in self.taps
            if len(t.scope) > depth and t.scope[:depth] == scope
        }

    def _measure(self, here: dict[int, Tap], env: dict[Any, Any]) -> dict[int, Raw]:
        done: dict[Any, Raw] = {}
        for tap in here.values():
            key = (id(tap.var), tap.axes)
            if key not in done:
                done[key] = stats.measure(
                    _read(env, tap.var),
                    tap.axes,
                    on=self.on,
                    where=self.where,
                    statistics=self.statistics,
                    path=tap.kernel,
                )
        return {i: done[id(t.var), t.axes] for i, t in here.items()}

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
        name = eqn.primitive.name
        inner = (*scope, (index, 0))
        if name == "scan":
            outs, raw = self._scan(eqn, args, inner)
        elif name == "cond":
            outs, raw = self._cond(eqn, args, scope, index)
        elif name in REMAT:
            policy = {k: eqn.params[k] for k in ("prevent_cse", "policy")}
            outs, raw = jax.checkpoint(self._body(eqn, inner), **policy)(*args)
        elif name in TRANSPARENT:
            args = _constrained(args, eqn.params.get("in_shardings"))
            outs, raw = self._body(eqn, inner)(*args)
            outs = _constrained(outs, eqn.params.get("out_shardings"))
        else:  # it has its own derivative: bound as it is, measured beside it
            _run_plain(jaxpr, index, index + 1, env, last)
            args = [lax.stop_gradient(a) for a in args]
            return self._body(eqn, inner)(*args)[1]
        env.update(zip(eqn.outvars, outs, strict=True))
        return raw

    def _body(self, eqn: Any, scope: Scope):
        return functools.partial(self._flat, *jaxprs.body(eqn), scope)

    def _flat(self, jaxpr: Any, consts: Sequence[Any], scope: Scope, *args: Any):
        """`run` with its operands spread, as transformations want them."""
        return self.run(jaxpr, consts, args, scope)

    def _scan(self, eqn: Any, args: Sequence[Any], scope: Scope):
        p = eqn.params
        jaxpr, consts = jaxprs.body(eqn)
        held, carried = jaxprs.scan_counts(eqn)
        fixed, init = args[:held], args[held : held + carried]

        def body(carry, xs):
            outs, raw = self.run(jaxpr, consts, [*fixed, *carry, *xs], scope)
            return list(outs[:carried]), (list(outs[carried:]), raw)

        carry, (ys, raw) = lax.scan(
            body,
            list(init),
            list(args[held + carried :]),
            length=p["length"],
            reverse=p["reverse"],
            unroll=p["unroll"],
        )
        kept = {
            i: stats.over_iterations(r)
            if dict(self.taps[i].layers)[scope] is None
            else r
            for i, r in raw.items()
        }
        return [*carry, *ys], kept

    def _cond(self, eqn: Any, args: Sequence[Any], scope: Scope, index: int):
        choice, *operands = args
        branches = [
            functools.partial(self._flat, *jaxprs.opened(b), (*scope, (index, i)))
            for i, b in enumerate(eqn.params["branches"])
        ]
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


def _read(env: dict[Any, Any], atom: Any) -> Any:
    return atom.val if jaxprs.is_literal(atom) else env[atom]


def _last_reads(jaxpr: Any, tapped: Sequence[Any]) -> dict[Any, int]:
    """For each variable, the last equation that reads it (the end, for outputs)."""
    last: dict[Any, int] = {}
    for i, eqn in enumerate(jaxpr.eqns):
        last.update({a: i for a in eqn.invars if not jaxprs.is_literal(a)})
    end = len(jaxpr.eqns)
    last.update({a: end for a in [*jaxpr.outvars, *tapped] if not jaxprs.is_literal(a)})
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
def _activity(
    units: Units, taps: Sequence[Tap], raw: dict[int, Raw]
) -> dict[str, Activity]:
    sides: dict[tuple[str, str], Raw] = {}
    for i, tap in enumerate(taps):
        kernel = units[tap.kernel]
        placed = {k: _placed(v, tap, kernel) for k, v in raw[i].items()}
        key = (tap.kernel, tap.side)
        sides[key] = stats.combine(sides[key], placed) if key in sides else placed
    return {
        path: Activity(
            stats.finish(sides[path, "inputs"]), stats.finish(sides[path, "outputs"])
        )
        for path in _measured_paths(units)
    }


def _placed(value: jax.Array, tap: Tap, kernel: Kernel) -> jax.Array:
    """A measurement in the order of the product, put into the kernel's own order."""
    parts = [p for _, p in tap.layers if p is not None]
    parts += [p for axis in tap.parts for p in axis]
    own = kernel.fan_in if tap.side == "inputs" else kernel.fan_out
    rank = {p: (_rank(p, kernel, own), p.axis, -p.stride) for p in parts}
    value = jnp.reshape(value, [p.size for p in parts])
    order = sorted(range(len(parts)), key=lambda i: rank[parts[i]])
    shape = kernel.per_unit_shape(tap.side)
    return jnp.reshape(jnp.transpose(value, order), shape)


def _rank(part: Part, kernel: Kernel, own: tuple[int, ...]) -> int:
    """Stack first, then groups, then units: the order of the edge view."""
    if part.axis in kernel.stack:
        return 0
    return 1 if part.axis not in own or _is_group(part, kernel) else 2


def _is_group(part: Part, kernel: Kernel) -> bool:
    """Whether a part counts groups; they are major on the axis that they split."""
    if "group" not in kernel.roles:
        return False
    at = kernel.roles.index("group")  # every axis before it is whole
    return part.axis == at and abs(part.stride) >= kernel.split[at + 1]
