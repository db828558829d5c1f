"""Pruning as an Optax gradient transformation: last in the chain.

At update `n` the transform receives the updates of the optimizer before it and returns
updates after which pruned weights are 0:

    kept            u                  p + u is what the optimizer wanted
    pruned          -p                 p + (-p) is exactly 0, in any float dtype
    comes back      dormant - p        its old value

A refresh chooses the masks anew, from the weights that were passed in (the ones whose
activity was measured) and the running means of activity; the update then follows the
new mask. `bbjax.training.pruner` does the work; of this package,
only this file uses Optax.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bbjax.arrays.loop import when
from bbjax.budgets.allocation import Density
from bbjax.model.leaves import Leaves
from bbjax.model.units import Kernel, Units
from bbjax.rules.base import Rule
from bbjax.rules.budgeted_broadcast import budgeted_broadcast
from bbjax.rules.patterns import Pattern
from bbjax.training import arguments
from bbjax.training.moments import reset_moments
from bbjax.training.options import Options
from bbjax.training.pruner import Pruner
from bbjax.training.state import PruneState, full_mask, is_pruning, unpack


def transform(
    units: Units,
    rule: Rule | None = None,
    *,
    density: Density = None,
    every: int = 100,
    start: int = 100,
    stop: int | None = None,
    regrow: bool = True,
    rescale: bool | None = None,
    k_min: int = 1,
    ema: float | jax.Array = 0.99,
    dormant_dtype: Any = None,
    pattern: Pattern | None = None,
    masks: Mapping[str, Any] | None = None,
    hysteresis: float | jax.Array = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Prunes the selected kernels to an exact density while they train.

    Put it last in the chain; call `tx.update(grads, opt_state, params,
    activity=activity)` with the activity that `bb.value_and_grad` returns. In Flax,
    `bb.linen.TrainState` passes `activity=` on; Flax's own `TrainState` takes every
    keyword for a field of the state.

    What changes updates behind it (an optimizer, `optax.scale`, a partition that
    freezes) leaves pruned weights that are not 0: `pruned_nonzero` of `bb.metrics`
    counts them. A second copy of the weights, as of schedule-free optimizers, moving
    averages (EMA) and lookahead, holds weights of earlier steps: set those that are
    pruned now to 0 with `bb.apply_masks(copy, bb.masks(opt_state))` before it is used.

    Args:
      units: from `bb.trace`; its selection, or the hidden kernels that a nonlinearity
        follows, actuator "in".
      rule: from `bb.rules`; `None` is `bb.rules.budgeted_broadcast()`.
      density: kept share of the edges of every kernel and stack slice, in (0, 1]; a
        float or a schedule of the step (`bb.ramp`). A mapping from path patterns gives
        kernels densities of their own, the first match counts; `bb.erk(density)` shares
        one budget out by shape, `bb.owl(density, ...)` by outliers, and `allocate` of
        `bb.sensitivity` by losses. `None` is 0.7, or `n / m` with a pattern; rules
        whose density is an outcome take no other value.
      every: updates between refreshes, at least 1; by default 100.
      start: first update (counting from 0) that may refresh, by default 100; before
        it, nothing is pruned.
      stop: update from which on masks stay; `None` never stops.
      regrow: whether pruned weights compete for their edge again, with their old
        value. Costs one array per kernel. Without it masks only shrink, and a density
        that rises is not followed.
      rescale: scale the kept weights of each output unit by `sqrt(fan_in / kept)`, for
        kernels with actuator "in".
      k_min: least number of edges of a unit, at least 0; by default 1.
      ema: decay of the running means of activity, in [0, 1), by default 0.99.
      dormant_dtype: dtype of the stored values of pruned weights; `None` is the
        kernel's own.
      pattern: groups that edges are kept in, e.g. `bb.n_m(2, 4)`.
      masks: edges to begin with, by path, bool of the kernel's shape, as `bb.prune`
        and `bb.masks` return them, one for every budgeted kernel; `None` begins
        dense. Weights outside them become 0 with the first update.
      hysteresis: share, at least 0, by which something must be better than what is
        kept: a pruned edge returns once its score is higher by that share than the
        weakest kept one's, and a unit's degree follows the law once it is off by more
        than that share of itself. Fewer edges then change at a refresh.

    Returns:
      A transformation whose `update` takes `activity=` (needed if the rule reads it),
      `grads=` (dense gradients, if the rule reads them) and ignores other extra
      arguments. One step counts one call of `update`: inside
      `chain(MultiSteps(adam, 4), bb.transform(...))` each micro-batch is one.

    Raises:
      TypeError: an argument of the wrong kind.
      ValueError: a value out of range, no kernel to prune, a density that `k_min`
        does not allow; in `update`, activity or gradients that a rule needs and did
        not get, or a state of other kernels, actuators, rule or `rescale` (see
        `bb.adopt`).

    Example:
      >>> import bbjax as bb
      >>> def loss(params, x):
      ...     return jnp.mean((jax.nn.relu(x @ params["up"]) @ params["down"]) ** 2)
      >>> params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2))}
      >>> x = jnp.ones((5, 4))
      >>> units = bb.trace(loss, params, x)
      >>> tx = optax.chain(optax.sgd(0.1), bb.transform(units, density=0.5, start=0))
      >>> _, activity = bb.observe(loss, units)(params, x)
      >>> updates, state = tx.update(params, tx.init(params), params, activity=activity)
      >>> int((optax.apply_updates(params, updates)["up"] != 0).sum())
      16
    """
    pruner = _pruner(
        units,
        rule,
        density=density,
        every=every,
        start=start,
        stop=stop,
        regrow=regrow,
        rescale=rescale,
        k_min=k_min,
        ema=ema,
        dormant_dtype=dormant_dtype,
        pattern=pattern,
        masks=masks,
        hysteresis=hysteresis,
    )
    return _made(pruner)


