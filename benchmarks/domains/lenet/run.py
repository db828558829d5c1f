"""C12: LeNets on MNIST, pruned by NNrelief in rounds, rewound and trained again."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import bbjax as bb
from benchmarks.common import stats
from benchmarks.common.stats import Verdict, mean_sd
from benchmarks.common.text import table
from benchmarks.domains.common import instruments, judge
from benchmarks.domains.common.experiment import (
    FEWEST,
    Bench,
    Case,
    Earlier,
    Experiment,
    Found,
    Metric,
    Runs,
)
from benchmarks.domains.lenet import picture
from benchmarks.rules.data import read_images, read_labels

BATCH, RATE, CALIBRATION = 120, 1e-3, 1000
ALPHA_CONV, ALPHA_DENSE = 0.9, 0.95
CONV = "l1"  # as in the authors' code for LeNet
FEW = 0.05  # kept share that the claim speaks of
LOSS = 0.5  # points of accuracy that may be lost
RELIEF, MAGNITUDE = "NNrelief", "magnitude, same counts"
METRICS = {
    "mean": Metric("accuracy, mean of rounds, %"),
    "dense": Metric("dense, %"),
    "last": Metric("last round, %"),
    "kept": Metric("kept then, %", higher=False),
    "few": Metric(f"first round below {100 * FEW:g} %"),
}


class LeNet300(nn.Module):
    """784, 300, 100 and 10 units."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(len(x), -1)
        for number, units in enumerate((300, 100)):
            x = nn.relu(nn.Dense(units, name=f"dense_{number}")(x))
            self.sow("intermediates", "units", x)
        return nn.Dense(10, name="dense_2")(x)


