"""Growth: cost of step, refresh and state against weights, units and refresh period.

    python -m benchmarks.growth [--small] [--rounds 7] [--most 1e8] [--out FOLDER]

Nothing may grow faster than linearly in the weights. Measured are the update alone (one
square kernel, and ever more kernels of 2048 x 2048) and the whole train step, from 1e5
to 1e8 weights, beside dense references of the same size in the same round; the update
against units at 4.2 M weights, for both actuators; and against the refresh period.
Exponents are fitted over the upper range (`fit.py`), next to what the compiler says of
bytes and operations, which is exact. Takes about 4 minutes on 2 CPU cores and 8 GiB of
memory; `--small` 30 seconds. Writes growth_<backend>.json and .png.
"""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from benchmarks.common.measure import RESULTS, write
from benchmarks.growth import cases, picture, show
from benchmarks.growth.sections import PERIODS, against_period, against_size, faster


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes that are measured.

    Attributes:
        weights: of one kernel.
        trained: weights of the train step.
        side: of each of many kernels.
        counts: how many of them.
        unit_weights: weights at which units are varied.
        units: budgeted units.
        period_side: of the kernel on which the period is varied.
        periods: refresh periods.
        start: least number of weights that a fit takes.
    """

    weights: tuple[float, ...] = (1e5, 3.2e5, 1e6, 3.2e6, 1e7, 3.2e7, 1e8)
    trained: tuple[float, ...] = (1e5, 3.2e5, 1e6, 3.2e6, 1e7, 3.2e7, 1e8)
    side: int = 2048
    counts: tuple[int, ...] = (1, 2, 4, 8, 16, 24)
    unit_weights: int = 2**22
    units: tuple[int, ...] = (64, 256, 1024, 4096, 16384, 65536)
    period_side: int = 1024
    periods: tuple[int, ...] = PERIODS
    start: float = 1e6

    def up_to(self, most: float) -> "Plan":
        """The same without larger numbers of weights."""
        weights, trained = (
            tuple(w for w in all_ if w <= most) for all_ in (self.weights, self.trained)
        )
        counts = tuple(c for c in self.counts if c * self.side**2 <= 1.01 * most)
        return dataclasses.replace(
            self, weights=weights, trained=trained, counts=counts or self.counts[:1]
        )


SMALL = Plan(
    weights=(1e4, 1e5, 1e6),
    trained=(1e4, 1e6),
    side=256,
    counts=(1, 2),
    unit_weights=2**16,
    units=(64, 1024),
    period_side=256,
    periods=(1, 20),
    start=0,
)


def sections(plan: Plan, rounds: int) -> dict[str, Any]:
    """Every part of the report that grows with a size, by title."""

    def square(weights):
        return cases.alone((cases.side(weights),) * 2)

    def many(count):
        return cases.alone((plan.side, plan.side), count)

    def with_units(units, actuator):
        other = plan.unit_weights // units
        shape = (other, units) if actuator == "in" else (units, other)
        return cases.alone(shape, actuator=actuator)

    start = plan.start
    return {
        "one kernel": against_size(
            square, plan.weights, rounds, dense="sgd", start=start
        ),
        "many kernels": against_size(
            many, plan.counts, rounds, dense="sgd", start=start
        ),
        "train step": against_size(
            lambda w: cases.trained(cases.width(w)),
            plan.trained,
            rounds,
            dense="dense",
            start=start,
        ),
    } | {
        f"units, {actuator}": against_size(
            lambda n, a=actuator: with_units(n, a),
            plan.units,
            rounds,
            dense="sgd",
            by="units",
        )
        for actuator in ("in", "out")
    }


def main() -> None:
    """Measures, prints, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="small sizes, 3 rounds")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--most", type=float, default=1e8, help="most weights")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    began = time.perf_counter()
    plan = SMALL if args.small else Plan().up_to(args.most)
    rounds = args.rounds or (3 if args.small else 7)
    console = Console(width=max(96, Console().width))
    parts = sections(plan, rounds)
    period = against_period(plan.period_side, plan.periods, rounds)
    for title, part in parts.items():
        show.sizes(console, title, part)
    show.periods(console, period)
    show.exponents(console, parts)
    found = faster(parts)
    for kind, names in found.items():
        console.print(f"grows faster {kind}:", ", ".join(names) or "nothing")
    report = {
        "plan": dataclasses.asdict(plan),
        "rounds": rounds,
        "tokens": cases.TOKENS,
        "density": cases.DENSITY,
        "seconds": time.perf_counter() - began,
        "parts": parts,
        "period": period,
        "faster": found,
    }
    path = args.out / f"growth_{jax.default_backend()}.json"
    write(path, report)
    picture.draw(report, path.with_suffix(".png"))
    console.print(f"{report['seconds']:.0f} s; written: {path} and .png")


if __name__ == "__main__":
    main()
