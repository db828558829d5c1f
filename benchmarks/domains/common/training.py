"""Trains one net by one method, as a user would, and measures it.

A domain gives a `Problem`; `Trainer.run` makes a run of it. The density is an argument
of the compiled step, so a method is compiled once for all its densities and seeds.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import bbjax as bb
from benchmarks.domains.common import instruments
from benchmarks.domains.common.experiment import DENSE, Case, Earlier, Found
from benchmarks.domains.common.methods import Method, method

Params = Any
Rest = Any  # running statistics; {} where there are none
Batch = Any


class Schedule(NamedTuple):
    """When masks are chosen.

    Attributes:
      every: steps from refresh to refresh.
      start: first step that may prune.
      ramp: steps from density 1 to the final one, evenly; 0 prunes at once.
      stop: step from which on masks stay.
      regrow: whether pruned edges may return.
      rescale: whether kept weights are scaled by sqrt(fan-in / kept), fan-in only.
    """

    every: int
    start: int
    ramp: int = 0
    stop: int | None = None
    regrow: bool = False
    rescale: bool = True


class Problem(NamedTuple):
    """What is trained, and how it is judged.

    Attributes:
      init: from a key to parameters and the rest.
      loss: `(params, rest, batch, key)` to the loss and the new rest.
      batches: from a seed to batches, as many as there are steps.
      steps: how many.
      optimizer: the dense optimizer.
      kernels: pattern of the budgeted kernels, by actuator.
      schedule: when masks are chosen.
      measure: `(params, rest)` to the metrics.
      layers: `(params, rest)` to what the instruments measure.
      where: from the arguments of the loss to the padding mask of the activity.
    """

    init: Callable[[jax.Array], tuple[Params, Rest]]
    loss: Callable[..., tuple[jax.Array, Rest]]
    batches: Callable[[int], Iterator[Batch]]
    steps: int
    optimizer: Callable[[], optax.GradientTransformation]
    kernels: Mapping[str, str]
    schedule: Schedule
    measure: Callable[[Params, Rest], Found]
    layers: Callable[[Params, Rest], list[instruments.Layer]]
    where: Callable[..., Any] | None = None


class Trainer:
    """Trains a problem."""

    def __init__(self, problem: Problem) -> None:
        """Traces the loss."""
        self.problem = problem
        params, rest = problem.init(jax.random.key(0))
        batch = next(iter(problem.batches(0)))
        self.units = bb.trace(problem.loss, params, rest, batch, jax.random.key(0))
        self._compiled = functools.cache(self._compile)

    def run(self, case: Case, seed: int, earlier: Earlier) -> Found:
        """Trains and measures.

        Args:
          case: method and density.
          seed: of weights and batches.
          earlier: runs with this seed; that of the dense net tells how wide the noise
            of the instruments is.

        Returns:
          The problem's metrics; the loss of the last 50 steps; what the instruments
          show; "edges", weights that the masks keep and all that they cover; seconds.
        """
        began = time.perf_counter()
        start, step = self._compiled(case.method)
        carry, losses = start(seed, case.density), []
        key = jax.random.fold_in(jax.random.key(seed), 1)
        for number, batch in enumerate(self.problem.batches(seed)):
            carry, loss = step(
                carry, batch, jax.random.fold_in(key, number), case.density
            )
            losses.append(loss)
        params, rest, state = jax.block_until_ready(carry)
        masks = {} if case.method == DENSE else bb.masks(state)
        trained = time.perf_counter()
        found = self.problem.measure(params, rest)
        dense = earlier.get(Case(DENSE))
        noise = dense["code"]["noise"] if dense else None
        code = instruments.measure(self.problem.layers(params, rest), seed, noise)
        return found | {
            "loss": float(jnp.mean(jnp.stack(losses[-50:]))),
            "code": code,
            "edges": [
                int(sum(m.sum() for m in masks.values())),
                sum(m.size for m in masks.values()),
            ],
            "training_seconds": round(trained - began, 1),
        }

    def _compile(self, name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The start and the step of a method."""
        problem = self.problem
        which = None if name == DENSE else method(name)
        units = self.units if which is None else self._units(which)
        rule = None if which is None else which.make(problem.steps)

        @jax.jit
        def start(seed: jax.Array, density: jax.Array) -> Any:
            params, rest = problem.init(jax.random.key(seed))
            if which is not None and which.random_start:
                first = bb.rules.random(seed=seed)
                params, masks = bb.prune(params, units, first, density, k_min=1)
                return params, rest, self._tx(which, density, masks).init(params)
            return params, rest, self._tx(which, density).init(params)

        @functools.partial(jax.jit, donate_argnums=0)
        def step(carry: Any, batch: Batch, key: jax.Array, density: jax.Array) -> Any:
            params, rest, state = carry
            tx = self._tx(which, density)
            extra: dict[str, Any] = {}
            if rule is not None and rule.reads_activity:
                run = bb.value_and_grad(
                    problem.loss,
                    units,
                    has_aux=True,
                    where=problem.where,
                    needs=rule.needs,
                )
                (loss, rest), grads, activity = run(params, rest, batch, key)
                extra["activity"] = activity
            else:
                run = jax.value_and_grad(problem.loss, has_aux=True)
                (loss, rest), grads = run(params, rest, batch, key)
            updates, state = tx.update(grads, state, params, **extra)
            return (optax.apply_updates(params, updates), rest, state), loss

        return start, step

    def _units(self, which: Method) -> bb.Units:
        pattern = self.problem.kernels[which.actuator]
        return self.units.select(pattern, actuator=which.actuator)

    def _tx(self, which: Method | None, density: Any, masks: Any = None) -> Any:
        """The optimizer of a method."""
        problem, when = self.problem, self.problem.schedule
        inner = problem.optimizer()
        if which is None:
            return optax.with_extra_args_support(inner)
        inward = which.actuator == "in"
        settings = {
            "every": when.every,
            "start": when.start,
            "stop": when.stop,
            "regrow": when.regrow if which.regrow is None else which.regrow,
            # For incoming edges; RigL begins with few and has none to make up for.
            "rescale": (when.rescale and inward and not which.random_start) or None,
            # A source unit may have no edge, so that the budget is met at any density.
            "k_min": 1 if inward else 0,
        }
        units, rule = self._units(which), which.make(problem.steps)
        if which.random_start:
            return bb.wrap(inner, units, rule, density=density, masks=masks, **settings)
        ramp = bb.ramp(density, when.start, when.ramp) if when.ramp else density
        return optax.chain(inner, bb.transform(units, rule, density=ramp, **settings))
