"""The results of a function together with the activity of its units.

The function is traced on its arguments, its kernels are found again, and its jaxpr is
evaluated with reductions where units are measured (`bbjax.activity.evaluate`). Results
and gradients are those of the function itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from bbjax.activity import statistics as stats
from bbjax.activity.evaluate import Probe, by_side, finished, geometries
from bbjax.activity.on import On, above, positive, soft
from bbjax.model.numbers import check_called, check_flag
from bbjax.model.units import Units
from bbjax.tracing import jaxprs
from bbjax.tracing.call import prepare
from bbjax.tracing.flow.kernels import Tap, Traced
from bbjax.tracing.trace import analyse

Where = Shaped[Array, "..."] | Callable[..., Array] | None
_ONE_SHOT = (*stats.PER_EDGE, "positions")


def observe(
    fn: Callable[..., Any],
    units: Units,
    *,
    has_aux: bool = False,
    where: Where = None,
    on: On = positive,
    needs: Sequence[str] = (),
) -> Callable[..., tuple[Any, Any]]:
    """A function that also returns the activity of the units.

    Args:
      fn: the function that was traced, of `(params, *args, **kwargs)`.
      units: from `bb.trace`; activity is measured at the selected kernels, at all
        kernels if nothing was selected.
      has_aux: whether `fn` returns `(out, aux)`.
      where: padding mask, True where real, over leading batch and position axes of
        the activity; or a function of the arguments after `params` that gives it.
      on: what counts as on, elementwise to [0, 1]; see `bb.on`.
      needs: further statistics to measure, by name (both sides) or as
        `"inputs.<name>"`, `"outputs.<name>"`; see `bb.activity`. A rule names what it
        needs in `rule.needs`.

    Returns:
      A function of the same arguments that returns `(out, activity)`, or
      `(out, (aux, activity))` with `has_aux`: ready for
      `jax.value_and_grad(..., has_aux=True)`; `bb.value_and_grad` is both in one.
      `activity` maps the path of each kernel
      to its `inputs` and `outputs`; see `bb.activity.Statistics`. Results and
      gradients are those of `fn`.

    Raises:
      TypeError: `units` is no `Units`, `fn` or `on` is not callable, `fn` returns no
        pair with `has_aux`.
      ValueError: an unknown statistic, one that a kernel does not have or that only
        `bb.calibrate` measures, a function without the selected kernels or with other
        nonlinearities behind them, a mask that fits no activity.

    Example:
      >>> import jax
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
    check(units, on)
    check_flag("has_aux", has_aux)
    wanted_statistics = stats.asked_for(needs)
    _refuse_one_shot(wanted_statistics)
    asked = dict.fromkeys(measured_paths(units), wanted_statistics)

    @functools.wraps(fn)
    def observed(params, *args, **kwargs):
        prepared = prepare(fn, params, args, kwargs)
        taps = wanted(units, analyse(prepared))
        mask = where(*args, **kwargs) if callable(where) else where
        probe = Probe(
            taps=taps,
            geometries=geometries(taps, units, asked),
            asked=asked,
            on=on,
            where=None if mask is None else jnp.asarray(mask),
        )
        jaxpr, consts = jaxprs.opened(prepared.jaxpr)
        outs, raw = probe.run(jaxpr, consts, prepared.arrays, ())
        result = prepared.restore(outs)
        sides = by_side(probe, units, raw)
        activity = finished(sides, probe.geometries, measured_paths(units))
        if not has_aux:
            return result, activity
        out, aux = _pair(result)
        return out, (aux, activity)

    return observed


def _pair(result: Any) -> tuple[Any, Any]:
    """The two results of a function with side outputs."""
    if not isinstance(result, tuple) or len(result) != 2:
        got = f"{len(result)} results" if isinstance(result, tuple) else "one result"
        raise TypeError(
            f"expected fn to return (out, aux) with has_aux=True, got {got}; return a "
            "pair, or leave has_aux out"
        )
    return result


def check(units: Units, on: On) -> None:
    """Raises an error if `units` is no trace, or `on` no function.

    Raises:
      TypeError: `units` is no `Units`, or `on` is not callable.
    """
    if not isinstance(units, Units):
        raise TypeError(
            f"expected units from bb.trace, got {type(units).__name__}; call "
            "bb.trace(fn, params, *args) first"
        )
    if not callable(on):
        raise TypeError(
            f"expected `on` to be a function of an array, got {on!r}; see bb.on"
        )
    check_called("on", on, "an array", "bb.on.above(0.5)")
    factories: tuple[Any, ...] = (above, soft)
    for factory in factories:
        if on is factory:
            raise TypeError(
                "expected `on` to be a function of an array, got the factory of one; "
                f"call it, e.g. bb.on.{factory.__name__}(0.5)"
            )


def _refuse_one_shot(asked: stats.Asked) -> None:
    names = [f"{side}.{n}" for side in asked for n in asked[side] if n in _ONE_SHOT]
    if names:
        raise ValueError(
            f"expected statistics per unit, got {names}, which take a pass over every "
            "edge; measure them once with bb.calibrate"
        )


def measured_paths(units: Units) -> tuple[str, ...]:
    """Kernels to measure: the selected ones, all if nothing was selected."""
    if units.selection is None:
        return units.paths
    return tuple(units.budgeted)


def wanted(units: Units, found: Traced) -> tuple[Tap, ...]:
    """The taps of the kernels to measure, after checking that they are the same.

    Raises:
      ValueError: the function does not have the kernels of `units`, or has another
        nonlinearity behind one of them.
    """
    here = {k.path: k for k in found.kernels}
    problems = dict(found.problems)
    for path in measured_paths(units):
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
        compared = asked.hidden or path in units.budgeted
        if compared and kernel.nonlinearity != asked.nonlinearity:
            raise ValueError(
                f"expected to measure the outputs of {path!r} {asked.place}, where the "
                f"trace found them, got a function that has them {kernel.place}; trace "
                "the function that you observe, with the same flags and under the same "
                "axis names (inside the same shard_map, pmap or vmap)"
            )
    measured = set(measured_paths(units))
    return tuple(tap for tap in found.taps if tap.kernel in measured)
