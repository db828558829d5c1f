"""C10: a residual 3-D U-Net on electron micrographs, its convolutions pruned."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
)

from benchmarks.common.stats import Verdict
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
from benchmarks.domains.synapses import data
from benchmarks.domains.synapses.data import Stack

STEPS, SIZE, RATE = 300, 2, 4e-3
WIDTHS = (8, 16, 32)
SYNAPSE = 8.0  # weight of a voxel of a synapse
WINDOW, OVERLAP = 96, 16
PUBLISHED, LOW = 0.7, 0.2
METHODS = by.ALL
METRICS = {
    "pr_auc": Metric("PR-AUC, %", digits=1),
    "roc_auc": Metric("ROC-AUC, %", digits=1),
    "f1": Metric("best F1, %", digits=1),
    "iou": Metric("best IoU, %", digits=1),
}


class Block(nn.Module):
    """Two convolutions, squeeze and excitation, beside a skip; the first is pruned."""

    channels: int
    depth: int  # sections that a window reads

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        window = (self.depth, 3, 3)

        def conv(name: str, window: tuple[int, int, int]) -> nn.Conv:
            return nn.Conv(self.channels, window, use_bias=False, name=name)

        y = nn.relu(nn.InstanceNorm(name="first_norm")(conv("first", window)(x)))
        self.sow("intermediates", "units", y)
        y = nn.InstanceNorm(name="second_norm")(conv("second", window)(y))
        z = nn.relu(nn.Dense(self.channels // 4, name="squeeze")(y.mean((1, 2, 3))))
        z = nn.sigmoid(nn.Dense(self.channels, name="excite")(z))
        return nn.relu(conv("skip", (1, 1, 1))(x) + y * z[:, None, None, None])


class Net(nn.Module):
    """A U-Net that pools in the plane alone, for sections are far apart.

    At the finest level, where pixels are closer than sections, windows are flat.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        levels, plane = [], (1, 2, 2)
        for number, channels in enumerate(WIDTHS):
            x = nn.max_pool(x, plane, plane) if number else x
            x = Block(channels, 3 if number else 1, name=f"down_{number}")(x)
            levels.append(x)
        x = levels.pop()
        for number in reversed(range(len(levels))):
            channels, level = WIDTHS[number], levels[number]
            x = nn.ConvTranspose(channels, plane, plane, name=f"wide_{number}")(x)
            both, depth = jnp.concatenate([x, level], -1), 3 if number else 1
            x = Block(channels, depth, name=f"up_{number}")(both)
        return nn.Conv(1, (1, 1, 1), name="out")(x)[..., 0]


def windows(length: int) -> list[int]:
    """Where windows begin that cover a length."""
    step = WINDOW - OVERLAP
    return sorted({min(i, max(length - WINDOW, 0)) for i in range(0, length, step)})


def slid(predict: Callable[[np.ndarray], Any], raw: np.ndarray) -> np.ndarray:
    """Mean probability over windows that overlap and over a picture and its mirror."""
    total, count = np.zeros(raw.shape), np.zeros(raw.shape)
    for top in windows(raw.shape[1]):
        for left in windows(raw.shape[2]):
            at = np.s_[:, top : top + WINDOW, left : left + WINDOW]
            part = raw[at]
            both = np.stack([part, part[:, :, ::-1]])[..., None]
            found = np.asarray(predict(both))
            total[at] += found[0] + found[1][:, :, ::-1]
            count[at] += 2
    return total / count


