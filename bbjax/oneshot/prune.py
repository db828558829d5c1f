"""Pruning in one shot: the rules of training, without an optimizer.

    stats = bb.calibrate(fn, units, params, batches, needs=rule.needs)
    params, masks = bb.prune(params, units, rule, density=0.5, stats=stats)

`prune` applies the rule to all selected kernels of the dense model (one pass).
`prune_in_order` prunes them in the order of the model and measures every kernel anew
on the pruned ones before it. Slices of a scanned stack are layers: all kernels of one
layer come before those of the next.

Masks are dicts by path, bool of the parameter's shape, True where kept; where a rule
prunes biases too, they have a mask as well. `apply_masks` sets what a mask prunes to 0,
and `bb.hold(masks)` keeps it there while the rest is trained.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bbjax.activity.calibrate import Meter
from bbjax.activity.on import On, positive
from bbjax.budgets.allocation import Budgets, Density, budgets
from bbjax.model.checks import check_bools, meant
from bbjax.model.leaves import Leaves
from bbjax.model.units import Actuator, Kernel, Units
from bbjax.oneshot.unseen import name_unseen, stand_ins, unseen_slices
from bbjax.rules.base import Candidates, Choice, Group, Rule, as_choice, needed
from bbjax.rules.patterns import Pattern
from bbjax.training import arguments, observations
from bbjax.training.state import sharded_as

Masks = dict[str, jax.Array]


def prune(
    params: Any,
    units: Units,
    rule: Rule,
    density: Density = None,
    *,
    stats: Any = None,
    grads: Any = None,
    pattern: Pattern | None = None,
    masks: Mapping[str, Any] | None = None,
    k_min: int = 1,
) -> tuple[Any, Masks]:
    """Prunes the selected kernels once.

    Args:
      params: the parameter tree that was traced.
      units: from `bb.trace`; its selection, or the hidden kernels that a nonlinearity
        follows, actuator "in".
      rule: from `bb.rules`.
      density: as for `bb.transform`; required, unless a pattern or the rule sets it.
      stats: activity of the kernels, from `bb.calibrate` (or `bb.observe`), where the
        rule reads it.
      grads: tree of dense gradients, where the rule reads them; see `bb.saliency`.
      pattern: groups that edges are kept in, e.g. `bb.n_m(2, 4)`.
      masks: edges that are left from an earlier pruning, by path; others do not come
        back, and the density still counts all edges.
      k_min: least number of edges of a unit.

    Returns:
      The parameters, pruned entries 0, and the masks of the selected kernels, by path.
      Leaves that are not pruned are the very same objects.

    Raises:
      TypeError: an argument of the wrong kind.
      ValueError: a value out of range, statistics or gradients that the rule needs and
        did not get, masks or a pattern that do not fit.

    Example:
      >>> import bbjax as bb
      >>> kernel = Kernel("w", (3, 2), fan_in=(0,), fan_out=(1,))
      >>> units = bb.Units((kernel,)).select("w")
      >>> params = {"w": jnp.array([[1.0, 6.0], [2.0, 5.0], [3.0, 4.0]])}
      >>> pruned, masks = prune(params, units, bb.rules.magnitude(), density=1 / 3)
      >>> pruned["w"].tolist()
      [[0.0, 6.0], [0.0, 0.0], [3.0, 0.0]]
    """
    job = Job.of(units, rule, density, pattern, masks, k_min)
    observations.check_call(rule, stats, grads, "bb.prune")
    tree = Leaves.of(params)
    found: Masks = {}
    for kernel, choice in job.choices(tree, stats, grads):
        found |= put(tree, kernel, choice)
    return tree.tree(), found


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be pruned, checked, and how much of it."""

    budgeted: arguments.Budgeted
    rule: Rule
    spend: Budgets
    pattern: Pattern | None
    masks: Mapping[str, Any] | None
    k_min: int

    @classmethod
    def of(cls, units, rule, density, pattern, masks, k_min) -> Job:
        """The arguments of `prune`, checked."""
        arguments.check_units(units)
        arguments.check_rule(rule)
        k_min = arguments.check_k_min(k_min)
        budgeted = arguments.check_kernels(units, rule, k_min, pattern)
        density = arguments.density_of(rule, density, pattern, None)
        arguments.check_densities(budgeted, rule, density, k_min, pattern, {0: ""})
        if masks is not None:
            arguments.check_masks(budgeted, masks)
        kernels = [kernel for kernel, _ in budgeted]
        least = arguments.least_edges(budgeted, k_min)
        spend = budgets(density, kernels, jnp.zeros((), jnp.int32), least)
        return cls(budgeted, rule, spend, pattern, masks, k_min)

    def choices(
        self, tree: Leaves, stats: Any, grads: Any
    ) -> Iterator[tuple[Kernel, Choice]]:
        """What the rule chooses for every kernel, all of them as they are."""
        gradients = self.gradients(grads)
        members = tuple(
            self.candidates(index, tree, stats, gradients)
            for index in range(len(self.budgeted))
        )
        chosen = self.rule.choose(Group(members, self.spend.pool))
        kernels = (kernel for kernel, _ in self.budgeted)
        return zip(kernels, chosen, strict=True)

    def gradients(self, grads: Any) -> Leaves | None:
        """The gradients by path, where the rule reads them."""
        return Leaves.of(grads) if "grads" in self.rule.needs else None

    def read(
        self,
        kernel: Kernel,
        actuators: tuple[Actuator, ...],
        weights: jax.Array,
        stats: Any,
    ) -> dict[str, jax.Array]:
        """The statistics that the rule reads, by `"side.statistic"`."""
        names = needed(self.rule, actuators)
        if not names:
            return {}
        sides = observations.check_activity(kernel, names, stats)
        observations.check_measured(kernel, names, sides)
        read = {}
        for name in names:
            side, statistic = name.split(".")
            read[name] = jnp.asarray(getattr(getattr(sides, side), statistic))
        unseen = unseen_slices(kernel, weights, sides)
        if not name_unseen(kernel, unseen):
            return read
        return stand_ins(kernel, weights, self.rule, read, unseen)

    def candidates(
        self, index: int, tree: Leaves, stats: Any, gradients: Leaves | None
    ) -> Candidates:
        """What the rule chooses from, for one kernel."""
        kernel, actuators = self.budgeted[index]
        weights = kernel.edges(tree.get(kernel, "parameter"))
        mask = jnp.ones(kernel.edge_shape, bool)
        if self.masks is not None:
            mask = kernel.edge_mask(jnp.asarray(self.masks[kernel.path]))
        mask = sharded_as(kernel, mask, weights)
        grads = None
        if gradients is not None:
            grads = kernel.edges(gradients.get(kernel, "gradient"))
        return Candidates(
            kernel=kernel,
            actuators=actuators,
            weights=jax.lax.stop_gradient(weights),
            mask=mask,
            statistics=self.read(kernel, actuators, weights, stats),
            budget=self.spend.edges[index],
            k_min=self.k_min,
            regrow=self.masks is None,
            step=jnp.zeros((), jnp.int32),
            grads=grads,
            index=index,
            bias=tree.bias_of(kernel),
            pattern=self.pattern,
        )


