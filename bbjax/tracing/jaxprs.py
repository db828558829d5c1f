"""The one file that touches `jax.extend`: reading jaxprs and evaluating parts of them.

`jax.extend.core` moves between JAX releases, so the rest of the library sees only these
few functions. A jaxpr is read by its plain attributes (`eqns`, `invars`, `outvars`);
equations are evaluated through the public `jaxpr_as_fun`, on a *segment*: some
consecutive equations wrapped as a jaxpr of their own. Evaluating a segment binds the
very operations of the user's function, in order, with their names and contexts.

`opened` hides a difference between releases: until JAX 0.10 a closed jaxpr wraps a
jaxpr and its constants, from 0.11 on they are one class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import core


def opened(jaxpr: Any) -> tuple[Any, tuple[Any, ...]]:
    """Splits a jaxpr, closed or not, into the jaxpr and its constants."""
    return getattr(jaxpr, "jaxpr", jaxpr), tuple(getattr(jaxpr, "consts", ()))


def is_jaxpr(value: Any) -> bool:
    """Whether a parameter of an equation is a jaxpr, closed or not."""
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def is_literal(atom: Any) -> bool:
    """Whether an operand of an equation is a constant written in place."""
    return isinstance(atom, core.Literal)


def segment(
    parent: Any, invars: Sequence[Any], outvars: Sequence[Any], eqns: Sequence[Any]
) -> Callable[..., list[Any]]:
    """The function of some consecutive equations: values of `invars` to `outvars`.

    Args:
      parent: the jaxpr that holds the equations.
      invars: variables that the equations read from outside.
      outvars: variables they define that are read later.
      eqns: the equations, in order.

    Returns:
      A function of as many arrays as `invars`, returning a list like `outvars`.
    """
    jaxpr = parent.replace(
        constvars=[], invars=list(invars), outvars=list(outvars), eqns=list(eqns)
    )
    return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, ()))


def bodies(eqn: Any) -> list[tuple[Any, tuple[Any, ...]]]:
    """All jaxprs among the parameters of an equation, each with its constants."""
    found = []
    for value in eqn.params.values():
        items = value if isinstance(value, tuple | list) else (value,)
        found += [opened(v) for v in items if is_jaxpr(v)]
    return found


def scan_counts(eqn: Any) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are carried.

    Until JAX 0.10 they are written as numbers, from 0.11 on as three groups.
    """
    params = eqn.params
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    held, carried, _ = params["ft_in"].unpack()
    return len(held), len(carried)


def lines(eqn: Any) -> list[tuple[str, int]]:
    """The file and line of every call that led to an equation, from outside to inside.

    Empty where JAX did not record them.
    """
    traceback = getattr(eqn.source_info, "traceback", None)
    frames = getattr(traceback, "frames", ())
    return [(frame.file_name, frame.line_num) for frame in reversed(frames)]
