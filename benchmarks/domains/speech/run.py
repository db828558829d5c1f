"""C7: a Transformer on AN4, pruned in the decoder's feed-forward layers in training."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jiwer
import numpy as np
import optax

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
from benchmarks.domains.speech import data
from benchmarks.domains.speech.data import END, FIRST, PAD, Speech
from benchmarks.domains.speech.model import Recognizer, greedy

STEPS, SIZE, RATE = 4000, 16, 2e-3
CTC, SMOOTH = 0.5, 0.1
PART = 65  # of the test
PUBLISHED, LOW = 0.85, 0.3
REGROWN = f"{by.FAN_IN}, regrowth"
METHODS = (*by.ALL, by.EQUAL_OUT, REGROWN)
METRICS = {
    "wer": Metric("WER, %", higher=False, digits=1),
    "head": Metric("head words wrong, %", higher=False, digits=1),
    "mid": Metric("middle", higher=False, digits=1),
    "tail": Metric("tail", higher=False, digits=1),
}


def problem(speech: Speech, steps: int) -> Problem:
    """The net, its loss, its batches and how it is judged."""
    net = Recognizer(len(speech.vocabulary) + FIRST)
    first = data.padded(speech.test[:2], speech)
    parts = (speech.test[i : i + PART] for i in range(0, len(speech.test), PART))
    test = [data.padded(part, speech, data.FRAMES[-1]) for part in parts]

    def init(key: jax.Array) -> tuple[Any, Any]:
        args = first["frames"], first["length"], first["words"]
        return net.init(key, *args)["params"], {}

    def loss(params: Any, rest: Any, batch: Any, key: Any) -> tuple[jax.Array, Any]:
        words = batch["words"]
        words_scores, ctc_scores, real = net.apply(
            {"params": params},
            batch["frames"],
            batch["length"],
            words[:, :-1],
            rngs={"dropout": key},
        )
        goal = optax.smooth_labels(jax.nn.one_hot(words[:, 1:], net.words), SMOOTH)
        weight = words[:, 1:] != PAD
        wrong = optax.softmax_cross_entropy(words_scores, goal)
        labels = jnp.where((words >= FIRST)[:, 1:], words[:, 1:], PAD)
        ctc = optax.ctc_loss(ctc_scores, ~real, labels, labels == PAD)
        words_loss = jnp.sum(wrong * weight) / jnp.sum(weight)
        ctc_loss = jnp.sum(ctc) / jnp.sum(labels != PAD)
        return (1 - CTC) * words_loss + CTC * ctc_loss, rest

    written = jax.jit(lambda params, batch: greedy(net, params, batch))

    @jax.jit
    def units(params: Any, batch: Any) -> Any:
        args = batch["frames"], batch["length"], batch["words"][:, :-1]
        kept = net.apply({"params": params}, *args, mutable=["intermediates"])[1]
        return kept["intermediates"]

    def measure(params: Any, rest: Any) -> Found:
        found = [np.asarray(written(params, batch)) for batch in test]
        texts = [_text(row, speech) for batch in found for row in batch]
        return scores([" ".join(u.words) for u in speech.test], texts, speech)

    def layers(params: Any, rest: Any) -> list[instruments.Layer]:
        kept = units(params, test[0])
        real = np.asarray(test[0]["words"])[:, 1:] != PAD
        return [
            instruments.of_dense(
                np.asarray(kept[name]["ffn"]["units"][0])[real],
                params[name]["ffn"]["up"]["kernel"],
                params[name]["ffn"]["down"]["kernel"],
            )
            for name in ("decoder_0", "decoder_1")
        ]

    rate = optax.warmup_cosine_decay_schedule(0, RATE, steps // 12, steps)
    every = max(25 * steps // STEPS, 1)  # a trial refreshes as often
    return Problem(
        init,
        loss,
        lambda seed: data.batches(
            speech, seed, steps, min(SIZE, len(speech.train) // 8)
        ),
        steps,
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate)),
        {"in": "decoder.*up/kernel", "out": "decoder.*down/kernel"},
        Schedule(every=every, start=every, ramp=steps // 2),
        measure,
        layers,
        where=lambda rest, batch, key: batch["words"][:, 1:] != PAD,
    )


def _text(numbers: np.ndarray, speech: Speech) -> str:
    """What was written, up to the end."""
    end = np.flatnonzero(numbers == END)
    some = numbers[1 : end[0] if len(end) else None]
    return " ".join(speech.vocabulary[n - FIRST] for n in some if n >= FIRST)


def scores(said: list[str], written: list[str], speech: Speech) -> Found:
    """Word error rate, and the share of the words of each bucket that is missed."""
    found = jiwer.process_words(said, written)
    total: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for words, chunks in zip(found.references, found.alignments, strict=True):
        total.update(words)
        for chunk in chunks:
            if chunk.type in ("substitute", "delete"):
                wrong.update(words[chunk.ref_start_idx : chunk.ref_end_idx])
    shares = {}
    for name, bucket in zip(("head", "mid", "tail"), speech.buckets(), strict=True):
        count = sum(total[word] for word in bucket)
        missed = sum(wrong[word] for word in bucket)
        shares[name] = 100 * missed / count if count else None
    return {"wer": 100 * found.wer, **shares}


ONE, OTHERS = Case(by.FAN_IN, PUBLISHED), (by.EQUAL, by.LAYER, by.RIGL, by.TOPK)
ALL = (Case(DENSE), *(Case(name, PUBLISHED) for name in OTHERS))
FEWER = "BB on incoming edges misses fewer {} words at .85 than dense and all others"
QUESTIONS = (
    Question(
        "BB on incoming edges has a lower WER at .85 than dense and all others",
        "wer",
        ONE,
        ALL,
    ),
    *(Question(FEWER.format(name), name, ONE, ALL) for name in ("head", "mid", "tail")),
    Question(
        "magnitude at .85 misses more head words than the dense net",
        "head",
        Case(DENSE),
        (Case(by.EQUAL, PUBLISHED), Case(by.LAYER, PUBLISHED)),
    ),
    Question(
        "BB on incoming edges has a lower WER at .3 than equal degrees",
        "wer",
        Case(by.FAN_IN, LOW),
        (Case(by.EQUAL, LOW),),
    ),
    Question(
        "the WER of BB at .3 is lower with regrowth",
        "wer",
        Case(REGROWN, LOW),
        (Case(by.FAN_IN, LOW),),
    ),
)
NEUTRAL = Question(
    "BB on outgoing edges is neutral at .85: at most a point of WER above dense",
    "wer",
    Case(by.FAN_OUT, PUBLISHED),
    (Case(DENSE),),
)


def judged(runs: Runs) -> Sequence[Verdict]:
    """The questions of the README."""
    return [
        *judge.answered(runs, QUESTIONS),
        judge.level(runs, NEUTRAL, 1.0),
        *judge.codes(runs, by.FAN_IN, (by.EQUAL, by.LAYER), PUBLISHED),
        judge.fan_out(runs, "wer", LOW),
    ]


def bench(folder: Path, small: bool) -> Bench:
    """Reads AN4."""
    speech = data.an4(folder / "an4" / "an4_flac.tar", 40 if small else None)
    return Trainer(problem(speech, 30 if small else STEPS)).run


EXPERIMENT = Experiment(
    name="speech",
    title="Spoken words, AN4",
    claim="C7",
    cases=grid(METHODS, (PUBLISHED, LOW)),
    metrics=METRICS,
    bench=bench,
    judge=judged,
)
