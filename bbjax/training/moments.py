"""Resets the optimizer's moments of weights that regrow.

Rules that let edges regrow at 0 (RigL, SET) need an optimizer without moments from
before these weights were pruned. The moments of a weight are the entries at its place
in copies of the parameter tree (`bbjax.training.owners`). Where `arrivals` is True,
they get the value that the optimizer gives to a new weight,

    state <- where(arrivals, init(params), state)

which is 0 for most moments, but not for all: Adagrad's sums and rprop's step sizes
start above 0, and schedule-free keeps the weight itself. Everything else is unchanged.
Shapes: arrivals and such entries have the shape of their parameter. Reference: Evci et
al. 2020, "Rigging the Lottery" (RigL); Mocanu et al. 2018 (SET).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bbjax.arrays import sharding
from bbjax.model.leaves import leaves_by_path
from bbjax.training.owners import Owners


@dataclasses.dataclass(frozen=True)
class MomentPaths:
    """Which leaves of an optimizer state have an entry for each weight.

    Attributes:
      reset: by path of the parameter, the paths of the leaves that `reset_moments`
        resets: those of copies of the parameter tree, of the parameter's shape.
      left: paths of other leaves that may depend on past values of weights. They cannot
        be reset per weight: one number for a whole parameter, sums over rows and
        columns, projections, parameters joined into one vector.
    """

    reset: Mapping[str, tuple[str, ...]]
    left: tuple[str, ...]


def reset_moments(
    state: Any,
    init: Callable[[Any], Any],
    params: Any,
    arrivals: Mapping[str, ArrayLike],
) -> Any:
    """Resets the moments of an optimizer for weights that come back.

    The tree of the state is all that it needs, so it works for any optimizer, at any
    depth of a chain, a partition, `MultiSteps`, `inject_hyperparams`, and under `jit`,
    `vmap`, `scan` and `cond`. It reads and writes the moments of the named parameters:
    call it where weights come back, not in every step. `moment_paths` lists the leaves
    that it does not reset. Counters stay, too. So an optimizer that corrects the
    start-up bias of its moments by a common count does not correct that of a new
    weight: Adam's first step of such a weight is up to `(1 - b1) / sqrt(1 - b2)`
    learning rates long, 3.2 by default. AcProp divides by the moments of the step
    before, which are 0: clip its updates.

    Args:
      state: of the optimizer, as `init` or `update` returned it.
      init: the optimizer's own `init`.
      params: the tree that `init` takes, with the weights that came back at their new
        values (0 in RigL and SET).
      arrivals: by path, bool of the parameter's shape, True where a weight came back;
        concrete or traced.

    Returns:
      The state with the same structure, shapes, dtypes and shardings. Leaves without
      moments of the named parameters are the very same objects, also those of a pruning
      state.

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
    checked = _checked(params, arrivals)
    if not checked:
        return state
    fresh = _same_leaves(leaves_by_path(state)[0], leaves_by_path(init(params))[0])
    owners = Owners(state, _shapes(params))

    def changed(path: str, leaf: Any) -> Any:
        name = owners.whole(path)
        if name not in checked or jnp.shape(leaf) != checked[name].shape:
            return leaf
        return _reset(leaf, fresh[path], checked[name])

    return owners.replaced(changed)


def moment_paths(state: Any, params: Any) -> MomentPaths:
    """Lists what `reset_moments` resets in the state of an optimizer, and what not.

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
    shapes = _shapes(params)
    owners = Owners(state, shapes)
    reset: dict[str, list[str]] = {path: [] for path in shapes}
    left = []
    for path, leaf in owners.leaves:
        name = owners.whole(path)
        if name is not None and jnp.shape(leaf) == shapes[name]:
            reset[name].append(path)
        elif name is not None or _is_numbers(leaf):
            left.append(path)
    return MomentPaths({path: tuple(r) for path, r in reset.items()}, tuple(left))


def _reset(old: ArrayLike, new: ArrayLike, arrived: jax.Array) -> jax.Array:
    old, new = jnp.asarray(old), jnp.asarray(new)
    if new.dtype != old.dtype:
        new = new.astype(old.dtype)
    return jnp.where(sharding.match(arrived, old), sharding.match(new, old), old)


def _is_numbers(leaf: Any) -> bool:
    """Whether a leaf is an array of real numbers, and no key, count or other state."""
    dtype = getattr(leaf, "dtype", None)
    return (
        dtype is not None and jnp.ndim(leaf) > 0 and jnp.issubdtype(dtype, jnp.inexact)
    )


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    return {path: jnp.shape(leaf) for path, leaf in leaves_by_path(params)[0]}


def _checked(params: Any, arrivals: Mapping[str, ArrayLike]) -> dict[str, jax.Array]:
    shapes = _shapes(params)
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
