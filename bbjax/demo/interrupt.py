"""Ctrl-C ends the demo at once: one line on stderr, exit code 130.

An exception would not do. JAX takes seconds to import and to compile; where the
exception meets such work, or a callback that swallows it, the user sees a traceback,
nothing at all, or a crash. So the process ends in the handler of the signal. Files are
written whole, so that none is left in parts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130  # as shells report the end by Ctrl-C
LINE = "bbjax.demo: stopped by Ctrl-C before the end"
_SHOW_CURSOR = b"\x1b[?25h\n"  # bars hide it; the line begins below them


def end_at_once() -> None:
    """From now on Ctrl-C ends this process, unless it is ignored (as by `nohup`)."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    del number, frame
    # Another flush may have been going on, which then is all that can be shown.
    with contextlib.suppress(RuntimeError, ValueError, OSError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):  # the terminal may be gone
        if os.isatty(1):
            os.write(1, _SHOW_CURSOR)
        os.write(2, f"{LINE}\n".encode())
    os._exit(INTERRUPTED)
