"""Says at every moment at which step the demo is, and how long the step will take.

In a terminal every step is one line with a bar and the time that remains. Elsewhere
plain lines are printed: one at the start of a step, one at every fifth of it that takes
longer than a few seconds, and one at its end.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

Tick = Callable[[float], None]
PARTS = 5  # plain lines of a step


class Steps:
    """The steps of a run, in their order.

    Args:
        console: to write to.
        count: number of steps.
        pause: least seconds between two plain lines within a step.

    Example:
        >>> with Steps(Console(force_terminal=False), 1) as steps:
        ...     with steps.step("training", 2) as tick:
        ...         tick(2)
        1 of 1: training
          done in 0 s
    """

    def __init__(self, console: Console, count: int, pause: float = 5.0) -> None:
        self._console, self._count, self._number = console, count, 0
        self._pause = pause
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Steps:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Prints one line, above the bars if there are any."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def step(self, text: str, total: float) -> Iterator[Tick]:
        """One step, as a context.

        Args:
            text: what is done.
            total: amount of work.

        Yields:
            A function to call with the amount of work that has been done.
        """
        self._number += 1
        head = f"{self._number} of {self._count}: {text}"
        begin = last = time.perf_counter()
        done, told = 0.0, 0
        bar = None
        if self._console.is_terminal:
            bar = self._bars.add_task(head, total=total)
        else:
            self.say(head)

        def tick(amount: float) -> None:
            nonlocal done, told, last
            done += amount
            if bar is not None:
                self._bars.advance(bar, amount)
                return
            part, now = int(PARTS * done / total + 1e-6), time.perf_counter()
            if told < part < PARTS and now - last >= self._pause:
                told, last = part, now
                left = (now - begin) * (total - done) / done
                self.say(f"  {part * 100 // PARTS} %, about {duration(left)} left")

        yield tick
        if bar is not None:
            self._bars.update(bar, completed=total)
        else:
            self.say(f"  done in {time.perf_counter() - begin:.0f} s")


def duration(seconds: float) -> str:
    """A duration in words, rounded.

    Example:
        >>> duration(7.2), duration(88), duration(280)
        ('10 s', '1.5 min', '5 min')
    """
    if seconds < 55:
        return f"{max(5, 5 * round(seconds / 5 + 0.3)):.0f} s"
    minutes = seconds / 60
    if minutes < 3:
        return f"{round(2 * minutes) / 2:g} min"
    return f"{minutes:.0f} min"
