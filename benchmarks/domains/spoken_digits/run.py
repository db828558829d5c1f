"""C13: Fine-Pruning on spoken digits, one speaker left out at a time."""

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
from bbjax.demo.data import batches
from benchmarks.common import stats
from benchmarks.common.stats import Verdict
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
from benchmarks.domains.common.judge import Question
from benchmarks.rules.speech import Recording, recordings

SIZES, BATCH = (256, 128), 64
STEPS, RATE = 1000, 1e-3  # of the source net
TUNED, SLOW = 150, 3e-4  # steps and rate of what adapts with labels
OWN = 25  # takes from this one on are the speaker's own data, those before test
RANK = 32
PUBLISHED, OTHERS = 0.35, (0.5, 0.8)  # the paper removes 60 to 70 %
SOURCE, TUNING, SVD = "source net", "labelled fine-tuning", "labelled SVD adaptation"
UNITS, WEIGHTS = "Fine-Pruning, units", "Fine-Pruning, weights"
RANDOM, NORM, OUTPUT = "random units", "units of least norm", "output units only"
METRICS = {
    "accuracy": Metric("accuracy, mean of speakers, %", digits=1),
    "worst": Metric("worst speaker", digits=1),
    "best": Metric("best speaker", digits=1),
    "best_gain": Metric("best speaker's gain", digits=1),
    "edges_kept": Metric("interior edges kept, %", higher=False, digits=1),
}
CASES = (
    *(Case(name) for name in (SOURCE, TUNING, SVD)),
    *(
        Case(name, density)
        for density in (PUBLISHED, *OTHERS)
        for name in (UNITS, RANDOM, NORM, OUTPUT, WEIGHTS)
    ),
)
Params = Any


class Net(nn.Module):
    """Two hidden layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for number, units in enumerate(SIZES):
            x = nn.relu(nn.Dense(units, name=f"hidden_{number}")(x))
            self.sow("intermediates", "units", x)
        return nn.Dense(10, name="out")(x)


class Person(NamedTuple):
    """What one speaker's net is made from and judged by; spectra as rows."""

    source_x: np.ndarray
    source_y: np.ndarray
    own_x: np.ndarray
    own_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def people(found: Sequence[Recording]) -> dict[str, Person]:
    """By speaker; the source data are the others' and standardise everything."""
    x = np.stack([r.spectrum.ravel() for r in found])
    y = np.array([r.digit for r in found], np.int32)
    who, take = np.array([r.speaker for r in found]), np.array([r.take for r in found])
    made = {}
    for name in sorted(set(who)):
        mine = who == name
        scaled = (x - x[~mine].mean(0)) / x[~mine].std(0)
        parts = (~mine, mine & (take >= OWN), mine & (take < OWN))
        made[name] = Person(*(side[part] for part in parts for side in (scaled, y)))
    return made


def scores(params: Params, x: jax.Array) -> jax.Array:
    """Of the ten digits."""
    return Net().apply({"params": params}, x)


def wrong(params: Params, fixed: None, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    found = scores(params, x)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(found, y))


def trained(
    loss: Callable[..., jax.Array],
    params: Any,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    steps: int,
    rate: float,
    fixed: Any = None,
) -> Any:
    """Parameters after Adam's steps on batches of rows; `fixed` are others."""
    order = jnp.asarray(batches(seed, steps, len(y), BATCH))
    return _fitted(loss, params, fixed, jnp.asarray(x), jnp.asarray(y), order, rate)


@functools.partial(jax.jit, static_argnums=0)
def _fitted(
    loss: Any, params: Any, fixed: Any, x: Any, y: Any, order: Any, rate: Any
) -> Any:
    tx = optax.adam(rate)

    def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
        params, state = carry
        grads = jax.grad(loss)(params, fixed, x[rows], y[rows])
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), order)[0][0]


def between(params: Params, x: np.ndarray) -> instruments.Layer:
    """The layer between the two hidden kernels."""
    kept = Net().apply({"params": params}, x, mutable=["intermediates"])[1]
    kernels = (params[f"hidden_{i}"]["kernel"] for i in range(len(SIZES)))
    return instruments.of_dense(kept["intermediates"]["units"][0], *kernels)


# Ways to adapt ------------------------------------------------------------------------
def pruned(
    name: str, units: bb.Units, params: Params, own: Any, density: float, seed: int
):
    """Parameters of a net adapted without labels."""
    data, remove = [(jnp.asarray(own),)], 1 - density
    if name in (UNITS, WEIGHTS, OUTPUT):
        made = bb.personalise(
            scores,
            params,
            units,
            data,
            remove=remove,
            by="weights" if name == WEIGHTS else "units",
            include_output="only" if name == OUTPUT else False,
        )
        return made.params
    by_group = bb.unitwise.group_magnitude(units, params)
    if name == RANDOM:
        rng = np.random.default_rng([seed, 3])
        by_group = {group: rng.random(s.shape) for group, s in by_group.items()}
    return bb.apply_masks(params, bb.unitwise.cut(units, by_group, density))


