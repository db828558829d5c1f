"""Compares the programs of a function on the old and on smaller parameters.

A function may use the shapes of its parameters for more than sizes: a mean divides by
the number of units, attention by its root. So the function is traced again on the
smaller shapes, and the two programs are compared step by step: the same operations,
settings and constants, and every array of the size of its kept units. Groups that make
a difference must keep their size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.shrinking.model import Kept
from bbjax.tracing import jaxprs
from bbjax.tracing.axes.extents import Dim, Dims
from bbjax.tracing.axes.program import Frame, Program

# Settings that hold sizes, which the results have as well, or functions.
_SIZES = frozenset(
    "shape new_sizes sizes limit_indices start_indices slice_sizes sharding "
    "out_sharding feature_group_count name jaxpr call_jaxpr branches cond_jaxpr "
    "body_jaxpr fun_jaxpr jvp_jaxpr_fun jvp_jaxpr_thunk fwd_jaxpr_thunk bwd "
    "ft_in ft_out _split_transpose linear donated_invars in_shardings out_shardings "
    "in_layouts out_layouts ctx_mesh compiler_options_kvs policy prevent_cse".split()
)


def to_refuse(
    kept: Kept,
    names: Mapping[int, str],
    differences: Callable[[Kept], Sequence[str]],
) -> dict[int, str]:
    """Finds the groups that must keep their size, with the reason.

    Args:
      kept: by group that gets smaller, which units stay.
      names: by group. Layers of one kind have names that differ in a number, and mostly
        make the same differences: their groups are tried together.
      differences: between the programs if only these groups get smaller.
    """
    found = differences(kept) if kept else []
    if not found:
        return {}
    alike: dict[str, list[int]] = {}
    for group in kept:
        name = re.sub(r"\d+(?!\d*\])", "#", names[group])
        alike.setdefault(name, []).append(group)
    refused: dict[int, str] = {}
    for groups in alike.values():
        refused |= _culprits(groups, kept, differences)
    return refused or dict.fromkeys(kept, found[0])


def _culprits(
    groups: Sequence[int], kept: Kept, differences: Callable[[Kept], Sequence[str]]
) -> dict[int, str]:
    """Groups that make a difference, each by itself or all in the same way."""
    found = differences({group: kept[group] for group in groups})
    if not found or len(groups) == 1:
        return {group: found[0] for group in groups if found}
    first = differences({groups[0]: kept[groups[0]]})
    if first and len(found) == len(first) * len(groups):
        return dict.fromkeys(groups, first[0])
    half = len(groups) // 2
    both = _culprits(groups[:half], kept, differences)
    both |= _culprits(groups[half:], kept, differences)
    return both or dict.fromkeys(groups, found[0])


def compare(program: Program, kept: Kept, small: Any) -> list[str]:
    """Compares a program with that on smaller parameters.

    Args:
      program: on the old parameters.
      kept: by group that gets smaller, which units stay.
      small: closed jaxpr of the same function on the smaller parameters.

    Returns:
      The differences, in order, up to the first different step; empty if there are
      none.
    """
    comparison = _Comparison(program, kept)
    comparison.body(program.top, *jaxprs.opened(small))
    return comparison.found


class _Comparison:
    def __init__(self, program: Program, kept: Kept):
        self.extents, self.kept = program.extents, kept
        self.found: list[str] = []

    def body(self, frame: Frame, small: Any, consts: tuple[Any, ...]) -> bool:
        """Compares two jaxprs; whether they take the same steps."""
        for one, two in zip(frame.consts, consts, strict=False):
            if np.shape(one) != np.shape(two) or not _equal(one, two):
                self.found.append("a constant of the function changes with it")
        old, env = frame.jaxpr, dict[Any, Any]()
        env.update(zip(old.constvars, small.constvars, strict=False))
        env.update(zip(old.invars, small.invars, strict=False))
        for index, (one, two) in enumerate(zip(old.eqns, small.eqns, strict=False)):
            if not self.equation(frame, one, two, index, env):
                return False
            env.update(zip(one.outvars, two.outvars, strict=True))
        if len(old.eqns) != len(small.eqns):
            self.found.append("the function takes other steps")
            return False
        same = _wired(old.outvars, small.outvars, env)
        if not same:
            self.found.append("the function returns something else")
        return same

    def equation(self, frame, old, new, index, env) -> bool:
        """Compares two equations; whether they are the same step."""
        name = old.primitive.name
        if new.primitive.name != name:
            why = f"the function does {new.primitive.name} where it did {name}"
            self.found.append(why)
            return False
        wired = _wired(old.invars, new.invars, env)
        if not wired or len(old.outvars) != len(new.outvars):
            self.found.append(f"{name} takes other operands")
            return False
        for one, two in zip(old.invars, new.invars, strict=True):
            if jaxprs.is_literal(one) and not _equal(one.val, two.val):
                was, now = _text(one), _text(two)
                self.found.append(f"{name} takes the number {now} where it took {was}")
        for key in old.params:
            if key not in _SIZES and not _equal(old.params[key], new.params.get(key)):
                self.found.append(f"{name} has another {key}")
        inner = zip(_frames(frame, index), _bodies(new), strict=False)
        if not all(self.body(body, *its) for body, its in inner):
            return False
        self.sizes(frame, old, new)
        if name == "slice":
            self.starts(frame, old, new)
        return True

    def sizes(self, frame, old, new) -> None:
        """Compares the shapes of the results of two equations."""
        for one, two in zip(old.outvars, new.outvars, strict=True):
            expected = self.shape(frame.dims[one])
            if expected != tuple(getattr(two.aval, "shape", ())):
                why = (
                    f"{old.primitive.name} gives shape {two.aval.shape} where "
                    f"{expected} is left of {one.aval.shape}"
                )
                self.found.append(why)

    def starts(self, frame, old, new) -> None:
        """Compares the first entries of two slices."""
        dims = frame.dims[old.invars[0]]
        begins = zip(
            dims, old.params["start_indices"], new.params["start_indices"], strict=True
        )
        for dim, one, two in begins:
            if int(self.select(dim)[:one].sum()) != two:
                self.found.append("slice begins at another unit")

    def shape(self, dims: Dims) -> tuple[int, ...]:
        """Sizes of an array after the removal."""
        return tuple(int(self.select(d).sum()) for d in dims)

    def select(self, dim: Dim) -> np.ndarray:
        """Which entries are kept, in one layer: all layers have as many."""
        found = self.extents.select(dim, self.kept)
        return found[(0,) * (found.ndim - 1)]


def _wired(old: Sequence[Any], new: Sequence[Any], env: Mapping[Any, Any]) -> bool:
    """Whether two steps have the same operands."""
    return len(old) == len(new) and all(
        jaxprs.is_literal(two) if jaxprs.is_literal(one) else env.get(one) is two
        for one, two in zip(old, new, strict=True)
    )


def _frames(frame: Frame, index: int) -> list[Frame]:
    """Frames of the bodies of an equation."""
    return [body for key, body in frame.bodies.items() if key[0] == index]


def _bodies(eqn: Any) -> list[tuple[Any, tuple[Any, ...]]]:
    """Bodies of an equation, in the order of those of a frame."""
    if eqn.primitive.name == "cond":
        return [jaxprs.opened(b) for b in eqn.params["branches"]]
    if eqn.primitive.name == "while":
        names = ("cond_jaxpr", "body_jaxpr")
        return [jaxprs.opened(eqn.params[n]) for n in names]
    if jaxprs.has_body(eqn):
        return [jaxprs.body(eqn)]
    return []


def _text(literal: Any) -> str:
    return f"{np.asarray(literal.val).item():.6g}"


def _equal(one: Any, two: Any) -> bool:
    """Whether two settings are the same; functions are not compared."""
    if one is two or callable(one):
        return True
    if jaxprs.is_jaxpr(one):
        return str(one) == str(two)
    if isinstance(one, jax.Array) and jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
        one, two = jax.random.key_data(one), jax.random.key_data(two)
    numbers = float | np.ndarray | np.generic
    if isinstance(one, numbers) or hasattr(one, "aval"):
        return _alike(np.asarray(one), np.asarray(two))
    return bool(one == two)


def _alike(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether two arrays are the same, with NaN equal to NaN."""
    same = one.shape == two.shape
    return same and bool(np.all((one == two) | ((one != one) & (two != two))))