def put(tree: Leaves, kernel: Kernel, choice: Choice) -> Masks:
    """Writes the kept weights of a kernel, and of its bias, into the tree.

    Returns:
      Their masks by path.
    """
    weights = kernel.edges(tree.get(kernel, "parameter"))
    mask = kernel.over_spatial(sharded_as(kernel, choice.mask, weights))
    keep = jnp.broadcast_to(mask, kernel.split)
    new = weights if choice.weights is None else choice.weights.astype(weights.dtype)
    tree.put(kernel, kernel.weights(jnp.where(keep, new, jnp.zeros_like(new))))
    masks = {kernel.path: kernel.weights(keep)}
    if choice.bias is not None and kernel.bias:
        kept = jnp.reshape(choice.bias, jnp.shape(tree.at(kernel.bias)))
        tree.keep_at(kernel.bias, kept)
        masks[kernel.bias] = kept
    return masks


def apply_masks(params: Any, masks: Mapping[str, Any]) -> Any:
    """Sets to 0 what masks prune: to rewind a net, or to reuse a mask.

    A lottery ticket is `apply_masks(first_params, masks)`, trained with
    `optax.chain(optimizer, bb.hold(masks))`.

    Args:
      params: tree of parameters.
      masks: by path, bool arrays of the parameter's shape.

    Returns:
      The tree; leaves without a mask are the very same objects.

    Raises:
      TypeError: masks that are not bool.
      ValueError: masks without a parameter of their path and shape, all of them listed.

    Example:
      >>> apply_masks({"w": jnp.ones(3)}, {"w": jnp.array([True, False, True])})
      {'w': Array([1., 0., 1.], dtype=float32)}
    """
    tree = Leaves.of(params)
    check_bools(masks)
    wrong = []
    for path, mask in masks.items():
        leaf = tree.at(path) if path in tree.by_path else None
        if leaf is None or jnp.shape(leaf) != jnp.shape(mask):
            got = f"no parameter{meant(path, tree.by_path)}"
            got = got if leaf is None else f"one of {jnp.shape(leaf)}"
            wrong.append(f"{path!r}: mask of {jnp.shape(mask)}, {got}")
    if wrong:
        raise ValueError(
            "expected a parameter of the same shape for every mask; differences: "
            + "; ".join(wrong)
        )
    for path, mask in masks.items():
        tree.keep_at(path, mask)
    return tree.tree()


