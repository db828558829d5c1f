"""Compares a function on smaller parameters with what it was: same steps, same numbers.

Sizes are not all that a function takes from its parameters' shapes: a mean divides by
their number, attention by the root of it. So the function is traced again on the
smaller shapes and the two programs are read side by side: same operations with the same
settings and constants, and every array of the size that its kept units give. What
differs names the groups that must keep their size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.tracing import jaxprs
from bbjax.tracing.axes.extents import Dims
from bbjax.tracing.axes.program import Frame, Program

# Settings that say sizes, which results say as well, or that are functions.
_SIZES = frozenset(
    "shape new_sizes sizes limit_indices start_indices slice_sizes sharding "
    "out_sharding feature_group_count name jaxpr call_jaxpr branches cond_jaxpr "
    "body_jaxpr fun_jaxpr jvp_jaxpr_fun jvp_jaxpr_thunk fwd_jaxpr_thunk bwd "
    "ft_in ft_out _split_transpose linear donated_invars in_shardings out_shardings "
    "in_layouts out_layouts ctx_mesh compiler_options_kvs policy prevent_cse".split()
)


def compare(program: Program, kept: Mapping[int, np.ndarray], small: Any) -> list[str]:
    """Where a program on smaller parameters parts from what it should be.

    Args:
      program: on the parameters as they were.
      kept: by group that loses units, which stay.
      small: closed jaxpr of the same function on the smaller parameters.

    Returns:
      What differs, place by place, up to where the two take different steps; empty if
      they are the same.
    """
    comparison = _Comparison(program, kept)
    comparison.body(program.top, *jaxprs.opened(small))
    return comparison.found


class _Comparison:
    def __init__(self, program: Program, kept: Mapping[int, np.ndarray]):
        self.extents, self.kept = program.extents, kept
        self.found: list[str] = []

    def body(self, frame: Frame, small: Any, consts: tuple[Any, ...]) -> bool:
        """Two occurrences of a jaxpr; whether they take the same steps."""
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
        """Two equations; whether they are the same step."""
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
                was, now = _said(one), _said(two)
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
        """Shapes of the results of two equations."""
        for one, two in zip(old.outvars, new.outvars, strict=True):
            expected = self.shape(frame.dims[one])
            if expected != tuple(getattr(two.aval, "shape", ())):
                why = (
                    f"{old.primitive.name} gives shape {two.aval.shape} where "
                    f"{expected} is left of {one.aval.shape}"
                )
                self.found.append(why)

    def starts(self, frame, old, new) -> None:
        """A slice has to begin at the entry that it began at."""
        dims = frame.dims[old.invars[0]]
        begins = zip(
            dims, old.params["start_indices"], new.params["start_indices"], strict=True
        )
        for dim, one, two in begins:
            if int(self.select(dim)[:one].sum()) != two:
                self.found.append("slice begins at another unit")

    def shape(self, dims: Dims) -> tuple[int, ...]:
        """Sizes of what is kept."""
        return tuple(int(self.select(d).sum()) for d in dims)

    def select(self, dim: Any) -> np.ndarray:
        """Which entries are kept, in one layer: all have as many."""
        found = self.extents.select(dim, self.kept)
        return found[(0,) * (found.ndim - 1)]


def _wired(old: Sequence[Any], new: Sequence[Any], env: Mapping[Any, Any]) -> bool:
    """Whether operands are those that they were."""
    return len(old) == len(new) and all(
        jaxprs.is_literal(two) if jaxprs.is_literal(one) else env.get(one) is two
        for one, two in zip(old, new, strict=True)
    )


def _frames(frame: Frame, index: int) -> list[Frame]:
    """Frames of the bodies of an equation."""
    return [body for key, body in frame.bodies.items() if key[0] == index]


def _bodies(eqn: Any) -> list[tuple[Any, tuple[Any, ...]]]:
    """Bodies in the order in which a frame has them."""
    if eqn.primitive.name == "cond":
        return [jaxprs.opened(b) for b in eqn.params["branches"]]
    if eqn.primitive.name == "while":
        names = ("cond_jaxpr", "body_jaxpr")
        return [jaxprs.opened(eqn.params[n]) for n in names]
    if jaxprs.has_body(eqn):
        return [jaxprs.body(eqn)]
    return []


def _said(literal: Any) -> str:
    return f"{np.asarray(literal.val).item():.6g}"


def _equal(one: Any, two: Any) -> bool:
    """Whether two settings are the same; functions are taken to be."""
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
    """Whether two arrays are the same, NaN being NaN."""
    same = one.shape == two.shape
    return same and bool(np.all((one == two) | ((one != one) & (two != two))))
