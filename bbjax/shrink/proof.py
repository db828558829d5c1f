"""Compares a function on smaller parameters with what it was: same steps, same numbers.

Sizes are not all that a function takes from its parameters' shapes: a mean divides by
their number, attention by the root of it. So the function is traced again on the
smaller shapes and the two programs are read side by side: same operations with the same
settings and constants, and every array of the size that its kept units give. What
differs names the groups that must keep their size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bbjax import jaxprs
from bbjax.axes.extents import Dims
from bbjax.axes.program import Frame, Program

# Settings that say sizes, which results say as well, or that are functions.
_SIZES = frozenset(
    "shape new_sizes sizes limit_indices start_indices slice_sizes sharding "
    "out_sharding feature_group_count name jaxpr call_jaxpr branches cond_jaxpr "
    "body_jaxpr fun_jaxpr jvp_jaxpr_fun jvp_jaxpr_thunk fwd_jaxpr_thunk bwd "
    "ft_in ft_out _split_transpose linear donated_invars in_shardings out_shardings "
    "in_layouts out_layouts ctx_mesh compiler_options_kvs policy prevent_cse".split()
)


class Mismatch(NamedTuple):
    """Where two programs part.

    Attributes:
      wholes: groups that lose units, of the arrays there; empty if none is known.
      why: what differs.
    """

    wholes: frozenset[int]
    why: str


def compare(
    program: Program, kept: Mapping[int, np.ndarray], small: Any
) -> Mismatch | None:
    """Where a program on smaller parameters parts from what it should be.

    Args:
      program: on the parameters as they were.
      kept: by group that loses units, which stay.
      small: closed jaxpr of the same function on the smaller parameters.
    """
    return _Comparison(program, kept).body(program.top, *jaxprs.opened(small))


class _Comparison:
    def __init__(self, program: Program, kept: Mapping[int, np.ndarray]):
        self.extents, self.kept = program.extents, kept

    def body(
        self, frame: Frame, small: Any, consts: tuple[Any, ...]
    ) -> Mismatch | None:
        """Two occurrences of a jaxpr, equation by equation."""
        before, after = frame.jaxpr.eqns, small.eqns
        for one, two in zip(frame.consts, consts, strict=False):
            if np.shape(one) != np.shape(two) or not _equal(one, two):
                return Mismatch(
                    frozenset(), "a constant of the function changes with it"
                )
        for index, (old, new) in enumerate(zip(before, after, strict=False)):
            wrong = self.equation(frame, old, new, index)
            if wrong is not None:
                return wrong
        if len(before) != len(after):
            return Mismatch(frozenset(), "the function takes other steps")
        return None

    def equation(self, frame: Frame, old: Any, new: Any, index: int) -> Mismatch | None:
        """Two equations."""
        name = old.primitive.name
        atoms = [*old.invars, *old.outvars]
        wholes = frozenset(
            w
            for atom in atoms
            for d in ([] if jaxprs.is_literal(atom) else frame.dims[atom])
            for w in self.extents.wholes(d)
            if w in self.kept
        )
        if new.primitive.name != name:
            why = f"the function does {new.primitive.name} where it did {name}"
            return Mismatch(wholes, why)
        for one, two in zip(old.invars, new.invars, strict=True):
            if jaxprs.is_literal(one) and jaxprs.is_literal(two):
                if not _equal(one.val, two.val):
                    was, now = _said(one), _said(two)
                    why = f"{name} takes the number {now} where it took {was}"
                    return Mismatch(wholes, why)
            elif jaxprs.is_literal(one) != jaxprs.is_literal(two):
                return Mismatch(wholes, f"{name} takes a number where it took an array")
        for key in old.params:
            if key not in _SIZES and not _equal(old.params[key], new.params.get(key)):
                return Mismatch(wholes, f"{name} has another {key}")
        wrong = self.bodies(frame, new, index) or self.sizes(frame, old, new, wholes)
        if wrong is None and name == "slice":
            wrong = self.starts(frame, old, new, wholes)
        return wrong

    def bodies(self, frame: Frame, new: Any, index: int) -> Mismatch | None:
        """The bodies of two equations."""
        inner = _bodies(new)
        for at, (_, body) in enumerate(
            sorted((k, b) for k, b in frame.bodies.items() if k[0] == index)
        ):
            wrong = self.body(body, *inner[at])
            if wrong is not None:
                return wrong
        return None

    def sizes(self, frame, old, new, wholes) -> Mismatch | None:
        """Shapes of the results of two equations."""
        for one, two in zip(old.outvars, new.outvars, strict=True):
            expected = self.shape(frame.dims[one])
            if expected != tuple(getattr(two.aval, "shape", ())):
                why = (
                    f"{old.primitive.name} gives shape {two.aval.shape} where "
                    f"{expected} is left of {one.aval.shape}"
                )
                return Mismatch(wholes, why)
        return None

    def starts(self, frame, old, new, wholes) -> Mismatch | None:
        """A slice has to begin at the entry that it began at."""
        dims = frame.dims[old.invars[0]]
        begins = zip(
            dims, old.params["start_indices"], new.params["start_indices"], strict=True
        )
        for dim, one, two in begins:
            if int(self.select(dim)[:one].sum()) != two:
                return Mismatch(wholes, "slice begins at another unit")
        return None

    def shape(self, dims: Dims) -> tuple[int, ...]:
        """Sizes of what is kept."""
        return tuple(int(self.select(d).sum()) for d in dims)

    def select(self, dim: Any) -> np.ndarray:
        """Which entries are kept, in one layer: all have as many."""
        found = self.extents.select(dim, self.kept)
        return found.reshape(-1, found.shape[-1])[0]


def _bodies(eqn: Any) -> list[tuple[Any, tuple[Any, ...]]]:
    """Bodies in the order in which a frame has them."""
    if eqn.primitive.name == "cond":
        return [jaxprs.opened(b) for b in eqn.params["branches"]]
    if eqn.primitive.name == "while":
        names = ("cond_jaxpr", "body_jaxpr")
        return [jaxprs.opened(eqn.params[n]) for n in names]
    if any(jaxprs.is_jaxpr(v) for v in eqn.params.values()):
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
    if isinstance(one, np.ndarray | np.generic) or hasattr(one, "aval"):
        a, b = np.asarray(one), np.asarray(two)
        return a.shape == b.shape and bool(np.array_equal(a, b))
    return bool(one == two)
