"""A whole run of `bb.transform` in plain Python loops, from the specification alone.

Nothing here shares code with the library. A kernel is a list of edges, each with its
input unit, its output unit and the places of its weights; degrees are handed out one
edge at a time; selection sorts; numbers are float64. Per update:

    1  activity     m <- d m + (1 - d) x,  w <- d w + (1 - d),  a = m / w
    2  refresh, if due, from the weights before the update
    3  landing      kept: p + u   pruned: 0   comes back: its dormant value

`Oracle.margin` is the smallest gap by which any choice was made. Where it is far
above float32 rounding, masks must agree exactly; exact ties are decided by index on
both sides and leave it alone. Reference: arXiv 2510.01263, and `bb.transform`.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Edge(NamedTuple):
    source: int
    target: int
    at: list  # places of its weights in the kernel


@dataclasses.dataclass(frozen=True)
class Layout:
    """Edges of each stack slice, in the order that decides ties."""

    shape: tuple
    slices: list
    sources: int
    targets: int

    def units(self, actuator):
        return self.targets if actuator == "in" else self.sources

    def fan(self, actuator):
        return len(self.slices[0]) // self.units(actuator)


def dense(n_in, n_out):
    edges = [Edge(i, j, [(i, j)]) for i in range(n_in) for j in range(n_out)]
    return Layout((n_in, n_out), [edges], n_in, n_out)


def transposed(n_out, n_in):
    edges = [Edge(i, j, [(j, i)]) for j in range(n_out) for i in range(n_in)]
    return Layout((n_out, n_in), [edges], n_in, n_out)


def stacked(n, n_in, n_out):
    slices = [
        [Edge(i, j, [(s, i, j)]) for i in range(n_in) for j in range(n_out)]
        for s in range(n)
    ]
    return Layout((n, n_in, n_out), slices, n_in, n_out)


def heads(n_in, n_heads, width):
    """(in, heads, width): every (head, feature) pair is an output unit."""
    places = itertools.product(range(n_in), range(n_heads), range(width))
    edges = [Edge(i, h * width + f, [(i, h, f)]) for i, h, f in places]
    return Layout((n_in, n_heads, width), [edges], n_in, n_heads * width)


def conv(height, width, n_in, n_out, groups=1):
    """(height, width, in / groups, out): one edge is a whole window."""
    own_in, own_out = n_in // groups, n_out // groups
    window = list(itertools.product(range(height), range(width)))
    edges = [
        Edge(j // own_out * own_in + i, j, [(y, x, i, j) for y, x in window])
        for i in range(own_in)
        for j in range(n_out)
    ]
    return Layout((height, width, own_in, n_out), [edges], n_in, n_out)


# Laws: from on-rates and the mean degree to relative degrees ---------------------
class Law(NamedTuple):
    combine: str
    profile: Callable
    dead: float = -1.0
    floor: float = 0.0

    def alive(self, rate):
        """How much of a unit's claim counts: nothing up to `dead`, all from 4 dead."""
        rate, dead = round(rate * 2**20) / 2**20, round(self.dead * 2**20) / 2**20
        if dead <= 0:
            return float(rate > dead)
        return min(max((rate - dead) / (3 * dead), 0.0), 1.0)


def log_odds(beta=None, *, spread=0.1, limit=2.0, dead=1e-3, floor=0.1, clip=1e-2):
    def odds(rates):
        rates = [min(max(round(a * 2**20) / 2**20, clip), 1 - clip) for a in rates]
        return np.array([math.log((1 - a) / a) for a in rates])

    def by_beta(rates, mean):
        return odds(rates) / beta

    def by_spread(rates, mean):
        alive = np.array([law.alive(a) for a in rates])
        level = (odds(rates) * alive).sum() / max(alive.sum(), 1e-9)
        return spread * mean * np.clip(odds(rates) - level, -limit, limit) * alive

    if beta is not None:
        return Law("shift", by_beta)
    law = Law("shift", by_spread, dead, floor)
    return law


def uniform():
    return Law("shift", lambda rates, mean: np.zeros(len(rates)))


def linear():
    return Law("scale", lambda rates, mean: np.array([max(1 - a, 1e-6) for a in rates]))


def threshold():
    return Law("scale", lambda rates, mean: np.array([1 / max(a, 1e-2) for a in rates]))


def ramp(density, start, steps, power):
    def at(step):
        left = min(max(1 - (step - start) / steps, 0), 1)
        return density + (1 - density) * left**power

    return at


