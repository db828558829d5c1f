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

__all__ = ["Functional", "functional", "objects_in", "opened", "value_and_grad"]


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
    leaves, tree, places = _places((params, args, kwargs))
    if not places:
        return None
    objects = [leaves[i] for i in places]
    graph, state = nnx.split(objects)
    arrays: dict[Any, Any] = nnx.to_pure_dict(state)

    def pure(first, *rest, **named):
        given = tree.flatten_up_to((first, rest, named))
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
    """Objects as their states, where shared arrays are once; and from states back.

    Args:
      params: an object, a tree that may hold some, or anything else, which stays what
        it is.

    Example:
      >>> import jax.numpy as jnp
      >>> state, closed = opened(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> model = closed(jax.tree.map(jnp.zeros_like, state))
      >>> float(model(jnp.ones((1, 2))).sum())
      0.0
    """
    if _is_object(params):
        graph, state = nnx.split(params)
        return state, lambda tree: nnx.merge(graph, tree)
    leaves, tree, places = _places(params)
    if not places:
        return params, lambda tree: tree
    graph, state = nnx.split([leaves[i] for i in places])
    for n, i in enumerate(places):
        leaves[i] = state.get(n, nnx.State({}))

    def closed(states: Any) -> Any:
        given = tree.flatten_up_to(states)
        filled = {n: given[i] for n, i in enumerate(places) if n in state}
        rebuilt = nnx.merge(graph, nnx.State(filled))
        for i, value in zip(places, rebuilt, strict=True):
            given[i] = value
        return jax.tree_util.tree_unflatten(tree, given)

    return jax.tree_util.tree_unflatten(tree, leaves), closed


def objects_in(tree: Any) -> bool:
    """Whether a tree holds an NNX object.

    Example:
      >>> objects_in({"a": 1}), objects_in([nnx.Rngs(0)])
      (False, True)
    """
    return bool(_places(tree)[2])


def value_and_grad(fn: Callable[..., Any], params: Any, wrt: Any) -> Callable[..., Any]:
    """`nnx.value_and_grad` of a function that returns `(loss, more)`.

    Args:
      fn: function of `(params, *args, **kwargs)`.
      params: what its first argument will be.
      wrt: filter of the variables that get gradients; `nnx.Param` if None.
    """
    if not objects_in(params):  # plain arrays beside an object among the arguments
        return nnx.value_and_grad(fn, has_aux=True)
    chosen = nnx.DiffState(0, nnx.Param if wrt is None else wrt)
    return nnx.value_and_grad(fn, argnums=chosen, has_aux=True)


def _places(tree: Any) -> tuple[list[Any], Any, list[int]]:
    """Leaves of a tree, where an object is one; its structure; which are objects."""
    leaves, structure = jax.tree_util.tree_flatten(tree, is_leaf=_is_object)
    places = [i for i, leaf in enumerate(leaves) if _is_object(leaf)]
    return leaves, structure, places


def _is_object(value: Any) -> bool:
    return isinstance(value, nnx.Pytree)


# Shrunk parameters ---------------------------------------------------------------
def resize(tree: Any) -> None:
    """Gives the layers of NNX modules the sizes of their arrays, in place.

    A layer stores the number of units that it was made with. Most layers compute from
    their arrays alone; some use the stored numbers, and users read them.

    Args:
      tree: a module, or a tree that may hold some.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> layer.kernel[...] = jnp.ones((2, 3))
      >>> layer.kernel.set_value(jnp.ones((2, 1)))
      >>> resize(layer)
      >>> layer.out_features
      1
    """
    objects = jax.tree_util.tree_leaves(tree, is_leaf=_is_object)
    for object_ in filter(_is_object, objects):
        for _, node in nnx.iter_graph(object_):
            for kind, fields in _SIZES:
                if isinstance(node, kind):
                    _set(node, fields(node))


def _cell(module: Any) -> dict[str, Any]:
    """The inputs of a recurrent kernel are the units of a cell."""
    found = {}
    for name, layer in vars(module).items():
        if isinstance(layer, nnx.Linear):
            recurrent = name.startswith(("h", "dense_h"))
            key = "hidden_features" if recurrent else "in_features"
            found[key] = _shape(layer.kernel)[0]
    return found


def _set(module: Any, fields: dict[str, Any]) -> None:
    if hasattr(module, "kernel_shape"):
        fields = {**fields, "kernel_shape": _shape(module.kernel)}
    for name, value in fields.items():
        setattr(module, name, value)


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(variable.get_value().shape)


def _linear(module: Any) -> dict[str, Any]:
    into, out = _shape(module.kernel)[-2:]
    return {"in_features": into, "out_features": out}


def _general(module: Any) -> dict[str, Any]:
    shape, batch = _shape(module.kernel), len(module.batch_axis)
    out = len(module.out_features)
    return (
        {
            "in_features": shape[-out - len(module.in_features) : -out],
            "out_features": shape[-out:],
        }
        if batch + out < len(shape)
        else {}
    )


def _conv(module: Any) -> dict[str, Any]:
    into, out = _shape(module.kernel)[-2:]
    groups = getattr(module, "feature_group_count", 1)
    if groups > 1 and module.out_features != out:
        groups = groups * out // module.out_features
        return {
            "in_features": into * groups,
            "out_features": out,
            "feature_group_count": groups,
        }
    return {"in_features": into * groups, "out_features": out}


def _transposed(module: Any) -> dict[str, Any]:
    into, out = _shape(module.kernel)[-2:]
    if module.transpose_kernel:
        into, out = out, into
    return {"in_features": into, "out_features": out}


def _embed(module: Any) -> dict[str, Any]:
    count, features = _shape(module.embedding)
    return {"num_embeddings": count, "features": features}


def _norm(module: Any) -> dict[str, Any]:
    arrays = [a for a in (module.scale, module.bias) if a is not None]
    return {"num_features": _shape(arrays[0])[-1]} if arrays else {}


def _group_norm(module: Any) -> dict[str, Any]:
    """Channels are removed by whole groups: the others keep their size."""
    arrays = [a for a in (module.scale, module.bias) if a is not None]
    return {"num_groups": _shape(arrays[0])[-1] // module.group_size} if arrays else {}


def _attention(module: Any) -> dict[str, Any]:
    into, heads, size = _shape(module.query.kernel)[-3:]
    return {
        "in_features": into,
        "num_heads": heads,
        "head_dim": size,
        "qkv_features": heads * size,
        "out_features": _shape(module.out.kernel)[-1],
    }


_SIZES: tuple[tuple[type, Callable[[Any], dict[str, Any]]], ...] = (
    (nnx.Linear, _linear),
    (nnx.LinearGeneral, _general),
    (nnx.Conv, _conv),
    (nnx.ConvTranspose, _transposed),
    (nnx.Embed, _embed),
    (nnx.BatchNorm, _norm),
    (nnx.LayerNorm, _norm),
    (nnx.RMSNorm, lambda module: {"num_features": _shape(module.scale)[-1]}),
    (nnx.GroupNorm, _group_norm),
    (nnx.MultiHeadAttention, _attention),
    (nnx.LSTMCell, _cell),
    (nnx.OptimizedLSTMCell, _cell),
    (nnx.SimpleCell, _cell),
    (nnx.GRUCell, _cell),
)
