"""C9: FC-Siam-conc on Landsat, trained on one scene and tested on the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.metrics import f1_score, jaccard_score

from benchmarks.common.stats import Verdict
from benchmarks.domains.change import data
from benchmarks.domains.change.data import Scene
from benchmarks.domains.common import instruments, judge
from benchmarks.domains.common import methods as by
from benchmarks.domains.common.experiment import (
    DENSE,
    Bench,
    Case,
    Experiment,
    Found,
    Metric,
    Runs,
    grid,
)
from benchmarks.domains.common.judge import Question
from benchmarks.domains.common.training import Problem, Schedule, Trainer

STEPS, SIZE, RATE = 400, 6, 2e-3
CROP = data.CROP
WIDTHS = (16, 32, 64)
CHANGED = 4.0  # weight of a changed pixel, as there are so few
PUBLISHED, LOW = 0.7, 0.2
METHODS = by.ALL
METRICS = {
    "iou": Metric("IoU, %", digits=1),
    "f1": Metric("F1, %", digits=1),
}


class Block(nn.Module):
    """Two convolutions, each with norm and ReLU behind; the first one is pruned."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for name in ("first", "second"):
            x = nn.Conv(self.channels, (3, 3), use_bias=False, name=name)(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name=f"{name}_norm")(x))
            self.sow("intermediates", f"{name}_units", x)
        return x


class Net(nn.Module):
    """One encoder reads both pictures; the decoder reads both results, side by side."""

    @nn.compact
    def __call__(self, before: jax.Array, after: jax.Array, train: bool) -> jax.Array:
        down = [Block(c, name=f"down_{i}") for i, c in enumerate(WIDTHS)]
        # As one batch: both pictures have the same norm.
        x, levels = jnp.concatenate([before, after]), []
        for number, block in enumerate(down):
            x = nn.max_pool(x, (2, 2), (2, 2)) if number else x
            x = block(x, train)
            levels.append(jnp.concatenate(jnp.split(x, 2), -1))
        y = levels.pop()
        for number, both in enumerate(reversed(levels)):
            channels = WIDTHS[-2 - number]
            y = nn.ConvTranspose(channels, (2, 2), (2, 2), name=f"wide_{number}")(y)
            y = Block(channels, name=f"up_{number}")(
                jnp.concatenate([y, both], -1), train
            )
        return nn.Conv(1, (1, 1), name="out")(y)[..., 0]


def problem(train: Scene, test: Scene, steps: int) -> Problem:
    """The net, its loss, its batches and how it is judged."""
    net = Net()
    whole = jax.tree.map(lambda x: jnp.asarray(x)[None], test)

    def init(key: jax.Array) -> tuple[Any, Any]:
        some = whole.before[:, :CROP, :CROP]
        made = net.init(key, some, some, False)
        return made["params"], made["batch_stats"]

    def loss(params: Any, rest: Any, batch: Any, key: Any) -> tuple[jax.Array, Any]:
        before, after, label = batch
        variables = {"params": params, "batch_stats": rest}
        scores, new = net.apply(variables, before, after, True, mutable=["batch_stats"])
        weight = jnp.where(label == 1, CHANGED, 1.0) * (label >= 0)
        wrong = optax.sigmoid_binary_cross_entropy(scores, label == 1)
        return jnp.sum(wrong * weight) / jnp.sum(weight), new["batch_stats"]

    @jax.jit
    def tested(params: Any, rest: Any) -> jax.Array:
        variables = {"params": params, "batch_stats": rest}
        return net.apply(variables, whole.before, whole.after, False)[0]

    @jax.jit
    def units(params: Any, rest: Any) -> Any:
        variables = {"params": params, "batch_stats": rest}
        some = [x[:, : 4 * CROP, : 4 * CROP] for x in whole[:2]]
        return net.apply(variables, *some, False, mutable=["intermediates"])[1]

    def measure(params: Any, rest: Any) -> Found:
        known = test.label >= 0
        found = np.asarray(tested(params, rest))[known] > 0
        label = test.label[known] == 1
        return {
            "iou": 100 * float(jaccard_score(label, found)),
            "f1": 100 * float(f1_score(label, found)),
        }

    def layers(params: Any, rest: Any) -> list[instruments.Layer]:
        kept = units(params, rest)["intermediates"]
        return [
            instruments.of_convolution(
                kept[name]["first_units"][0],
                params[name]["first"]["kernel"],
                params[name]["second"]["kernel"],
            )
            for name in (f"down_{i}" for i in range(len(WIDTHS)))
        ]

    rate = optax.cosine_decay_schedule(RATE, steps)
    return Problem(
        init,
        loss,
        lambda seed: data.batches(train, seed, steps, SIZE),
        steps,
        lambda: optax.adamw(rate),
        {"in": "down.*first/kernel", "out": "down.*first/kernel"},
        Schedule(every=20, start=steps // 4, stop=3 * steps // 4, regrow=True),
        measure,
        layers,
    )


PUBLISHED_BB, LOW_BB = Case(by.FAN_IN, PUBLISHED), Case(by.FAN_IN, LOW)
OTHERS = (by.EQUAL, by.LAYER, by.RIGL)
QUESTIONS = (
    Question(
        "BB has a higher IoU at .7 than the dense net",
        "iou",
        PUBLISHED_BB,
        (Case(DENSE),),
    ),
    Question(
        "BB has a higher F1 at .7 than the dense net",
        "f1",
        PUBLISHED_BB,
        (Case(DENSE),),
    ),
    Question(
        "BB has a higher IoU at .7 than magnitude and RigL",
        "iou",
        PUBLISHED_BB,
        tuple(Case(name, PUBLISHED) for name in OTHERS),
    ),
    Question(
        "BB has a higher IoU at .2 than magnitude and RigL",
        "iou",
        LOW_BB,
        tuple(Case(name, LOW) for name in OTHERS),
    ),
)


def judged(runs: Runs) -> Sequence[Verdict]:
    """The questions of the README."""
    controls = (by.EQUAL, by.LAYER)
    return judge.of_domain(runs, QUESTIONS, controls, "iou", LOW)


def bench(folder: Path, small: bool) -> Bench:
    """Reads the scenes."""
    train, test = data.landsat(folder / "change_landsat" / "taizhou_nanjing.npz")
    return Trainer(problem(train, test, 20 if small else STEPS)).run


EXPERIMENT = Experiment(
    name="change",
    title="Change, Landsat",
    claim="C9",
    cases=grid(METHODS, (PUBLISHED, LOW)),
    metrics=METRICS,
    bench=bench,
    judge=judged,
    seeds=8,
)
