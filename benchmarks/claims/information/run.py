"""Trains the nets of C5 and measures codes and channels; the README says how."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.claims.common import digits, net, train
from benchmarks.claims.common.methods import METHODS
from benchmarks.claims.dnf_rare import task as dnf
from benchmarks.claims.information import judge, measure
from benchmarks.claims.xor import task as xor

SEEDS = 20
NAMES = ("dense", "magnitude", "layer", "activity_only", "bb")
TASKS: dict[str, Callable[[], net.Task]] = {
    "xor": lambda: xor.TASK,
    "dnf": lambda: dnf.task(0.02),
    "digits": digits.task,
}
STEPS, CHECKPOINTS, DENSITY, START, EVERY = 4000, 10, 0.2, 100, 50
NOISE = 2.0  # sigma, in standard deviations of the dense net's pre-activations
UNIT_NOISE = 0.5  # the same for one unit alone, which says less
LAYERS = 2  # kernels that are measured: the budgeted second one, and the last
KERNEL = "layer_1/kernel"


def run(seeds: int, small: bool) -> dict[str, Any]:
    """Codes, channels and information, by task and method."""
    steps = 200 if small else STEPS
    found: dict[str, Any] = {}
    for task in TASKS:
        sigma = np.ones((seeds, LAYERS), np.float32)
        for name in NAMES:
            lane = _lane(task, name, steps)
            seen = train.over_seeds(lane, train.seeds_of(seeds), sigma)
            if name == "dense":  # once for the noise, once with it
                sigma = NOISE * seen["rms"]
                seen = train.over_seeds(lane, train.seeds_of(seeds), sigma)
            found.setdefault(task, {})[name] = seen
    report = {
        "steps": steps,
        "noise": NOISE,
        "found": {
            task: {
                name: {k: seen[k] for k in ("code", "channel", "accuracy")}
                for name, seen in of.items()
            }
            for task, of in found.items()
        },
        "units": {
            task: {
                name: jax.tree.map(lambda v: v[0], seen["units"])
                for name, seen in of.items()
            }
            for task, of in found.items()
        },
    }
    return report | {
        "verdicts": judge.verdicts(found),
        "tables": judge.tables(found),
        "caption": "Coding entropy, correlation and information of trained nets, and "
        "information against traffic across units, checkpoints and nets",
    }


def _lane(task_name: str, name: str, steps: int) -> Callable[..., Any]:
    """`(seed, sigma)` to codes and channels at checkpoints, units at the end."""
    method, task = METHODS[name], TASKS[task_name]()
    units = train.trace(task, (KERNEL, "out"))
    settings = {"density": DENSITY, "start": START, "every": EVERY, "k_min": 1}

    def lane(seed, sigma):
        weights, order = train.keys(seed)
        tx, params = method.optimizer(
            optax.adam(train.RATE), units, task.init(weights), **settings
        )
        loop = train.Loop(task, units, tx, method.needs)
        x, y = _tested(task_name, task, jax.random.fold_in(order, train.ELSEWHERE))
        noise = jax.random.fold_in(order, train.ELSEWHERE + 1)

        def look(lane: train.Lane) -> dict[str, Any]:
            values = net.hidden(lane.params, x)
            sent = [lane.params[f"layer_{i + 1}"]["kernel"] for i in range(LAYERS)]
            layers = [
                measure.channel(noise, z, w, sigma[i])
                for i, (z, w) in enumerate(zip(values, sent, strict=True))
            ]
            means = [z @ w for z, w in zip(values, sent, strict=True)]
            return {
                "code": measure.code(values[0]),
                "channel": jax.tree.map(lambda *v: jnp.stack(v), *layers),
                "rms": jnp.stack([jnp.sqrt(m.var(0).mean()) for m in means]),
                "accuracy": 100 * net.right(net.logits(lane.params, x), y).mean(),
            }

        lane = loop.start(params, order)
        lane, seen = loop.train(lane, steps, steps // CHECKPOINTS, look)
        values = net.hidden(lane.params, x)[0]
        kernel = lane.params["layer_1"]["kernel"]
        seen["units"] = measure.per_unit(
            noise, values, kernel, sigma[0] * UNIT_NOISE / NOISE
        )
        return seen | {"rms": seen["rms"][-1]}

    return lane


def _tested(
    task_name: str, task: net.Task, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Samples to measure on: new ones, of the digits the test images and others."""
    if task_name != "digits":
        return task.sample(key, measure.SAMPLES)
    held = digits.images()
    few = measure.SAMPLES - len(held.test_y)
    x = np.concatenate([held.test_x, held.train_x[:few]])
    y = np.concatenate([held.test_y, held.train_y[:few]])
    return jnp.asarray(x), jnp.asarray(y)
