"""`bb.shrink`: masks become smaller arrays.

    read the function's axes (`axes`)  ->  decide which units go (`plan`)
        ->  cut (`cut`)  ->  trace again and compare (`proof`)
        ->  plan for other sizes of the arguments, and compare (`sizes`)

A group that a comparison finds cannot change size is refused, by name, and the rest is
decided anew. What is left computes what the masked model does.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bbjax import adapters
from bbjax.model.checks import check_by_path, check_values, on_host
from bbjax.model.leaves import Leaves
from bbjax.shrinking import costs, proof, sizes
from bbjax.shrinking.cut import cut, cuts, shape_of
from bbjax.shrinking.model import Model
from bbjax.shrinking.plan import Bools, Plan, plan
from bbjax.shrinking.result import Change, Report, Shrunk
from bbjax.tracing.axes.scans import scans_of_groups
from bbjax.tracing.call import Prepared, call, prepare, traced
from bbjax.tracing.trace import followed


def shrink(
    fn: Callable[..., Any], params: Any, masks: Mapping[str, Any], *example_args: Any
) -> Shrunk:
    """Removes units that nobody hears or that hear nobody, for real.

    A unit goes if its masks leave it no outgoing edge, or no incoming one: what it then
    says is a constant, which moves into the next bias. So do units that a unit-level
    rule has cut, with all that belongs to them, and what was needed for these alone.
    Groups of units whose number something else decides stay whole (`units.graph` and
    `Shrunk.report` say why).

    Args:
      fn: function of `(params, *example_args)` as for `bb.trace`. Its shapes have to
        come from the parameters: it is traced again on the smaller ones.
      params: tree of parameters or `nnx.Module`. What belongs to units, like running
        statistics, has to be in it, too.
      masks: by path, bool arrays of the parameters' shapes, True where kept, as
        `bb.masks` and `bb.prune` give them.
      *example_args: arrays or `jax.ShapeDtypeStruct`s; what `fn` takes by name is bound
        to it by `functools.partial`. Batches and sequences may have other lengths
        later.

    Returns:
      `Shrunk`: smaller `params`, with which `fn` computes what it did with masked ones,
      outputs and gradients, up to the order of sums; `masks`, `widths`, `report`, and
      `cut` for other trees.

    Raises:
      ValueError: a path that is no parameter's, or a mask of another shape.
      TypeError: a mask that is not bool; parameters or masks without values.

    Example:
      >>> import bbjax as bb, jax
      >>> def net(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
      >>> heard = jnp.arange(8)[:, None] < 5
      >>> masks = {"down": jnp.broadcast_to(heard, (8, 2))}
      >>> small = bb.shrink(net, params, masks, jnp.ones((4, 3)))
      >>> small.params["up"].shape, small.widths["up"]
      ((3, 5), (8, 5))
    """
    fn = _free(fn)
    masked, checked = _masked(params, masks)
    this = call(fn, masked, example_args, {})
    prepared = traced(this)
    model = _model(prepared, masked, checked)
    others: list[Model] | None = None
    refused: dict[int, str] = {}
    bound: dict[int, str] = {}
    while True:
        made = plan(model, refused, bound)
        attempt = _Attempt(fn, masked, example_args, model, made)
        wrong = attempt.wrong()
        refused |= wrong
        if wrong:
            continue
        if others is None and made.kept:
            found = sizes.elsewhere(this, model)
            others = [_model(other, masked, checked) for other in found]
        for other in others or ():
            wrong |= sizes.differing(model, made, other, refused, bound)
        if not wrong:
            return attempt.result(checked, prepared, refused)
        refused |= {w: why for w, why in wrong.items() if w in bound}
        bound |= wrong


def _free(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with linen's layers free to take the sizes of their parameters."""
    linen = adapters.loaded("linen")
    return fn if linen is None else linen.resized(fn)


def _masked(params: Any, masks: Mapping[str, Any]) -> tuple[Any, dict[str, np.ndarray]]:
    """Parameters with zeros where masks say so, and the masks, checked."""
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


def _model(prepared: Prepared, masked: Any, masks: Mapping[str, np.ndarray]) -> Model:
    found = followed(prepared)
    leaves = Leaves.of(masked)
    number = {path: i for i, path in enumerate(prepared.paths)}
    return Model(
        found.program,
        prepared.paths,
        [leaves.at(path) for path in prepared.paths],
        {number[path]: mask for path, mask in masks.items()},
        {number[k.path]: k for k in found.units.kernels},
        {w: found.units.graph[n] for w, n in found.numbers.items()},
        scans_of_groups(found.program),
    )


@dataclasses.dataclass
class _Attempt:
    """One plan, carried out."""

    fn: Callable[..., Any]
    masked: Any
    args: tuple[Any, ...]
    model: Model
    plan: Plan

    def wrong(self) -> dict[int, str]:
        """Groups that must keep their size after all, with the reason."""
        kept = self.plan.kept
        found = self.differences(kept) if kept else []
        if not found:
            return {}
        alike: dict[str, list[int]] = {}  # layer after layer mostly does the same
        for whole in kept:
            name = re.sub(r"\d+(?!\d*\])", "#", self.model.groups[whole].name)
            alike.setdefault(name, []).append(whole)
        blamed: dict[int, str] = {}
        for wholes in alike.values():
            blamed |= self.culprits(wholes)
        return blamed or dict.fromkeys(kept, found[0])

    def culprits(self, wholes: Sequence[int]) -> dict[int, str]:
        """Groups that make a difference, each by itself or all in the same way."""
        found = self.differences({w: self.plan.kept[w] for w in wholes})
        if not found or len(wholes) == 1:
            return {w: found[0] for w in wholes if found}
        first = self.differences({wholes[0]: self.plan.kept[wholes[0]]})
        if first and len(found) == len(first) * len(wholes):
            return dict.fromkeys(wholes, first[0])
        half = len(wholes) // 2
        both = self.culprits(wholes[:half]) | self.culprits(wholes[half:])
        return both or dict.fromkeys(wholes, found[0])

    def differences(self, kept: Bools) -> list[str]:
        """Where the function on smaller parameters is not what it should be."""
        small = self.smaller(kept, _shape_of_cut)
        try:
            again = prepare(self.fn, small, self.args, {})
        except Exception as error:  # whatever the user's function raises is the reason
            text = str(error).strip().split("\n", 1)[0]
            return [f"the function cannot take fewer: {type(error).__name__}: {text}"]
        return proof.compare(self.model.program, kept, again.jaxpr)

    def smaller(self, kept: Bools, how: Callable[..., Any] = cut) -> Any:
        """The parameters without the units that go."""
        leaves = Leaves.of(self.masked)
        for leaf, bias in self.plan.biases.items():
            leaves.put_at(self.model.paths[leaf], bias)
        for path, mine in cuts(self.model, kept).items():
            leaves.put_at(path, how(leaves.at(path), mine))
        return _resized(leaves.tree())

    def result(
        self,
        masks: Mapping[str, np.ndarray],
        prepared: Prepared,
        refused: Mapping[int, str],
    ) -> Shrunk:
        """What the user gets."""
        params, mine = self.smaller(self.plan.kept), cuts(self.model, self.plan.kept)
        after = prepare(self.fn, params, self.args, {}) if mine else prepared
        small = Leaves.of(params)
        left = {p: cut(mask, mine.get(p, ())) for p, mask in masks.items()}
        for leaf in self.plan.biases:  # what units said that left has to stay
            path = self.model.paths[leaf]
            if path in left:
                left[path] = left[path] | (np.asarray(small.at(path)) != 0)
        report = Report(
            _both(_count, self.model.arrays, [small.at(p) for p in self.model.paths]),
            _both(costs.flops, prepared.jaxpr, after.jaxpr),
            _both(_bytes, self.model.arrays, [small.at(p) for p in self.model.paths]),
            tuple(self.changes(refused)),
            tuple(self.draws()),
        )
        units = followed(after).units
        widths = {
            k.path: _both(math.prod, k.out_units, units[k.path].out_units)
            for k in self.model.kernels.values()
        }
        shapes = {
            p: tuple(jnp.shape(a))
            for p, a in zip(self.model.paths, self.model.arrays, strict=True)
        }
        return Shrunk(params, left, widths, report, units, mine, shapes, self.fn)

    def changes(self, refused: Mapping[int, str]) -> Iterable[Change]:
        """Groups that lost units or keep idle ones, in the graph's order."""
        for whole, group in self.model.groups.items():
            kept = self.plan.kept.get(whole)
            idle, why = self.plan.stayed.get(whole, (0, ""))
            if kept is None and not idle:
                continue
            after = group.size
            if kept is not None:
                after = int(kept.reshape(-1, group.size)[0].sum())
            yield Change(group.name, group.size, after, idle, refused.get(whole, why))

    def draws(self) -> Iterable[str]:
        """Groups that got smaller, with random numbers for each unit."""
        extents = self.model.program.extents
        drawn = {w for d in self.model.program.drawn for w in extents.wholes(d)}
        for whole, group in self.model.groups.items():
            if whole in self.plan.kept and whole in drawn:
                yield group.name


def _shape_of_cut(array: Any, mine: tuple[Any, ...]) -> Any:
    """A parameter cut, without its values."""
    whole = jax.ShapeDtypeStruct(jnp.shape(array), array.dtype)
    shape = jax.eval_shape(functools.partial(cut, mine=mine), whole).shape
    return shape_of(array, shape)


def _resized(params: Any) -> Any:
    """Parameters, with NNX modules that know their new sizes."""
    nnx = adapters.loaded("nnx")
    if nnx is not None:
        nnx.resize(params)
    return params


def _both(measure: Callable[[Any], int], before: Any, after: Any) -> tuple[int, int]:
    return measure(before), measure(after)


def _count(arrays: Iterable[Any]) -> int:
    return sum(math.prod(jnp.shape(a)) for a in arrays)


def _bytes(arrays: Iterable[Any]) -> int:
    return sum(math.prod(jnp.shape(a)) * a.dtype.itemsize for a in arrays)
