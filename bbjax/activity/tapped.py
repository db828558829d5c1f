"""Evaluates a jaxpr with taps: its outputs, and what is measured at values inside.

A tap is a place where something is measured. The jaxpr is evaluated equation by
equation, through the public `jaxpr_as_fun`, with extra operations at the taps. Bodies
that hold a tap are wrapped again in the public transformation that made them
(`jax.checkpoint`, `lax.scan`, `lax.switch`), with the measurements as additional
outputs. A function with its own derivative is bound as it is, and its body is evaluated
once more beside it. Every other equation is bound as it is. Taps have no gradients.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Num

from bbjax.activity import statistics as stats
from bbjax.activity.statistics import Raw
from bbjax.tracing import interpreter, jaxprs
from bbjax.tracing.flow.contract import Scope
from bbjax.tracing.interpreter import Body, NestedCall
from bbjax.tracing.primitives import REMAT

Env = dict[Any, Any]  # values by variable


class TapPlace(Protocol):
    """Where a tap is: its scope, and the scans around it.

    For each enclosing scan, outermost first, `layers` has the scope of its body, and
    None if the measurement is summed over its iterations.
    """

    @property
    def scope(self) -> Scope:
        """The scope that holds the value."""

    @property
    def layers(self) -> Sequence[tuple[Scope, Any]]:
        """The scans around it."""


P = TypeVar("P", bound=TapPlace)


@dataclasses.dataclass(frozen=True)
class Tapped(abc.ABC, Generic[P]):
    """The evaluation of a jaxpr with taps.

    Attributes:
      taps: where to measure.
    """

    taps: tuple[P, ...]

    @abc.abstractmethod
    def reads(self, here: Mapping[int, P], scope: Scope) -> Sequence[Any]:
        """The variables of a scope that measurements read; None for none."""

    @abc.abstractmethod
    def measure(self, here: Mapping[int, P], env: Env, jaxpr: Any) -> dict[int, Raw]:
        """Measures at the taps of a scope, by number of the tap."""

    def inside(self, jaxpr: Any, index: int, env: Env, scope: Scope) -> Tapped[P]:
        """The evaluation of the bodies of a call."""
        return self

    def run(
        self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], scope: Scope
    ) -> tuple[list[Any], dict[int, Raw]]:
        """Outputs of a scope, and the partial measurements taken in it, by tap."""
        env: Env = dict(zip(jaxpr.constvars, consts, strict=False))
        env.update(zip(jaxpr.invars, args, strict=True))
        here = {i: t for i, t in enumerate(self.taps) if t.scope == scope}
        calls = self._calls(scope)
        last = _last_reads(jaxpr, self.reads(here, scope))
        raw: dict[int, Raw] = {}
        start = 0
        for stop in [*sorted(calls), len(jaxpr.eqns)]:
            _run_plain(jaxpr, start, stop, env, last)
            if stop < len(jaxpr.eqns):
                inner = self.inside(jaxpr, stop, env, scope)
                raw |= inner._call(jaxpr, stop, env, scope, last)
            start = stop + 1
        raw |= self.measure(here, env, jaxpr)
        return [read(env, a) for a in jaxpr.outvars], raw

    def _calls(self, scope: Scope) -> set[int]:
        """Equations of a scope with a tap somewhere inside."""
        depth = len(scope)
        return {
            t.scope[depth][0]
            for t in self.taps
            if len(t.scope) > depth and t.scope[:depth] == scope
        }

    # Calls with taps inside ------------------------------------------------------
    def _call(
        self,
        jaxpr: Any,
        index: int,
        env: Env,
        scope: Scope,
        last: dict[Any, int],
    ) -> dict[int, Raw]:
        """Evaluates a call, with the taps in its bodies."""
        eqn = jaxpr.eqns[index]
        args = [read(env, a) for a in eqn.invars]
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


def read(env: Env, atom: Any) -> Any:
    """The value of a variable, or the constant that is written in place."""
    return atom.val if jaxprs.is_literal(atom) else env[atom]


def constant(env: Env, atom: Any) -> Num[Array, "..."]:
    """A value to measure: an array without a gradient."""
    return lax.stop_gradient(jnp.asarray(read(env, atom)))


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
    jaxpr: Any, start: int, stop: int, env: Env, last: dict[Any, int]
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
