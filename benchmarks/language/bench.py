"""A model that is pruned in one shot, again and again, and what comes out."""

import dataclasses
import functools
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bbjax as bb
from benchmarks.language import model, text
from benchmarks.language.methods import DENSE, GATE, GATED, METHODS, ON, Method
from benchmarks.language.model import Config, Params
from benchmarks.language.store import Cell

BATCH = 2  # windows at a time, so that logits stay small
NEEDS = ("on_rate", "inputs.mean_square")

Stats = dict[str, Any]


class Bench:
    """A dense model with its windows and its text for calibration.

    Statistics of one draw are kept until another draw is asked for.
    """

    def __init__(
        self,
        config: Config,
        params: Params,
        windows: np.ndarray,
        calibration: np.ndarray,
        sequences: int,
        about: dict[str, str] | None = None,
    ) -> None:
        """Traces the model.

        Args:
          windows: (count, length), what is measured on.
          calibration: tokens, in order.
          sequences: of the length of a window, drawn for calibration.
          about: versions of the packages that the model comes from.
        """
        self.about = about or {}
        self.params, self.windows = params, windows
        self.calibration, self.sequences = calibration, sequences
        self.forward = functools.partial(model.hidden, config=config)
        tokens = jax.ShapeDtypeStruct((BATCH, windows.shape[1]), jnp.int32)
        self.units = bb.trace(self.forward, params, tokens)
        self.nats = jax.jit(functools.partial(model.nats, config=config))
        self.gates = jax.jit(functools.partial(model.gates_on, config=config))
        counts = np.bincount(calibration, minlength=config.vocabulary)
        self.bucket = text.bucket_of(counts)
        self.at: int | None = None
        self.known: dict[Any, tuple[Any, float]] = {}

    def run(self, cell: Cell) -> dict[str, Any]:
        """Prunes and measures: perplexities, density, seconds, memory."""
        seconds: dict[str, float] = {}
        params, kept = self.params, 1.0
        if cell.method != DENSE:
            params, kept, seconds = self._pruned(cell)
        found, seconds["evaluate"] = timed(lambda: self.perplexities(params))
        return {
            "perplexities": found,
            "kept": kept,
            "seconds": {name: round(s, 2) for name, s in seconds.items()},
            "peak_mb": round(peak_mb()),
            "packages": self.about,
        }

    def perplexities(self, params: Params) -> dict[str, Any]:
        """Of all targets, and by bucket."""
        batches = np.array_split(self.windows, -(-len(self.windows) // BATCH))
        nats = [np.asarray(self.nats(params, jnp.asarray(b))) for b in batches]
        nats = np.concatenate(nats)
        return text.perplexities(nats, self.windows[:, 1:], self.bucket)

    def _pruned(self, cell: Cell) -> tuple[Params, float, dict[str, float]]:
        method, params = METHODS[cell.method], self.params
        taken = {"calibrate": 0.0, "prune": 0.0}
        edges = kept = 0
        for names, rule in method.parts(cell.scope):
            stats, seconds = self._stats(cell.draw, method, rule)
            taken["calibrate"] = max(taken["calibrate"], seconds)
            units = self.units.select(pattern(names))
            (params, masks), seconds = timed(
                functools.partial(
                    bb.prune, params, units, rule, cell.density, stats=stats
                )
            )
            taken["prune"] += seconds
            kept += sum(int(jnp.sum(mask)) for mask in masks.values())
            edges += sum(mask.size for mask in masks.values())
        return params, kept / edges, taken

    # Statistics ----------------------------------------------------------------------
    def _stats(
        self, draw: int, method: Method, rule: Any
    ) -> tuple[Stats | None, float]:
        """What a rule reads, and the seconds that measuring it takes."""
        if not rule.reads_activity:
            return None, 0.0
        if draw != self.at:
            self.at, self.known = draw, {}
        if "on_rate" not in rule.needs:
            needs = NEEDS if set(rule.needs) <= set(NEEDS) else rule.needs
            return self._measured(draw, needs, "unit > 0")
        if method.on != GATE:
            return self._measured(draw, NEEDS, method.on)
        stats, seconds = self._measured(draw, NEEDS, "unit > 0")
        rates, more = self._known(GATE, lambda: self._gate_rates(draw))
        return with_rates(stats, rates), seconds + more

    def _measured(self, draw: int, needs: tuple[str, ...], on: str) -> Any:
        units = self.units.select(pattern(model.PROJECTIONS))

        def measure() -> Stats:
            batches = ((batch,) for batch in self._drawn(draw))
            return bb.calibrate(
                self.forward, units, self.params, batches, needs=needs, on=ON[on]
            )

        return self._known((needs, on), measure)

    def _gate_rates(self, draw: int) -> jax.Array:
        rates = [self.gates(self.params, batch) for batch in self._drawn(draw)]
        return jnp.mean(jnp.stack(rates), axis=0)

    def _drawn(self, draw: int) -> Iterator[jax.Array]:
        length = self.windows.shape[1]
        drawn = text.draw(self.calibration, draw, self.sequences, length)
        for start in range(0, len(drawn), BATCH):
            yield jnp.asarray(drawn[start : start + BATCH])

    def _known(self, key: Any, made: Callable[[], Any]) -> Any:
        if key not in self.known:
            self.known[key] = timed(made)
        return self.known[key]


def pattern(names: tuple[str, ...]) -> str:
    """Of the paths of kernels."""
    return f"^layers/({'|'.join(map(re.escape, names))})/kernel$"


def with_rates(stats: Stats, rates: jax.Array) -> Stats:
    """Statistics with other on-rates of the gated units, (layers, units)."""
    paths = [f"layers/{name}/kernel" for name in GATED]
    new = {
        path: stats[path]._replace(
            outputs=dataclasses.replace(stats[path].outputs, on_rate=rates)
        )
        for path in paths
    }
    return stats | new


def timed(made: Callable[[], Any]) -> tuple[Any, float]:
    """What a function returns, once it is there, and the seconds."""
    started = time.perf_counter()
    found = jax.block_until_ready(made())
    return found, time.perf_counter() - started


def peak_mb() -> float:
    """The most memory that this process had at once, up to now."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1e6 if sys.platform == "darwin" else 1e3)