@dataclasses.dataclass
class Oracle:
    """The run of one kernel; `update` changes `params`, `mask`, `dormant` in place."""

    layout: Layout
    params: np.ndarray
    law: Law = dataclasses.field(default_factory=log_odds)
    competition: float = 0.0
    raw: bool = False  # whether the input units are no units of the net
    actuators: tuple = ("in",)
    density: float | Callable = 0.7
    every: int = 1
    start: int = 0
    stop: int | None = None
    regrow: bool = True
    rescale: bool = False
    k_min: int = 1
    ema: float = 0.99

    def __post_init__(self):
        layout = self.layout
        self.params = np.array(self.params, np.float64)
        self.dormant = np.zeros(layout.shape)
        self.mask = [[True] * len(edges) for edges in layout.slices]
        self.step, self.margin = 0, math.inf
        shapes = {a: (len(layout.slices), layout.units(a)) for a in self.actuators}
        self.mean = {a: np.zeros(shape) for a, shape in shapes.items()}
        self.weight = {a: np.zeros(shape) for a, shape in shapes.items()}

    # What the library shows -------------------------------------------------------
    def full_mask(self):
        full = np.zeros(self.layout.shape, bool)
        for edges, kept in zip(self.layout.slices, self.mask, strict=True):
            for edge, keep in zip(edges, kept, strict=True):
                for at in edge.at:
                    full[at] = keep
        return full

    def on_rates(self, actuator):
        mean, weight = self.mean[actuator], self.weight[actuator]
        return np.where(weight > 0, mean / np.where(weight > 0, weight, 1), 0.5)

    def degrees(self, actuator, s):
        count = [0] * self.layout.units(actuator)
        for edge, keep in zip(self.layout.slices[s], self.mask[s], strict=True):
            count[_unit(edge, actuator)] += keep
        return count

    # One update -------------------------------------------------------------------
    def update(self, updates, activity):
        """`activity[actuator]`: on-rates and sample counts, both (slices, units)."""
        for actuator in self.actuators:
            self._observe(actuator, *activity[actuator])
        due = self.step >= self.start and (self.step - self.start) % self.every == 0
        due = due and (self.stop is None or self.step < self.stop)
        for s in range(len(self.layout.slices)):
            self._land(s, np.asarray(updates, np.float64), due)
        self.step += 1

    def _observe(self, actuator, rate, count):
        mean, weight = self.mean[actuator], self.weight[actuator]
        for at in np.ndindex(mean.shape):
            if count[at] > 0 and math.isfinite(rate[at]):
                mean[at] = self.ema * mean[at] + (1 - self.ema) * float(rate[at])
                weight[at] = self.ema * weight[at] + (1 - self.ema)

    def _land(self, s, updates, due):
        edges, had = self.layout.slices[s], self.mask[s]
        old = self._scales(s)
        latent = [
            [self.params[at] / old[e.target] if m else self.dormant[at] for at in e.at]
            for e, m in zip(edges, had, strict=True)
        ]
        if due:
            self.mask[s] = self._choose(s, [sum(map(abs, w)) for w in latent])
        new = self._scales(s)
        for edge, before, keep, values in zip(
            edges, had, self.mask[s], latent, strict=True
        ):
            for at, value in zip(edge.at, values, strict=True):
                if keep and before:
                    ratio = new[edge.target] / old[edge.target]
                    self.params[at] = (self.params[at] + updates[at]) * ratio
                elif keep:
                    self.params[at] = value * new[edge.target]
                else:
                    self.params[at], self.dormant[at] = 0, value

    def _scales(self, s):
        if not (self.rescale and "in" in self.actuators):
            return [1.0] * self.layout.targets
        fan = self.layout.fan("in")
        return [math.sqrt(fan / k) if k else 1.0 for k in self.degrees("in", s)]

    # A refresh --------------------------------------------------------------------
    def _choose(self, s, scores):
        edges = self.layout.slices[s]
        able = [self.regrow or kept for kept in self.mask[s]]
        density = self.density(self.step) if callable(self.density) else self.density
        self._gap(0.5 - abs(density * len(edges) - round(density * len(edges))))
        budget = round(density * len(edges))
        sides = {}
        for actuator in self.actuators:
            rows = [[] for _ in range(self.layout.units(actuator))]
            for i, edge in enumerate(edges):
                if able[i]:
                    rows[_unit(edge, actuator)].append(i)
            rows = [sorted(row, key=lambda i: (-scores[i], i)) for row in rows]
            rate = self.on_rates(actuator)[s]
            caps = [len(row) for row in rows]
            law, share = self.law, self.competition
            if share and actuator == "out" and self.raw:
                law, share = uniform()._replace(floor=self.law.floor), 1.0
            alive = [law.alive(a) for a in rate]
            wins = self._wins(rows, scores, budget, alive) if share else None
            left = min(budget, sum(able))
            count = self._hand_out(law, share, wins, rate, caps, left, budget)
            sides[actuator] = rows, count
        if len(sides) == 1:
            ((rows, count),) = sides.values()
            return self._best(rows, count, scores)
        return self._both(sides, scores, min(budget, sum(able)), able)

    def _wins(self, rows, scores, budget, alive):
        """Edges of each unit among the best of the living; ties are shared by all."""
        rows = [row if a > 0 else [] for row, a in zip(rows, alive, strict=True)]
        ranked = sorted((scores[i] for row in rows for i in row), reverse=True)
        if len(ranked) <= budget:
            return [len(row) * a for row, a in zip(rows, alive, strict=True)]
        last, first = ranked[budget - 1], ranked[budget]
        self._gap(last - first)
        ahead = sum(score > last for score in ranked)
        share = (budget - ahead) / ranked.count(last)
        return [
            a * sum((scores[i] > last) + share * (scores[i] == last) for i in row)
            for row, a in zip(rows, alive, strict=True)
        ]

    def _hand_out(self, law, share, wins, rates, caps, budget, full_budget):
        """The next edge goes where the law's free number reaches it first."""
        mean = full_budget / len(rates)
        profile = law.profile(list(rates), mean)
        if law.profile(list(np.linspace(0.1, 0.9, 9)), 1.0).any():
            order = list(rates)
        else:  # a uniform law ignores activity, in ties as well
            order = [0.5] * len(rates)
        least = max(self.k_min, math.floor(np.float32(law.floor) * np.float32(mean)))
        low = [min(least, cap) for cap in caps]
        if share:
            profile = share * np.array(wins) + profile
        return self._served(law.combine, profile, order, low, caps, budget)

    def _served(self, combine, profile, rates, low, caps, budget):
        queue = sorted(
            (n - p if combine == "shift" else n / p, rate, i)
            for i, (p, rate) in enumerate(zip(profile, rates, strict=True))
            for n in range(low[i] + 1, caps[i] + 1)
        )
        taken = max(budget - sum(low), 0)
        if 0 < taken < len(queue):
            self._gap(queue[taken][0] - queue[taken - 1][0])
        count = list(low)
        for _, _, i in queue[:taken]:
            count[i] += 1
        return count

    def _best(self, rows, count, scores):
        keep = [False] * len(scores)
        for row, k in zip(rows, count, strict=True):
            if 0 < k < len(row):
                self._gap(scores[row[k - 1]] - scores[row[k]])
            for i in row[:k]:
                keep[i] = True
        return keep

    def _both(self, sides, scores, budget, able):
        kept, floor, bar = [], [False] * len(scores), [0.0] * len(scores)
        for rows, count in sides.values():
            kept.append(self._best(rows, count, scores))
            for row, k in zip(rows, count, strict=True):
                for place, i in enumerate(row):
                    floor[i] |= place < min(k, self.k_min)
                    bar[i] = max(bar[i], scores[row[k - 1]] if k else math.inf)

        def rank(i):
            group = 3 if floor[i] else kept[0][i] + kept[1][i]
            return group, min(scores[i] / bar[i], 1.0) if bar[i] else 1.0

        order = sorted((i for i in range(len(scores)) if able[i]), key=rank_key(rank))
        if budget < len(order):
            (g, last), (h, first) = rank(order[budget - 1]), rank(order[budget])
            self._gap(last - first if g == h else math.inf)
        keep = [False] * len(scores)
        for i in order[:budget]:
            keep[i] = True
        return keep

    def _gap(self, gap):
        if gap > 0:
            self.margin = min(self.margin, gap)


def rank_key(rank):
    """Best group first, then best ratio, then the lowest index."""
    return lambda i: (-rank(i)[0], -rank(i)[1], i)


def _unit(edge, actuator):
    return edge.target if actuator == "in" else edge.source
