"""The demo's training for many lanes, three ways: at once, in turn, compiled anew.

A lane is one seed at one density. All three ways take the demo's own step

    (params, opt_state), x, y, density -> (params, opt_state)

and begin with the same weights and batches:

    vmap      one program for all lanes, `jit(vmap(step))`: one compilation
    loop      `jit(step)`, lane after lane, as the demo does it: one compilation,
              density is an argument
    anew      as one does without care: a `jit` for each density, which is a constant

A program is called once per step of training, as in the demo. With `scan` the steps are
in the program as well, `jit(vmap(scan(step)))`, as accelerators like it; XLA's CPU
backend runs gradients of convolutions many times slower in a loop body (`probe`). A
convolution with a kernel per lane is a grouped one, which CPUs are slow at, too.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bbjax as bb
from bbjax.demo import model
from bbjax.demo.data import Data, batches
from bbjax.demo.methods import Method, Timing, least_degree
from bbjax.demo.train import Step

Train = Callable[[Any, np.ndarray, np.ndarray], Any]
PROBED = 5  # steps of the comparison of a scan with a Python loop


class Lane(Step):
    """The demo's step of a method, open to be vmapped or compiled otherwise."""

    def step(self, state: Any, x: jax.Array, y: jax.Array, density: Any) -> Any:
        """One step of training; the density is that of the step, or a schedule."""
        return self._step(state, x, y, density)

    def at(self, density: float) -> Callable[..., Any]:
        """The same step with the density as a constant."""
        when = self.timing
        schedule = bb.ramp(density, when.start, when.ramp, power=3)
        return lambda state, x, y, _: self.step(state, x, y, schedule)


@dataclasses.dataclass
class Run:
    """All lanes, trained in one way.

    Attributes:
        compiles: number of compilations.
        compile_seconds: of all of them.
        run_seconds: of training all lanes.
        accuracy: on the test images in percent, (densities, seeds).
        masks: by path, (densities, seeds) + kernel.
        stray: nonzero weights outside the masks.
    """

    compiles: int
    compile_seconds: float
    run_seconds: float
    accuracy: np.ndarray
    masks: dict[str, np.ndarray]
    stray: int


