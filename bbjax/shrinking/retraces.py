"""The function on smaller parameters: traced again, once for every choice of sizes."""

from __future__ import annotations

import functools
import pathlib
import re
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bbjax import adapters
from bbjax.model.groups import Group
from bbjax.model.leaves import Leaves
from bbjax.shrinking import culprits, proof
from bbjax.shrinking.cut import Cut, cut, cuts, shape_of
from bbjax.shrinking.model import Array, Kept, TracedModel
from bbjax.shrinking.proof import Difference
from bbjax.tracing import jaxprs
from bbjax.tracing.axes.program import Frame
from bbjax.tracing.call import Prepared, prepare

Line = tuple[str, int]


class Retraces:
    """A function, traced again for choices of groups that get smaller.

    Attributes:
      fn: the function.
      params: its parameters, with zeros where they are masked.
      args: its other arguments.
      model: traced on these.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        params: Any,
        args: tuple[Any, ...],
        model: TracedModel,
    ):
        self.fn, self.params, self.args, self.model = fn, params, args, model
        self._traced: dict[Hashable, Prepared] = {}
        self._found: dict[Hashable, list[Difference]] = {}

    def to_refuse(self, kept: Kept) -> dict[int, str]:
        """Groups that must keep their size, with the reason."""
        groups = self.model.groups
        names = {number: group.name for number, group in groups.items()}
        kinds = {g: (_kind(groups[g]), _counts(kept)[g]) for g in kept}
        return culprits.to_refuse(kept, names, kinds, self.differences)

    def traced(self, kept: Kept) -> Prepared:
        """The function on smaller parameters, which it takes."""
        self.differences(kept)
        return self._traced[_key(kept)]

    def differences(self, kept: Kept) -> list[Difference]:
        """Differences of the function on smaller parameters from the old one."""
        key = _key(kept)
        if key not in self._found:
            self._found[key] = self._differences(kept)
        return self._found[key]

    def _differences(self, kept: Kept) -> list[Difference]:
        small = smaller(self.model, self.params, kept, {}, _shape_of_cut)
        try:
            again = prepare(self.fn, small, self.args, {})
        except Exception as error:  # any error of the user's function is the reason
            groups = self._reached(error) & kept.keys()
            text = f"the function cannot take fewer: {_reason(error)}"
            return [Difference(text, frozenset(groups), failed=True)]
        self._traced[_key(kept)] = again
        return proof.compare(self.model.program, kept, again.jaxpr)

    # Errors ----------------------------------------------------------------------
    def _reached(self, error: Exception) -> set[int]:
        """Groups in the equations of the code that an error comes from.

        These come from the lines of code that have most in common with the way to the
        error: from outside to the first line that they do not share.
        """
        way = _lines_of(error)
        most, found = 0, set[int]()
        for lines, groups in self._equations:
            count = _shared(way, lines)
            if count > most:
                most, found = count, set()
            if count == most:
                found |= groups
        return found if most else set()

    @functools.cached_property
    def _equations(self) -> list[tuple[list[Line], set[int]]]:
        """The lines of code that made every equation, and the groups in it."""
        return list(self._in_frame(self.model.program.top))

    def _in_frame(self, frame: Frame) -> Iterator[tuple[list[Line], set[int]]]:
        for eqn in frame.jaxpr.eqns:
            atoms = [*eqn.invars, *eqn.outvars]
            dims = [d for a in atoms if not jaxprs.is_literal(a) for d in frame.dims[a]]
            groups = {g for dim in dims for g in self.model.program.extents.wholes(dim)}
            yield jaxprs.lines(eqn), groups
        for body in frame.bodies.values():
            yield from self._in_frame(body)


def smaller(
    model: TracedModel,
    params: Any,
    kept: Kept,
    biases: Mapping[int, Array],
    how: Callable[[Array, tuple[Cut, ...]], Any] = cut,
) -> Any:
    """The parameters without the removed units.

    Args:
      model: of the parameters.
      params: a tree of them.
      kept: by group that gets smaller, which units stay.
      biases: new values, by number of the parameter.
      how: an array is cut.
    """
    leaves = Leaves.of(params)
    for leaf, bias in biases.items():
        leaves.put_at(model.paths[leaf], bias)
    for path, mine in cuts(model, kept).items():
        leaves.put_at(path, how(leaves.at(path), mine))
    tree = leaves.tree()
    nnx = adapters.loaded("nnx")
    if nnx is not None:
        nnx.resize(tree)
    return tree


def _shape_of_cut(array: Array, mine: tuple[Cut, ...]) -> jax.ShapeDtypeStruct:
    """The type of a parameter after a cut."""
    shape = list(jnp.shape(array))
    for axis, _, indices in mine:
        shape[axis] = indices.shape[-1]
    return shape_of(array, tuple(shape))


def _counts(kept: Kept) -> dict[int, int]:
    """How many units stay, by group: in every layer as many."""
    return {group: int(keep.sum(axis=-1).flat[0]) for group, keep in kept.items()}


def _key(kept: Kept) -> Hashable:
    return tuple(sorted(_counts(kept).items()))


def _kind(group: Group) -> Hashable:
    """Equal for groups of the layers of one model: their names differ in a number."""
    names = [re.sub(r"\d+(?!\d*\])", "#", str(member)) for member in group.members]
    return group.size, group.layers, tuple(sorted(names))


def _lines_of(error: Exception) -> list[Line]:
    """The lines of code that led to an error, from outside to inside."""
    walk = traceback.walk_tb(error.__traceback__)
    return [(frame.f_code.co_filename, number) for frame, number in walk]


def _shared(way: list[Line], lines: list[Line]) -> int:
    """How many lines two ways share from outside, where the second is more detailed."""
    count, start = 0, 0
    for line in way:
        if line in lines[start:]:
            count, start = count + 1, lines.index(line, start) + 1
        elif count:  # what comes before may differ: who calls the function
            break
    return count


def _reason(error: Exception) -> str:
    """The first line of an error, or else where it comes from."""
    text = str(error).strip().split("\n", 1)[0]
    if not text:
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{pathlib.Path(last.filename).name}, line {last.lineno}, in {last.name}"
    return f"{type(error).__name__}: {text}"
