"""Flax NNX: modules as explicit arrays, and back.

An NNX object (a module, `nnx.Rngs`, a metric) holds its arrays and may change them
while a function runs: running means, random counters. Here is that function without
hidden state:

    objects   ->  nested dicts of their arrays, in place, among the arguments
    result    ->  (result, new arrays of all objects)
    finish    puts the new arrays back into the user's objects

so that a call through `bb.observe` leaves them as a plain call would. Objects that
share arrays are split together, so they still share them inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

__all__ = ["Functional", "functional", "opened"]


class Functional(NamedTuple):
    """A function without hidden state.

    Attributes:
      fn: `fn(params, *args, **kwargs) -> (result, new arrays)`.
      params: as given, with a nested dict of arrays for each object.
      args: likewise.
      kwargs: likewise.
      finish: from what `fn` returns to the result of the user's function; updates
        the user's objects.
    """

    fn: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    finish: Callable[[Any], Any]


def functional(
    fn: Callable[..., Any], params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Functional | None:
    """A pure form of `fn(params, *args, **kwargs)`; None if no argument is an object.

    Args:
      fn: function of the arguments.
      params: first argument: an object, or a tree that may hold some.
      args: further arguments, likewise.
      kwargs: likewise.

    Example:
      >>> import jax.numpy as jnp
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> pure = functional(lambda model, x: model(x), model, (jnp.ones((1, 2)),), {})
      >>> jax.tree.map(jnp.shape, pure.params)
      {'bias': (3,), 'kernel': (2, 3)}
      >>> pure.finish(pure.fn(pure.params, *pure.args)).shape
      (1, 3)
    """
    everything = (params, args, kwargs)
    leaves, tree = jax.tree_util.tree_flatten(everything, is_leaf=_is_object)
    places = [i for i, leaf in enumerate(leaves) if _is_object(leaf)]
    if not places:
        return None
    objects = [leaves[i] for i in places]
    graph, state = nnx.split(objects)
    arrays: dict[Any, Any] = nnx.to_pure_dict(state)

    def pure(first, *rest, **named):
        given = tree.flatten_up_to((first, rest, named))  # type: ignore[attr-defined]
        values: dict[Any, Any] = {n: given[i] for n, i in enumerate(places)}
        copy = nnx.clone(state)
        nnx.replace_by_pure_dict(copy, values)
        rebuilt = nnx.merge(graph, copy)
        for i, value in zip(places, rebuilt, strict=True):
            given[i] = value
        first, rest, named = jax.tree_util.tree_unflatten(tree, given)
        return fn(first, *rest, **named), nnx.state(rebuilt)

    def finish(pair: Any) -> Any:
        result, new_state = pair
        nnx.update(objects, new_state)
        return result

    for n, i in enumerate(places):  # an object without arrays of its own has none here
        leaves[i] = arrays.get(n, {})
    params, args, kwargs = jax.tree_util.tree_unflatten(tree, leaves)
    return Functional(pure, params, args, kwargs, finish)


def opened(params: Any) -> tuple[Any, Callable[[Any], Any]]:
    """An object as its state, where shared arrays are once; and from a state back.

    Args:
      params: an object, or anything else, which stays what it is.

    Example:
      >>> import jax.numpy as jnp
      >>> state, closed = opened(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> model = closed(jax.tree.map(jnp.zeros_like, state))
      >>> float(model(jnp.ones((1, 2))).sum())
      0.0
    """
    if not _is_object(params):
        return params, lambda tree: tree
    graph, state = nnx.split(params)
    return state, lambda tree: nnx.merge(graph, tree)


def _is_object(value: Any) -> bool:
    return isinstance(value, nnx.Pytree)