class Front:
    """Seeds x densities of one method.

    Args:
        method: of the demo.
        densities: one or more.
        seeds: how many, from 0.
        steps: of training.
        data: the digits.
        scan: whether the steps are in the program.
    """

    def __init__(
        self,
        method: Method,
        densities: Sequence[float],
        seeds: int,
        steps: int,
        data: Data,
        scan: bool = False,
    ) -> None:
        self.densities, self.seeds, self.data, self.scan = densities, seeds, data, scan
        self.units, timing = model.trace(), Timing(steps)
        k_min = least_degree(self.units, min(densities))
        model.initial(0)  # its operations are compiled before the clock starts
        began = time.perf_counter()
        self.lane = Lane(method, self.units, timing, k_min, data)
        self.lane_seconds = time.perf_counter() - began
        self.first = [self.lane.init(seed) for seed in range(seeds)]
        count = len(data.train_y)
        order = [batches(seed, steps, count) for seed in range(seeds)]
        # By seed, and by density: (seeds, steps, batch) and (densities, steps).
        self.order = np.stack(order).astype(np.int32)
        self.asked = np.stack([timing.densities(d) for d in densities])

    @property
    def grid(self) -> list[tuple[int, int]]:
        """Density and seed of each lane, as indices."""
        return [(d, s) for d in range(len(self.densities)) for s in range(self.seeds)]

    def state(self, seed: int) -> Any:
        """A state to begin with, which may be donated."""
        return jax.tree.map(jnp.copy, self.first[seed])

    # Three ways --------------------------------------------------------------------
    def vmapped(self) -> Run:
        """All lanes in one program."""
        d, s = np.array(self.grid).T
        state = _stacked([self.first[seed] for seed in s])
        fed = self.order[s], self.asked[d]
        train, compiling = self._compile(self.lane.step, state, *fed, lanes=True)
        began = time.perf_counter()
        state = jax.block_until_ready(train(state, *fed))
        return self._finish(state, 1, compiling, time.perf_counter() - began)

    def looped(self) -> Run:
        """Lane after lane, with one program."""
        train, compiling = self._by_step(self.lane.run), self.lane_seconds
        if self.scan:
            train, compiling = self._compile(self.lane.step, *self._of(0, 0))
        return self._in_turn([train] * len(self.densities), 1, compiling)

    def anew(self) -> Run:
        """Lane after lane, with a program for each density."""
        made = [
            self._compile(self.lane.at(density), *self._of(d, 0))
            for d, density in enumerate(self.densities)
        ]
        trains, seconds = zip(*made, strict=True)
        return self._in_turn(trains, len(made), sum(seconds))

    def _of(self, d: int, s: int) -> tuple[Any, np.ndarray, np.ndarray]:
        return self.state(s), self.order[s], self.asked[d]

    def _in_turn(self, trains: Sequence[Train], compiles: int, compiling: float) -> Run:
        given = [(trains[d], self._of(d, s)) for d, s in self.grid]
        began = time.perf_counter()
        states = [jax.block_until_ready(train(*args)) for train, args in given]
        seconds = time.perf_counter() - began
        return self._finish(_stacked(states), compiles, compiling, seconds)

    # A program ---------------------------------------------------------------------
    def _compile(
        self,
        step: Callable[..., Any],
        state: Any,
        order: np.ndarray,
        asked: np.ndarray,
        *,
        lanes: bool = False,
    ) -> tuple[Train, float]:
        """What trains, compiled for arguments like these, and seconds it took.

        Args:
            step: of one lane.
            state: parameters and optimizer state.
            order: images of each step, (steps, batch), behind those of lanes.
            asked: density of each step, (steps,), behind those of lanes.
            lanes: whether there is an axis of lanes in front.
        """
        fn = _whole(step, self.data) if self.scan else step
        args = (state, order, asked) if self.scan else (state, *self._fed(order, asked))
        began = time.perf_counter()
        jitted = jax.jit(jax.vmap(fn) if lanes else fn, donate_argnums=0)
        program = jitted.lower(*args).compile()
        seconds = time.perf_counter() - began
        return (program if self.scan else self._by_step(program)), seconds

    def _by_step(self, program: Callable[..., Any]) -> Train:
        """Trains by calling the program of a step again and again."""

        def train(state, order, asked):
            for n in range(asked.shape[-1]):
                state = program(state, *self._fed(order, asked, n))
            return state

        return train

    def _fed(self, order: np.ndarray, asked: np.ndarray, n: int = 0) -> tuple[Any, ...]:
        rows = order[..., n, :]
        return self.data.train_x[rows], self.data.train_y[rows], asked[..., n]

    # What came out -----------------------------------------------------------------
    def _finish(self, states: Any, compiles: int, compiling: float, run: float) -> Run:
        accuracy, masks, stray = _look(states, self.data)
        grid = len(self.densities), self.seeds
        return Run(
            compiles,
            compiling,
            run,
            np.asarray(accuracy, float).reshape(grid),
            {p: np.asarray(m).reshape(*grid, *m.shape[1:]) for p, m in masks.items()},
            int(stray.sum()),
        )

    def kept(self, run: Run) -> dict[str, np.ndarray]:
        """Edges kept in each kernel, (densities, seeds)."""
        found = {}
        for path, mask in run.masks.items():
            window = mask[0, 0].size // self.units[path].edge_count
            axes = tuple(range(2, mask.ndim))
            found[path] = mask.sum(axis=axes, dtype=np.int64) // window
        return found

    def budgets(self) -> dict[str, list[int]]:
        """Edges to keep in each kernel at each density, to the edge."""
        exact = [Fraction(float(np.float32(d))) for d in self.densities]
        return {
            path: [round(d * self.units[path].edge_count) for d in exact]
            for path in model.PRUNED
        }

    def probe(self) -> float:
        """Time of a step in a scan, as a multiple of its time in a Python loop."""
        state, order, asked = self._of(0, 0)
        few = order[:PROBED], asked[:PROBED]
        seconds = []
        for scan in (True, False):
            held, self.scan = self.scan, scan
            train, _ = self._compile(self.lane.step, state, *few)
            self.scan = held
            jax.block_until_ready(train(self.state(0), *few))
            again = self.state(0)
            began = time.perf_counter()
            jax.block_until_ready(train(again, *few))
            seconds.append(time.perf_counter() - began)
        return seconds[0] / seconds[1]


def _whole(step: Callable[..., Any], data: Data) -> Callable[..., Any]:
    """The training of a lane as one function."""
    x, y = jnp.asarray(data.train_x), jnp.asarray(data.train_y)

    def train(state, order, asked):
        def one(state, fed):
            rows, density = fed
            return step(state, x[rows], y[rows], density), None

        return jax.lax.scan(one, state, (order, asked))[0]

    return train


def _stacked(states: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


@jax.jit
def _look(states: Any, data: Data) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    """Accuracy, masks and nonzero weights outside of them, of each lane."""

    def of(state):
        params, opt_state = state
        masks = bb.masks(opt_state)
        outside = [
            jnp.sum((params[layer]["kernel"] != 0) & ~masks[f"{layer}/kernel"])
            for layer in (path.split("/")[0] for path in masks)
        ]
        accuracy = 100 * model.accuracy(params, data.test_x, data.test_y)
        return accuracy, masks, jnp.sum(jnp.stack(outside))

    return jax.vmap(of)(states)
