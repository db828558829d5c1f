"""The questions of C5: what BB does to codes, what traffic says of information."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.claims.common.methods import METHODS
from benchmarks.common import stats
from benchmarks.common.text import table

Found = Mapping[str, Mapping[str, Any]]  # task -> method -> arrays, seeds in front
CONTROLS = ("dense", "magnitude", "layer")
GOOD, FAIR = 0.8, 0.5  # R2 that predicts well, or somewhat


def verdicts(found: Found) -> list[stats.Verdict]:
    """The questions of the README, in its order."""
    return [
        _code(found, "entropy", "raises coding entropy (bits a unit)", sign=1),
        _code(found, "correlation", "lowers pairwise correlation", sign=-1),
        _units(found),
        _checkpoints(found),
        _nets(found, 0, "nets of a task (seeds and methods)"),
        _layers(found),
        _pruned_only(found),
    ]


def information(seen: Any) -> np.ndarray:
    """Middle of the two estimates: (seeds, checkpoints, layers)."""
    return (seen["channel"]["low"] + seen["channel"]["high"]) / 2


# Codes -------------------------------------------------------------------------------
def _code(found: Found, what: str, words: str, *, sign: int) -> stats.Verdict:
    parts, better, worse = [], [], []
    for task, of in found.items():
        ends = {name: of[name]["code"][what][:, -1] for name in ("bb", *CONTROLS)}
        gaps = stats.differences(ends["bb"], {n: ends[n] for n in CONTROLS})
        better += [sign * g.mean > 0 and g.p < stats.LEVEL for g in gaps.values()]
        worse += [sign * g.mean < 0 and g.p < stats.LEVEL for g in gaps.values()]
        text = ", ".join(f"{METHODS[n].label} {g}" for n, g in gaps.items())
        parts.append(f"{task} {stats.mean_sd(ends['bb'])}; against {text}")
    return stats.decide(
        f"BB {words}",
        ". ".join(parts),
        "better than every control on every task, paired t-tests, Holm within a task, "
        "p < 0.05 (weakly: than some, worse than none)",
        holds=all(better),
        weakly=any(better) and not any(worse),
    )


# Traffic as a predictor --------------------------------------------------------------
def _r2(x: Any, y: Any) -> float:
    """R2 of a line, with the sign of its slope: a falling line predicts nothing."""
    line = stats.line(np.ravel(x), np.ravel(y))
    return float(np.copysign(line.r2, line.slope))


def _grade(question: str, r2: Mapping[str, float], extra: str = "") -> stats.Verdict:
    each = ", ".join(f"{name} {value:.2f}" for name, value in r2.items())
    return stats.decide(
        question,
        f"R² of a line, with the sign of its slope: {each}{extra}",
        f"at least {GOOD} everywhere (weakly: {FAIR})",
        holds=min(r2.values()) >= GOOD,
        weakly=min(r2.values()) >= FAIR,
    )


def unit_fits(seen: Any) -> dict[str, np.ndarray]:
    """R2 of information of units on traffic, degree, on-rate and power, by seed."""
    units = seen["units"]
    names = ("traffic", "degree", "rate", "power")
    return {
        name: np.array(
            [_r2(x, y) for x, y in zip(units[name], units["information"], strict=True)]
        )
        for name in names
    }


def _units(found: Found) -> stats.Verdict:
    r2, beside = {}, []
    for task, of in found.items():
        fits = unit_fits(of["bb"])
        r2[task] = float(np.nanmean(fits["traffic"]))
        others = [f"{n} {np.nanmean(v):.2f}" for n, v in fits.items() if n != "traffic"]
        beside.append(f"{task}: {', '.join(others)}")
    extra = f" (mean over nets under BB); of other predictors, {'; '.join(beside)}"
    return _grade("Traffic predicts information linearly across units", r2, extra)


def _checkpoints(found: Found) -> stats.Verdict:
    r2 = {}
    for task, of in found.items():
        seen = of["bb"]
        info, traffic = information(seen)[..., 0], seen["channel"]["traffic"][..., 0]
        each = [_r2(t, i) for t, i in zip(traffic, info, strict=True)]
        r2[task] = float(np.nanmean(each))
    return _grade(
        "Traffic predicts information across checkpoints of a net",
        r2,
        " (mean over nets under BB)",
    )


def _nets(found: Found, layer: int, words: str) -> stats.Verdict:
    r2, beside = {}, []
    for task, of in found.items():
        info = [information(seen)[:, -1, layer] for seen in of.values()]
        traffic = [seen["channel"]["traffic"][:, -1, layer] for seen in of.values()]
        r2[task] = _r2(traffic, info)
        power = [seen["channel"]["power"][:, -1, layer] for seen in of.values()]
        beside.append(f"{task} {_r2(power, info):.2f}")
    extra = f"; of tr(W'ΣW): {', '.join(beside)}"
    return _grade(f"Traffic predicts information across {words}", r2, extra)


def _pruned_only(found: Found) -> stats.Verdict:
    r2 = {}
    for task, of in found.items():
        pruned = [seen for name, seen in of.items() if name != "dense"]
        info = np.concatenate([information(seen)[:, -1, 0] for seen in pruned])
        traffic = np.concatenate([s["channel"]["traffic"][:, -1, 0] for s in pruned])
        r2[task] = _r2(traffic, info)
    return _grade(
        "Traffic predicts information across nets of equal density, without dense ones",
        r2,
    )


def _layers(found: Found) -> stats.Verdict:
    """Layers of all tasks: traffic and information of the second and last kernels."""
    info, traffic = [], []
    for of in found.values():
        for seen in of.values():
            info.append(information(seen)[:, -1])
            traffic.append(seen["channel"]["traffic"][:, -1])
    r2 = {"all tasks and nets": _r2(np.concatenate(traffic), np.concatenate(info))}
    return _grade("Traffic predicts information across layers", r2)


# Tables ------------------------------------------------------------------------------
def tables(found: Found) -> str:
    """Every method on every task, at the end."""
    columns: dict[str, Callable[[Any], np.ndarray]] = {
        "entropy, bits": lambda s: s["code"]["entropy"][:, -1],
        "mean abs. correlation": lambda s: s["code"]["correlation"][:, -1],
        "participation ratio": lambda s: s["code"]["dimension"][:, -1],
        "tr(W'ΣW)": lambda s: s["channel"]["power"][:, -1, 0],
        "traffic": lambda s: s["channel"]["traffic"][:, -1, 0],
        "I, nats": lambda s: information(s)[:, -1, 0],
        "accuracy on the samples, %": lambda s: s["accuracy"][:, -1],
    }
    rows = []
    for task, of in found.items():
        for name, seen in of.items():
            gap = seen["channel"]["high"] - seen["channel"]["low"]
            digits = {"tr(W'ΣW)": 1, "traffic": 0, "accuracy on the samples, %": 2}
            cells = [
                stats.mean_sd(f(seen), digits.get(k, 3)) for k, f in columns.items()
            ]
            bias = f"{np.mean(gap[:, -1, 0]) / 2:.3f}"
            r2 = f"{np.nanmean(unit_fits(seen)['traffic']):.2f}"
            rows.append([task, METHODS[name].label, *cells, bias, r2])
    head = ["task", "method", *columns, "I off by at most", "signed R² over units"]
    return table(head, rows)
