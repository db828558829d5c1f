"""Keeps the memory of a test process bounded, and reports its peak.

JAX keeps every program that it compiles, about 0.3 MB to 3 MB each, and the tests
compile about one a second. `jax.clear_caches` frees them, but glibc keeps the freed
pages until `malloc_trim` is called. Both are done between two tests: at the end of a
module, whose programs the next one hardly uses, or once the process is very large.
"""

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Generator
from typing import Any

import jax
import psutil
import pytest

MB = 2**20
LARGE = 700 * MB  # forget at the end of a module
VERY_LARGE = 1000 * MB  # forget after the test; one test adds at most 250 MB


def forget() -> None:
    """Drops all compiled programs and returns their memory to the system."""
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # where there is no glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak() -> int:
    """The most bytes of memory that this process has held at once."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Memory:
    """The pytest plugin. Workers of xdist send their peaks to the main process."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.peaks: dict[str, int] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, None, None]:
        yield  # until fixtures are torn down
        same_module = nextitem is not None and nextitem.path == item.path
        if self.process.memory_info().rss > (VERY_LARGE if same_module else LARGE):
            forget()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        sent = getattr(session.config, "workeroutput", None)
        if sent is not None:
            sent["peak"] = peak()
        elif not self.peaks and not session.config.option.collectonly:  # no workers
            self.peaks["peak memory"] = peak()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker has finished; one that crashed sends nothing."""
        sent = getattr(node, "workeroutput", {})
        if "peak" in sent:
            self.peaks[f"peak memory of {node.gateway.id}"] = sent["peak"]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for name, size in sorted(self.peaks.items()):
            terminalreporter.write_line(f"{name}: {size // MB} MB")