def _pruner(units: Units, rule: Rule | None, **settings: Any) -> Pruner:
    rule = budgeted_broadcast() if rule is None else rule
    return Pruner(*arguments.check(units, Options(rule, **settings)))


def hold(
    masks: Mapping[str, Any], units: Units | None = None
) -> optax.GradientTransformationExtraArgs:
    """Keeps masks as they are: pruned entries are 0 after every step.

    To train on after `bb.prune`, under loaded masks, or from a rewound lottery ticket.
    Last in the chain, as `bb.transform`; it needs neither activity nor gradients.

    Args:
      masks: by path, bool arrays of the parameter's shape, of any parameters.
      units: from `bb.trace`; where given, `bb.degrees_of` and `bb.metrics` report on
        the selected kernels, with on-rates if `activity=` is passed to `update`.

    Returns:
      A transformation; `bb.masks` reads its state.

    Raises:
      TypeError: `masks` is no mapping.
      ValueError: no masks, or one without axes.

    Example:
      >>> tx = optax.chain(optax.sgd(1.0), hold({"w": jnp.array([True, False])}))
      >>> params = {"w": jnp.array([1.0, 2.0])}
      >>> updates, _ = tx.update({"w": jnp.ones(2)}, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["w"].tolist()
      [0.0, 0.0]
    """
    arguments.check_held(masks)
    budgeted = {} if units is None else units.budgeted
    kernels = tuple(
        (units[path], budgeted[path])
        if units is not None and path in budgeted
        else (Kernel(path, jnp.shape(mask), stack=tuple(range(jnp.ndim(mask)))), ())
        for path, mask in masks.items()
    )
    rule = Rule("hold", operator.attrgetter("mask"))
    options = Options(rule, density=1.0, start=None, regrow=False, k_min=0, masks=masks)
    return _made(Pruner(kernels, options))


def _made(pruner: Pruner) -> optax.GradientTransformationExtraArgs:
    return optax.GradientTransformationExtraArgs(pruner.init, pruner.update)


class WrapState(NamedTuple):
    """State of `bb.wrap`: the inner optimizer's, then the pruning state."""

    inner: Any
    prune: PruneState


