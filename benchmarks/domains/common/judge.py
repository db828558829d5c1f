"""Verdicts from runs: paired differences over seeds, corrected after Holm.

"Better" means higher or lower as the metric has it. A question holds where the method
is better than every control at p < 0.05, weakly where it is better than some and worse
than none. With fewer than 3 paired seeds it cannot be decided.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.common import stats
from benchmarks.common.stats import Verdict
from benchmarks.domains.common.experiment import DENSE, FEWEST, Case, Runs

TEST = (
    "better than every control, paired t-tests over seeds, Holm, p < 0.05 (weakly: "
    "than some, worse than none)"
)


class Question(NamedTuple):
    """A statement that can fail.

    Attributes:
      text: the statement.
      metric: by which it is judged.
      one: the case that is to be better ...
      controls: ... than each of these.
    """

    text: str
    metric: str
    one: Case
    controls: tuple[Case, ...]


def answered(runs: Runs, questions: Iterable[Question]) -> list[Verdict]:
    """The verdicts on questions."""
    return [better(runs, *question) for question in questions]


def better(
    runs: Runs, question: str, what: str, one: Case, controls: Sequence[Case]
) -> Verdict:
    """Whether a case is better than its controls by a metric."""
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
    pairs = {told(case): runs.paired(what, one, case) for case in controls}
    few = min((len(mine) for mine, _ in pairs.values()), default=0)
    own = stats.mean_sd(runs.values(what, *one), digits)
    if few < FEWEST:
        return stats.undecided(
            question, f"{own}; {few} paired seeds", f"at least {FEWEST} paired seeds"
        )
    gaps = {
        name: stats.differences(mine, {name: its})[name]
        for name, (mine, its) in pairs.items()
    }
    p = stats.holm([gap.p for gap in gaps.values()])
    gaps = {
        name: gap._replace(p=float(q))
        for (name, gap), q in zip(gaps.items(), p, strict=True)
    }
    text = ", ".join(f"{name} {gap}" for name, gap in gaps.items())
    up = [sign * g.mean > 0 and g.p < stats.LEVEL for g in gaps.values()]
    down = [sign * g.mean < 0 and g.p < stats.LEVEL for g in gaps.values()]
    return stats.decide(
        question,
        f"{own}; against {text}; {few} seeds or more",
        TEST,
        holds=all(up),
        weakly=any(up) and not any(down),
    )


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
) -> list[Verdict]:
    """C5: entropy, correlation, and traffic as a measure of information.

    Args:
      runs: with the instruments' numbers under "code".
      method: that of the paper.
      controls: pruned methods; the dense net is one as well.
      density: at which they are compared.
      dense: what the net without pruning is called.
    """
    one = Case(method, density)
    others = [Case(dense), *(Case(name, density) for name in controls)]
    return [
        compared(
            runs, f"C5: {method} raises coding entropy (bits a unit)",
            "code.entropy", one, others, 1,
        ),
        compared(
            runs, f"C5: {method} lowers the correlation of pairs of units",
            "code.correlation", one, others, -1,
        ),
        _traffic(runs, density),
    ]  # fmt: skip


def _traffic(runs: Runs, density: float) -> Verdict:
    question = "C5: traffic predicts information across nets of equal density"
    lines = [line for line in runs.lines if line["density"] == density]
    code = [line["code"] for line in lines if "code" in line]
    found: Mapping[str, stats.Line] = {
        name: stats.line([c[name] for c in code], [c["information"] for c in code])
        for name in ("traffic", "power")
    }
    test = "R² of a line with rising slope at least 0.8 (weakly: 0.5)"
    if len(code) < 2 * FEWEST:
        return stats.undecided(question, f"{len(code)} nets", test)
    signed = {k: float(np.copysign(line.r2, line.slope)) for k, line in found.items()}
    return stats.decide(
        question,
        f"R² with the sign of the slope: traffic {signed['traffic']:.2f}, tr(W'ΣW) "
        f"{signed['power']:.2f}; {len(code)} nets at {density:g}",
        test,
        holds=signed["traffic"] >= 0.8,
        weakly=signed["traffic"] >= 0.5,
    )


def fan_out(runs: Runs, what: str, method: str, density: float) -> Verdict:
    """C14: whether the price on fan-out helps against activity alone."""
    return better(
        runs,
        f"C14: {method} is better than activity alone",
        what,
        Case(method, density),
        [Case("activity-only", density)],
    )
