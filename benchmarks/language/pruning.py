"""A method applied: to the whole model at once, or layer by layer, in order.

Both call the same functions of bbjax on the same kernels. `once` gives them the scanned
stack; `in_order` gives them one layer after the other, each measured on the hidden
states that come out of the pruned layers before it, as Wanda and SparseGPT are
published: the kernels of one layer are measured together, before any of them is pruned.
"""

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

import bbjax as bb
from benchmarks.language import model
from benchmarks.language.methods import GATE, GATED, ON, SCOPES, Method
from benchmarks.language.model import Config, Params

Stats = dict[str, Any]


class Clock:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        """Nothing spent yet."""
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, made: Callable[[], Any]) -> Any:
        """What a function returns, once it is there; its time is added."""
        started = time.perf_counter()
        found = jax.block_until_ready(made())
        took = time.perf_counter() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        return found


@dataclasses.dataclass(frozen=True)
class Pruned:
    """What comes out.

    Attributes:
      kept: share of the edges of the kernels that were pruned.
      errors: by kernel, mean square change of its outputs over their mean square,
        before and after new values; the mean over layers. Empty without them.
    """

    params: Params
    kept: float
    errors: dict[str, tuple[float, float]]


def once(
    params: Params,
    units: bb.Units,
    stats: Stats | None,
    method: Method,
    scope: str,
    density: float,
    pattern: str,
    clock: Clock,
) -> Pruned:
    """Prunes every kernel of a scope from the statistics of the dense model.

    Args:
      units: the trace of the model, or of a layer.
      stats: None where the method reads none.
      pattern: "2:4", or "".
      clock: gets the seconds of `prune`, `swap` and `update`.
    """
    chosen = units.select(paths_of(SCOPES[scope]))
    groups = bb.n_m(*map(int, pattern.split(":"))) if pattern else None
    share: Any = None if pattern else density
    if method.owl:
        share = bb.owl(density, params, chosen, stats)
    new, masks = params, {}
    for names, rule in method.parts(scope):
        prune = functools.partial(
            bb.prune, new, units.select(paths_of(names)), rule, share,
            stats=stats, pattern=groups,
        )  # fmt: skip
        new, found = clock("prune", prune)
        masks |= found
    if method.swaps:
        swap = functools.partial(bb.refine, params, units, masks, stats, pattern=groups)
        new, masks, _ = clock("swap", swap)
    errors = {}
    if method.update:
        update = functools.partial(bb.reconstruct, params, units, masks, stats)
        new, found = clock("update", update)
        for path, error in found.items():
            shares = (error.before / error.total, error.after / error.total)
            before, after = (float(jnp.mean(each)) for each in shares)
            errors[path.split("/")[-2]] = (before, after)
    edges = sum(mask.size for mask in masks.values())
    kept = sum(int(jnp.sum(mask)) for mask in masks.values())
    return Pruned(new, kept / edges, errors)


class InOrder:
    """The model layer by layer; every layer runs the same compiled functions."""

    def __init__(self, config: Config, params: Params) -> None:
        """Traces a layer."""
        self.config = config
        self.forward = functools.partial(model.layer, config=config)
        x = jax.ShapeDtypeStruct((1, 8, config.width), jnp.float32)
        self.units = bb.trace(self.forward, layer_of(params, 0), x)
        self.layer = jax.jit(self.forward)
        self.gates = jax.jit(functools.partial(model.gates_of, config=config))
        self.observed: dict[Any, Callable[..., Any]] = {}

    def prune(
        self,
        params: Params,
        tokens: jax.Array,
        method: Method,
        scope: str,
        density: float,
        pattern: str,
        clock: Clock,
    ) -> Pruned:
        """Prunes the first layer, then the next, each behind pruned ones.

        Args:
          tokens: (sequences, positions), for calibration.
        """
        x = params["embed"][tokens]
        done = []
        for at in range(self.config.layers):
            kernels = layer_of(params, at)
            measure = functools.partial(self.stats, kernels, x, method)
            stats = clock("calibrate", measure)
            rest = (method, scope, density, pattern, clock)
            done.append(once(kernels, self.units, stats, *rest))
            through = functools.partial(self.layer, done[-1].params, x)
            x = clock("calibrate", through)
        stacked = jax.tree.map(lambda *each: jnp.stack(each), *(d.params for d in done))
        errors = {
            name: tuple(_mean(d.errors[name][side] for d in done) for side in (0, 1))
            for name in done[0].errors
        }
        new = {**params, "layers": stacked}
        return Pruned(new, _mean(d.kept for d in done), errors)

    def stats(self, kernels: Params, x: jax.Array, method: Method) -> Stats | None:
        """The statistics of one layer."""
        if not method.needs:
            return None
        key = (method.needs, method.measured_on)
        if key not in self.observed:
            units = self.units.select(paths_of(model.PROJECTIONS))
            on = ON[method.measured_on]
            observe = bb.observe(self.forward, units, needs=method.needs, on=on)
            self.observed[key] = jax.jit(observe)
        stats = self.observed[key](kernels, x)[1]
        if method.on == GATE:
            return with_rates(stats, self.gates(kernels, x))
        return stats


def layer_of(params: Params, at: int) -> Params:
    """The kernels and norms of one layer."""
    return jax.tree.map(lambda leaf: leaf[at], params["layers"])


def paths_of(names: tuple[str, ...]) -> str:
    """A pattern of the paths of kernels, of the model or of a layer."""
    return f"^(layers/)?({'|'.join(map(re.escape, names))})/kernel$"


def with_rates(stats: Stats, rates: jax.Array) -> Stats:
    """Statistics with other on-rates of the gated units."""
    new = {
        path: sides._replace(outputs=dataclasses.replace(sides.outputs, on_rate=rates))
        for path, sides in stats.items()
        if re.search(paths_of(GATED), path)
    }
    return stats | new


def _mean(values: Iterable[float]) -> float:
    every = list(values)
    return sum(every) / len(every)
