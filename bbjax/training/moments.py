"""What an optimizer remembers of weights that have just come back.

Rules that let edges grow at 0 (RigL, SET) need the optimizer to forget what it gathered
for these weights while they were pruned. The state of any optimizer is a tree in which
copies of the parameter tree occur (`mu`, `nu`, `trace`, ...); an entry of such a copy
belongs to the weight at the same place. Where `arrivals` is True, it takes the value
that the optimizer gives to a new weight,

    state <- where(arrivals, init(params), state)

which is 0 for most moments, but not for all: Adagrad's sums and rprop's step sizes
start above 0, and schedule-free keeps the weight itself. Everything else is untouched.
Shapes: arrivals and such entries have the shape of their parameter. Reference: Evci et
al. 2020, "Rigging the Lottery" (RigL); Mocanu et al. 2018 (SET).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bbjax.arrays import sharding
from bbjax.model.leaves import leaves_by_path
from bbjax.training.state import PruneState


@dataclasses.dataclass(frozen=True)
class MomentPaths:
    """Which leaves of an optimizer state hold something of each weight.

    Attributes:
      reset: by path of the parameter, the paths of the leaves that `reset_moments`
        resets: copies of the parameter tree, of the parameter's shape.
      left: paths of the other leaves that may remember weights, and that no function
        of the tree alone can reset per weight: one number for a whole parameter, sums
        over rows and columns, projections, parameters joined into one vector.
    """

    reset: Mapping[str, tuple[str, ...]]
    left: tuple[str, ...]


def reset_moments(
    state: Any,
    init: Callable[[Any], Any],
    params: Any,
    arrivals: Mapping[str, jax.Array],
) -> Any:
    """Makes an optimizer forget what it gathered for weights that come back.

    Works on the tree alone, so for any optimizer, at any depth of a chain, a partition,
    `MultiSteps`, `inject_hyperparams`, and under `jit`, `vmap`, `scan` and `cond`. It
    reads and writes the moments of the named parameters: call it where weights come
    back, not in every step. What it leaves alone, `moment_paths` lists. Counters stay
    as well: an optimizer that corrects the start-up bias of its moments by a common
    count takes the moments of a new weight for settled ones. Adam's first step of such
    a weight is up to `(1 - b1) / sqrt(1 - b2)` learning rates long, 3.2 by default;
    AcProp divides by the moments of the step before, which are 0: clip its updates.

    Args:
      state: of the optimizer, as `init` or `update` returned it.
      init: the optimizer's own `init`.
      params: the tree that `init` takes, with the weights that came back at their new
        values (0 in RigL and SET).
      arrivals: by path, bool of the parameter's shape, True where a weight came back;
        concrete or traced.

    Returns:
      The state with the same structure, shapes, dtypes and shardings. Leaves that hold
      nothing of the named parameters are the very same objects, a pruning state inside
      included.

    Raises:
      TypeError: arrivals are not bool.
      ValueError: there is no such parameter, or it has another shape, or `state` is not
        of this optimizer and these parameters.

    Example:
      >>> import optax
      >>> adam, params = optax.adam(0.1), {"w": jnp.array([0.0, 2.0])}
      >>> _, state = adam.update({"w": jnp.ones(2)}, adam.init(params))
      >>> arrivals = {"w": jnp.array([True, False])}
      >>> state = reset_moments(state, adam.init, params, arrivals)
      >>> [round(float(m), 3) for m in state[0].mu["w"]]
      [0.0, 0.1]
    """
    arrivals = _checked(params, arrivals)
    if not arrivals:
        return state
    keyed, structure = leaves_by_path(state)
    fresh = _same_leaves(keyed, leaves_by_path(init(params))[0])
    leaves = []
    for (name, leaf), path in zip(keyed, _places(state, params), strict=True):
        if path in arrivals and jnp.shape(leaf) == arrivals[path].shape:
            leaf = _reset(leaf, fresh[name], arrivals[path])
        leaves.append(leaf)
    return jax.tree_util.tree_unflatten(structure, leaves)


def moment_paths(state: Any, params: Any) -> MomentPaths:
    """Tells what `reset_moments` can reset in the state of an optimizer, and what not.

    Args:
      state: of the optimizer; shapes suffice (`jax.eval_shape(tx.init, params)`).
      params: the tree that the optimizer's `init` takes; shapes suffice.

    Returns:
      `MomentPaths`: paths of leaves in `state`. Numbers that belong to no parameter
      (counts, learning rates) are in neither list.

    Example:
      >>> import optax
      >>> params = {"w": jnp.ones((2, 3))}
      >>> moment_paths(optax.adam(0.1).init(params), params).reset
      {'w': ('0/mu/w', '0/nu/w')}
      >>> moment_paths(optax.novograd(0.1).init(params), params).left
      ('0/nu/w',)
    """
    shapes = {path: jnp.shape(leaf) for path, leaf in leaves_by_path(params)[0]}
    reset: dict[str, list[str]] = {path: [] for path in shapes}
    left = []
    places = _places(state, params)
    for (name, leaf), path in zip(leaves_by_path(state)[0], places, strict=True):
        if path in shapes and jnp.shape(leaf) == shapes[path]:
            reset[path].append(name)
        elif path in shapes or (path is None and _may_remember(leaf)):
            left.append(name)
    return MomentPaths({path: tuple(r) for path, r in reset.items()}, tuple(left))


# Which leaf belongs to which parameter -------------------------------------------
_PRUNING = object()


def _places(state: Any, params: Any) -> list[Any]:
    """For each leaf of a state, the path of the parameter it belongs to, or None.

    Leaves of a pruning state get a mark of their own.

    Only copies of the whole parameter tree count. By the end of a path alone, the
    moments of `block/w` would also be those of `w`.
    """
    known = [path for path, _ in leaves_by_path(params)[0]]

    def stop(node):
        return isinstance(node, PruneState) or bool(_as_copy(node, known))

    places: list[Any] = []
    for node in jax.tree_util.tree_leaves(state, is_leaf=stop):
        if isinstance(node, PruneState):
            places += [_PRUNING] * len(jax.tree_util.tree_leaves(node))
        else:
            places += _as_copy(node, known) or [None]
    return places


def _as_copy(node: Any, known: list[str]) -> list[str]:
    """Paths of the leaves of a copy of the parameters; empty if `node` is none.

    A copy may have holes, as a partition makes them: empty containers where parameters
    are left out.
    """
    filled = jax.tree_util.tree_map(
        lambda part: _Hole() if _is_empty(part) else part, node, is_leaf=_is_empty
    )
    keyed, _ = leaves_by_path(filled)
    paths = [path for path, leaf in keyed if not isinstance(leaf, _Hole)]
    holes = [path for path, leaf in keyed if isinstance(leaf, _Hole)]
    missing = set(known).difference(paths)
    for hole in holes:
        missing = {m for m in missing if m != hole and not m.startswith(f"{hole}/")}
    return paths if set(paths) <= set(known) and not missing else []


class _Hole:
    """Stands where a copy of the parameters has nothing."""


def _is_empty(part: Any) -> bool:
    return not jax.tree_util.tree_leaves(part)


# One leaf ------------------------------------------------------------------------
def _reset(old: Any, new: Any, arrived: jax.Array) -> jax.Array:
    old, new = jnp.asarray(old), jnp.asarray(new)
    if new.dtype != old.dtype:
        new = new.astype(old.dtype)
    return jnp.where(sharding.match(arrived, old), sharding.match(new, old), old)


def _may_remember(leaf: Any) -> bool:
    """Whether a leaf is an array of numbers: PRNG keys and counts are none."""
    dtype = getattr(leaf, "dtype", None)
    return (
        jnp.ndim(leaf) > 0 and dtype is not None and jnp.issubdtype(dtype, jnp.inexact)
    )


# Checks --------------------------------------------------------------------------
def _checked(params: Any, arrivals: Mapping[str, Any]) -> dict[str, jax.Array]:
    shapes = {path: jnp.shape(leaf) for path, leaf in leaves_by_path(params)[0]}
    checked = {path: jnp.asarray(arrived) for path, arrived in arrivals.items()}
    for path, arrived in checked.items():
        if path not in shapes:
            raise ValueError(
                f"expected arrivals of parameters, got {path!r} (the tree has "
                f"{list(shapes)[:5]}); give the tree that the optimizer's init takes"
            )
        if arrived.dtype != bool:
            raise TypeError(
                f"expected bool arrivals at {path!r}, got {arrived.dtype}; True where "
                "a weight came back"
            )
        if arrived.shape != shapes[path]:
            raise ValueError(
                f"expected arrivals at {path!r} of shape {shapes[path]}, got "
                f"{arrived.shape}; give one entry per weight"
            )
    return checked


def _same_leaves(
    keyed: list[tuple[str, Any]], fresh: list[tuple[str, Any]]
) -> dict[str, Any]:
    """The leaves of a fresh state by path, if they are those of the state."""
    mine = {(path, jnp.shape(leaf)) for path, leaf in keyed}
    theirs = {(path, jnp.shape(leaf)) for path, leaf in fresh}
    if odd := sorted(mine ^ theirs):
        raise ValueError(
            f"expected a state as init(params) makes it, got one that differs at "
            f"{odd[:4]}; pass the init of the optimizer that this state is of, and "
            "its parameters"
        )
    return dict(fresh)
