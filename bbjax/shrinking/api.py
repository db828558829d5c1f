"""`bb.shrink`: masks become smaller arrays.

    trace the function, and follow its axes          (`model`)
        ->  choose the units to remove               (`removal`)
        ->  cut the parameters                       (`cut`)
        ->  trace again, and compare the programs    (`retraces`, `proof`)
        ->  choose again at other sizes of the arguments, and compare (`sizes`)

If a comparison fails, the groups that make the difference (`culprits`) keep their
size, and the units of the others are chosen again. The result computes what the masked
model does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from bbjax import adapters
from bbjax.model.checks import Masks, check_by_path, check_values, meant, on_host
from bbjax.model.kernel import Kernel
from bbjax.model.leaves import Leaves
from bbjax.shrinking import costs, sizes
from bbjax.shrinking.cut import cut, cuts
from bbjax.shrinking.cut import masked as cut_masked
from bbjax.shrinking.model import Array, TracedModel
from bbjax.shrinking.removal import Removal, choose
from bbjax.shrinking.result import Change, ShrinkReport, Shrunk
from bbjax.shrinking.retraces import Retraces, smaller
from bbjax.tracing.call import Prepared, call, traced


def shrink(
    fn: Callable[..., Any], params: Any, masks: Masks, *example_args: Any
) -> Shrunk:
    """Removes units without incoming or outgoing edges, and makes the arrays smaller.

    A unit is removed if its masks leave no outgoing edge, or no incoming one. Without
    incoming edges the value of a unit is a constant, which is added to the next bias.
    Units that a unit-level rule has cut are removed with all their parameters, and so
    are units that only removed units used.

    Rules that choose single edges leave every budgeted unit at least `k_min`, 1 by
    default. So their masks remove few units, those that lose every edge on the other
    side. To remove units by their traffic, cut the masks of whole units first:

        scores = bb.unitwise.traffic(units, stats)  # stats from bb.calibrate
        masks = bb.unitwise.cut(units, scores, density=0.5)
        small = bb.shrink(fn, params, masks, *example_args)

    Groups of units whose number is decided by something else stay whole (`units.graph`
    and `Shrunk.report` have the reasons).

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
    retraces = Retraces(fn, masked, example_args, model)
    others: list[TracedModel] | None = None
    refused: dict[int, str] = {}
    varying: dict[int, str] = {}
    while True:
        removal = choose(model, refused, varying)
        wrong = retraces.to_refuse(removal.kept)
        refused |= wrong
        if wrong:
            continue
        if others is None and removal.kept:
            found = sizes.at_other_sizes(this, model)
            others = [model.at(other) for other in found]
        for other in others or ():
            wrong |= sizes.differing(model, removal, other, refused, varying)
        if not wrong:
            return _Result(retraces, removal, refused).shrunk(checked, prepared)
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
                f"expected masks of parameters, got one for {path!r}, which is none"
                f"{meant(path, leaves.by_path)}; the parameters are "
                f"{list(leaves.by_path)[:8]}"
            )
        if jnp.shape(mask) != jnp.shape(leaves.at(path)):
            raise ValueError(
                f"expected a mask of shape {jnp.shape(leaves.at(path))} for {path!r}, "
                f"got {jnp.shape(mask)}; masks have the shapes of the parameters"
            )
        leaves.put_at(path, cut_masked(leaves.at(path), mask))
    return leaves.tree(), checked


@dataclasses.dataclass
class _Result:
    """A removal that is fine, and the function on the parameters that it leaves."""

    retraces: Retraces
    removal: Removal
    refused: Mapping[int, str]

    def shrunk(self, masks: Mapping[str, np.ndarray], prepared: Prepared) -> Shrunk:
        """The smaller parameters, and what was removed."""
        model, kept = self.retraces.model, self.removal.kept
        params = smaller(model, self.retraces.params, kept, self.removal.biases)
        mine = cuts(model, kept)
        after = self.retraces.traced(kept) if mine else prepared
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
            tuple(self.changes()),
            tuple(self.draws()),
            self.fixed(),
        )
        widths = {
            kernel.path: (
                _outputs(kernel, model.arrays[leaf]),
                _outputs(kernel, arrays[leaf]),
            )
            for leaf, kernel in model.kernels.items()
        }
        shapes = {
            path: tuple(jnp.shape(array))
            for path, array in zip(model.paths, model.arrays, strict=True)
        }
        fn = self.retraces.fn
        return Shrunk(params, left, widths, report, mine, shapes, fn, after)

    def changes(self) -> Iterable[Change]:
        """Groups that lost units or keep idle ones, in the graph's order."""
        for number, group in self.retraces.model.groups.items():
            kept = self.removal.kept.get(number)
            idle, why = self.removal.idle.get(number, (0, ""))
            if kept is None and not idle:
                continue
            after = group.size
            if kept is not None:
                after = int(kept.reshape(-1, group.size)[0].sum())
            why = self.refused.get(number, why)
            yield Change(group.name, group.size, after, idle, why)

    def fixed(self) -> tuple[tuple[str, str], ...]:
        """Why no group can shrink; empty if one can."""
        groups = self.retraces.model.groups.values()
        if not all(group.fixed for group in groups):
            return ()
        return tuple((group.name, group.fixed) for group in groups)

    def draws(self) -> Iterable[str]:
        """Smaller groups with random numbers for each unit."""
        model = self.retraces.model
        wholes = model.program.extents.wholes
        drawn = {group for dim in model.program.drawn for group in wholes(dim)}
        for number, group in model.groups.items():
            if number in self.removal.kept and number in drawn:
                yield group.name


def _outputs(kernel: Kernel, array: Array) -> int:
    """Number of output units of a kernel, in each layer of a stack."""
    return math.prod(jnp.shape(array)[axis] for axis in kernel.fan_out)
