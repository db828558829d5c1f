"""A model that is pruned in one shot, again and again, and what comes out."""

import functools
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bbjax as bb
from benchmarks.language import model, text
from benchmarks.language.methods import DENSE, GATE, METHODS, ON, Method
from benchmarks.language.model import Config, Params
from benchmarks.language.pruning import (
    Clock,
    InOrder,
    Pruned,
    Stats,
    once,
    paths_of,
    with_rates,
)
from benchmarks.language.store import Cell

BATCH = 2  # windows at a time, so that logits stay small


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
        self.about, self.config = about or {}, config
        self.params, self.windows = params, windows
        self.calibration, self.sequences = calibration, sequences
        self.forward = functools.partial(model.hidden, config=config)
        tokens = jax.ShapeDtypeStruct((BATCH, windows.shape[1]), jnp.int32)
        self.units = bb.trace(self.forward, params, tokens)
        self.layers = InOrder(config, params)
        self.nats = jax.jit(functools.partial(model.nats, config=config))
        self.gates = jax.jit(functools.partial(model.gates_on, config=config))
        counts = np.bincount(calibration, minlength=config.vocabulary)
        self.bucket = text.bucket_of(counts)
        self.at: int | None = None
        self.known: dict[Any, tuple[Any, float]] = {}

    def run(self, cell: Cell) -> dict[str, Any]:
        """Prunes and measures: perplexities, density, seconds, memory."""
        seconds: dict[str, float] = {}
        done = Pruned(self.params, 1.0, {})
        if cell.method != DENSE:
            done, seconds = self._pruned(cell)
        clock = Clock()
        found = clock("evaluate", lambda: self.perplexities(done.params))
        seconds |= clock.seconds
        return {
            "perplexities": found,
            "kept": done.kept,
            "output_errors": done.errors,
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

    def _pruned(self, cell: Cell) -> tuple[Pruned, dict[str, float]]:
        method, clock = METHODS[cell.method], Clock()
        how = (method, cell.scope, cell.density, cell.pattern, clock)
        if method.in_order:
            tokens = jnp.concatenate(list(self.drawn(cell.draw)))
            return self.layers.prune(self.params, tokens, *how), clock.seconds
        stats, seconds = self.stats(cell.draw, method)
        clock.seconds["calibrate"] = seconds
        return once(self.params, self.units, stats, *how), clock.seconds

    # Statistics ----------------------------------------------------------------------
    def stats(self, draw: int, method: Method) -> tuple[Stats | None, float]:
        """What a method reads, and the seconds that measuring it takes."""
        if not method.needs:
            return None, 0.0
        if draw != self.at:
            self.at, self.known = draw, {}
        stats, seconds = self._measured(draw, method.needs, method.measured_on)
        if method.on != GATE:
            return stats, seconds
        rates, more = self._known(GATE, lambda: self.gate_rates(draw))
        return with_rates(stats, rates), seconds + more

    def _measured(self, draw: int, needs: tuple[str, ...], on: str) -> Any:
        units = self.units.select(paths_of(model.PROJECTIONS))

        def measure() -> Stats:
            batches = ((batch,) for batch in self.drawn(draw))
            return bb.calibrate(
                self.forward, units, self.params, batches, needs=needs, on=ON[on]
            )

        return self._known((needs, on), measure)

    def gate_rates(self, draw: int) -> jax.Array:
        """How often gates are above 0 on a draw."""
        rates = [self.gates(self.params, batch) for batch in self.drawn(draw)]
        return jnp.mean(jnp.stack(rates), axis=0)

    def drawn(self, draw: int) -> Iterator[jax.Array]:
        """The sequences of a draw, some at a time."""
        length = self.windows.shape[1]
        drawn = text.draw(self.calibration, draw, self.sequences, length)
        for start in range(0, len(drawn), BATCH):
            yield jnp.asarray(drawn[start : start + BATCH])

    def _known(self, key: Any, made: Callable[[], Any]) -> Any:
        if key not in self.known:
            clock = Clock()
            self.known[key] = clock("all", made), clock.seconds["all"]
        return self.known[key]


def peak_mb() -> float:
    """The most memory that this process had at once, up to now."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1e6 if sys.platform == "darwin" else 1e3)
