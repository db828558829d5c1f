"""The questions of C2 and its tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.claims.common.methods import METHODS
from benchmarks.common import stats
from benchmarks.common.text import table

# placement -> setting -> method -> "end", "units" -> arrays, seeds in front
Found = Mapping[str, Any]
CONTROLS = ("magnitude", "layer", "activity_only")
COLUMNS = {
    "recall rare": "recall, rare clauses",
    "near miss rare": "near misses taken for it",
    "AUC rare": "AUC, rare",
    "recall moderate": "recall, moderate",
    "recall common": "recall, common",
    "accuracy": "accuracy",
}


def key(density: float = 0.1, rare: float = 0.02) -> str:
    """Name of a setting."""
    return f"density {density:g}, rare {rare:g}"


def verdicts(found: Found, rarities: Sequence[float]) -> list[stats.Verdict]:
    """The questions of the README, in its order."""
    answers = []
    for placement, of in found.items():
        answers += [
            _fan_out(placement, of[key()]),
            _recall(placement, of[key()], 0.02),
            _recall(placement, of[key(rare=min(rarities))], min(rarities)),
            _rarer(placement, of, rarities),
            _traffic_idea(placement, of[key()], of[key(rare=min(rarities))]),
        ]
    return answers


def _last(of: Any, name: str, what: str) -> np.ndarray:
    return of[name]["units"][what][:, -1]


def _fan_out(placement: str, of: Any) -> stats.Verdict:
    rare, common = (_last(of, "bb", f"fan-out, {c}") for c in ("rare", "common"))
    beside = {
        name: _last(of, name, "fan-out, rare") / _last(of, name, "fan-out, common")
        for name in CONTROLS
    }
    gap = stats.differences(rare, {"common": common})["common"]
    means = ", ".join(
        f"{METHODS[n].label} {np.nanmean(v):.2f}" for n, v in beside.items()
    )
    return stats.decide(
        f"{placement}: the rare features' fan-out survives, the common ones' is cut",
        f"rare {stats.mean_sd(rare, 1)}, common {stats.mean_sd(common, 1)} edges under "
        f"BB; ratio rare / common of the controls: {means}",
        "rare above common, paired t-test, p < 0.05, and a ratio above every control's "
        "(weakly: the first alone)",
        holds=gap.mean > 0
        and gap.p < stats.LEVEL
        and np.nanmean(rare / common) > max(np.nanmean(v) for v in beside.values()),
        weakly=gap.mean > 0 and gap.p < stats.LEVEL,
    )


def _gaps(of: Any, what: str, controls: Sequence[str]) -> dict[str, stats.Difference]:
    return stats.differences(
        of["bb"]["end"][what], {n: of[n]["end"][what] for n in controls}
    )


def _better(gaps: Mapping[str, stats.Difference]) -> list[bool]:
    return [g.mean > 0 and g.p < stats.LEVEL for g in gaps.values()]


def _worse(gaps: Mapping[str, stats.Difference]) -> list[bool]:
    return [g.mean < 0 and g.p < stats.LEVEL for g in gaps.values()]


def _text(gaps: Mapping[str, stats.Difference]) -> str:
    return "; ".join(f"{METHODS[n].label} {gap}" for n, gap in gaps.items())


def _recall(placement: str, of: Any, rare: float) -> stats.Verdict:
    recall, auc = (_gaps(of, what, CONTROLS) for what in ("recall rare", "AUC rare"))
    wins = [a or b for a, b in zip(_better(recall), _better(auc), strict=True)]
    losses = _worse(recall) + _worse(auc)
    return stats.decide(
        f"{placement}: BB serves rare clauses (on-rate {rare:g}) better than the "
        "controls at the same density",
        f"points of recall against {_text(recall)}; of AUC {_text(auc)}",
        "better in recall or AUC than every control, worse in neither, paired t-tests, "
        "Holm, p < 0.05 (weakly: better than per-unit magnitude, worse than none)",
        holds=all(wins) and not any(losses),
        weakly=wins[0] and not any(losses),
    )


def _rarer(placement: str, found: Any, rarities: Sequence[float]) -> stats.Verdict:
    ends = [found[key(rare=r)] for r in rarities]
    gaps = np.array(
        [
            of["bb"]["end"]["AUC rare"] - of["magnitude"]["end"]["AUC rare"]
            for of in ends
        ]
    )  # (rarities, seeds)

    def slope(values: np.ndarray) -> float:
        return stats.line(-np.log10(rarities), values.mean(-1)).slope

    low, high = stats.bootstrap(gaps, slope)
    at = ", ".join(
        f"{r:g}: {g.mean():+.2f}" for r, g in zip(rarities, gaps, strict=True)
    )
    return stats.decide(
        f"{placement}: the gain over per-unit magnitude grows with rarity",
        f"points of AUC by on-rate {at}; slope {slope(gaps):+.2f} "
        f"({low:+.2f} to {high:+.2f}) a decade",
        "slope above 0 (95 % bootstrap over seeds) and a gain at the rarest "
        "(weakly: the slope alone)",
        holds=low > 0 and gaps[int(np.argmin(rarities))].mean() > 0,
        weakly=low > 0,
    )


def _traffic_idea(placement: str, plain: Any, rarest: Any) -> stats.Verdict:
    pairs = [_gaps(of, "AUC rare", ("activity_only",)) for of in (plain, rarest)]
    first, second = (p["activity_only"] for p in pairs)
    better = [any(_better(p)) for p in pairs]
    return stats.decide(
        f"{placement}: the log-odds law beats activity-only (C14)",
        f"points of AUC {first} at on-rate 0.02, {second} at the rarest",
        "better at both on-rates, paired t-tests, p < 0.05 (weakly: at one, worse at "
        "none)",
        holds=all(better),
        weakly=any(better) and not any(_worse(p)[0] for p in pairs),
    )


# Tables ------------------------------------------------------------------------------
def tables(found: Found) -> str:
    """Every method of every setting."""
    parts = []
    for placement, of in found.items():
        rows = []
        for setting, methods in of.items():
            for name, seen in methods.items():
                if name == "dense" and setting != key() and "rare 0.02" in setting:
                    continue
                end = seen["end"]
                label = METHODS[name].label if name in METHODS else f"BB, {name[4:]}"
                cells = [stats.mean_sd(end[what], 2) for what in COLUMNS]
                rows.append([setting, label, *cells])
        head = ["setting", "method", *COLUMNS.values()]
        parts.append(f"Budget on {placement}, percent:\n\n" + table(head, rows))
    return "\n\n".join(parts)