class Factors(NamedTuple):
    """A net whose hidden kernels are U M V; M is apart."""

    params: Params
    left: dict[str, jax.Array]
    right: dict[str, jax.Array]

    def whole(self, inner: dict[str, jax.Array]) -> Params:
        """The net with these M."""
        return self.params | {
            layer: self.params[layer]
            | {"kernel": self.left[layer] @ inner[layer] @ self.right[layer]}
            for layer in self.left
        }


def wrong_inside(inner: Any, fixed: Factors, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy of a net in factors."""
    return wrong(fixed.whole(inner), None, x, y)


def svd_adapted(params: Params, own_x: Any, own_y: Any, seed: int) -> Params:
    """The hidden kernels become U M V of rank k; only M, k x k, is trained."""
    left, right = {}, {}
    for layer in (f"hidden_{i}" for i in range(len(SIZES))):
        u, s, v = jnp.linalg.svd(params[layer]["kernel"], full_matrices=False)
        root = jnp.sqrt(s[:RANK])
        left[layer], right[layer] = u[:, :RANK] * root, root[:, None] * v[:RANK]
    fixed = Factors(params, left, right)
    first = {layer: jnp.eye(RANK) for layer in left}
    rate = 10 * SLOW
    return fixed.whole(
        trained(wrong_inside, first, own_x, own_y, seed, TUNED, rate, fixed)
    )


class Lab:
    """The source nets of all seeds and speakers, and what is made of them."""

    def __init__(self, found: Sequence[Recording], steps: int) -> None:
        """Traces the net."""
        self.people, self.steps = people(found), steps
        x = next(iter(self.people.values())).own_x[:BATCH]
        self.units = bb.trace(scores, self._first(0, x), jnp.asarray(x))
        self.source = functools.cache(self._source)

    def _first(self, seed: int, x: np.ndarray) -> Params:
        return Net().init(jax.random.key(seed), x[:1])["params"]

    def _source(self, name: str, seed: int) -> Params:
        of = self.people[name]
        first = self._first(seed, of.source_x)
        return trained(wrong, first, of.source_x, of.source_y, seed, self.steps, RATE)

    def adapted(self, case: Case, name: str, seed: int) -> Params:
        """A speaker's net by one way."""
        params, of = self.source(name, seed), self.people[name]
        if case.method == SOURCE:
            return params
        if case.method == TUNING:
            return trained(wrong, params, of.own_x, of.own_y, seed, TUNED, SLOW)
        if case.method == SVD:
            return svd_adapted(params, of.own_x, of.own_y, seed)
        return pruned(case.method, self.units, params, of.own_x, case.density, seed)

    def run(self, case: Case, seed: int, earlier: Earlier) -> Found:
        """Accuracy of all speakers' nets on their own test takes."""
        accuracy, kept, layers = {}, [], []
        for name, of in self.people.items():
            params = self.adapted(case, name, seed)
            said = np.argmax(np.asarray(scores(params, of.test_x)), -1)
            accuracy[name] = 100 * float(np.mean(said == of.test_y))
            layers.append(between(params, of.test_x))
            inside = params["hidden_1"]["kernel"]
            kept.append(100 * float(np.mean(np.asarray(inside) != 0)))
        values = list(accuracy.values())
        source = earlier.get(Case(SOURCE))
        before = source["speakers"] if source else accuracy
        gains = [accuracy[name] - before[name] for name in accuracy]
        noise = source["code"]["noise"] if source else None
        found = {
            "accuracy": float(np.mean(values)),
            "worst": min(values),
            "best": max(values),
            "best_gain": max(gains),
            "edges_kept": float(np.mean(kept)),
            "speakers": accuracy,
            "code": instruments.measure(layers, seed, noise),
        }
        return found | (self.prints(case, seed) if case.method == UNITS else {})

    def prints(self, case: Case, seed: int) -> Found:
        """Whether masks of units tell speakers, made from two halves of their data.

        All six speakers' masks are made for one net, trained on the first five; a half
        is named right if the most similar mask of the other halves is the same
        speaker's. Beside them stand random masks with as many weights, and halves named
        by the nearest mean of the other halves' inputs.
        """
        last = list(self.people)[-1]
        params = self.source(last, seed)
        halves: list[dict[str, Any]] = [{}, {}]
        for name, of in self.people.items():
            for part, held in enumerate(halves):
                made = bb.personalise(
                    scores,
                    params,
                    self.units,
                    [(jnp.asarray(of.own_x[part::2]),)],
                    remove=1 - case.density,
                )
                held[name] = made.masks
        alike, chance = np.moveaxis(
            [
                [bb.overlap(a, b).overall[:2] for b in halves[1].values()]
                for a in halves[0].values()
            ],
            -1,
            0,
        )
        means = [
            np.stack([of.own_x[part::2].mean(0) for of in self.people.values()])
            for part in range(2)
        ]
        apart = np.linalg.norm(means[0][:, None] - means[1][None], axis=-1)
        same, right = np.eye(len(alike), dtype=bool), np.arange(len(alike))
        return {
            "within": float(alike[same].mean()),
            "between": float(alike[~same].mean()),
            "chance": float(chance[~same].mean()),
            "named": float(np.mean(alike.argmax(1) == right)),
            "named_by_inputs": float(np.mean(apart.argmin(1) == right)),
        }


MOST_CUT, LEAST_CUT = Case(UNITS, PUBLISHED), Case(UNITS, 0.8)
QUESTIONS = (
    Question(
        "removing 65 % of the units without labels raises accuracy",
        "accuracy",
        MOST_CUT,
        (Case(SOURCE),),
    ),
    Question(
        "removing 20 % of the units without labels raises accuracy",
        "accuracy",
        LEAST_CUT,
        (Case(SOURCE),),
    ),
    Question(
        "at 65 %, activity chooses units better than chance and norms",
        "accuracy",
        MOST_CUT,
        (Case(RANDOM, PUBLISHED), Case(NORM, PUBLISHED)),
    ),
    Question(
        "at 20 %, activity chooses units better than chance and norms",
        "accuracy",
        LEAST_CUT,
        (Case(RANDOM, 0.8), Case(NORM, 0.8)),
    ),
    Question(
        "at 65 %, removing single weights loses less than removing units",
        "accuracy",
        Case(WEIGHTS, PUBLISHED),
        (MOST_CUT,),
    ),
    Question(
        "labels are worth more: fine-tuning with them is better than all without",
        "accuracy",
        Case(TUNING),
        (LEAST_CUT, MOST_CUT, Case(WEIGHTS, PUBLISHED), Case(WEIGHTS, 0.8)),
    ),
)


def judged(runs: Runs) -> Sequence[Verdict]:
    """The questions of the README."""
    return [
        *judge.answered(runs, QUESTIONS),
        _fingerprints(runs, MOST_CUT),
    ]


def _fingerprints(runs: Runs, one: Case) -> Verdict:
    parts = ("within", "between", "chance", "named", "named_by_inputs")
    within, between, chance, named, inputs = (runs.values(p, *one) for p in parts)
    question = (
        "masks from two halves of a speaker's data are more alike than those of two "
        "speakers"
    )
    test = "paired t-test over seeds, p < 0.05"
    number = (
        f"Jaccard index {stats.mean_sd(within)} and {stats.mean_sd(between)}, of "
        f"random masks {stats.mean_sd(chance)}; the right speaker of six named by "
        f"{stats.mean_sd(100 * named, 0)} % of the halves, by their mean input "
        f"{stats.mean_sd(100 * inputs, 0)} %"
    )
    if len(within) < FEWEST:
        return stats.undecided(question, number, test)
    gap = stats.differences(within, {"": between})[""]
    holds = gap.mean > 0 and gap.p < stats.LEVEL
    return stats.decide(question, f"{number}; difference {gap}", test, holds=holds)


def tables(runs: Runs) -> str:
    """Accuracy by speaker."""
    names: list[str] = sorted({n for line in runs.lines for n in line["speakers"]})
    rows = [
        [
            case.method,
            f"{case.density:g}",
            *(stats.mean_sd(runs.values(f"speakers.{n}", *case), 1) for n in names),
        ]
        for case in CASES
        if runs.of(*case)
    ]
    return "Accuracy by speaker, %:\n\n" + table(["method", "units kept", *names], rows)


def bench(folder: Path, small: bool) -> Bench:
    """Reads the recordings."""
    return Lab(list(recordings(folder)), 30 if small else STEPS).run


EXPERIMENT = Experiment(
    name="spoken_digits",
    title="Fine-Pruning, spoken digits",
    claim="C13",
    protocol=3,  # random masks and mean inputs beside the fingerprints
    cases=CASES,
    metrics=METRICS,
    bench=bench,
    judge=judged,
    seeds=8,
    tables=tables,
)