class LeNet5(nn.Module):
    """Two convolutions of 5 x 5 with 20 and 50 channels, then 500 and 10 units."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for channels in (20, 50):
            x = nn.relu(nn.Conv(channels, (5, 5), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(500, name="dense_0")(x.reshape(len(x), -1)))
        self.sow("intermediates", "units", x)
        return nn.Dense(10, name="dense_1")(x)


class Setting(NamedTuple):
    """A net and how long it is trained."""

    net: nn.Module
    epochs: int
    rounds: int


SETTINGS = {
    "LeNet-300-100": Setting(LeNet300(), epochs=60, rounds=15),
    "LeNet-5": Setting(LeNet5(), epochs=2, rounds=8),
}
CASES = tuple(Case(f"{net}, {by}") for net in SETTINGS for by in (RELIEF, MAGNITUDE))


class Images(NamedTuple):
    """Images (n, 28, 28, 1) in [0, 1] and digits."""

    train_x: jax.Array
    train_y: jax.Array
    test_x: jax.Array
    test_y: jax.Array


def mnist(folder: Path, most: int | None = None) -> Images:
    """All of MNIST; the first `most` images of each part for a trial."""
    parts = []
    for kind in ("train", "t10k"):
        parts.append(jnp.asarray(read_images(folder, kind)[:most, ..., None] / 255))
        parts.append(jnp.asarray(read_labels(folder, kind)[:most]))
    return Images(*parts)


class Lab:
    """Trains, prunes and tests one net."""

    def __init__(self, setting: Setting, held: Images) -> None:
        """Traces the net."""
        self.setting, self.held, self.net = setting, held, setting.net
        first = self.init(0)
        units = bb.trace(self.scores, first, held.train_x[:BATCH])
        self.units = units.only(units.paths)  # the last kernel, too

    def init(self, seed: int) -> Any:
        """First weights."""
        key = jax.random.key(seed)
        return self.net.init(key, self.held.train_x[:1])["params"]

    def scores(self, params: Any, x: jax.Array) -> jax.Array:
        """Of the ten digits."""
        return self.net.apply({"params": params}, x)

    @functools.cached_property
    def _step(self) -> Callable[..., Any]:
        def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            wrong = optax.softmax_cross_entropy_with_integer_labels
            return jnp.mean(wrong(self.scores(params, x), y))

        @functools.partial(jax.jit, donate_argnums=0)
        def step(carry: Any, rows: jax.Array, masks: Any, held: Images) -> Any:
            params, state = carry
            grads = jax.grad(loss)(params, held.train_x[rows], held.train_y[rows])
            updates, state = self._tx(masks).update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return step

    def _tx(self, masks: Any) -> Any:
        return optax.chain(optax.adam(RATE), bb.hold(masks))

    @functools.cached_property
    def _test(self) -> Callable[..., jax.Array]:
        return jax.jit(lambda params, x: jnp.argmax(self.scores(params, x), -1))

    def train(self, params: Any, masks: Any, seed: Any) -> Any:
        """Trains under masks with a new optimizer."""
        rng, count = np.random.default_rng(seed), len(self.held.train_y)
        carry = jax.tree.map(jnp.copy, (params, self._tx(masks).init(params)))
        for _ in range(self.setting.epochs):
            order = rng.permutation(count)[: count // BATCH * BATCH]
            for rows in order.reshape(-1, BATCH):
                carry = self._step(carry, rows, masks, self.held)
        return carry[0]

    def accuracy(self, params: Any) -> float:
        """On the test images, percent."""
        parts = np.split(np.arange(len(self.held.test_y)), 10)
        found = [self._test(params, self.held.test_x[part]) for part in parts]
        return 100 * float(
            np.mean(np.concatenate(found) == np.asarray(self.held.test_y))
        )

    def calibration(self, seed: int) -> list[tuple[jax.Array]]:
        """Random training images, the same in every round."""
        count = len(self.held.train_y)
        rows = np.random.default_rng([seed, 1]).permutation(count)[:CALIBRATION]
        return [(self.held.train_x[rows],)]

    def point(self, params: Any, masks: Any) -> Found:
        """What a round leaves: density of each kernel, kept share, accuracy."""
        held = [masks[path] for path in self.units]
        return {
            "densities": bb.densities_of(masks, self.units),
            "kept": float(sum(m.sum() for m in held) / sum(m.size for m in held)),
            "accuracy": self.accuracy(params),
        }

    def layers(self, params: Any) -> list[instruments.Layer]:
        """The layers between dense kernels, on test images."""
        x = self.held.test_x[: instruments.SAMPLES]
        kept = self.net.apply({"params": params}, x, mutable=["intermediates"])[1]
        return [
            instruments.of_dense(
                units,
                params[f"dense_{number}"]["kernel"],
                params[f"dense_{number + 1}"]["kernel"],
            )
            for number, units in enumerate(kept["intermediates"]["units"])
        ]

    # The two ways to prune ------------------------------------------------------------
    def relieved(self, first: Any, params: Any, seed: int) -> tuple[Any, list[Found]]:
        """The last net and all rounds of NNrelief, each from the first weights."""
        points: list[Found] = []

        def train(start: Any, masks: Any) -> Any:
            after = self.train(start, masks, [seed, len(points) + 1])
            points.append(self.point(after, masks))
            return after

        done = bb.relieve_and_train(
            self.scores,
            params,
            self.units,
            self.calibration(seed),
            train,
            iterations=self.setting.rounds,
            rewind=first,
            alpha_conv=ALPHA_CONV,
            conv=CONV,
            alpha_dense=ALPHA_DENSE,
        )
        return done.params, points

    def matched(
        self, first: Any, params: Any, seed: int, densities: Sequence[Any]
    ) -> tuple[Any, list[Found]]:
        """The same by magnitude, with as many edges in every kernel."""
        points: list[Found] = []
        masks, rule = None, bb.rules.magnitude(scope="layer")
        for number, density in enumerate(densities, 1):
            _, masks = bb.prune(params, self.units, rule, density, masks=masks, k_min=0)
            params = self.train(bb.apply_masks(first, masks), masks, [seed, number])
            points.append(self.point(params, masks))
        return params, points


def bench(folder: Path, small: bool) -> Bench:
    """Reads MNIST."""
    held = mnist(folder / "mnist", 1200 if small else None)

    @functools.cache
    def lab(name: str) -> Lab:
        setting = SETTINGS[name]
        return Lab(setting._replace(epochs=1, rounds=2) if small else setting, held)

    @functools.cache
    def dense(name: str, seed: int) -> tuple[Any, Any, Found]:
        of = lab(name)
        first = of.init(seed)
        whole = {path: jnp.ones(of.units[path].shape, bool) for path in of.units}
        params = of.train(first, whole, [seed, 0])
        return first, params, of.point(params, whole)

    def run(case: Case, seed: int, earlier: Earlier) -> Found:
        name, way = case.method.split(", ", 1)
        first, params, start = dense(name, seed)
        if way == RELIEF:
            last, points = lab(name).relieved(first, params, seed)
        else:
            found = earlier.get(Case(f"{name}, {RELIEF}"))
            if found is None:
                raise SystemExit(
                    f"expected a run of {name}, {RELIEF}, with seed {seed}, got none; "
                    "it gives the numbers of weights"
                )
            densities = [point["densities"] for point in found["curve"][1:]]
            last, points = lab(name).matched(first, params, seed, densities)
        of = lab(name)
        noise = instruments.measure(of.layers(params), seed)["noise"]
        few = [p["accuracy"] for p in points if p["kept"] < FEW]
        return {
            "mean": float(np.mean([p["accuracy"] for p in points])),
            "dense": start["accuracy"],
            "last": points[-1]["accuracy"],
            "kept": 100 * points[-1]["kept"],
            "few": few[0] if few else None,
            "code": instruments.measure(of.layers(last), seed, noise),
            "curve": [start, *points],
        }

    return run


def judged(runs: Runs) -> Sequence[Verdict]:
    """The questions of the README."""
    found = []
    for net in SETTINGS:
        relief, control = (Case(f"{net}, {by}") for by in (RELIEF, MAGNITUDE))
        found += [
            _keeps(runs, net, relief),
            judge.better(
                runs,
                f"{net}: NNrelief is more accurate than magnitude with the same "
                "numbers of weights in every layer, mean of all rounds",
                "mean",
                relief,
                [control],
            ),
        ]
    return found


def _keeps(runs: Runs, net: str, relief: Case) -> Verdict:
    question = (
        f"{net}: NNrelief keeps accuracy within {LOSS} points with less than "
        f"{100 * FEW:g} % of the weights"
    )
    gap = runs.values("dense", *relief) - runs.values("few", *relief)
    test = (
        f"95 % interval of the loss at the first such round below {LOSS} points (does "
        "not hold: above)"
    )
    number = f"loss {mean_sd(gap, 2)} points; {len(gap)} seeds"
    if len(gap) < FEWEST or not np.all(np.isfinite(gap)):
        return stats.undecided(question, number, test)
    low, high = stats.interval(gap)
    number += f"; {low:.2f} to {high:.2f}"
    if low <= LOSS < high:
        return stats.undecided(question, number, test)
    return stats.decide(question, number, test, holds=bool(high <= LOSS))


def tables(runs: Runs) -> str:
    """Accuracy by round."""
    parts = []
    for net in SETTINGS:
        of = {by: runs.of(f"{net}, {by}") for by in (RELIEF, MAGNITUDE)}
        if not of[RELIEF]:
            continue
        curves = {
            by: [
                [line["curve"][i] for line in lines.values()]
                for i in range(_length(lines))
            ]
            for by, lines in of.items()
        }
        rows = []
        for number, points in enumerate(curves[RELIEF]):
            row = [number, mean_sd([100 * p["kept"] for p in points], 2)]
            for by in (RELIEF, MAGNITUDE):
                some = curves[by][number] if number < len(curves[by]) else []
                row.append(mean_sd([p["accuracy"] for p in some], 2))
            rows.append(row)
        head = [
            "round",
            "kept, %",
            f"{RELIEF}, accuracy, %",
            f"{MAGNITUDE}, accuracy, %",
        ]
        parts.append(f"{net}:\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def _length(lines: dict[int, Found]) -> int:
    return min((len(line["curve"]) for line in lines.values()), default=0)


EXPERIMENT = Experiment(
    name="lenet",
    title="LeNets, MNIST",
    claim="C12",
    cases=CASES,
    metrics=METRICS,
    bench=bench,
    judge=judged,
    tables=tables,
    draw=lambda runs, path: picture.draw(runs, path, SETTINGS, (RELIEF, MAGNITUDE)),
    caption="Test accuracy against the share of weights kept, round by round",
)
