"""The 2 x 2 matrix of linear response, its errors, and the questions of C6.

A shock takes a share f of the incoming (outgoing) edges of half of the units. Beside
the same run without a shock (f = 0), the shocked half changes by

    A(f) = mean |a_f - a_0|          K(f) = mean |k_f - k_0| / mean k_0

and the response is the slope through the origin, sum f A / sum f f; likewise of signed
changes. The half that is spared shows what reaches units through the rest of the net.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common import stats
from benchmarks.common.text import table

Found = Mapping[str, Mapping[str, np.ndarray]]  # side -> (shares, seeds, times, units)
SIDES, KINDS = ("in", "out"), ("a", "k")
SMALL = 0.2  # a cross response below this share of the direct one counts as none


def curves(found: Found) -> dict[str, Any]:
    """Sizes of changes: side -> kind -> half -> (shares, seeds, times)."""
    result: dict[str, Any] = {}
    for side, seen in found.items():
        hit = seen["hit"][0, 0]
        for kind, name in (("a", "rate"), ("k", "degree")):
            values = seen[name]
            change = values - values[:1]
            scale = 1.0 if kind == "a" else values[:1].mean(-1, keepdims=True)
            relative = change / scale
            result.setdefault(side, {})[kind] = {
                "shocked": np.abs(relative[..., hit]).mean(-1),
                "spared": np.abs(relative[..., ~hit]).mean(-1),
                "signed": relative[..., hit].mean(-1),
            }
    return result


def responses(found: Found, shares: Sequence[float]) -> dict[str, Any]:
    """Slopes: side -> kind -> half -> (seeds, times)."""
    f = np.array(shares)[:, None, None]
    return {
        side: {
            kind: {half: (f * v).sum(0) / (f * f).sum() for half, v in halves.items()}
            for kind, halves in kinds.items()
        }
        for side, kinds in curves(found).items()
    }


def summary(of: Any, time: int) -> dict[str, Any]:
    """Mean and standard error of every entry at a time."""
    return {
        f"{kind} to {side}": {
            half: [float(v[:, time].mean()), _error(v[:, time])]
            for half, v in of[side][kind].items()
        }
        for side in SIDES
        for kind in KINDS
    }


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


def _entry(of: Any, kind: str, side: str, time: int, half: str = "shocked") -> str:
    values = of[side][kind][half][:, time]
    return f"{values.mean():.3f} ± {_error(values):.3f}"


def verdicts(of: Any) -> list[stats.Verdict]:
    """The questions of the README, in its order."""
    return [
        _moves(of, "in", "a", 1, "Shocks of incoming edges move a, those of outgoing "
               "ones do not, before the controller acts"),
        _moves(of, "in", "a", 2, "Shocks of incoming edges move a more than those of "
               "outgoing ones in the end"),
        _moves(of, "out", "k", 2, "Shocks of outgoing edges move k more than those of "
               "incoming ones in the end"),
        _both(of),
    ]  # fmt: skip


def _moves(of: Any, side: str, kind: str, time: int, question: str) -> stats.Verdict:
    other = "out" if side == "in" else "in"
    direct, cross = (of[s][kind]["shocked"][:, time] for s in (side, other))
    gap = stats.differences(direct, {"cross": cross})["cross"]
    ratio = cross.mean() / direct.mean() if direct.mean() else np.inf
    return stats.decide(
        question,
        f"{kind} per unit share: {_entry(of, kind, side, time)} to SP-{side}, "
        f"{_entry(of, kind, other, time)} to SP-{other} shocks; difference {gap}",
        f"the direct response is larger, paired t-test, p < 0.05, and the cross one at "
        f"most {SMALL:g} of it (weakly: larger)",
        holds=gap.mean > 0 and gap.p < stats.LEVEL and ratio <= SMALL,
        weakly=gap.mean > 0 and gap.p < stats.LEVEL,
    )


def _both(of: Any) -> stats.Verdict:
    at_once = of["out"]["k"]["signed"][:, 0]
    later = of["out"]["k"]["signed"][:, 2]
    left = later.mean() / at_once.mean()
    low, high = np.percentile(later / at_once, (2.5, 97.5))
    return stats.decide(
        "The controller gives back outgoing edges that a shock took",
        f"signed response of k {_entry(of, 'k', 'out', 0, 'signed')} at once, "
        f"{_entry(of, 'k', 'out', 2, 'signed')} in the end: {100 * left:.0f} % is "
        f"left (seeds: {100 * low:.0f} to {100 * high:.0f} %)",
        "at most 10 % of the mean response is left (weakly: 50 %)",
        holds=abs(left) <= 0.1,
        weakly=abs(left) <= 0.5,
    )


def tables(of: Any, times: Sequence[str]) -> str:
    """Every matrix: the shocked half, the spared half, and signed changes."""
    rows = []
    for i, time in enumerate(times):
        for kind in KINDS:
            for half in ("shocked", "spared", "signed"):
                label = {"signed": "shocked, signed"}.get(half, f"{half}, size")
                cells = [_entry(of, kind, side, i, half) for side in SIDES]
                rows.append([time, kind, label, *cells])
    head = ["when", "response of", "units", "to SP-in shocks", "to SP-out shocks"]
    note = "Mean ± standard error over seeds, change per unit share of edges:\n\n"
    return note + table(head, rows)