def wrap(
    optimizer: optax.GradientTransformation,
    units: Units,
    rule: Rule | None = None,
    **settings_: Any,
) -> optax.GradientTransformationExtraArgs:
    """`chain(optimizer, transform(...))` with masked gradients for the optimizer.

    The inner optimizer sees gradients that are 0 at pruned weights, so they gather no
    momentum (what they gathered before only decays); the rule sees the dense
    gradients without being passed `grads=`. Where a rule lets weights come back at 0
    (RigL, SET, SRigL), their moments begin anew as well; see `bb.reset_moments` for the
    few optimizers whose moments belong to no single weight.

    `activity=` and `grads=` are for pruning: the inner optimizer does not get them,
    unless a part of it prunes, too. All other arguments (`value=`, `grad=`,
    `value_fn=`, `grad_fn=`, ...) are passed on. In `optax.chain` every link gets every
    argument, and some refuse those that they do not know (`optax.contrib.sam`): there
    `bb.wrap(optimizer, ...)` works, and `chain(optimizer, bb.transform(...))` fails.

    Args:
      optimizer: any optax optimizer.
      units: as for `bb.transform`.
      rule: as for `bb.transform`.
      **settings_: the other arguments of `bb.transform`.

    Returns:
      A transformation with the arguments of `bb.transform`, and those of the optimizer.

    Raises:
      TypeError: as `bb.transform`; a setting that it does not have.
      ValueError: as `bb.transform`.

    Example:
      >>> import bbjax as bb
      >>> kernel = bb.Kernel("w", (2, 3), fan_in=(0,), fan_out=(1,))
      >>> units = bb.Units((kernel,)).select("w")
      >>> tx = bb.wrap(optax.adam(1e-3), units, bb.rules.magnitude(), density=0.5)
      >>> type(tx.init({"w": jnp.ones((2, 3))})).__name__
      'WrapState'
    """
    arguments.check_optimizer(optimizer)
    known = [field.name for field in dataclasses.fields(Options)][1:]
    if unknown := [name for name in settings_ if name not in known]:
        raise TypeError(
            f"expected settings of bb.transform ({', '.join(known)}), got "
            f"{', '.join(map(repr, unknown))}; correct the name"
        )
    inner = optax.with_extra_args_support(optimizer)
    pruner = _pruner(units, rule, **settings_)
    afresh = pruner.options.rule.revive == "zero"

    def init(params):
        return WrapState(inner.init(params), pruner.init(params))

    def update(updates, state, params=None, **extra):
        old = pruner.continued(state.prune, params)
        hidden = _mask_gradients(updates, old)
        passed = _passed_on(extra, state.inner)
        wanted, inner_state = inner.update(hidden, state.inner, params, **passed)
        dense = {"grads": updates} | extra
        masked, new = pruner.update(wanted, old, params, **dense)
        if afresh:
            inner_state = _renewed(inner, inner_state, params, old, new)
        return masked, WrapState(inner_state, new)

    return optax.GradientTransformationExtraArgs(init, update)


_OWN = ("activity", "grads")  # arguments of an update that pruning reads


def _passed_on(extra: Mapping[str, Any], inner: Any) -> dict[str, Any]:
    """The arguments of an update that the inner optimizer gets.

    Optimizers may refuse arguments that they do not know. So those for pruning are left
    out, unless a part of the inner optimizer prunes, too.
    """
    nodes = jax.tree_util.tree_leaves(inner, is_leaf=is_pruning)
    own = () if any(map(is_pruning, nodes)) else _OWN
    return {name: value for name, value in extra.items() if name not in own}


def _renewed(
    inner: Any, state: Any, params: Any, old: PruneState, new: PruneState
) -> Any:
    """The inner state, with the moments of weights that have just come back reset."""
    back = {
        kernel.path: full_mask(
            kernel, new.bb_masks[kernel.path] & ~old.bb_masks[kernel.path]
        )
        for kernel, _ in new.bb_plan.kernels
    }

    def renew(state: Any) -> Any:
        return reset_moments(state, inner.init, params, back)

    some = jnp.any(jnp.stack([jnp.any(mask) for mask in back.values()]))
    return when(some, renew, state)  # plain steps touch no moments


def _mask_gradients(updates: Any, state: PruneState) -> Any:
    tree = Leaves.of(updates)
    for kernel, _ in state.bb_plan.kernels:
        grad = tree.get(kernel, "gradient")
        mask = unpack(kernel, state.bb_masks[kernel.path], grad)
        mask = kernel.over_spatial(mask)
        edges = kernel.edges(grad)
        tree.put(kernel, kernel.weights(jnp.where(mask, edges, jnp.zeros_like(edges))))
    return tree.tree()
