"""`bb.shrink`: masks become smaller arrays.

    trace the function, and follow its axes          (`model`)
        ->  choose the units to remove               (`removal`)
        ->  cut the parameters                       (`cut`)
        ->  trace again, and compare the programs    (`proof`)
        ->  choose again at other sizes of the arguments, and compare (`sizes`)

If a comparison fails, the groups that make the difference keep their size, and the
units of the others are chosen again. The result computes what the masked model does.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bbjax import adapters
from bbjax.model.checks import Masks, check_by_path, check_values, on_host
from bbjax.model.leaves import Leaves
from bbjax.shrinking import costs, proof, sizes
from bbjax.shrinking.cut import Cut, cut, cuts, shape_of
from bbjax.shrinking.model import Array, Kept, TracedModel
from bbjax.shrinking.removal import Removal, choose
from bbjax.shrinking.result import Change, ShrinkReport, Shrunk
from bbjax.tracing.call import Prepared, call, prepare, traced
from bbjax.tracing.trace import followed


def shrink(
    fn: Callable[..., Any], params: Any, masks: Masks, *example_args: Any
) -> Shrunk:
    """Removes units without incoming or outgoing edges, and makes the arrays smaller.

    A unit is removed if its masks leave no outgoing edge, or no incoming one. Without
    incoming edges the value of a unit is a constant, which is added to the next bias.
    Units that a unit-level rule has cut are removed with all their parameters, and so
    are units that only removed units used. Groups of units whose number is decided by
    something else stay whole (`units.graph` and `Shrunk.report` have the reasons).

    Args:
      fn: function of `(params, *example_args)` as for `bb.trace`. Its shapes have to
        come from the parameters: it is traced again on the smaller ones.
      params: tree of parameters or `nnx.Module`. It has to contain everything with an
        entry per unit, also running statistics.
      masks: by path, bool arrays of the parameters' shapes, True where kept, as
        `bb.masks` and `bb.prune` return them.
      *example_args: arrays or `jax.ShapeDtypeStruct`s; bind keyword arguments of `fn`
        to it by `functools.partial`. Batches and sequences may have other lengths
        later.

    Returns:
      `Shrunk`: smaller `params`, with which `fn` computes what it did with masked ones,
      outputs and gradients, up to the order of sums; `masks`, `widths`, `report`, and
      `cut` for other trees.

    Raises:
      ValueError: a path without a parameter, or a mask of another shape.
      TypeError: a mask that is not bool; parameters or masks without values.

    Example:
      >>> import bbjax as bb, jax
      >>> def net(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
      >>> used = jnp.arange(8)[:, None] < 5
      >>> masks = {"down": jnp.broadcast_to(used, (8, 2))}
      >>> small = bb.shrink(net, params, masks, jnp.ones((4, 3)))
      >>> small.params["up"].shape, small.widths["up"]
      ((3, 5), (8, 5))
    """
    linen = adapters.loaded("linen")
    fn = fn if linen is None else linen.resized(fn)  # takes sizes of the parameters
    masked, checked = _masked(params, masks)
    this = call(fn, masked, example_args, {})
    prepared = traced(this)
    model = TracedModel.of(prepared, masked, checked)
    others: list[TracedModel] | None = None
    refused: dict[int, str] = {}
    varying: dict[int, str] = {}
    while True:
        removal = choose(model, refused, varying)
        attempt = _Attempt(fn, masked, example_args, model, removal)
        wrong = attempt.to_refuse()
        refused |= wrong
        if wrong:
            continue
        if others is None and removal.kept:
            found = sizes.at_other_sizes(this, model)
            others = [TracedModel.of(other, masked, checked) for other in found]
        for other in others or ():
            wrong |= sizes.differing(model, removal, other, refused, varying)
        if not wrong:
            return attempt.result(checked, prepared, refused)
        # First only constants are kept out of biases; then the group keeps its size.
        refused |= {group: why for group, why in wrong.items() if group in varying}
        varying |= wrong


def _masked(params: Any, masks: Masks) -> tuple[Any, dict[str, np.ndarray]]:
    """Parameters with zeros where masks are False, and the masks, checked."""
    leaves = Leaves.of(params)
    check_values(leaves.named(), "parameters")
    check_by_path(masks)
    checked = on_host(masks) if masks else {}
    for path, mask in checked.items():
        if path not in leaves.by_path:
            raise ValueError(
                f"expected masks of parameters, got one for {path!r}, which is none; "
                f"the parameters are {list(leaves.by_path)[:8]}"
            )
        if jnp.shape(mask) != jnp.shape(leaves.at(path)):
            raise ValueError(
                f"expected a mask of shape {jnp.shape(leaves.at(path))} for {path!r}, "
                f"got {jnp.shape(mask)}; masks have the shapes of the parameters"
            )
        leaves.keep_at(path, mask)
    return leaves.tree(), checked


@dataclasses.dataclass
class _Attempt:
    """A removal, and the function on the parameters that it leaves."""

    fn: Callable[..., Any]
    masked: Any
    args: tuple[Any, ...]
    model: TracedModel
    removal: Removal

    def to_refuse(self) -> dict[int, str]:
        """Groups that must keep their size, with the reason."""
        names = {number: group.name for number, group in self.model.groups.items()}
        return proof.to_refuse(self.removal.kept, names, self.differences)

    def differences(self, kept: Kept) -> list[str]:
        """Differences of the function on smaller parameters from the old one."""
        small = self.smaller(kept, _shape_of_cut)
        try:
            again = prepare(self.fn, small, self.args, {})
        except Exception as error:  # any error of the user's function is the reason
            text = str(error).strip().split("\n", 1)[0]
            return [f"the function cannot take fewer: {type(error).__name__}: {text}"]
        return proof.compare(self.model.program, kept, again.jaxpr)

    def smaller(
        self, kept: Kept, how: Callable[[Array, tuple[Cut, ...]], Any] = cut
    ) -> Any:
        """The parameters without the removed units."""
        leaves = Leaves.of(self.masked)
        for leaf, bias in self.removal.biases.items():
            leaves.put_at(self.model.paths[leaf], bias)
        for path, mine in cuts(self.model, kept).items():
            leaves.put_at(path, how(leaves.at(path), mine))
        params = leaves.tree()
        nnx = adapters.loaded("nnx")
        if nnx is not None:
            nnx.resize(params)
        return params

    def result(
        self,
        masks: Mapping[str, np.ndarray],
        prepared: Prepared,
        refused: Mapping[int, str],
    ) -> Shrunk:
        """The smaller parameters, and what was removed."""
        model, kept = self.model, self.removal.kept
        params, mine = self.smaller(kept), cuts(model, kept)
        after = prepare(self.fn, params, self.args, {}) if mine else prepared
        small = Leaves.of(params)
        left = {path: cut(mask, mine.get(path, ())) for path, mask in masks.items()}
        for leaf in self.removal.biases:  # constants of removed units are kept
            path = model.paths[leaf]
            if path in left:
                left[path] = left[path] | (np.asarray(small.at(path)) != 0)
        arrays = [small.at(path) for path in model.paths]
        report = ShrinkReport(
            (costs.count(model.arrays), costs.count(arrays)),
            (costs.flops(prepared.jaxpr), costs.flops(after.jaxpr)),
            (costs.bytes_of(model.arrays), costs.bytes_of(arrays)),
            tuple(self.changes(refused)),
            tuple(self.draws()),
        )
        units = followed(after).units
        widths = {
            k.path: (math.prod(k.out_units), math.prod(units[k.path].out_units))
            for k in model.kernels.values()
        }
        shapes = {
            path: tuple(jnp.shape(array))
            for path, array in zip(model.paths, model.arrays, strict=True)
        }
        return Shrunk(params, left, widths, report, units, mine, shapes, self.fn)

    def changes(self, refused: Mapping[int, str]) -> Iterable[Change]:
        """Groups that lost units or keep idle ones, in the graph's order."""
        for number, group in self.model.groups.items():
            kept = self.removal.kept.get(number)
            idle, why = self.removal.idle.get(number, (0, ""))
            if kept is None and not idle:
                continue
            after = group.size
            if kept is not None:
                after = int(kept.reshape(-1, group.size)[0].sum())
            yield Change(group.name, group.size, after, idle, refused.get(number, why))

    def draws(self) -> Iterable[str]:
        """Smaller groups with random numbers for each unit."""
        extents = self.model.program.extents
        drawn = {g for d in self.model.program.drawn for g in extents.wholes(d)}
        for number, group in self.model.groups.items():
            if number in self.removal.kept and number in drawn:
                yield group.name


def _shape_of_cut(array: Array, mine: tuple[Cut, ...]) -> jax.ShapeDtypeStruct:
    """The type of a parameter after a cut."""
    whole = jax.ShapeDtypeStruct(jnp.shape(array), array.dtype)
    shape = jax.eval_shape(functools.partial(cut, mine=mine), whole).shape
    return shape_of(array, shape)
