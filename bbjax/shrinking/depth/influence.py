"""Scores of layers: how much each changes what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.activity.influence import LayerProbe, LayerTap
from bbjax.activity.observe import Where
from bbjax.activity.statistics import Raw, combine
from bbjax.activity.stream import Compiled, tuples
from bbjax.model.checks import meant
from bbjax.model.groups import Stack
from bbjax.model.numbers import INT32, check_int
from bbjax.model.units import Units
from bbjax.shrinking.depth.stacks import stacks_of
from bbjax.tracing import jaxprs
from bbjax.tracing.call import Call, call, traced
from bbjax.tracing.graph import layers
from bbjax.tracing.trace import program_of


def scores(
    fn: Callable[..., Any],
    units: Units,
    params: Any,
    batches: Iterable[tuple[Any, ...]],
    *,
    where: Where = None,
    carry: int | Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
    """How much every layer of a scan changes what it is given: its block influence.

    For every scan over layers, 1 minus the cosine between what enters a layer and what
    leaves it, along the last axis; the mean over all other axes, all batches, and all
    scans over the same layers. A layer that changes nothing has score 0, one that turns
    everything around has score 2. Layers with low scores can go (ShortGPT, Men et al.,
    arXiv 2403.03853).

    What enters and leaves is a carried value of the scan: of a float type, with a last
    axis of more than one entry, and changed by the layer. If there are several, it is
    the one that reaches a product with a kernel, as the residual stream does. Scans
    that hand on no such value (a map over experts) have no scores.

    Costs one forward pass for each batch, up to the last layer, compiled once for each
    kind of batch. Sums are float32 within a batch, and float64 over batches.

    Args:
      fn: the function that was traced, of `(params, *args)`; its result is not used.
      units: from `bb.trace`.
      params: the parameters to measure with.
      batches: tuples of the arguments after `params`; a generator will do. Samples
        count the same in whatever batch they are.
      where: padding mask, True where real, over leading batch and position axes of the
        carried value; or a function of the arguments after `params` that gives it.
      carry: the number of the carried value where several are possible, as the error
        lists them (JAX does not count values that no layer changes); for all stacks, or
        by name of stack.

    Returns:
      By name of stack, float64 numpy arrays of shape `(layers,)`, in [0, 2].

    Raises:
      ValueError: no scan over layers, or none that hands on an activity; several values
        that may be meant, with their numbers; another function than the one that was
        traced; no batch, no real position, values that are not finite.
      TypeError: `units` is no `Units`, a batch is not a tuple.

    Example:
      >>> import bbjax as bb
      >>> def net(params, x):
      ...     def layer(x, p):
      ...         return x + jnp.tanh(x @ p["up"]) @ p["down"], None
      ...
      ...     return jax.lax.scan(layer, x, params)[0]
      >>> down = jnp.stack([jnp.eye(2), jnp.zeros((2, 2)), -jnp.eye(2)[::-1]])
      >>> params = {"up": jnp.ones((3, 2, 2)), "down": down}
      >>> batches = [(jnp.array([[1.0, 0.5]]),)]
      >>> units = bb.trace(net, params, *batches[0])
      >>> scores(net, units, params, batches)["down[0]"].round(3).tolist()
      [0.015, 0.0, 0.023]
    """
    stacks = stacks_of(units)
    programs: dict[Any, Compiled] = {}
    change: dict[str, np.ndarray] = {}
    count: dict[str, np.ndarray] = {}
    for batch in tuples(batches):
        this = call(fn, params, batch, {})
        mask = where(*batch) if callable(where) else where
        if this.key not in programs:
            programs[this.key] = _compiled(this, units, stacks, carry)
        for name, raw in programs[this.key](this.arrays, mask).items():
            for total, new in ((change, raw["change"]), (count, raw["count"])):
                total[name] = total.get(name, 0.0) + np.asarray(new, np.float64)
    if not programs:
        raise ValueError(
            "expected at least one batch, got none; pass an iterable of argument "
            "tuples (a generator can be used only once)"
        )
    return {name: _mean(name, change[name], count[name]) for name in change}


def _mean(name: str, change: np.ndarray, count: np.ndarray) -> np.ndarray:
    if not count.all():
        raise ValueError(
            f"expected real positions in every layer of {name!r}, got none; all were "
            "padding, or the function never ran the scan"
        )
    if not np.isfinite(change).all():
        raise ValueError(
            f"expected finite values between the layers of {name!r}, got NaN or "
            f"infinity in {np.flatnonzero(~np.isfinite(change)).tolist()}; check the "
            "batches and the forward pass"
        )
    return change / count


# Measuring -----------------------------------------------------------------------
def _compiled(
    this: Call, units: Units, stacks: Mapping[str, Stack], carry: Any
) -> Compiled:
    """The compiled program for a kind of batch."""
    prepared = traced(this)
    program = program_of(prepared)
    found = layers.stacks(program, prepared.paths)
    if found != units.graph.stacks:
        raise ValueError(
            f"expected the function that was traced, with the stacks {list(stacks)}, "
            f"got one with {[f'{s.name} of {s.layers} layers' for s in found]}; trace "
            "the function and the parameters that are measured"
        )
    taps = tuple(_taps(layers.layer_scans(program), tuple(stacks), carry))
    jaxpr, consts = jaxprs.opened(prepared.jaxpr)

    def sums(consts, arrays, mask):
        probe = LayerProbe(taps, None if mask is None else jnp.asarray(mask))
        raw = probe.run(jaxpr, consts, arrays, ())[1]
        found: dict[str, Raw] = {}
        for i, tap in enumerate(taps):  # several scans may run over the same layers
            earlier = found.get(tap.stack)
            found[tap.stack] = raw[i] if earlier is None else combine(earlier, raw[i])
        return found

    return Compiled(this.others, jax.jit(sums), consts)


def _taps(
    scans: Sequence[layers.LayerScan], names: Sequence[str], carry: Any
) -> Iterable[LayerTap]:
    """Where to measure: at what every layer hands on."""
    _check_carry(carry, names)
    found = 0
    for scan in scans:
        name = names[scan.stack]
        asked = carry.get(name) if isinstance(carry, Mapping) else carry
        chosen = _chosen(name, *layers.carried(scan.body), asked)
        if chosen is None:
            continue
        if not scan.measurable:
            raise ValueError(
                f"expected layers whose values can be measured, got {name!r} inside of "
                "a while loop or of a call that is not followed; run the scan outside"
            )
        found += 1
        around = [(scope, None) for scope in scan.scans[:-1]]
        yield LayerTap(
            name, scan.scope, (*around, (scan.scope, name)), chosen.before, chosen.after
        )
    if not found:
        raise ValueError(
            f"expected a scan that hands on an activity from layer to layer, got "
            f"{list(names)}, whose carries hold none: a float array with a last axis "
            "of more than one entry that the layer changes"
        )


def _check_carry(carry: Any, names: Sequence[str]) -> None:
    given = carry if isinstance(carry, Mapping) else {None: carry}
    for name, number in given.items():
        if name is not None and name not in names:
            raise ValueError(
                f"expected names of stacks in carry, got {name!r}{meant(name, names)}; "
                f"they are {list(names)}"
            )
        if number is not None:
            check_int("carry", number, 0, INT32, "it is the number of a carry")


def _chosen(
    name: str,
    possible: Sequence[layers.Carried],
    likely: Sequence[layers.Carried],
    asked: int | None,
) -> layers.Carried | None:
    """The carried value to measure; None if there is none."""
    if asked is not None:
        likely = [one for one in possible if one.number == asked]
        if not likely:
            raise ValueError(
                f"expected the number of an activity that the layers of {name!r} hand "
                f"on, got carry={asked}; they are {_listed(possible)}"
            )
    if len(possible) == 1 or not likely:
        likely = possible
    if len(likely) > 1:
        raise ValueError(
            f"expected layers of {name!r} that hand on one activity, got "
            f"{_listed(likely)}; choose one: carry={likely[0].number}"
        )
    return likely[0] if likely else None


def _listed(several: Sequence[layers.Carried]) -> str:
    return "; ".join(map(str, several)) or "none"