def problem(train: Stack, test: Stack, steps: int) -> Problem:
    """The net, its loss, its batches and how it is judged."""
    net = Net()
    first = test.raw[None, :, : data.CROP[1], : data.CROP[2], None]

    def init(key: jax.Array) -> tuple[Any, Any]:
        return net.init(key, first)["params"], {}

    def loss(params: Any, rest: Any, batch: Any, key: Any) -> tuple[jax.Array, Any]:
        raw, synapse = batch
        scores = net.apply({"params": params}, raw)
        weight = 1 + (SYNAPSE - 1) * synapse
        wrong = optax.sigmoid_binary_cross_entropy(scores, synapse)
        said = nn.sigmoid(scores)
        dice = 2 * jnp.sum(said * synapse) / (jnp.sum(said + synapse) + 1)
        return jnp.sum(wrong * weight) / jnp.sum(weight) + 1 - dice, rest

    @jax.jit
    def predict(params: Any, raw: Any) -> jax.Array:
        return nn.sigmoid(net.apply({"params": params}, raw))

    @jax.jit
    def units(params: Any) -> Any:
        some = test.raw[None, :, :96, :96, None]
        return net.apply({"params": params}, some, mutable=["intermediates"])[1]

    def measure(params: Any, rest: Any) -> Found:
        found = slid(lambda raw: predict(params, raw), test.raw)
        return scores(test.synapse.ravel() > 0, found.ravel())

    def layers(params: Any, rest: Any) -> list[instruments.Layer]:
        kept = units(params)["intermediates"]
        return [
            instruments.of_convolution(
                kept[name]["units"][0],
                params[name]["first"]["kernel"],
                params[name]["second"]["kernel"],
            )
            for name in ("down_1", "down_2", "up_0", "up_1")
        ]

    rate = optax.warmup_cosine_decay_schedule(0, RATE, steps // 10, steps)
    return Problem(
        init,
        loss,
        lambda seed: data.batches(train, seed, steps, SIZE),
        steps,
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate)),
        {side: "(down_[12]|up.*)/first/kernel" for side in ("in", "out")},
        Schedule(
            every=max(10 * steps // STEPS, 1),  # a trial refreshes as often
            start=steps // 10,
            ramp=steps // 2,
            stop=3 * steps // 4,
            regrow=True,
        ),
        measure,
        layers,
    )


def scores(synapse: np.ndarray, found: np.ndarray) -> Found:
    """Areas under two curves, and the best of all thresholds."""
    precision, recall, _ = precision_recall_curve(synapse, found)
    f1 = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-9))
    return {
        "pr_auc": 100 * float(average_precision_score(synapse, found)),
        "roc_auc": 100 * float(roc_auc_score(synapse, found)),
        "f1": 100 * float(f1),
        "iou": 100 * float(f1 / (2 - f1)),
    }


PUBLISHED_BB, LOW_BB = Case(by.FAN_IN, PUBLISHED), Case(by.FAN_IN, LOW)
OTHERS = (by.EQUAL, by.LAYER, by.RIGL)
AT_PUBLISHED = (Case(DENSE), *(Case(name, PUBLISHED) for name in OTHERS))
QUESTIONS = (
    Question(
        "BB has a higher PR-AUC at .7 than dense, magnitude and RigL",
        "pr_auc",
        PUBLISHED_BB,
        AT_PUBLISHED,
    ),
    Question(
        "BB has a higher best F1 at .7 than dense, magnitude and RigL",
        "f1",
        PUBLISHED_BB,
        AT_PUBLISHED,
    ),
    Question(
        "BB has a higher PR-AUC at .2 than magnitude and RigL",
        "pr_auc",
        LOW_BB,
        tuple(Case(name, LOW) for name in OTHERS),
    ),
)


def judged(runs: Runs) -> Sequence[Verdict]:
    """The questions of the README."""
    controls = (by.EQUAL, by.LAYER)
    return judge.of_domain(runs, QUESTIONS, controls, "pr_auc", LOW)


def bench(folder: Path, small: bool) -> Bench:
    """Reads the stack."""
    train, test = data.vnc(folder / "em_vnc" / "vnc_stack1.tar.xz")
    if small:
        test = Stack(*(x[:, :96, :96] for x in test))
    return Trainer(problem(train, test, 10 if small else STEPS)).run


EXPERIMENT = Experiment(
    name="synapses",
    title="Synapses, Drosophila VNC",
    claim="C10",
    cases=grid(METHODS, (PUBLISHED, LOW)),
    metrics=METRICS,
    bench=bench,
    judge=judged,
)
