"""Verdicts from runs: paired differences over seeds, corrected after Holm.

"Better" means higher or lower as the metric has it. A question holds where the method
is better than every control at p < 0.05, weakly where it is better than the first of
them and worse than none. Where nothing can be told apart, it does not hold with 8 seeds
or more (against one control, a difference of 1.2 standard deviations is found four
times in five; against five, one of 1.6) and cannot be decided with fewer.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.common import stats
from benchmarks.common.stats import Verdict
from benchmarks.domains.common import instruments
from benchmarks.domains.common.experiment import DENSE, FEWEST, Case, Runs
from benchmarks.domains.common.methods import ACTIVITY, FAN_IN, STEEP, TOPK

ENOUGH = 8  # seeds from which on nothing found is a result
BETTER = (
    "better than every control, paired t-tests over seeds, Holm, p < 0.05 (holds "
    "weakly: better than the first control and worse than none)"
)


class Question(NamedTuple):
    """A statement that can fail.

    Attributes:
      text: the statement.
      metric: by which it is judged.
      one: the case that is to be better ...
      controls: ... than each of these; the first is the one that counts most.
    """

    text: str
    metric: str
    one: Case
    controls: tuple[Case, ...]


def of_domain(
    runs: Runs,
    questions: Iterable[Question],
    controls: Sequence[str],
    metric: str,
    density: float,
) -> list[Verdict]:
    """The questions of a domain, then C5 and C14 of BB on incoming edges there.

    Args:
      runs: of the domain.
      questions: its own.
      controls: pruned methods that C5 compares with.
      metric: that C14 is judged by.
      density: at which both are judged.
    """
    return [
        *answered(runs, questions),
        *codes(runs, FAN_IN, controls, density),
        fan_out(runs, metric, density),
    ]


def answered(runs: Runs, questions: Iterable[Question]) -> list[Verdict]:
    """The verdicts on questions."""
    return [better(runs, *question) for question in questions]


def better(
    runs: Runs, question: str, what: str, one: Case, controls: Sequence[Case]
) -> Verdict:
    """Whether a case is better than each of its controls by a metric."""
    metric = runs.metrics[what]
    sign = 1 if metric.higher else -1
    return compared(runs, question, what, one, controls, sign, metric.digits)


def compared(
    runs: Runs,
    question: str,
    what: str,
    one: Case,
    controls: Sequence[Case],
    sign: int,
    digits: int = 3,
) -> Verdict:
    """The same for any number of a run; `sign` -1 where less is better."""
    found = _gaps(runs, question, what, one, controls, digits, BETTER)
    if isinstance(found, Verdict):
        return found
    gaps, few, number = found
    up = [sign * g.mean > 0 and g.p < stats.LEVEL for g in gaps]
    down = [sign * g.mean < 0 and g.p < stats.LEVEL for g in gaps]
    if not up[0] and not any(down) and few < ENOUGH:
        return stats.undecided(question, number, BETTER)
    return stats.decide(
        question, number, BETTER, holds=all(up), weakly=up[0] and not any(down)
    )


def level(runs: Runs, question: Question, margin: float, *, digits: int = 2) -> Verdict:
    """Whether a case is nowhere worse than its controls by more than a margin."""
    what, one, controls = question.metric, question.one, question.controls
    sign = 1 if runs.metrics[what].higher else -1
    test = (
        "95 % intervals of what it is better by, paired, Bonferroni, stay above "
        f"-{margin:g} (does not hold: one is below 0)"
    )
    found = _gaps(runs, question.text, what, one, controls, digits, test)
    if isinstance(found, Verdict):
        return found
    alpha, ends, parts = stats.LEVEL / len(controls), [], []
    for control in controls:
        mine, its = _finite(*runs.paired(what, one, control))
        ends.append(stats.interval(sign * (mine - its), alpha))
        low, high = (f"{end:+.{digits}f}" for end in ends[-1])
        parts.append(f"{told(control)} {low} to {high}")
    own, few = stats.mean_sd(runs.values(what, *one), digits), found[1]
    number = f"{own}; better by: {', '.join(parts)}; {few} seeds"
    low, high = np.min(ends, 0)
    if low <= -margin and high >= 0:
        return stats.undecided(question.text, number, test)
    return stats.decide(question.text, number, test, holds=bool(low > -margin))


def _gaps(
    runs: Runs,
    question: str,
    what: str,
    one: Case,
    controls: Sequence[Case],
    digits: int,
    test: str,
) -> Verdict | tuple[list[stats.Difference], int, str]:
    """Differences to all controls, fewest pairs, and both in words.

    A verdict in their place where there are too few pairs.
    """
    own = stats.mean_sd(runs.values(what, *one), digits)
    pairs = {told(case): _finite(*runs.paired(what, one, case)) for case in controls}
    few = min((len(mine) for mine, _ in pairs.values()), default=0)
    if few < FEWEST:
        return stats.undecided(question, f"{own}; {few} paired seeds", test)
    gaps = [stats.differences(one, {"": other})[""] for one, other in pairs.values()]
    corrected = stats.holm([gap.p for gap in gaps])
    gaps = [g._replace(p=float(p)) for g, p in zip(gaps, corrected, strict=True)]
    text = ", ".join(f"{name} {gap}" for name, gap in zip(pairs, gaps, strict=True))
    return gaps, few, f"{own}; against {text}; {few} seeds"


def _finite(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    both = np.isfinite(one) & np.isfinite(other)
    return one[both], other[both]


def told(case: Case) -> str:
    """A case in words."""
    return case.method if case.density == 1 else f"{case.method} at {case.density:g}"


# C5 and C14, on every domain that trains under a mask ---------------------------------
def codes(
    runs: Runs,
    method: str,
    controls: Sequence[str],
    density: float,
    dense: str = DENSE,
    *,
    traffic: bool = True,
) -> list[Verdict]:
    """C5: entropy, correlation, and traffic as a measure of information.

    Args:
      runs: with the instruments' numbers under "code".
      method: that of the paper.
      controls: pruned methods; the dense net is one as well.
      density: at which they are compared.
      dense: what the net without pruning is called.
      traffic: whether the nets differ in how they were pruned alone, so that traffic
        and information can be compared.
    """
    one = Case(method, density)
    others = [Case(dense), *(Case(name, density) for name in controls)]
    found = [
        compared(
            runs,
            f"C5: {method} raises coding entropy (bits a unit)",
            "code.entropy",
            one,
            others,
            1,
        ),
        compared(
            runs,
            f"C5: {method} lowers the correlation of pairs of units",
            "code.correlation",
            one,
            others,
            -1,
        ),
    ]
    return [*found, _traffic(runs, density)] if traffic else found


def _traffic(runs: Runs, density: float) -> Verdict:
    question = "C5: traffic predicts information across nets of equal density"
    test = (
        "R² of a line with rising slope at least 0.8 (weakly: 0.5; does not hold: its "
        "95 % interval is below 0.5), seeds centred, nets that keep whole units left "
        "out; undecided within a nat of what the samples can show"
    )
    lines = [
        line
        for line in runs.lines
        if line["density"] == density and "code" in line and line["method"] != TOPK
    ]
    if len(lines) < 2 * FEWEST:
        return stats.undecided(question, f"{len(lines)} nets", test)
    seeds = np.array([line["seed"] for line in lines])
    centred = {
        name: _centred(np.array([line["code"][name] for line in lines]), seeds)
        for name in ("traffic", "power", "information")
    }
    signed = {}
    for name in ("traffic", "power"):
        fit = stats.line(centred[name], centred["information"])
        signed[name] = float(np.copysign(fit.r2, fit.slope))
    r2, most = signed["traffic"], float(np.log(instruments.SAMPLES))
    mean = float(np.mean([line["code"]["information"] for line in lines]))
    number = (
        f"R² with the sign of the slope: traffic {r2:.2f}, tr(W'ΣW) "
        f"{signed['power']:.2f}; {len(lines)} nets at {density:g}; mean information "
        f"{mean:.2f} nats, {most:.2f} can be shown"
    )
    # Degrees of freedom: each seed takes one for its mean.
    free = len(lines) - len(set(seeds.tolist()))
    r = np.copysign(np.sqrt(abs(r2)), r2)
    upper = np.tanh(
        np.arctanh(np.clip(r, -0.999, 0.999)) + 1.96 / max(free - 2, 1) ** 0.5
    )
    if mean > most - 1 or (r2 < 0.5 <= np.copysign(upper**2, upper)):
        return stats.undecided(question, number, test)
    return stats.decide(question, number, test, holds=r2 >= 0.8, weakly=r2 >= 0.5)


def _centred(values: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Without what all nets of a seed have in common."""
    out = values.astype(float)
    for seed in set(seeds.tolist()):
        out[seeds == seed] -= values[seeds == seed].mean()
    return out


def fan_out(runs: Runs, what: str, density: float) -> Verdict:
    """C14: whether the price on fan-out helps against activity alone.

    With the slope that activity alone has where a unit is on half of the time.
    """
    return better(
        runs,
        f"C14: {STEEP} is better than activity alone",
        what,
        Case(STEEP, density),
        [Case(ACTIVITY, density)],
    )
