"""Compares the programs of a function on the old and on smaller parameters.

A function may use the shapes of its parameters for more than sizes: a mean divides by
the number of units, attention by its root. So the function is traced again on the
smaller shapes, and the two programs are compared step by step: the same operations,
settings and constants, and every array of the size of its kept units.

Calls (`jit`, `remat`) are read through. Moves of entries are no steps: what an
operation reads is compared as a layout of what was computed before (`layouts`). So
programs are the same if they differ only in how they add, drop or repeat axes of size
1, as after the removal of all heads but one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.shrinking import layouts
from bbjax.shrinking.layouts import Axis, Layout, Origin, Piece
from bbjax.shrinking.model import Kept
from bbjax.tracing import interpreter, jaxprs
from bbjax.tracing.axes.extents import Dim, Dims
from bbjax.tracing.axes.program import Frame, Program
from bbjax.tracing.primitives import ELEMENTWISE

# Settings that hold sizes, which the results have as well, or functions.
_SIZES = frozenset(
    "shape new_sizes sizes limit_indices start_indices slice_sizes sharding "
    "out_sharding feature_group_count name jaxpr call_jaxpr branches cond_jaxpr "
    "body_jaxpr fun_jaxpr jvp_jaxpr_fun jvp_jaxpr_thunk fwd_jaxpr_thunk bwd "
    "ft_in ft_out _split_transpose linear donated_invars in_shardings out_shardings "
    "in_layouts out_layouts ctx_mesh compiler_options_kvs policy prevent_cse".split()
)
_POWERS = (1.0, -1.0, 0.5, -0.5)  # of a size, in numbers that come from it
_ROUNDED = 4e-3  # relative error of such a number in bfloat16
Env = dict[Any, Layout]


class Difference(NamedTuple):
    """A difference between two programs.

    Attributes:
      text: what it is.
      groups: that may make it; empty if nothing is known.
      certain: whether they do.
      failed: whether there is no second program, because the function raised an error.
    """

    text: str
    groups: frozenset[int] = frozenset()
    certain: bool = False
    failed: bool = False


def compare(program: Program, kept: Kept, small: Any) -> list[Difference]:
    """Compares a program with that on smaller parameters.

    Args:
      program: on the old parameters.
      kept: by group that gets smaller, which units stay.
      small: closed jaxpr of the same function on the smaller parameters.

    Returns:
      The differences, in order, up to the first other step; empty if there are none.
    """
    comparison = _Comparison(program, kept)
    comparison.body(program.top, *jaxprs.opened(small))
    return comparison.found


def same_steps(old: Any, new: Any) -> bool:
    """Whether two jaxprs are the same but for sizes: steps, settings and constants."""
    (one, ones), (two, twos) = jaxprs.opened(old), jaxprs.opened(new)
    if len(one.eqns) != len(two.eqns) or len(ones) != len(twos):
        return False
    if not all(_equal(a, b) for a, b in zip(ones, twos, strict=True)):
        return False
    env: dict[Any, Any] = {}
    env.update(zip(one.constvars, two.constvars, strict=True))
    env.update(zip(one.invars, two.invars, strict=True))

    def wired(mine: Sequence[Any], theirs: Sequence[Any]) -> bool:
        return len(mine) == len(theirs) and all(
            jaxprs.is_literal(b) and _equal(a.val, b.val)
            if jaxprs.is_literal(a)
            else env.get(a) is b
            for a, b in zip(mine, theirs, strict=True)
        )

    for a, b in zip(one.eqns, two.eqns, strict=True):
        if a.primitive.name != b.primitive.name or not wired(a.invars, b.invars):
            return False
        others = {key for key in a.params if key not in _SIZES}
        if not all(_equal(a.params[key], b.params.get(key)) for key in others):
            return False
        mine, theirs = _bodies(a), _bodies(b)
        if len(mine) != len(theirs) or not all(map(same_steps, mine, theirs)):
            return False
        env.update(zip(a.outvars, b.outvars, strict=True))
    return wired(one.outvars, two.outvars)


class _Comparison:
    def __init__(self, program: Program, kept: Kept):
        self.extents, self.kept = program.extents, kept
        self.found: list[Difference] = []
        self.pairs: dict[Origin, Origin] = {}
        self.counts: dict[Dim, int] = {}  # entries that are kept, by dim

    # Bodies ----------------------------------------------------------------------
    def body(self, frame: Frame, small: Any, consts: Sequence[Any]) -> bool:
        """Compares two jaxprs; whether they take the same steps."""
        mine = self.entered(frame, [self.source(frame, v) for v in frame.jaxpr.invars])
        given = [_new_origin(v) for v in small.invars]
        theirs = _entered(small, consts, given)
        for var, source in zip(frame.jaxpr.invars, given, strict=False):
            self.pairs[mine[var].source] = source.source
        steps = _steps(small, theirs)
        for inside, index, eqn, env in self.steps(frame, mine):
            layout = (
                layouts.moved(eqn, _look(env, eqn.invars[0])) if eqn.invars else None
            )
            if layout is not None:
                env[eqn.outvars[0]] = layout
                continue
            new, new_env = next(steps, (None, theirs))
            if new is None:
                return self.stop("the function takes other steps")
            if not self.equation(inside, eqn, new, index, env, new_env):
                return False
        if next(steps, None) is not None:
            return self.stop("the function takes other steps")
        results = zip(frame.jaxpr.outvars, small.outvars, strict=False)
        for one, two in results:
            old, its = _look(mine, one), _look(theirs, two)
            if not self.same_source(old, its) or not self.same_axes(
                old, its, self.dims(frame, one), False
            ):
                return self.stop("the function returns something else")
        return True

    def stop(self, text: str, groups: frozenset[int] = frozenset()) -> bool:
        """Notes a difference after which nothing can be compared."""
        self.found.append(Difference(text, groups))
        return False

    def entered(self, frame: Frame, args: Sequence[Layout]) -> Env:
        """Layouts of what a body begins with."""
        env = dict(zip(frame.jaxpr.invars, args, strict=True))
        for var, const in zip(frame.jaxpr.constvars, frame.consts, strict=False):
            source = Origin(frame.dims[var], const)
            env[var] = layouts.unmoved(source, np.shape(const))
        return env

    def source(self, frame: Frame, var: Any) -> Layout:
        """An array as itself."""
        shape = tuple(getattr(var.aval, "shape", ()))
        return layouts.unmoved(Origin(frame.dims[var]), shape)

    def steps(self, frame: Frame, env: Env) -> Iterator[tuple[Frame, int, Any, Env]]:
        """The equations of a frame, with those of its calls."""
        for index, eqn in enumerate(frame.jaxpr.eqns):
            inner = frame.bodies.get((index, 0))
            if inner is None or not _is_inline(eqn):
                yield frame, index, eqn, env
                continue
            inside = self.entered(inner, [_look(env, a) for a in eqn.invars])
            yield from self.steps(inner, inside)
            for var, atom in zip(eqn.outvars, inner.jaxpr.outvars, strict=True):
                env[var] = _look(inside, atom)

    # Equations -------------------------------------------------------------------
    def equation(self, frame, old, new, index, env, new_env) -> bool:
        """Compares two equations; whether they are the same step."""
        name = old.primitive.name
        here = frame, (*old.invars, *old.outvars)
        if new.primitive.name != name:
            why = f"the function does {new.primitive.name} where it did {name}"
            return self.stop(why, self.groups(*here))
        if len(old.invars) != len(new.invars) or len(old.outvars) != len(new.outvars):
            return self.stop(f"{name} takes other operands", self.groups(*here))
        for one, two in zip(old.invars, new.invars, strict=True):
            if not self.operand(frame, old, one, _look(env, one), _look(new_env, two)):
                return self.stop(f"{name} takes other operands", self.groups(*here))
        for key in old.params:
            if key not in _SIZES and not _equal(old.params[key], new.params.get(key)):
                self.found.append(
                    Difference(f"{name} has another {key}", self.groups(*here))
                )
        if not self.inner(frame, old, new, index):
            return False
        self.sizes(frame, old, new)
        if name == "slice":
            self.starts(frame, old, new)
        for one, two in zip(old.outvars, new.outvars, strict=True):
            env[one], new_env[two] = self.source(frame, one), _new_origin(two)
            self.pairs[env[one].source] = new_env[two].source
        return True

    def operand(self, frame, eqn, atom, old: Layout, new: Layout) -> bool:
        """Compares two operands; whether they were computed in the same way."""
        name = eqn.primitive.name
        if not self.same_source(old, new):
            one, two = old.source.value, new.source.value
            if one is None or two is None:
                return False
            if not _is_number(one) or not _is_number(two):
                text = "a constant of the function changes with it"
                self.found.append(Difference(text, self.groups(frame, eqn.outvars)))
                return True
            text = f"{name} takes the number {_text(two)} where it took {_text(one)}"
            groups = self.from_sizes(one, two, self.reached(frame, eqn))
            self.found.append(Difference(text, groups))
            return True
        dims = self.dims(frame, atom)
        if not self.same_axes(old, new, dims, name in ELEMENTWISE):
            was = tuple(getattr(atom.aval, "shape", ()))
            now = tuple(_size(axis) for axis in new.axes)
            what = f"{new.last} gives" if new.last else f"{name} takes"
            self.misfit(what, dims, was, now)
        return True

    def inner(self, frame, old, new, index) -> bool:
        """Compares the bodies of two equations."""
        frames = [body for key, body in frame.bodies.items() if key[0] == index]
        mine, theirs = _bodies(old), _bodies(new)
        if not frames:  # what is not followed has to be the same inside
            if len(mine) == len(theirs) and all(map(same_steps, mine, theirs)):
                return True
            return self.stop(f"{old.primitive.name} calls something else")
        return all(
            self.body(frame, its.jaxpr, its.consts)
            for frame, its in zip(frames, theirs, strict=True)
        )

    def sizes(self, frame, old, new) -> None:
        """Compares the shapes of the results of two equations."""
        for one, two in zip(old.outvars, new.outvars, strict=True):
            was, now = (tuple(getattr(v.aval, "shape", ())) for v in (one, two))
            if self.shape(frame.dims[one]) != now:
                self.misfit(f"{old.primitive.name} gives", frame.dims[one], was, now)

    def misfit(self, what: str, dims: Dims, was, now) -> None:
        """Notes an array of another size than what is left of the old one."""
        left = self.shape(dims)
        axes = [d for d, a, b in zip(dims, left, now, strict=False) if a != b] or dims
        groups = frozenset(g for d in axes for g in self.extents.wholes(d))
        groups &= self.kept.keys()
        text = f"{what} shape {now} where {left} is left of {was}"
        self.found.append(Difference(text, groups, len(groups) == 1))

    def starts(self, frame, old, new) -> None:
        """Compares the first entries of two slices."""
        dims = frame.dims[old.invars[0]]
        begins = zip(
            dims, old.params["start_indices"], new.params["start_indices"], strict=True
        )
        for dim, one, two in begins:
            if int(self.select(dim)[:one].sum()) != two:
                groups = self.kept.keys() & self.extents.wholes(dim)
                text = "slice begins at another unit"
                self.found.append(Difference(text, frozenset(groups)))

    # Operands --------------------------------------------------------------------
    def same_source(self, old: Layout, new: Layout) -> bool:
        """Whether two arrays were moved from the same one."""
        one, two = old.source, new.source
        if one.value is None or two.value is None:
            return one.value is two.value and self.pairs.get(one) is two
        return np.shape(one.value) == np.shape(two.value) and _equal(
            one.value, two.value
        )

    def same_axes(self, old: Layout, new: Layout, dims: Dims, spread: bool) -> bool:
        """Whether an array has the layout that is left of an old one.

        If `spread`, the operation itself repeats entries along axes of size 1.
        """
        left = [
            self.left(old, axis, dim) for axis, dim in zip(old.axes, dims, strict=True)
        ]
        if not spread:
            return left == list(new.axes)
        one, two = (
            [() if a is None or layouts.repeated(a) else a for a in axes]
            for axes in (left, new.axes)
        )
        if None in left:
            return False
        return one == two or not any(one) and not any(two)

    def left(self, layout: Layout, axis: Axis, dim: Dim) -> Axis | None:
        """What is left of an axis; None if that is no layout of what is left."""
        source = layout.source.axes
        size = self.count(dim)
        if self.is_whole(dim) and all(
            p.axis is None or self.is_whole(source[p.axis]) for p in axis
        ):
            return axis
        found = [
            None if p.axis is None else self.piece(source[p.axis], p) for p in axis
        ]
        new = [p.axis is None for p in axis]
        if any(p is None and not n for p, n in zip(found, new, strict=True)):
            return None
        inside = _size([p for p in found if p is not None])
        if sum(new) > 1 or (sum(new) == 0 and inside != size) or size % inside:
            return None
        repeats = Piece(None, 1, size // inside)
        return layouts.joined([repeats if p is None else p for p in found])

    def piece(self, dim: Dim, piece: Piece) -> Piece | None:
        """What is left of a piece of an axis, if that is some of its factors."""
        stride, before, taken, size = 1, 1, 1, 1
        for factor in reversed(self.extents.factors(dim)):
            old, new = self.extents.size((factor,)), self.count((factor,))
            if before * taken < piece.stride:
                before, stride = before * old, stride * new
            elif taken < piece.size:
                taken, size = taken * old, size * new
        fits = (before, taken) == (piece.stride, piece.size)
        return Piece(piece.axis, stride, size) if fits else None

    def dims(self, frame: Frame, atom: Any) -> Dims:
        """Dims of an operand."""
        if jaxprs.is_literal(atom):
            return self.extents.shape(np.shape(atom.val))
        return frame.dims[atom]

    def shape(self, dims: Dims) -> tuple[int, ...]:
        """Sizes of an array after the removal."""
        return tuple(map(self.count, dims))

    def select(self, dim: Dim) -> np.ndarray:
        """Which entries are kept, in one layer: all layers have as many."""
        found = self.extents.select(dim, self.kept)
        return found[(0,) * (found.ndim - 1)]

    def count(self, dim: Dim) -> int:
        """How many entries are kept."""
        if dim not in self.counts:
            smaller = not self.kept.keys().isdisjoint(self.extents.wholes(dim))
            size = int(self.select(dim).sum()) if smaller else self.extents.size(dim)
            self.counts[dim] = size
        return self.counts[dim]

    def is_whole(self, dim: Dim) -> bool:
        """Whether all entries are kept."""
        return self.count(dim) == self.extents.size(dim)

    # Groups ----------------------------------------------------------------------
    def groups(self, frame: Frame, atoms: Sequence[Any]) -> frozenset[int]:
        """Groups on the axes of some arrays that get smaller."""
        dims = [d for a in atoms if not jaxprs.is_literal(a) for d in frame.dims[a]]
        found = {group for dim in dims for group in self.extents.wholes(dim)}
        return frozenset(found & self.kept.keys())

    def reached(self, frame: Frame, eqn: Any) -> frozenset[int]:
        """Groups on the axes of the first arrays that an operation acts on.

        A number that comes from a size acts on arrays without axes first, as a root.
        """
        found = self.groups(frame, (*eqn.invars, *eqn.outvars))
        results = set(eqn.outvars)
        for later in frame.jaxpr.eqns if not found else ():
            read = {atom for atom in later.invars if not jaxprs.is_literal(atom)}
            if read & results:
                found = self.groups(frame, (*later.invars, *later.outvars))
                results |= set(later.outvars)
            if found:
                break
        return found

    def from_sizes(self, one: Any, two: Any, near: frozenset[int]) -> frozenset[int]:
        """Groups whose number of units, or its root, changes as a number does.

        These are, as far as there are any, groups that are near and have this number
        of units; near, and their number changes by as much; or not near.
        """
        same, alike = set(), set()
        for group, keep in self.kept.items():
            size, left = keep.shape[-1], int(keep.reshape(-1, keep.shape[-1])[0].sum())
            for power in _POWERS:
                if _near(complex(one) * (left / size) ** power, complex(two)):
                    alike.add(group)
                    if _near(size**power, complex(one)):
                        same.add(group)
        options = (same & near, alike & near, same, alike, near)
        return frozenset(next(filter(None, options), ()))


# The new program -----------------------------------------------------------------
def _steps(jaxpr: Any, env: Env) -> Iterator[tuple[Any, Env]]:
    """The equations of a jaxpr that are no moves, with those of its calls."""
    for eqn in jaxpr.eqns:
        if _is_inline(eqn):
            ((body, consts),) = jaxprs.bodies(eqn)
            inside = _entered(body, consts, [_look(env, a) for a in eqn.invars])
            yield from _steps(body, inside)
            for var, atom in zip(eqn.outvars, body.outvars, strict=True):
                env[var] = _look(inside, atom)
            continue
        layout = layouts.moved(eqn, _look(env, eqn.invars[0])) if eqn.invars else None
        if layout is None:
            yield eqn, env
        else:
            env[eqn.outvars[0]] = layout


def _entered(jaxpr: Any, consts: Sequence[Any], args: Sequence[Layout]) -> Env:
    env = dict(zip(jaxpr.invars, args, strict=True))
    for var, const in zip(jaxpr.constvars, consts, strict=False):
        shape = np.shape(const)
        env[var] = layouts.unmoved(Origin(shape, const), shape)
    return env


def _new_origin(var: Any) -> Layout:
    shape = tuple(getattr(var.aval, "shape", ()))
    return layouts.unmoved(Origin(shape), shape)


def _look(env: Mapping[Any, Layout], atom: Any) -> Layout:
    """The layout of an operand."""
    if jaxprs.is_literal(atom):
        shape = np.shape(atom.val)
        return layouts.unmoved(Origin(shape, atom.val), shape)
    return env[atom]


def _is_inline(eqn: Any) -> bool:
    """Whether an equation is a call that is read through."""
    call = interpreter.call_of(eqn)
    return call is not None and call.kind == "inline"


def _bodies(eqn: Any) -> Sequence[interpreter.Body]:
    """Bodies of an equation, in the order of those of a frame."""
    call = interpreter.call_of(eqn)
    return () if call is None else call.bodies


def _size(axis: Sequence[Piece]) -> int:
    return math.prod(piece.size for piece in axis)


def _is_number(value: Any) -> bool:
    return not np.ndim(value) and jnp.issubdtype(jnp.result_type(value), jnp.number)


def _near(one: complex, two: complex) -> bool:
    return abs(one - two) <= _ROUNDED * abs(two)


def _text(value: Any) -> str:
    return f"{np.asarray(value).item():.6g}"


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
