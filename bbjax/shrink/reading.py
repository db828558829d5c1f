"""Reads off a followed program what removing a unit would do to every sum over units.

One pass over the equations, in program order, with what is known of every array
(`known`). Wherever a product runs over a group of units it leaves a `Sum`: which units
add nothing to it for good, and which add a constant that the bias of the reading kernel
could hold. A scan over stacked parameters is read layer by layer; `layer` says which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bbjax import jaxprs
from bbjax.axes.extents import Dims
from bbjax.axes.moves import SHAPING
from bbjax.axes.program import INLINE, Frame, Program
from bbjax.flow.transfer import ELEMENTWISE
from bbjax.shrink.known import (
    NOTHING,
    Entries,
    Held,
    Known,
    alike,
    along,
    elementwise,
    join,
    once,
    spread,
)

Layer = tuple[int, ...]
Value = Callable[[], np.ndarray]
_ROUNDS = 8


class Sum(NamedTuple):
    """A product that runs over a group of units.

    Attributes:
      whole: the group.
      layer: iteration of each enclosing scan over stacked parameters.
      scans: the axes that these scans run over.
      gone: units that add nothing, for good.
      constant: what the units are known to be where `gone` does not say it; None if
        nothing is known.
      leaf: the kernel whose rows they are, if the other operand is one.
      hinders: why a constant cannot go into its bias; empty if it can.
    """

    whole: int
    layer: Layer
    scans: Dims
    gone: np.ndarray
    constant: Entries | None
    leaf: int | None
    hinders: str


def read(program: Program, held: Sequence[Held]) -> list[Sum]:
    """All sums over units.

    Args:
      program: from `bbjax.axes.program.follow`.
      held: every parameter, with its mask.
    """
    reader = _Reader(program)
    args = [Known(held=h) for h in held]
    args += [NOTHING] * (len(program.top.jaxpr.invars) - len(args))
    reader.body(program.top, args, ())
    return reader.sums


@dataclasses.dataclass
class _Reader:
    program: Program
    sums: list[Sum] = dataclasses.field(default_factory=list)
    quiet: int = 0  # while a scan is read only to find what its carry is

    def body(self, frame: Frame, args: Sequence[Known], layer: Layer) -> list[Known]:
        env: dict[Any, Known] = {}
        for var, const in zip(frame.jaxpr.constvars, frame.consts, strict=False):
            env[var] = _constant(const)
        env.update(zip(frame.jaxpr.invars, args, strict=True))

        def look(atom: Any) -> Known:
            if jaxprs.is_literal(atom):
                return _constant(atom.val)
            return env.get(atom, NOTHING)

        for index, eqn in enumerate(frame.jaxpr.eqns):
            ins = [look(a) for a in eqn.invars]
            outs = self.equation(frame, eqn, ins, index, layer)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [look(a) for a in frame.jaxpr.outvars]

    def equation(self, frame, eqn, ins, index, layer) -> list[Known]:
        name = eqn.primitive.name
        if (index, 0) in frame.bodies:
            if name in INLINE:
                return self.body(frame.bodies[index, 0], ins, layer)
            return _CALLS[name](self, frame, eqn, ins, index, layer)
        if name in ("dot_general", "conv_general_dilated"):
            return [self.product(frame, eqn, ins, layer)]
        dims = [self.dims(frame, a) for a in eqn.invars]
        if name in SHAPING and ins[0].held is not None and name != "broadcast_in_dim":
            return [Known(held=_moved(eqn, ins[0].held))]
        knowns = [
            spread(self.program.extents, k, d) for k, d in zip(ins, dims, strict=True)
        ]
        return [self.plain(frame, eqn, knowns, var) for var in eqn.outvars]

    def dims(self, frame: Frame, atom: Any) -> Dims:
        """Dims of an operand; a number has none."""
        if jaxprs.is_literal(atom):
            return self.program.extents.shape(np.shape(atom.val))
        return frame.dims[atom]

    def plain(self, frame, eqn, ins: list[Known], var) -> Known:
        """The result of an equation without a body."""
        name = eqn.primitive.name
        extents = self.program.extents
        wholes = {w: extents.size((w,)) for w in once(extents, frame.dims[var])}
        if name in ELEMENTWISE:
            dtypes = [a.aval.dtype for a in (*eqn.invars, var)]
            return elementwise(name, _binding(eqn), ins, wholes, dtypes)
        if name in _MOVES:
            return _only(ins[0], wholes, name == "broadcast_in_dim")
        if name in _JOINS:
            return _only(_joined(extents, frame, eqn, ins, wholes), wholes, False)
        if name in _COUNTED:
            return _only(_times(ins[0], _COUNTED[name](eqn)), wholes, False)
        return NOTHING

    # Products --------------------------------------------------------------------
    def product(self, frame, eqn, ins, layer) -> Known:
        """Notes the sums of a product, and what its result is 0 at."""
        dims = [self.dims(frame, a) for a in eqn.invars]
        extents = self.program.extents
        summed = set()
        for left, right in _contracted(eqn):
            both = {*extents.wholes(dims[0][left])} & {*extents.wholes(dims[1][right])}
            for whole in sorted(both):
                self.sum(frame, eqn, ins, dims, (left, right), whole, layer)
            summed |= both
        found: dict[int, Entries] = {}
        single = once(extents, frame.dims[eqn.outvars[0]])
        for side, known in enumerate(ins):
            for whole, axis in once(extents, dims[side]).items():
                entries = along(extents, known, dims[side], axis, whole)
                if entries is None or whole in summed or whole not in single:
                    continue
                no = np.zeros_like(entries.value)
                zero = Entries(no, entries.zero, entries.gone)
                found[whole] = _either(found.get(whole), zero)
        return Known({w: e for w, e in found.items() if e.known.any()})

    def sum(self, frame, eqn, ins, dims, axes, whole, layer) -> None:
        """Notes one sum."""
        if self.quiet:
            return
        extents = self.program.extents
        sides = [along(extents, ins[s], dims[s], axes[s], whole) for s in (0, 1)]
        gone = np.zeros(extents.size((whole,)), bool)
        for entries in sides:
            if entries is not None:
                gone |= entries.gone
        leaves = [
            None if jaxprs.is_literal(a) else frame.leaves.get(a) for a in eqn.invars
        ]
        kernel = next((s for s in (1, 0) if ins[s].held is not None), None)
        constant, leaf, hinders = None, None, "both operands change with the input"
        if kernel is not None:
            constant, leaf = sides[1 - kernel], leaves[kernel]
            hinders = _hinders(eqn)
        self.sums.append(Sum(whole, layer, frame.scans, gone, constant, leaf, hinders))

    # Calls -----------------------------------------------------------------------
    def scan(self, frame, eqn, ins, index, layer) -> list[Known]:
        held, carried = jaxprs.scan_counts(eqn)
        fixed = held + carried
        body = frame.bodies[index, 0]
        carry = list(ins[held:fixed])
        length = eqn.params["length"]
        stacked = len(body.scans) > len(frame.scans)
        if not stacked:
            carry = self.settled(body, ins[:held], carry, len(ins) - fixed, layer)
        order = range(length)[:: -1 if eqn.params["reverse"] else 1]
        for step in order if stacked else [None]:
            xs = [_slice(k, step) for k in ins[fixed:]]
            inner = layer if step is None else (*layer, step)
            carry = self.body(body, [*ins[:held], *carry, *xs], inner)[:carried]
        return [*carry, *[NOTHING] * (len(eqn.outvars) - carried)]

    def settled(self, body, held, carry, rest, layer) -> list[Known]:
        """What is known of a carry at every step."""
        carry = [
            spread(self.program.extents, k, body.dims[v])
            for k, v in zip(carry, body.jaxpr.invars[len(held) :], strict=False)
        ]
        self.quiet += 1
        for _ in range(_ROUNDS):
            args = [*held, *carry, *[NOTHING] * rest]
            after = self.body(body, args, layer)[: len(carry)]
            joined = [join(a, b) for a, b in zip(carry, after, strict=True)]
            if all(_same(a, b) for a, b in zip(carry, joined, strict=True)):
                break
            carry = joined
        else:
            carry = [NOTHING] * len(carry)
        self.quiet -= 1
        return carry

    def cond(self, frame, eqn, ins, index, layer) -> list[Known]:
        extents = self.program.extents
        results = []
        for i in range(len(eqn.params["branches"])):
            branch = frame.bodies[index, i]
            outs = self.body(branch, ins[1:], layer)
            dims = [self.dims(branch, a) for a in branch.jaxpr.outvars]
            results.append(
                [spread(extents, k, d) for k, d in zip(outs, dims, strict=True)]
            )
        found = results[0]
        for other in results[1:]:
            found = [join(a, b) for a, b in zip(found, other, strict=True)]
        return found

    def loop(self, frame, eqn, ins, index, layer) -> list[Known]:
        skip, held = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        state = [NOTHING] * (len(ins) - skip - held)
        self.body(frame.bodies[index, 0], [*ins[:skip], *state], layer)
        self.body(frame.bodies[index, 1], [*ins[skip : skip + held], *state], layer)
        return state


_CALLS: dict[str, Callable[..., list[Known]]] = {
    "scan": _Reader.scan,
    "cond": _Reader.cond,
    "while": _Reader.loop,
}
# Every entry of the result is an entry of the operand with the same units.
_MOVES = SHAPING | frozenset(
    "slice split gather dynamic_slice rev reduce_max reduce_min reduce_and reduce_or "
    "sort".split()
)
_JOINS = frozenset("concatenate pad dynamic_update_slice".split())


def _sizes(eqn: Any, axes: Sequence[int]) -> int:
    return int(np.prod([eqn.invars[0].aval.shape[a] for a in axes]))


def _window(eqn: Any) -> int:
    """Entries in a window; 0 where windows at the border have fewer."""
    padded = any(tuple(p) != (0, 0) for p in eqn.params["padding"])
    return 0 if padded else int(np.prod(eqn.params["window_dimensions"]))


# How many entries of one value are summed; 0 where it is not always as many.
_COUNTED: dict[str, Callable[[Any], int]] = {
    "reduce_sum": lambda eqn: _sizes(eqn, eqn.params["axes"]),
    "reduce_window_sum": _window,
    "cumsum": lambda eqn: 0,
}


def _times(known: Known, count: int) -> Known:
    """A sum of equal entries."""
    found = {}
    for whole, e in known.by.items():
        fine = e.known if count else e.zero
        value = e.value * np.asarray(count, e.value.dtype)
        found[whole] = Entries(np.where(e.zero, e.value, value), fine, e.firm & fine)
    return Known(found)


def _only(known: Known, wholes: dict[int, int], number: bool) -> Known:
    by = {w: e for w, e in known.by.items() if w in wholes and e.known.any()}
    return Known(by, known.number if number else None)


def _joined(extents, frame, eqn, ins, wholes) -> Known:
    """Entries of several operands: units that only one has are as they are there."""
    dims = [
        extents.shape(np.shape(a.val)) if jaxprs.is_literal(a) else frame.dims[a]
        for a in eqn.invars
    ]
    count = {"concatenate": len(ins)}.get(eqn.primitive.name, 2)
    operands = list(zip(ins, dims, strict=True))[:count]
    found = {}
    for whole, size in wholes.items():
        holders = [k for k, d in operands if whole in once(extents, d)]
        having = [k.entries(whole, size) for k in holders]
        if eqn.primitive.name == "pad" and _pads(eqn, extents, dims[0], whole):
            having.append(ins[1].entries(whole, size))
        entries = alike(having)
        if entries is not None:
            found[whole] = entries
    return Known(found)


def _pads(eqn: Any, extents: Any, dims: Dims, whole: int) -> bool:
    """Whether padding adds entries to the units of a group."""
    axis = once(extents, dims).get(whole)
    config = eqn.params["padding_config"]
    return any(tuple(c) != (0, 0, 0) for i, c in enumerate(config) if i != axis)


def _either(one: Entries | None, two: Entries) -> Entries:
    if one is None:
        return two
    return Entries(one.value, one.known | two.known, one.firm | two.firm)


def _same(one: Known, two: Known) -> bool:
    return one.by.keys() == two.by.keys() and all(
        np.array_equal(a, b, equal_nan=True)
        for w, e in one.by.items()
        for a, b in zip(e[1:], two.by[w][1:], strict=True)
    )


def _constant(value: Any) -> Known:
    """A constant of the function, if it is one number."""
    if np.ndim(value) == 0 and jnp.issubdtype(jnp.result_type(value), jnp.number):
        return Known(number=np.asarray(value))
    return NOTHING


def _slice(known: Known, step: int | None) -> Known:
    """A layer of a stacked operand."""
    if known.held is None or step is None:
        return NOTHING
    value, mask = known.held
    return Known(held=Held(lambda: value()[step], None if mask is None else mask[step]))


def _moved(eqn: Any, held: Held) -> Held:
    """A parameter after a move or a cast."""
    name, params = eqn.primitive.name, eqn.params
    aval = eqn.outvars[0].aval

    def move(array: np.ndarray) -> np.ndarray:
        if name == "transpose":
            return np.transpose(array, params["permutation"])
        return np.reshape(array, aval.shape)

    mask = None if held.mask is None else move(held.mask)
    return Held(lambda: move(np.asarray(held.value())).astype(aval.dtype), mask)


def _binding(eqn: Any) -> Callable[..., Any]:
    """The operation of an equation, for arrays of one axis."""
    params = {k: v for k, v in eqn.params.items() if k not in ("sharding",)}
    if "sharding" in eqn.params:
        params["sharding"] = None
    return lambda *arrays: eqn.primitive.bind(*arrays, **params)


def _contracted(eqn: Any) -> list[tuple[int, int]]:
    """Pairs of axes that a product runs over."""
    numbers = eqn.params["dimension_numbers"]
    if eqn.primitive.name == "dot_general":
        return list(zip(*numbers[0], strict=True))
    return [(numbers.lhs_spec[1], numbers.rhs_spec[1])]


def _hinders(eqn: Any) -> str:
    """Why the reader's bias cannot hold what a constant unit adds."""
    params = eqn.params
    if eqn.primitive.name == "dot_general":
        return ""
    if params["feature_group_count"] > 1 or params["batch_group_count"] > 1:
        return "the reading convolution is grouped"
    if any(tuple(p) != (0, 0) for p in params["padding"]):
        return "the reading convolution pads, so that they add less at the border"
    if any(d != 1 for d in params["lhs_dilation"]):
        return "the reading convolution is transposed"
    return ""
