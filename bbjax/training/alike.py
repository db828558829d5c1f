"""Kernels that share one program: a refresh is compiled once for all that are alike.

A model has many kernels of one form, `layer_3/up`, `layer_4/up`, and a compiler would
write the same loops for each. Kernels are alike if they have the same axes and roles,
the same sides budgeted and the same types of all arrays, and differ in nothing but
numbers in their paths and whether another kernel reads their output units. A loop goes
through them, and chooses inside its body which one it reads and writes:

    for i in 0 ... n - 1:
        seen = switch(i, read_0, ..., read_(n-1))     into the scratch of one kernel
        made = change(seen)                           compiled once
        held_j = write(seen, made) where turn_j       for every j, in place

`turn_j` is true for `j = i`. These flags are carried, and move on by one place at every
turn. So the compiler sees the same code for every kernel, and compiles that once, too:
with a number of its own in it, each would be other code.

In the loop a kernel is its form (`Kernel.form`), with `*` in place of every number.

A stack of layers is one kernel, refreshed whole. A loop over its slices would need less
scratch in a small model, but its axis may be split over devices, which a trace does not
show; every slice would then be gathered. In models of a billion parameters, temporaries
of a step are the same within 3 % as it is (`benchmarks/README.md`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from bbjax.arrays.loop import when
from bbjax.model.kernel import Kernel

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")
M = TypeVar("M")

MOST = 32  # kernels of one loop, whose body looks at every flag


def once_per_form(
    fn: Callable[Concatenate[Kernel, P], T],
) -> Callable[Concatenate[Kernel, P], T]:
    """Traces a function of a kernel and arrays once for all kernels of one form.

    What is done for every kernel would be traced for every kernel, a good part of the
    time to compile a step. Outside jit, too, kernels of one form share a program.
    """
    compiled = jax.jit(fn, static_argnums=0)

    @functools.wraps(fn)
    def of_form(kernel: Kernel, *args: P.args, **kwargs: P.kwargs) -> T:
        found: T = compiled(kernel.form, *args, **kwargs)
        return found

    return of_form


def types(arrays: Any) -> Hashable:
    """The types of all arrays of a tree, and its structure."""
    leaves, structure = jax.tree.flatten(arrays)
    return tuple(jax.typeof(leaf) for leaf in leaves), structure


def classes(forms: Sequence[Hashable]) -> list[tuple[int, ...]]:
    """Positions of equal forms, in the order of the first of each.

    Example:
      >>> classes(["up", "down", "up"])
      [(0, 2), (1,)]
    """
    found: dict[Hashable, list[int]] = {}
    for i, form in enumerate(forms):
        found.setdefault(form, []).append(i)
    return [tuple(which) for which in found.values()]


def each(
    which: Sequence[int],
    held: Sequence[T],
    read: Callable[[int, T], S],
    change: Callable[[Any, S], M],
    write: Callable[[S, M], T],
) -> list[T]:
    """Changes what is held of each of some kernels that are alike, one after another.

    Args:
      which: positions of the kernels, at least one.
      held: a tree of arrays for each.
      read: from a position and what is held to a tree of arrays, of the same types for
        all of the kernels.
      change: from a position, perhaps traced, and what was read to a tree of arrays.
      write: from what was read and what `change` made of it to what is held then.

    Returns:
      What is held then, in the same order.
    """
    if len(which) == 1:
        seen = read(which[0], held[0])
        return [write(seen, change(which[0], seen))]
    if len(which) > MOST:
        parts = [slice(i, i + MOST) for i in range(0, len(which), MOST)]
        done = [each(which[p], held[p], read, change, write) for p in parts]
        return [one for part in done for one in part]
    positions = jnp.asarray(which, jnp.int32)
    branches = [lambda held, j=j, i=i: read(i, held[j]) for j, i in enumerate(which)]

    def turn(n: jax.Array, loop: Any) -> Any:
        flags, held = loop
        seen = lax.switch(n, branches, held)
        made = change(positions[n], seen)

        def written(_: T) -> T:
            return write(seen, made)

        held = [when(mine, written, one) for mine, one in zip(flags, held, strict=True)]
        return (flags[-1], *flags[:-1]), held

    flags = tuple(jnp.bool_(j == 0) for j in range(len(which)))
    return lax.fori_loop(0, len(which), turn, (flags, list(held)))[1]
