"""How much of the machine others took while this process measured.

A load average before the start says nothing of what comes after it, so processor time
is counted over the whole run: of the machine from /proc/stat, of this process by the
system. Where there is no /proc the answer is None.
"""

import os
from pathlib import Path
from typing import NamedTuple

import jax

MOST = 0.03  # share of the cores that others may take


class Mark(NamedTuple):
    """Processor seconds up to now: of all cores, of them busy, and busy with us."""

    total: float
    busy: float
    own: float


def mark(stat: Path = Path("/proc/stat")) -> Mark | None:
    """A moment to count from."""
    if not stat.exists():
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal; guests are in user.
    ticks = [int(n) for n in stat.read_text().splitlines()[0].split()[1:9]]
    tick = os.sysconf("SC_CLK_TCK")
    used = os.times()
    own = used.user + used.system
    return Mark(sum(ticks) / tick, (sum(ticks) - ticks[3] - ticks[4]) / tick, own)


def others(began: Mark | None, ended: Mark | None) -> float | None:
    """The share of all cores' time that went elsewhere."""
    if began is None or ended is None or ended.total <= began.total:
        return None
    elsewhere = (ended.busy - began.busy) - (ended.own - began.own)
    return max(0.0, elsewhere / (ended.total - began.total))


def undisturbed(others: float | None) -> bool:
    """Whether times on a CPU are this process's own; accelerators are not shared."""
    if jax.default_backend() != "cpu" or others is None:
        return True
    return others <= MOST
