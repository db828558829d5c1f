"""The questions of C16: settle, oscillate or wander; and what settings change."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.claims.common.methods import METHODS
from benchmarks.claims.settle.churn import last_quarter
from benchmarks.common import stats
from benchmarks.common.text import table

QUIET = 0.005  # of the kept edges per refresh
CHANCE = 0.5  # of the flips, where each mask is drawn without regard to the last
Found = Mapping[str, Any]


def verdicts(found: Found) -> list[stats.Verdict]:
    """The questions of the README, in its order."""
    answers = [_settles(found, name) for name in ("bb", "bb_no_regrow")]
    answers.append(_oscillates(found))
    if "every 25" in found:  # not in a trial
        answers += [
            _more_than(found, "magnitude"),
            _changes(found, "EMA 0.9", "EMA 0.999", "A longer memory of activity"),
            _changes(
                found,
                "learning rate 3e-3",
                "learning rate 3e-4",
                "A lower learning rate",
            ),
            _anneals(found),
            _hysteresis(found),
        ]
    return answers


def label_of(name: str) -> str:
    """What a row or curve is called."""
    if name in METHODS:
        return METHODS[name].label
    if name.endswith(", magnitude"):
        return f"magnitude, per unit, {name.removesuffix(', magnitude')}"
    return f"BB, {name}"


def _end(found: Found, name: str, what: str = "churn") -> np.ndarray:
    return last_quarter(found[name][what])


def _percent(share: Any, digits: int = 2) -> str:
    return stats.mean_sd(100 * np.asarray(share), digits) + " %"


def _settles(found: Found, name: str) -> stats.Verdict:
    end = _end(found, name)
    start = np.nanmean(np.asarray(found[name]["churn"])[:, 1:6])
    given = "" if name == "bb" else " (by construction: nothing returns)"
    return stats.decide(
        f"{label_of(name)}: masks settle at a constant learning rate{given}",
        f"{_percent(end)} of the kept edges replaced per refresh in the last quarter, "
        f"{100 * start:.1f} % in the first refreshes",
        f"mean churn of the last quarter ≤ {100 * QUIET:g} % (weakly: a tenth of that "
        "of the first refreshes)",
        holds=np.mean(end) <= QUIET,
        weakly=np.mean(end) <= 0.1 * start,
    )


def _oscillates(found: Found) -> stats.Verdict:
    undone, end = _end(found, "bb", "undone"), _end(found, "bb")
    beside = _percent(_end(found, "set", "undone"), 1)
    gap = stats.differences(
        100 * undone, {"chance": np.full(len(undone), 100 * CHANCE)}
    )
    overlap = np.asarray(found["bb"]["overlap"])
    half = overlap[:, overlap.shape[1] // 2]
    return stats.decide(
        "Budgeted Broadcast: masks oscillate: edges go and come back",
        f"{_percent(undone, 1)} of the flips of a refresh undo the refresh before, "
        f"{gap['chance']} points from chance (SET, which draws at random: {beside}); "
        f"{_percent(half, 1)} of the final mask is there at half of training",
        f"churn above {100 * QUIET:g} % and more than {100 * CHANCE:g} % undone, "
        "t-test over seeds, p < 0.05",
        holds=gap["chance"].mean > 0
        and gap["chance"].p < stats.LEVEL
        and np.mean(end) > QUIET,
    )


def _more_than(found: Found, control: str) -> stats.Verdict:
    gap = stats.differences(
        100 * _end(found, "bb"), {control: 100 * _end(found, control)}
    )[control]
    return stats.decide(
        f"Budgeted Broadcast's masks move more than those of {label_of(control)}",
        f"difference in points of churn, last quarter: {gap}",
        "paired t-test over seeds, p < 0.05",
        holds=gap.mean > 0 and gap.p < stats.LEVEL,
    )


def _changes(found: Found, fast: str, slow: str, words: str) -> stats.Verdict:
    ends = [_end(found, name) for name in (fast, "bb", slow)]
    gap = stats.differences(100 * ends[0], {"slow": 100 * ends[2]})["slow"]
    falls = ends[0].mean() > ends[1].mean() > ends[2].mean()
    at = ", ".join(_percent(e) for e in ends)
    return stats.decide(
        f"{words} calms the masks of Budgeted Broadcast",
        f"{fast}, as set, {slow}: {at} per refresh, last quarter",
        "churn falls at each of the two steps, and from first to last by a paired "
        "t-test, p < 0.05 (weakly: the latter alone)",
        holds=falls and gap.p < stats.LEVEL,
        weakly=gap.mean > 0 and gap.p < stats.LEVEL,
    )


def _anneals(found: Found) -> stats.Verdict:
    end = np.asarray(found["rate annealed"]["churn"])[:, -5:].mean(1)
    beside = np.asarray(found["rate annealed, magnitude"]["churn"])[:, -5:].mean(1)
    return stats.decide(
        "Budgeted Broadcast settles when the learning rate is annealed to 0",
        f"{_percent(end, 3)} per refresh over the last 5 refreshes; magnitude "
        f"{_percent(beside, 3)}",
        f"mean churn ≤ {100 * QUIET:g} %",
        holds=np.mean(end) <= QUIET,
    )


def _hysteresis(found: Found) -> stats.Verdict:
    calm, plain = _end(found, "hysteresis 0.5"), _end(found, "bb")
    gap = stats.differences(100 * plain, {"calm": 100 * calm})["calm"]
    right = stats.differences(
        found["hysteresis 0.5"]["accuracy"], {"bb": found["bb"]["accuracy"]}
    )["bb"]
    return stats.decide(
        "Hysteresis 0.5 calms the masks at no cost in accuracy",
        f"{_percent(plain)} → {_percent(calm)} per refresh; accuracy {right} points",
        "churn lower, paired t-test, p < 0.05, and accuracy not lower, p ≥ 0.05 "
        "(weakly: churn lower)",
        holds=gap.mean > 0
        and gap.p < stats.LEVEL
        and not (right.mean < 0 and right.p < stats.LEVEL),
        weakly=gap.mean > 0 and gap.p < stats.LEVEL,
    )


def tables(found: Found) -> str:
    """Every method and setting."""
    rows = []
    for name, of in found.items():
        curve = np.asarray(of["churn"])
        early = np.nanmean(curve[:, 1:6])
        half = np.asarray(of["overlap"])[:, curve.shape[1] // 2]
        rows.append(
            [
                label_of(name),
                of["every"],
                f"{100 * early:.1f} %",
                _percent(_end(found, name)),
                _percent(_end(found, name, "undone"), 1),
                _percent(half, 1),
                stats.mean_sd(of["accuracy"], 2),
            ]
        )
    head = ["", "every", "churn, first refreshes", "churn, last quarter"]
    head += ["of it undone at once", "final edges there at half", "test accuracy, %"]
    return table(head, rows)
