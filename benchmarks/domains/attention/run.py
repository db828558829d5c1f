"""Attention that keeps a share of its pairs, in a net that fills in characters."""

import functools
import gzip
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

import bbjax as bb
from benchmarks.common.files import there
from benchmarks.common.stats import Verdict, mean_sd
from benchmarks.common.text import table
from benchmarks.domains.common import instruments, judge
from benchmarks.domains.common.experiment import (
    DENSE,
    Bench,
    Case,
    Earlier,
    Experiment,
    Found,
    Metric,
    Runs,
    grid,
)
from benchmarks.domains.common.judge import Question

STEPS, SIZE, RATE = 2400, 24, 3e-3
CONTEXT, WIDTH, HEADS, LAYERS = 64, 96, 4, 2
HELD_OUT, WINDOWS, PARTS = 0.1, 1000, 10
HIDDEN = 0.25  # share of the characters
RARE = 0.005  # share of the training text of a rare character
DENSITIES = (0.1, 0.03)
EVERY_QUERY, RANDOM, EQUAL = "top-k of each query", "random", "equal degrees"
NEAREST = "nearest"
SCORE, WEIGHT, REVERSED = "budgeted", "budgeted, by weight", "budgeted, reversed"
ACTIVITY, STEEP = "budgeted, loudness alone", "budgeted, spread 0.5"
METHODS = (
    SCORE,
    EVERY_QUERY,
    EQUAL,
    RANDOM,
    ACTIVITY,
    REVERSED,
    WEIGHT,
    NEAREST,
    STEEP,
)
METRICS = {
    "nats": Metric("nats a hidden character", higher=False, digits=3),
    "rare": Metric("of rare characters", higher=False, digits=3),
}
Attention = Callable[..., jax.Array]


def budgeted(density: Any, **options: Any) -> Attention:
    """bbjax's attention."""
    return functools.partial(bb.budgeted_attention, density=density, **options)


def chosen(choose: Callable[..., jax.Array]) -> Attention:
    """Attention over the pairs that a function of query and key gives."""

    def attend(query: Any, key: Any, value: Any, **rest: Any) -> jax.Array:
        pairs = choose(*jax.lax.stop_gradient((query, key)))
        return nn.dot_product_attention(query, key, value, **rest | {"mask": pairs})

    return attend


def products(query: Any, key: Any) -> jax.Array:
    """Scores of all pairs."""
    return jnp.einsum("...qhd,...khd->...hqk", query, key)


def nearness(query: Any, key: Any) -> jax.Array:
    """How near in the text, whatever query and key say."""
    queries, keys = (jnp.arange(x.shape[-3]) for x in (query, key))
    apart = -jnp.abs(queries[:, None] - keys).astype(jnp.float32)
    return jnp.broadcast_to(apart, (1, query.shape[-2], *apart.shape))


def each_query(density: Any, rank: Callable[..., jax.Array] = products) -> Attention:
    """Each query keeps its highest ranks, equally many but for rounding."""

    def choose(query: Any, key: Any) -> jax.Array:
        scores = rank(query, key)
        queries, keys = scores.shape[-2:]
        upto = jnp.round(density * keys * jnp.arange(queries + 1)).astype(jnp.int32)
        count = jnp.broadcast_to(jnp.diff(upto), scores.shape[:-1])
        return bb.top_k_mask(scores, count, axis=-1)

    return chosen(choose)


def at_random(density: Any) -> Attention:
    """Pairs drawn once by their places, in all layers; a query always keeps itself."""

    def choose(query: Any, key: Any) -> jax.Array:
        length, heads = query.shape[-3:-1]
        drawn = jax.random.uniform(jax.random.key(7), (heads, length, length))
        drawn = jnp.where(jnp.eye(length, dtype=bool), 2.0, drawn)
        count = jnp.round(density * length**2).astype(jnp.int32)
        counts = jnp.broadcast_to(count, (heads,))
        kept = bb.top_k_mask(drawn.reshape(heads, -1), counts, axis=-1)
        return kept.reshape(1, *drawn.shape)

    return chosen(choose)


WAYS: dict[str, Callable[[Any], Attention]] = {
    DENSE: lambda density: nn.dot_product_attention,
    SCORE: budgeted,
    WEIGHT: lambda density: budgeted(density, rank="weight"),
    EQUAL: lambda density: budgeted(density, law=bb.laws.uniform()),
    REVERSED: lambda density: budgeted(
        density, law=bb.laws.log_odds(spread=-0.1, dead=-1.0)
    ),
    ACTIVITY: lambda density: budgeted(density, law=bb.laws.linear()),
    # As steep as loudness alone is at the mean loudness.
    STEEP: lambda density: budgeted(
        density, law=bb.laws.log_odds(spread=0.5, dead=-1.0)
    ),
    EVERY_QUERY: each_query,
    NEAREST: lambda density: each_query(density, nearness),
    RANDOM: at_random,
}


