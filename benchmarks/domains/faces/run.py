"""C8: a ResNet on the ORL faces, pruned in the first convolution of each bottleneck."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.metrics import roc_curve

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
from benchmarks.domains.faces import data
from benchmarks.domains.faces.data import Faces

STEPS, SIZE, RATE = 300, 40, 3e-3
PEOPLE, NUMBERS = 40, 64  # of the embedding
STAGES = (64, 128, 256)  # channels; a bottleneck has a quarter
BLOCKS = 2  # of a stage
DENSITIES = (0.7, 0.5, 0.3, 0.15, 0.08, 0.04)
METHODS = by.ALL
METRICS = {
    "identified": Metric("identified, %", digits=1),
    "eer": Metric("verification EER, %", higher=False, digits=2),
}


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1, beside a skip."""

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def norm(y: jax.Array) -> jax.Array:
            return nn.BatchNorm(not train, momentum=0.9)(y)

        inside, stride = self.channels // 4, (self.stride,) * 2
        y = nn.Conv(inside, (1, 1), use_bias=False, name="reduce")(x)
        y = nn.relu(norm(y))
        self.sow("intermediates", "units", y)
        y = nn.Conv(inside, (3, 3), stride, use_bias=False, name="middle")(y)
        y = nn.relu(norm(y))
        y = norm(nn.Conv(self.channels, (1, 1), use_bias=False, name="widen")(y))
        if x.shape != y.shape:
            x = nn.Conv(self.channels, (1, 1), stride, use_bias=False, name="skip")(x)
            x = norm(x)
        return nn.relu(x + y)


class Net(nn.Module):
    """An image to an embedding and to the scores of people."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        x = nn.Conv(32, (3, 3), (2, 2), use_bias=False, name="stem")(x)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        for number, channels in enumerate(STAGES):
            for block in range(BLOCKS):
                stride = 2 if number and not block else 1
                name = f"block_{number}_{block}"
                x = Bottleneck(channels, stride, name=name)(x, train)
        embedded = nn.Dense(NUMBERS, name="embed")(x.mean((1, 2)))
        return embedded, nn.Dense(PEOPLE, name="out")(nn.relu(embedded))


def problem(faces: Faces, steps: int) -> Problem:
    """The net, its loss, its batches and how it is judged."""
    net = Net()

    def init(key: jax.Array) -> tuple[Any, Any]:
        made = net.init(key, faces.test_x[:1], False)
        return made["params"], made["batch_stats"]

    def loss(params: Any, rest: Any, batch: Any, key: Any) -> tuple[jax.Array, Any]:
        x, y = batch
        variables = {"params": params, "batch_stats": rest}
        (_, scores), new = net.apply(variables, x, True, mutable=["batch_stats"])
        wrong = optax.softmax_cross_entropy_with_integer_labels(scores, y)
        return jnp.mean(wrong), new["batch_stats"]

    @jax.jit
    def tested(params: Any, rest: Any) -> Any:
        variables = {"params": params, "batch_stats": rest}
        return net.apply(variables, faces.test_x, False, mutable=["intermediates"])

    def measure(params: Any, rest: Any) -> Found:
        (embedded, scores), _ = tested(params, rest)
        right = np.argmax(np.asarray(scores), -1) == faces.test_y
        return {
            "identified": 100 * float(right.mean()),
            "eer": 100 * equal_error_rate(np.asarray(embedded), faces.test_y),
        }

    def layers(params: Any, rest: Any) -> list[instruments.Layer]:
        kept = tested(params, rest)[1]["intermediates"]
        # The last block of each stage: there the 3 x 3 kernel moves by one.
        return [
            instruments.of_convolution(
                kept[name]["units"][0],
                params[name]["reduce"]["kernel"],
                params[name]["middle"]["kernel"],
            )
            for name in (f"block_{i}_{BLOCKS - 1}" for i in range(len(STAGES)))
        ]

    rate = optax.warmup_cosine_decay_schedule(0, RATE, steps // 10, steps)
    return Problem(
        init,
        loss,
        lambda seed: data.batches(faces, seed, steps, SIZE),
        steps,
        lambda: optax.adamw(rate),
        {"in": "block.*reduce/kernel", "out": "block.*reduce/kernel"},
        Schedule(every=15, start=steps // 10, stop=3 * steps // 4, regrow=True),
        measure,
        layers,
    )


def equal_error_rate(embedded: np.ndarray, people: np.ndarray) -> float:
    """Where as many pairs of one person are refused as pairs of two are accepted.

    Pairs are judged by the cosine of their embeddings.
    """
    unit = embedded / np.linalg.norm(embedded, axis=1, keepdims=True)
    one, other = np.triu_indices(len(unit), 1)
    cosine = np.sum(unit[one] * unit[other], 1)
    accepted, right, _ = roc_curve(people[one] == people[other], cosine)
    # Straight between points of the curve; `accepted - refused` rises along it.
    return float(np.interp(0, accepted - (1 - right), accepted))


OTHERS = (by.EQUAL, by.LAYER, by.RIGL, by.ACTIVITY, by.TOPK)
MARGIN = 1.0  # points below the best that still match it
ENVELOPE = tuple(
    Question(
        f"BB on incoming edges matches or exceeds all others at {density:g}",
        "identified",
        Case(by.FAN_IN, density),
        tuple(Case(name, density) for name in OTHERS),
    )
    for density in DENSITIES
)
QUESTIONS = (
    *(
        Question(
            f"BB on incoming edges identifies more than the dense net at {density:g}",
            "identified",
            Case(by.FAN_IN, density),
            (Case(DENSE),),
        )
        for density in DENSITIES[:3]
    ),
    Question(
        "BB on incoming edges has a lower EER than equal degrees at .15",
        "eer",
        Case(by.FAN_IN, 0.15),
        (Case(by.EQUAL, 0.15),),
    ),
)


def judged(runs: Runs) -> Sequence[Verdict]:
    """The questions of the README."""
    return [
        *(judge.level(runs, question, MARGIN) for question in ENVELOPE),
        *judge.of_domain(runs, QUESTIONS, (by.EQUAL, by.LAYER), "identified", 0.15),
    ]


def bench(folder: Path, small: bool) -> Bench:
    """Reads the faces."""
    faces = data.orl(folder / "faces_orl" / "orl_faces.tar.xz")
    return Trainer(problem(faces, 20 if small else STEPS)).run


EXPERIMENT = Experiment(
    name="faces",
    title="Faces, ORL",
    claim="C8",
    protocol=2,  # the first read the equal error rate off the nearest corner
    cases=grid(METHODS, DENSITIES),
    metrics=METRICS,
    bench=bench,
    judge=judged,
    seeds=8,
)
