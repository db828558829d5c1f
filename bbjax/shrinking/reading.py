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

from bbjax.shrinking import operations
from bbjax.shrinking.known import (
    NOTHING,
    Entries,
    Held,
    Known,
    Tag,
    along,
    elementwise,
    join,
    once,
    spread,
)
from bbjax.tracing import jaxprs
from bbjax.tracing.axes.extents import Dims
from bbjax.tracing.axes.program import Frame, Program
from bbjax.tracing.primitives import (
    ELEMENTWISE,
    IDENTITY,
    INLINE,
    JOINING,
    PICKING,
    SHAPING,
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
      product: number of the product.
      bias: the parameter that is added to the product, or to its sum with others, and
        to nothing else but other products of the kernel, if there is one.
    """

    whole: int
    layer: Layer
    scans: Dims
    gone: np.ndarray
    constant: Entries | None
    leaf: int | None
    hinders: str
    product: int
    bias: int | None = None


def read(program: Program, held: Sequence[Held]) -> list[Sum]:
    """All sums over units.

    Args:
      program: from `bbjax.tracing.axes.program.follow`.
      held: every parameter, with its mask.
    """
    reader = _Reader(program)
    args = [Known(held=h, tag=("leaf", i)) for i, h in enumerate(held)]
    args += [NOTHING] * (len(program.top.jaxpr.invars) - len(args))
    reader.end("a result", reader.body(program.top, args, ()))
    return [found._replace(bias=reader.bias(found)) for found in reader.sums]


@dataclasses.dataclass
class _Reader:
    program: Program
    sums: list[Sum] = dataclasses.field(default_factory=list)
    quiet: int = 0  # while a scan is read only to find what its carry is
    ends: dict[Tag, list[tuple[str, Tag | None]]] = dataclasses.field(
        default_factory=dict
    )
    kernels: list[int | None] = dataclasses.field(default_factory=list)

    # Tags ------------------------------------------------------------------------
    def end(self, name: str, knowns: Sequence[Known]) -> None:
        """Notes what becomes of tagged arrays, with the other operand's tag."""
        tags = [known.tag for known in knowns]
        for i, tag in enumerate(tags):
            if tag is not None and not self.quiet:
                other = tags[1 - i] if len(tags) == 2 else None
                self.ends.setdefault(tag, []).append((name, other))

    def bias(self, found: Sum) -> int | None:
        """The parameter that is added to a product and has no other use."""
        ends = self.ends.get(("sum", found.product), [])
        if len(ends) != 1 or ends[0][0] not in ("add", "add_any"):
            return None
        leaf = ends[0][1]
        if leaf is None or leaf[0] != "leaf":
            return None
        for name, other in self.ends[leaf]:
            if name not in ("add", "add_any") or other is None or other[0] != "sum":
                return None
            if self.kernels[other[1]] != found.leaf:
                return None
        return leaf[1]

    def carried_tag(self, eqn: Any, ins: Sequence[Known]) -> Tag | None:
        """The tag of a result that is its operand, moved, spread or cast.

        A product to which something else is added, as a residual stream, may still
        find its bias.
        """
        name, known = eqn.primitive.name, ins[0]
        if name in ("add", "add_any"):
            one, two = (k.tag for k in ins)
            only = one if two is None else two
            lone = None in (one, two) and only is not None and only[0] == "sum"
            return only if lone else None
        if known.tag is None or name not in SHAPING or name == "stop_gradient":
            return None
        if name == "broadcast_in_dim" and known.tag[0] == "sum":
            return None
        kinds = [v.aval.dtype for v in (eqn.invars[0], eqn.outvars[0])]
        cast = name == "convert_element_type"
        if cast and not all(jnp.issubdtype(k, jnp.floating) for k in kinds):
            return None
        return known.tag

    def body(self, frame: Frame, args: Sequence[Known], layer: Layer) -> list[Known]:
        env: dict[Any, Known] = {}
        for var, const in zip(frame.jaxpr.constvars, frame.consts, strict=False):
            env[var] = operations.constant(const)
        env.update(zip(frame.jaxpr.invars, args, strict=True))

        def look(atom: Any) -> Known:
            if jaxprs.is_literal(atom):
                return operations.constant(atom.val)
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
        tag = self.carried_tag(eqn, ins) if ins else None
        if tag is None:
            self.end(name, ins)
        if name in ("dot_general", "conv_general_dilated"):
            return [self.product(frame, eqn, ins, layer)]
        if name in IDENTITY:
            return list(ins)
        dims = [self.dims(frame, a) for a in eqn.invars]
        if name in SHAPING and ins[0].held is not None and name != "broadcast_in_dim":
            return [Known(held=operations.moved(eqn, ins[0].held), tag=tag)]
        knowns = [
            spread(self.program.extents, k, d) for k, d in zip(ins, dims, strict=True)
        ]
        outs = [self.plain(frame, eqn, knowns, var) for var in eqn.outvars]
        return [dataclasses.replace(k, tag=tag) for k in outs] if tag else outs

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
            return elementwise(name, operations.binding(eqn), ins, wholes, dtypes)
        if name == "gather":
            return operations.only(operations.picked(eqn, ins[0]), wholes)
        if name in PICKING:
            return operations.only(ins[0], wholes, name == "broadcast_in_dim")
        if name in JOINING:
            return operations.only(
                operations.joined(extents, frame, eqn, ins, wholes), wholes, False
            )
        if name in operations.COUNTED:
            return operations.only(
                operations.times(ins[0], operations.COUNTED[name](eqn)), wholes, False
            )
        return NOTHING

    # Products --------------------------------------------------------------------
    def product(self, frame, eqn, ins, layer) -> Known:
        """Notes the sums of a product, and what its result is 0 at."""
        dims = [self.dims(frame, a) for a in eqn.invars]
        extents = self.program.extents
        summed = set()
        for left, right in operations.contracted(eqn):
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
                found[whole] = operations.either(found.get(whole), zero)
        tag = ("sum", len(self.kernels))
        self.kernels.append(self.kernel_of(frame, eqn, ins)[1])
        return Known({w: e for w, e in found.items() if e.known.any()}, tag=tag)

    def kernel_of(self, frame, eqn, ins) -> tuple[int | None, int | None]:
        """Which operand of a product is a kernel, and its number."""
        side = next((s for s in (1, 0) if ins[s].held is not None), None)
        if side is None or jaxprs.is_literal(eqn.invars[side]):
            return None, None
        return side, frame.leaves.get(eqn.invars[side])

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
        kernel, leaf = self.kernel_of(frame, eqn, ins)
        constant, hinders = None, "both operands change with the input"
        if kernel is not None:
            constant, hinders = sides[1 - kernel], operations.hinders_of(eqn)
        number = len(self.kernels)
        self.sums.append(
            Sum(whole, layer, frame.scans, gone, constant, leaf, hinders, number)
        )

    # Calls -----------------------------------------------------------------------
    def scan(self, frame, eqn, ins, index, layer) -> list[Known]:
        held, carried = jaxprs.scan_counts(eqn)
        fixed = held + carried
        body = frame.bodies[index, 0]
        ins = [self.without_sum("scan", k) for k in ins]
        self.end("scan", ins[held:fixed])
        carry = [dataclasses.replace(k, tag=None) for k in ins[held:fixed]]
        length = eqn.params["length"]
        stacked = len(body.scans) > len(frame.scans)
        if not stacked:
            carry = self.settled(body, ins[:held], carry, len(ins) - fixed, layer)
        order = range(length)[:: -1 if eqn.params["reverse"] else 1]
        for step in order if stacked else [None]:
            xs = [operations.layer_of(k, step) for k in ins[fixed:]]
            inner = layer if step is None else (*layer, step)
            outs = self.body(body, [*ins[:held], *carry, *xs], inner)
            self.end("scan", outs)
            carry = [dataclasses.replace(k, tag=None) for k in outs[:carried]]
        return [*carry, *[NOTHING] * (len(eqn.outvars) - carried)]

    def without_sum(self, name: str, known: Known) -> Known:
        """A product that goes where it may be used many times."""
        if known.tag is None or known.tag[0] != "sum":
            return known
        self.end(name, [known])
        return dataclasses.replace(known, tag=None)

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
            self.end("cond", outs)
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
        ins = [self.without_sum("while", k) for k in ins]
        self.end("while", ins[skip + held :])
        state = [NOTHING] * (len(ins) - skip - held)
        for number, fixed in enumerate((ins[:skip], ins[skip : skip + held])):
            outs = self.body(frame.bodies[index, number], [*fixed, *state], layer)
            self.end("while", outs)
        return state


_CALLS: dict[str, Callable[..., list[Known]]] = {
    "scan": _Reader.scan,
    "cond": _Reader.cond,
    "while": _Reader.loop,
}


def _same(one: Known, two: Known) -> bool:
    if (one.number is None) != (two.number is None) or one.number != two.number:
        return False
    return one.by.keys() == two.by.keys() and all(
        np.array_equal(a, b, equal_nan=True)
        for w, e in one.by.items()
        for a, b in zip(e[1:], two.by[w][1:], strict=True)
    )
