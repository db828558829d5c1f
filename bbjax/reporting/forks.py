"""Refuses to compute in a forked process in which JAX would wait for ever.

JAX compiles and computes in threads of its own, and a process that was forked has none
of the threads of its parent. If JAX was used before the fork, the child waits for them
without end. A child of a process that had not used JAX yet starts threads of its own.
The difference shows when something is compiled, which is tried here once.
"""

from __future__ import annotations

import os
import threading

import jax
import jax.numpy as jnp

SECONDS = 10.0  # that the compiler gets for a comparison of two numbers
_untried = False


def _mark() -> None:
    global _untried
    _untried = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark)


def check() -> None:
    """Raises an error in a forked process whose parent had used JAX.

    Raises:
      RuntimeError: if so.
    """
    global _untried
    if not _untried:
        return
    trial = threading.Thread(target=_compile, daemon=True)
    trial.start()
    trial.join(SECONDS)
    if trial.is_alive():
        raise RuntimeError(
            "expected a process in which JAX can compute, got one that was forked "
            "after JAX was used, where it waits for ever; call bb.report before the "
            'fork, or start processes by multiprocessing.get_context("spawn")'
        )
    _untried = False


def _compile() -> None:
    jax.jit(lambda x: x > 0)(jnp.ones((2,))).block_until_ready()