def both(first: Masks, second: Mapping[str, Any]) -> Masks:
    """What is kept in both, where both have a mask; other masks as they are.

    Args:
      first: by path, bool arrays.
      second: likewise.

    Example:
      >>> first, second = jnp.array([True, True]), jnp.array([True, False])
      >>> {path: m.tolist() for path, m in both({"w": first}, {"w": second}).items()}
      {'w': [True, False]}
    """
    joined = {path: jnp.asarray(mask) for path, mask in second.items()}
    return first | {p: first[p] & m if p in first else m for p, m in joined.items()}


def prune_in_order(
    fn: Callable[..., Any],
    params: Any,
    units: Units,
    rule: Rule,
    batches: Iterable[tuple[Any, ...]],
    density: Density = None,
    *,
    grads: Any = None,
    pattern: Pattern | None = None,
    k_min: int = 1,
    where: Any = None,
    on: On = positive,
) -> tuple[Any, Masks]:
    """Prunes layer by layer, each measured on the pruned ones before it.

    Costs one pass over the batches for every kernel (and slice of a stack), and one
    compilation for every kernel and shape of batch.

    Args:
      fn: the function that was traced, of `(params, *args)`.
      params: its parameters.
      units: as for `prune`.
      rule: as for `prune`, but one that chooses kernel by kernel.
      batches: tuples of the arguments after `params`; kept in memory if they come from
        an iterator that can be read once only.
      density: as for `prune`.
      grads: as for `prune`.
      pattern: as for `prune`.
      k_min: as for `prune`.
      where: as for `bb.observe`.
      on: as for `bb.observe`.

    Returns:
      Parameters and masks, as `prune`.

    Raises:
      TypeError: as `prune`.
      ValueError: as `prune`; a rule whose edges compete across kernels.

    Example:
      >>> import bbjax as bb
      >>> def fn(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.eye(4), "down": jnp.ones((4, 2))}
      >>> x = jnp.array([[1.0, -1.0, 2.0, 0.5]])
      >>> units = bb.trace(fn, params, x).select("up|down")
      >>> rule = bb.rules.wanda()
      >>> _, masks = prune_in_order(fn, params, units, rule, [(x,)], density=0.25)
      >>> masks["down"].astype(int).tolist()
      [[0, 0], [0, 0], [1, 1], [0, 0]]
    """
    if isinstance(rule, Rule) and rule.joint:
        raise ValueError(
            f"expected a rule that chooses kernel by kernel, got {rule.name!r}, whose "
            "edges compete across kernels; use bb.prune"
        )
    job = Job.of(units, rule, density, pattern, None, k_min)
    batches = list(batches)
    observations.check_call(rule, batches, grads, "bb.prune_in_order")
    gradients = job.gradients(grads)
    meters = [  # each compiled once for all slices of a kernel
        Meter.of(fn, units.only([kernel.path]), rule.needs, where, on)
        for kernel, _ in (job.budgeted if rule.reads_activity else ())
    ]
    found: Masks = {}
    for index, at in _turns(job.budgeted):
        kernel, _ = job.budgeted[index]
        stats = meters[index].measure(params, batches) if meters else None
        tree = Leaves.of(params)
        choice = as_choice(rule.select(job.candidates(index, tree, stats, gradients)))
        masks = put(tree, kernel, slice_of(kernel, at, choice, tree))
        found = both(found, masks)
        params = tree.tree()
    return params, found


def _turns(budgeted: arguments.Budgeted) -> Iterator[tuple[int, int]]:
    """Kernels and stack slices in the order of layers: `(kernel, slice)`.

    Consecutive kernels with the same stack are layers of one scan: the first slice of
    all of them comes before the second of any.
    """
    numbered = enumerate(kernel for kernel, _ in budgeted)
    for shape, run in itertools.groupby(numbered, key=lambda pair: pair[1].stack_shape):
        indices = [index for index, _ in run]
        for at in range(math.prod(shape)):
            yield from ((index, at) for index in indices)


def slice_of(kernel: Kernel, at: int, choice: Choice, tree: Leaves) -> Choice:
    """The choice for one stack slice; all others stay as they are."""
    if not kernel.stack_shape:
        return choice
    here = jnp.arange(math.prod(kernel.stack_shape)) == at
    here = jnp.reshape(here, kernel.stack_shape)
    edges = jnp.reshape(
        here, [n if r == "stack" else 1 for n, r in _roles(kernel.edge_shape, kernel)]
    )
    mask = choice.mask | ~edges
    weights, bias = choice.weights, choice.bias
    if weights is not None:
        old = kernel.edges(tree.get(kernel, "parameter"))
        weights = jnp.where(kernel.over_spatial(edges), weights.astype(old.dtype), old)
    if bias is not None:
        units = kernel.per_unit_shape("outputs")
        bias |= ~jnp.reshape(here, here.shape + (1,) * (len(units) - here.ndim))
    return Choice(mask, weights, bias)


def _roles(shape: tuple[int, ...], kernel: Kernel) -> Iterator[tuple[int, str]]:
    return zip(shape, kernel.edge_roles, strict=True)