class Net(nn.Module):
    """A small Transformer that sees all of a window; one more code hides a place."""

    characters: int
    attention: Attention

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Embed(self.characters + 1, WIDTH)(x)
        x = x + self.param("places", nn.initializers.normal(0.02), x.shape[1:])
        for i in range(LAYERS):
            attend = nn.MultiHeadDotProductAttention(
                HEADS, attention_fn=self.attention, name=f"attention_{i}"
            )
            x = x + attend(nn.LayerNorm()(x), sow_weights=True)
            y = nn.gelu(nn.Dense(4 * WIDTH, name=f"up_{i}")(nn.LayerNorm()(x)))
            self.sow("intermediates", f"units_{i}", y)
            x = x + nn.Dense(WIDTH, name=f"down_{i}")(y)
        return nn.Dense(self.characters)(nn.LayerNorm()(x))


class Text:
    """Characters as numbers, and windows of them."""

    def __init__(self, path: Path) -> None:
        """Reads a text; its last tenth is for testing."""
        with gzip.open(there(path), "rt", encoding="utf8") as file:
            letters = np.array(list(file.read()))
        self.alphabet, codes = np.unique(letters, return_inverse=True)
        split = round((1 - HELD_OUT) * len(codes))
        self.train, test = codes[:split].astype(np.int32), codes[split:]
        starts = np.linspace(0, len(test) - CONTEXT, WINDOWS).astype(int)
        rows = np.stack([test[i : i + CONTEXT] for i in starts]).astype(np.int32)
        self.test = self.hidden(rows, np.random.default_rng(0))
        share = np.bincount(self.train, minlength=len(self.alphabet)) / split
        self.rare = (share < RARE)[rows]

    def hidden(self, row: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Characters as they are seen and as they are, (..., 2, CONTEXT)."""
        away = rng.random(row.shape) < HIDDEN
        return np.stack([np.where(away, len(self.alphabet), row), row], -2)

    def batches(self, seed: int, steps: int) -> Iterator[np.ndarray]:
        """Windows of the training text, with characters hidden at random."""

        def window(start: int, rng: np.random.Generator) -> np.ndarray:
            return self.hidden(self.train[start : start + CONTEXT], rng)

        last = len(self.train) - CONTEXT + 1
        made = grain.MapDataset.range(last).seed(seed).shuffle().repeat()
        made = made.random_map(window).batch(SIZE)
        for number in range(steps):
            yield made[number]


class Trainer:
    """Trains the net with one attention after another."""

    def __init__(self, text: Text, steps: int) -> None:
        """Keeps what all runs share."""
        self.text, self.steps = text, steps
        self._compiled = functools.cache(self._compile)

    def run(self, case: Case, seed: int, earlier: Earlier) -> Found:
        """Trains and tests; `kept` is the share of pairs whose weight is above 0."""
        began = time.perf_counter()
        start, step, test = self._compiled(case.method)
        carry = start(seed)
        for number, batch in enumerate(self.text.batches(seed, self.steps)):
            carry = step(carry, batch, self.ramped(case.density, number))
        jax.block_until_ready(carry)
        trained = time.perf_counter()
        parts = np.split(self.text.test, PARTS)
        found = [test(carry[0], part, case.density) for part in parts]
        nats = np.concatenate([np.asarray(of) for of, *_ in found])
        away = self.text.test[:, 0] != self.text.test[:, 1]
        dense = earlier.get(Case(DENSE))
        noise = dense["code"]["noise"] if dense else None
        return {
            "nats": float(nats[away].mean()),
            "rare": float(nats[away & self.text.rare].mean()),
            "kept": round(float(np.mean([share for _, share, _ in found])), 5),
            "code": instruments.measure(
                self._layers(carry[0], found[0][2]), seed, noise
            ),
            "training_seconds": round(trained - began, 1),
        }

    def ramped(self, density: float, step: int) -> float:
        """Density at a step: falls evenly from 1 over half of the training."""
        return 1 - (1 - density) * min(2 * step / self.steps, 1.0)

    def _layers(self, params: Any, units: Any) -> list[instruments.Layer]:
        """The feed-forward layers, behind attention of whatever kind."""
        return [
            instruments.of_dense(
                units[i], params[f"up_{i}"]["kernel"], params[f"down_{i}"]["kernel"]
            )
            for i in range(LAYERS)
        ]

    def _compile(self, method: str) -> tuple[Callable[..., Any], ...]:
        """Start, step and test of a method."""
        rate = optax.warmup_cosine_decay_schedule(0, RATE, self.steps // 15, self.steps)
        tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))

        def net(density: Any) -> Net:
            return Net(len(self.text.alphabet), WAYS[method](density))

        def nats(params: Any, rows: Any, density: Any) -> tuple[jax.Array, Any]:
            """Loss at every place, and what was sown."""
            scores, sown = net(density).apply(
                {"params": params}, rows[:, 0], mutable=["intermediates"]
            )
            wrong = optax.softmax_cross_entropy_with_integer_labels
            return wrong(scores, rows[:, 1]), sown["intermediates"]

        def loss(params: Any, rows: Any, density: Any) -> jax.Array:
            away = rows[:, 0] != rows[:, 1]
            found = nats(params, rows, density)[0]
            return jnp.sum(found * away) / jnp.maximum(jnp.sum(away), 1)

        @jax.jit
        def start(seed: jax.Array) -> Any:
            some = jnp.zeros((1, CONTEXT), jnp.int32)
            params = net(1.0).init(jax.random.key(seed), some)["params"]
            return params, tx.init(params)

        @functools.partial(jax.jit, donate_argnums=0)
        def step(carry: Any, rows: jax.Array, density: jax.Array) -> Any:
            params, state = carry
            grads = jax.grad(loss)(params, rows, density)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        @jax.jit
        def test(params: Any, rows: jax.Array, density: jax.Array) -> Any:
            found, kept = nats(params, rows, density)
            pairs = [
                jnp.mean(kept[f"attention_{i}"]["attention_weights"][0] > 0)
                for i in range(LAYERS)
            ]
            units = [kept[f"units_{i}"][0] for i in range(LAYERS)]
            return found, jnp.mean(jnp.stack(pairs)), units

        return start, step, test


def lower(name: str, one: str, others: Sequence[str]) -> Iterator[Question]:
    """Whether an attention has a lower loss than each of others, by density."""
    for density in sorted(DENSITIES, reverse=True):
        for other in others:
            yield Question(
                f"{name} has a lower loss than {other} at {density:g}",
                "nats",
                Case(one, density),
                (Case(other, density),),
            )


QUESTIONS = (
    *lower("budgeted attention", SCORE, (EVERY_QUERY, EQUAL, RANDOM, NEAREST)),
    *lower("a law of spread .5", STEEP, (EQUAL,)),
    Question(
        "dense attention has a lower loss than budgeted attention at .1",
        "nats",
        Case(DENSE),
        (Case(SCORE, 0.1),),
    ),
    Question(
        "the law's sign helps at .1: reversed has a higher loss",
        "nats",
        Case(SCORE, 0.1),
        (Case(REVERSED, 0.1),),
    ),
    Question(
        "C14: at .1, the price on reach helps against loudness alone, as steep",
        "nats",
        Case(STEEP, 0.1),
        (Case(ACTIVITY, 0.1),),
    ),
)


def judged(runs: Runs) -> Sequence[Verdict]:
    """The questions of the README."""
    return [
        *judge.answered(runs, QUESTIONS),
        *judge.codes(runs, SCORE, (EVERY_QUERY, RANDOM), 0.1, traffic=False),
    ]


def tables(runs: Runs) -> str:
    """Share of the pairs that tests kept."""
    rows = [
        [case.method, f"{case.density:g}", mean_sd(runs.values("kept", *case), 4)]
        for case in EXPERIMENT.cases
        if runs.of(*case)
    ]
    return "Share of the pairs that were kept in the test:\n\n" + table(
        ["attention", "density", "kept"], rows
    )


def bench(folder: Path, small: bool) -> Bench:
    """Reads the text."""
    text = Text(folder / "text_lm" / "tinyshakespeare.txt.gz")
    return Trainer(text, 20 if small else STEPS).run


EXPERIMENT = Experiment(
    name="attention",
    title="Budgeted attention, characters",
    claim="future work",
    protocol=2,  # the first had the final density from the start
    cases=grid(METHODS, DENSITIES),
    metrics=METRICS,
    bench=bench,
    judge=judged,
    seeds=5,
    tables=tables,
)
