"""The questions of C4: loss right after, steps to recover, loss in the end."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.claims.common.methods import METHODS
from benchmarks.common import stats
from benchmarks.common.text import table

BACK = 1.1  # a loss within 10 % of that before the cut is recovered
LARGE = 0.7  # cuts from here on are large
WHAT = ("jump", "steps", "final")
Outcomes = Mapping[str, Mapping[str, Any]]


def outcome(seen: Mapping[str, np.ndarray], look: int) -> dict[str, np.ndarray]:
    """From losses (cuts, seeds, looks) to numbers (cuts, seeds).

    Looks are before the cut, one step after, then every `look` steps.
    """
    loss = seen["loss"]
    first = loss[..., :1]
    back = loss[..., 1:] <= BACK * first
    at = np.where(back.any(-1), back.argmax(-1), back.shape[-1])
    return {
        "before": loss[..., 0],
        "jump": loss[..., 1] - loss[..., 0],
        "steps": 1.0 + look * at,
        "final": loss[..., -1],
        "accuracy": seen["accuracy"][..., -1],
    }


def verdicts(outcomes: Outcomes, cuts: Sequence[float]) -> list[stats.Verdict]:
    """The questions of the README, in its order."""
    pruned, lesioned = outcomes["pruned"], outcomes["lesioned"]
    sizes, sudden = ("magnitude", "layer"), "sudden pruning: BB"
    return [
        _lower(
            "sudden pruning: BB loses less right after", "jump", pruned, sizes, cuts
        ),
        _lower(f"{sudden} is back sooner", "steps", pruned, sizes, cuts),
        _lower(f"{sudden} ends lower", "final", pruned, sizes, cuts),
        _lower(
            f"{sudden} loses less right after than activity-only (C14)",
            "jump",
            pruned,
            ("activity_only",),
            cuts,
        ),
        _lower(
            "lesions: nets that BB trained lose less right after",
            "jump",
            lesioned,
            ("dense", *sizes),
            cuts,
        ),
        _lower(
            "lesions: nets that BB trained are back sooner",
            "steps",
            lesioned,
            ("dense", *sizes),
            cuts,
        ),
    ]


def _lower(
    question: str,
    what: str,
    of: Mapping[str, Any],
    controls: Sequence[str],
    cuts: Sequence[float],
) -> stats.Verdict:
    """Whether BB is lower than every control at every large cut."""
    large = [i for i, cut in enumerate(cuts) if cut >= LARGE]
    gaps: dict[str, stats.Difference] = {}
    for i in large:
        others = {f"{cuts[i]:g}, {METHODS[n].label}": of[n][what][i] for n in controls}
        gaps |= stats.differences(of["bb"][what][i], others, correct=False)
    corrected = stats.holm([g.p for g in gaps.values()])
    gaps = {
        k: g._replace(p=p) for (k, g), p in zip(gaps.items(), corrected, strict=True)
    }
    better = [g.mean < 0 and g.p < stats.LEVEL for g in gaps.values()]
    worse = [g.mean > 0 and g.p < stats.LEVEL for g in gaps.values()]
    unit = "steps" if what == "steps" else "nats"
    return stats.decide(
        question,
        f"difference in {unit} by cut: "
        + "; ".join(f"{k} {g}" for k, g in gaps.items()),
        "lower than every control at cuts of 0.7 and 0.9, paired t-tests, Holm, "
        "p < 0.05 (weakly: than some, higher than none)",
        holds=all(better),
        weakly=any(better) and not any(worse),
    )


def tables(outcomes: Outcomes, cuts: Sequence[float], never: int) -> str:
    """Every method at every cut."""
    parts = []
    names = {"jump": "loss added", "steps": "steps to recover", "final": "final loss"}
    for kind, of in outcomes.items():
        rows = []
        for name, seen in of.items():
            for what in WHAT:
                digits = 0 if what == "steps" else 3
                cells = [stats.mean_sd(v, digits) for v in np.asarray(seen[what])]
                rows.append([METHODS[name].label, names[what], *cells])
        head = ["method", "", *(f"cut {c:g}" for c in cuts)]
        title = {
            "pruned": "Sudden pruning of a dense net by the method",
            "lesioned": "Random lesions of a net trained by the method at density 0.5",
        }[kind]
        parts.append(
            f"{title} (losses in nats; {never} steps: not recovered):\n\n"
            + table(head, rows)
        )
    return "\n\n".join(parts)
