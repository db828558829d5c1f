"""Really smaller nets: whole units are removed, and the arrays shrink with them.

    round    keep 3/4, 1/2, 3/8, 1/4 of the units of every layer, those of the largest
             parameters; shrink the net, and train it on for a third of the steps

The rounds start from the dense nets of the main run. No choice looks at the test
images. Widths stay multiples of 8, for layers of odd widths are slow. Times are those
of one call on all test images, as ratios to the dense net. Calls of all nets take
turns, and the median of the ratios counts.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import numpy as np
import optax

import bbjax as bb
from bbjax.demo import model
from bbjax.demo.data import Data, batches

KEEP = (3 / 4, 1 / 2, 3 / 8, 1 / 4)  # share of the first units, after each round
RATE = 1e-3
CALLS = 51  # interleaved rounds of calls; the first is not counted


@dataclasses.dataclass(frozen=True)
class Size:
    """The nets of one round, all seeds.

    Attributes:
        widths: numbers of hidden units, layer by layer, of seed 0.
        parameters: by seed.
        accuracy: test accuracy in %, by seed.
        net: of seed 0, with its parameters.
    """

    widths: tuple[int, ...]
    parameters: np.ndarray
    accuracy: np.ndarray
    net: tuple[model.Net, Any]


def shrink(
    dense: Sequence[Any], steps: int, data: Data, tick: Callable[[float], None]
) -> list[Size]:
    """Shrinks trained nets, round by round.

    Args:
        dense: trained parameters, by seed.
        steps: of training after each round.
        data: the digits.
        tick: called with 1 after each round of each seed.

    Returns:
        The dense nets, and those after each round.
    """
    lines = []
    for seed, params in enumerate(dense):
        line = [_scored(model.FULL, params, data)]
        for done in bb.shrink_rounds(
            model.logits,
            params,
            _chooser(),
            functools.partial(_train, seed=seed, steps=steps, data=data),
            data.train_x[:2],
            iterations=len(KEEP),
        ):
            line.append(_scored(_net(done.small), done.params, data))
            tick(1)
        lines.append(line)
    return [
        Size(
            widths=at[0][0].widths,
            parameters=np.array([_parameters(params) for _, params, _ in at]),
            accuracy=np.array([accuracy for _, _, accuracy in at]),
            net=at[0][:2],
        )
        # A seed whose net cannot shrink further ends the rounds.
        for at in zip(*lines, strict=False)
    ]


def _chooser() -> Callable[[Any, bb.Units], Any]:
    """Chooses units of the largest parameters, from call to call fewer."""
    shares = iter(np.divide(KEEP, (1, *KEEP[:-1])).tolist())

    def choose(params: Any, units: bb.Units) -> Any:
        scores = bb.unitwise.group_magnitude(units, params)
        return bb.unitwise.cut(units, scores, density=next(shares))

    return choose


def _net(small: Any) -> model.Net:
    """The module of a smaller net: the same class, with other widths."""
    sizes = bb.linen.features(small)
    widths = tuple(sizes[path.split("/")[0]] for path in model.HIDDEN)
    return model.Net(cast(tuple[int, int, int, int], widths))


def _scored(net: model.Net, params: Any, data: Data) -> tuple[model.Net, Any, float]:
    right = np.argmax(_logits(net, params, data.test_x), axis=-1) == data.test_y
    return net, params, 100 * float(right.mean())


def _parameters(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@functools.partial(jax.jit, static_argnums=0)
def _logits(net: model.Net, params: Any, x: jax.Array) -> jax.Array:
    return model.logits(params, x, net)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(
    net: model.Net, steps: int, state: Any, x: jax.Array, y: jax.Array
) -> tuple[Any, Any]:
    params, opt_state = state
    grads = jax.grad(model.loss)(params, x, y, net)
    updates, opt_state = _adam(steps).update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state


def _adam(steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(RATE, steps, alpha=0.05))


def _train(small: Any, *, seed: int, steps: int, data: Data) -> Any:
    net, state = _net(small), (small.params, _adam(steps).init(small.params))
    for rows in batches(1000 + seed, steps, len(data.train_y)):
        state = _step(net, steps, state, data.train_x[rows], data.train_y[rows])
    return state[0]


def times(
    nets: Sequence[tuple[model.Net, Any]], data: Data, tick: Callable[[float], None]
) -> np.ndarray:
    """Time per call of each net, as ratios to the first: quartiles, (nets, 3)."""
    spent = np.zeros((CALLS, len(nets)))
    x = jax.device_put(data.test_x)
    for i in range(CALLS):
        for j, (net, params) in enumerate(nets):
            begin = time.perf_counter()
            jax.block_until_ready(_logits(net, params, x))
            spent[i, j] = time.perf_counter() - begin
        tick(1)
    ratios = spent[1:] / spent[1:, :1]
    return np.quantile(ratios, [0.25, 0.5, 0.75], axis=0).T
