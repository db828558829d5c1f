"""From runs to paired differences, and from those to a verdict for each question.

Differences are in points of test accuracy, seed by seed. The ten corrupted cells of a
net, a method and what it is compared with are one family of paired t-tests, corrected
after Holm; clean images stand beside it, uncorrected.

    above    mean difference > 0 and p < .05
    below    mean difference < 0 and p < .05
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common.stats import LEVEL, VERDICTS, Difference
from benchmarks.corruptions.corrupt import CELLS, CLEAN, STRENGTHS
from benchmarks.corruptions.methods import (
    AGAINST,
    COMPETITION,
    DENSE,
    EQUAL_OUT,
    METHODS,
    OUT,
    PARTS,
)
from benchmarks.rules.table import holm, paired

Accuracy = dict[str, dict[str, list[float]]]  # by method and cell, seed by seed
Gaps = Mapping[str, Difference]  # by cell
HOLDS, WEAKLY, FAILS, OPEN = VERDICTS
FEWEST = 5  # seeds, below which nothing is decided
NOISE = "gaussian"
OTHERS = tuple(kind for kind in STRENGTHS if kind != NOISE)


class Question(NamedTuple):
    """A statement on a net that can fail.

    Attributes:
      name: its number.
      text: the statement.
      net: key of the net.
      kind: "noise" or "others", the rule that decides.
      methods: those it is asked of.
      against: what they have to beat, the more important first.
    """

    name: str
    text: str
    net: str
    kind: str
    methods: tuple[str, ...]
    against: tuple[str, str]


_BY_LAW = "the gain is the law's: more than counting outgoing edges gives"
_COUNTED = "counting outgoing edges gains without the law"
QUESTIONS = (
    Question("Q1", "the gain under noise repeats", "demo", "noise", OUT, AGAINST),
    Question("Q2", "other corruptions show it", "demo", "others", OUT, AGAINST),
    Question(
        "Q3", "another net shows it under noise", "residual", "noise", OUT, AGAINST
    ),
    Question(
        "Q4",
        "another net shows it under other corruptions",
        "residual",
        "others",
        OUT,
        AGAINST,
    ),
    *(
        question
        for net in ("demo", "residual")
        for question in (
            Question("Q5", _BY_LAW, net, "noise", OUT, (EQUAL_OUT, COMPETITION)),
            Question("Q5", _COUNTED, net, "noise", PARTS, AGAINST),
        )
    ),
)


def accuracies(runs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracies of the seeds that every method has, by net.

    Returns:
      By net: `seeds`, and `accuracy` by method and cell, in the order of the seeds.
    """
    by_net: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        of_seed = by_net.setdefault(run["net"], {}).setdefault(run["seed"], {})
        of_seed[run["method"]] = run["accuracy"]
    found = {}
    for net, by_seed in by_net.items():
        seeds = sorted(s for s, of in by_seed.items() if set(METHODS) <= set(of))
        accuracy = {
            method: {
                cell: [by_seed[s][method][cell] for s in seeds]
                for cell in (CLEAN, *CELLS)
            }
            for method in METHODS
        }
        if seeds:
            found[net] = {"seeds": seeds, "accuracy": accuracy}
    return found


def gaps(
    one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]
) -> dict[str, Difference]:
    """One method less another, cell by cell: mean, standard error, corrected p."""
    found = {}
    for cell in (CLEAN, *CELLS):
        a, b = (np.asarray(m[cell], float) for m in (one, other))
        count = len(a)
        error = (a - b).std(ddof=1) / count**0.5 if count > 1 else np.nan
        p = paired(a, b) if count > 1 else 1.0
        found[cell] = Difference(float((a - b).mean()), float(error), p)
    corrected = holm([found[cell].p for cell in CELLS])
    for cell, p in zip(CELLS, corrected, strict=True):
        found[cell] = found[cell]._replace(p=float(p))
    return found


def differences(accuracy: Accuracy) -> dict[str, dict[str, dict[str, Difference]]]:
    """By method and by what it is compared with: all cells of one net."""
    pairs = [(m, a) for m in METHODS if m != DENSE for a in AGAINST if m != a]
    pairs += [(m, part) for m in OUT for part in PARTS]
    found: dict[str, dict[str, dict[str, Difference]]] = {}
    for method, against in pairs:
        found.setdefault(method, {})[against] = gaps(
            accuracy[method], accuracy[against]
        )
    return found


def verdict(question: Question, found: Mapping[str, Gaps], seeds: int) -> str:
    """The verdict on one method.

    Args:
      question: the question.
      found: the method's differences, by what it is compared with.
      seeds: number of seeds.
    """
    if seeds < FEWEST:
        return OPEN
    first, second = (found[against] for against in question.against)
    if question.kind == "noise":
        return _noise(first, second)
    return _others(first, second)


def _noise(first: Gaps, second: Gaps) -> str:
    """Gaussian noise: both strengths, or one."""
    cells = _cells(NOISE)
    if all(_above(first[c]) and _above(second[c]) for c in cells):
        return HOLDS
    harmed = any(_below(first[c]) or _below(second[c]) for c in cells)
    gained = any(_above(first[c]) for c in cells)
    return WEAKLY if gained and not harmed else FAILS


def _others(first: Gaps, second: Gaps) -> str:
    """The other corruptions: each of them, or half of them."""
    cells = [c for kind in OTHERS for c in _cells(kind)]
    gains = [any(_above(first[c]) for c in _cells(kind)) for kind in OTHERS]
    both = [
        any(_above(first[c]) and _above(second[c]) for c in _cells(kind))
        for kind in OTHERS
    ]
    if all(both) and not any(_below(first[c]) or _below(second[c]) for c in cells):
        return HOLDS
    harmed = any(_below(first[c]) for c in cells)
    return WEAKLY if sum(gains) >= len(OTHERS) / 2 and not harmed else FAILS


def _cells(kind: str) -> list[str]:
    return [f"{kind} {strength:g}" for strength in STRENGTHS[kind]]


def _above(gap: Difference) -> bool:
    return gap.mean > 0 and gap.p < LEVEL


def _below(gap: Difference) -> bool:
    return gap.mean < 0 and gap.p < LEVEL


def judged(runs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that follows from the runs: by net, and the verdicts."""
    nets = accuracies(runs)
    for of in nets.values():
        of["differences"] = differences(of["accuracy"])
    verdicts = []
    for question in QUESTIONS:
        if question.net not in nets:
            continue
        of = nets[question.net]
        by_method = {
            method: verdict(question, of["differences"][method], len(of["seeds"]))
            for method in question.methods
        }
        said = question._asdict() | {"verdicts": by_method}
        verdicts.append({k: v for k, v in said.items() if k != "methods"})
    return {"nets": nets, "verdicts": verdicts}
