"""The questions of C3: shares with intervals, paired tests, growth of cycles with W."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from benchmarks.common import stats
from benchmarks.common.text import table

LABELS = {
    "sgd": "SGD alone, as many steps",
    "random": "random exchange",
    "bb": "BB, random regrowth",
    "bb_shipped": "BB, as shipped",
    "rich": "not lazy, dense",
}
GROWTHS = {
    "1": lambda w: np.ones_like(w),
    "W": lambda w: w,
    "W log W": lambda w: w * np.log(w),
    "W²": lambda w: w**2,
}
DRAWS = 2000
Report = Mapping[str, Any]


def firsts(solved: Sequence[np.ndarray], cycles: int) -> np.ndarray:
    """First cycle that ended with every point right, (W, seeds); else one more."""
    return np.array([np.where(s.any(1), s.argmax(1) + 1, cycles + 1) for s in solved])


def _share(hits: Any) -> str:
    hits = np.asarray(hits)
    return stats.share(int(hits.sum()), hits.size)


def _done(report: Report, name: str) -> np.ndarray:
    return np.asarray(report["solved"][name]) <= report["cycles"]


def verdicts(report: Report) -> list[stats.Verdict]:
    """The questions of the README, in its order."""
    return [
        _half(report),
        _cover(report),
        _solves(report, "bb"),
        _solves(report, "bb_shipped"),
        _more_steps(report),
        _faster(report),
        _growth(report),
    ]


def _half(report: Report) -> stats.Verdict:
    done, alone = _done(report, "sgd"), np.array(report["alone"])
    per_w = [stats.wilson(int(d.sum()), d.size) for d in done]
    inside = [low <= 0.5 <= high for low, high in per_w]
    each = ", ".join(f"{d.mean():.2f}" for d in done)
    return stats.decide(
        "SGD alone, on a frozen random first layer with H = W, fails half the time",
        f"success {_share(done)} over all W (by W: {each}); {_share(alone)} after the "
        "steps of one cycle",
        "0.5 within the 95 % interval at every W (weakly: the share over all W within "
        "0.3 to 0.7)",
        holds=all(inside),
        weakly=0.3 <= done.mean() <= 0.7,
    )


def _cover(report: Report) -> stats.Verdict:
    parted = {n: np.array(v) for n, v in report["separable"].items()}
    inside, each = {}, {}
    for name, of in parted.items():
        bounds = [stats.wilson(int(s.sum()), s.size) for s in of]
        inside[name] = sum(low <= 0.5 <= high for low, high in bounds)
        each[name] = ", ".join(f"{s.mean():.2f}" for s in of)
    few = len(report["clauses"])
    return stats.decide(
        "The half is Cover's: at P = 2 H a linear readout exists with probability 1/2",
        "; ".join(f"{name}, by W: {text}" for name, text in each.items()),
        "0.5 within the 95 % interval (linear program) at every W for both labellings "
        "(weakly: at the two largest W)",
        holds=all(n == few for n in inside.values()),
        weakly=all(
            low <= 0.5 <= high
            for of in parted.values()
            for low, high in (stats.wilson(int(s.sum()), s.size) for s in of[-2:])
        ),
    )


def _solves(report: Report, name: str) -> stats.Verdict:
    done = _done(report, name)
    each = ", ".join(f"{d.mean():.2f}" for d in done)
    return stats.decide(
        f"SGD with {LABELS[name]}, solves it",
        f"success within {report['cycles']} cycles {_share(done)} (by W: {each})",
        "at least 0.95 at every W (weakly: above SGD alone over all W, exact McNemar "
        "test, p < 0.05)",
        holds=bool((done.mean(1) >= 0.95).all()),
        weakly=_mcnemar(done, _done(report, "sgd")) < stats.LEVEL
        and done.mean() > _done(report, "sgd").mean(),
    )


def _mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    wins, losses = int((one & ~other).sum()), int((other & ~one).sum())
    if wins + losses == 0:
        return 1.0
    return float(scipy_stats.binomtest(wins, wins + losses).pvalue)


def _more_steps(report: Report) -> stats.Verdict:
    done, sgd = _done(report, "random"), _done(report, "sgd")
    p = _mcnemar(done, sgd)
    return stats.decide(
        "It is the exchange of edges, not the extra steps (random exchange and SGD, "
        "from the same masks)",
        f"success {_share(done)} with exchange, {_share(sgd)} with as many steps of "
        f"SGD (p = {p:.2g})",
        "exact McNemar test over all W and seeds, p < 0.05",
        holds=p < stats.LEVEL and done.mean() > sgd.mean(),
    )


def _faster(report: Report) -> stats.Verdict:
    ours, theirs = (np.asarray(report["solved"][n]) for n in ("bb", "random"))
    differ = ours != theirs
    wins = int((ours < theirs).sum())
    tries = int(differ.sum())
    p = float(scipy_stats.binomtest(wins, tries).pvalue) if tries else 1.0
    done = {n: _share(_done(report, n)) for n in ("bb", "random")}
    medians = {n: np.median(report["solved"][n], 1) for n in ("bb", "random")}
    by_w = "; ".join(
        f"{LABELS[n]} {', '.join(f'{m:.0f}' for m in of)}" for n, of in medians.items()
    )
    return stats.decide(
        "Traffic chooses better than chance: BB needs fewer cycles than random "
        "exchange at the same rate",
        f"first in {wins} of {int(differ.sum())} pairs that differ (p = {p:.2g}); "
        f"median cycles by W: {by_w}; success {done['bb']} and {done['random']}",
        "sign test over all W and seeds, p < 0.05",
        holds=p < stats.LEVEL and wins > differ.sum() / 2,
    )


# Growth ------------------------------------------------------------------------------
def growth(report: Report, name: str) -> dict[str, Any]:
    """Which growth fits median cycles best, in logarithms, over resampled seeds.

    Where half of the seeds never succeed the median is the limit plus one, which is too
    small: such W are left out.
    """
    w = np.array(report["clauses"], float)
    cycles = np.asarray(report["solved"][name], float)
    seen = np.median(cycles, 1) <= report["cycles"]
    if seen.sum() < 3:
        return {"points": int(seen.sum())}
    w, cycles = w[seen], cycles[seen]

    def errors(values: np.ndarray) -> dict[str, float]:
        y = np.log(np.median(values, 1))
        return {label: float(np.std(y - np.log(g(w)))) for label, g in GROWTHS.items()}

    rng = np.random.default_rng(0)
    rows = rng.integers(0, cycles.shape[1], (DRAWS, cycles.shape[1]))
    best = [min(e, key=e.get) for e in (errors(cycles[:, row]) for row in rows)]

    def exponent(values: np.ndarray) -> float:
        return stats.line(np.log(w), np.log(np.median(values, -1))).slope

    return {
        "points": int(seen.sum()),
        "rms": errors(cycles),
        "best": {label: best.count(label) / DRAWS for label in GROWTHS},
        "exponent": exponent(cycles),
        "interval": stats.bootstrap(cycles, exponent),
    }


def _growth(report: Report) -> stats.Verdict:
    question = "Cycles to success grow as W log W (coupon collector)"
    test = (
        "of 1, W, W log W, W² the best fit to median cycles in logarithms, in at least "
        "95 % of resampled sets of seeds (weakly: the best fit); undecided with fewer "
        "than 3 W at which half of the seeds succeed"
    )
    found = growth(report, "bb")
    if found["points"] < 3:
        return stats.undecided(question, f"{found['points']} usable W", test)
    low, high = found["interval"]
    shares = ", ".join(f"{label} {share:.2f}" for label, share in found["best"].items())
    rms = ", ".join(f"{label} {value:.2f}" for label, value in found["rms"].items())
    number = (
        f"rms error of log cycles: {rms}; best in a share of {shares}; power of W "
        f"{found['exponent']:.2f} ({low:.2f} to {high:.2f}), {found['points']} W"
    )
    return stats.decide(
        question,
        number,
        test,
        holds=found["best"]["W log W"] >= 0.95,
        weakly=min(found["rms"], key=found["rms"].get) == "W log W",
    )


# Tables ------------------------------------------------------------------------------
def tables(report: Report) -> str:
    """Success and cycles by W, then success by hidden units per clause."""
    head = ["method", *(f"W = {w}" for w in report["clauses"])]
    rows = []
    for name, label in LABELS.items():
        cells = []
        for first in np.asarray(report["solved"][name]):
            done = first <= report["cycles"]
            middle = np.median(first)
            text = f"{middle:.0f}" if middle <= report["cycles"] else "–"
            cells.append(f"{_share(done)}, {text}")
        rows.append([label, *cells])
    for name, of in report["separable"].items():
        rows.append([f"separable, {name}", *(_share(s) for s in of)])
    ratios = [
        [f"{float(r):g}", *(_share(of[k]) for k in ("sgd", *report["separable"]))]
        for r, of in report["by_ratio"].items()
    ]
    return "\n\n".join(
        [
            "Success (95 % interval), median cycles to it:",
            table(head, rows),
            "SGD alone at W = 16 with more hidden units:",
            table(["H / W", "success", *report["separable"]], ratios),
        ]
    )
