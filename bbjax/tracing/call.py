"""A call of the user's function, as a function of arrays alone.

Arguments and results may hold anything: flags, functions, modules full of functions
(Equinox) or with state (NNX). Here arrays are separated from everything else, and the
function is traced to a jaxpr of its arrays. `trace`, `observe`, `calibrate` and
`shrink` all begin with that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from bbjax import adapters
from bbjax.model.leaves import leaves_by_path


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A function as a jaxpr of arrays alone.

    Attributes:
      jaxpr: closed jaxpr of the parameter leaves, then the argument leaves.
      arrays: the operands, in that order.
      paths: path of each parameter leaf.
      others: path of each argument leaf, as `args[0]/mean`.
      restore: from the outputs of the jaxpr to the result of the function.
      results: gives the path of each output of the jaxpr, once it is traced.
    """

    jaxpr: Any
    arrays: tuple[Any, ...]
    paths: tuple[str, ...]
    others: tuple[str, ...]
    restore: Callable[[Sequence[Any]], Any]
    results: Callable[[], tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a function as one of its arrays alone.

    Attributes:
      fn: of the arrays, to the arrays of the result.
      arrays: the parameter leaves, then the argument leaves.
      paths: path of each parameter leaf.
      names: path of each argument leaf.
      restore: from the arrays of the result to the result of the function.
      results: gives the path of each of them, once the function was called.
      key: equal for calls of the same function that make the same jaxpr.
      others: arguments that are no arrays. The key holds some of them by identity
        alone,
        so they must live as long as the key.
    """

    fn: Callable[..., Any]
    arrays: tuple[Any, ...]
    paths: tuple[str, ...]
    names: tuple[str, ...]
    restore: Callable[[Sequence[Any]], Any]
    results: Callable[[], tuple[str, ...]]
    key: tuple[Hashable, ...]
    others: tuple[Any, ...]


def call(
    fn: Callable[..., Any], params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call:
    """Separates arrays from everything else in a call, without tracing it."""
    if not callable(fn):
        raise TypeError(
            f"expected a function of (params, *args), got {type(fn).__name__}; pass "
            "the loss function itself, not its result"
        )
    fn, params, args, kwargs, finish = _functional(fn, params, args, kwargs)
    keyed, tree = leaves_by_path(params)
    rest, rest_tree = jax.tree_util.tree_flatten((args, kwargs))
    leaves = [value for _, value in keyed] + rest
    held = [_is_array(v) for v in leaves]
    _check_parameters(params, keyed)
    result: list[Any] = []

    def flat(*operands):
        stream = iter(operands)
        full = [
            next(stream) if is_array else v
            for v, is_array in zip(leaves, held, strict=True)
        ]
        given = jax.tree_util.tree_unflatten(tree, full[: len(keyed)])
        more, named = jax.tree_util.tree_unflatten(rest_tree, full[len(keyed) :])
        outs, out_tree = jax.tree_util.tree_flatten(fn(given, *more, **named))
        result[:] = [out_tree, [None if _is_array(o) else (o,) for o in outs]]
        return [o for o in outs if _is_array(o)]

    def restore(outs: Sequence[Any]) -> Any:
        out_tree, fixed = result
        stream = iter(outs)
        full = [next(stream) if held is None else held[0] for held in fixed]
        return finish(jax.tree_util.tree_unflatten(out_tree, full))

    def results() -> tuple[str, ...]:
        out_tree, fixed = result
        numbers = jax.tree_util.tree_unflatten(out_tree, range(len(fixed)))
        named = {number: path for path, number in leaves_by_path(numbers)[0]}
        return tuple(named[n] for n, held in enumerate(fixed) if held is None)

    arrays = tuple(v for v, is_array in zip(leaves, held, strict=True) if is_array)
    others = tuple(v for v, is_array in zip(leaves, held, strict=True) if not is_array)
    return Call(
        fn=flat,
        arrays=arrays,
        paths=tuple(path for path, value in keyed if _is_array(value)),
        names=tuple(_names(args, kwargs)),
        restore=restore,
        results=results,
        key=(
            tree,
            rest_tree,
            tuple(held),
            tuple(map(jax.typeof, arrays)),
            tuple(map(_identity, others)),
        ),
        others=others,
    )


def _names(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[str]:
    """The path of every array among the arguments: `args[0]/mean`, `mask`."""
    named = {f"args[{i}]": value for i, value in enumerate(args)} | kwargs
    for name, tree in named.items():
        for path, value in leaves_by_path(tree)[0]:
            if _is_array(value):
                yield f"{name}/{path}" if path else name


def _check_parameters(params: Any, keyed: Sequence[tuple[str, Any]]) -> None:
    paths = [path for path, value in keyed if _is_array(value)]
    if not paths:
        raise ValueError(
            f"expected parameters with at least one array, got {type(params).__name__} "
            "without any; pass the pytree of parameters as the second argument"
        )
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise ValueError(
            f"expected parameters with distinct paths, got {twice} twice; rename a key "
            "that contains '/'"
        )


def _identity(value: Any) -> Hashable:
    """Equal for arguments that are the same for a function, as far as is known."""
    try:
        hash(value)
    except TypeError:  # nothing to compare: equal to itself alone
        return id(value)
    return type(value), value


def prepare(
    fn: Callable[..., Any], params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Prepared:
    """Traces `fn` to a jaxpr of its array leaves."""
    return traced(call(fn, params, args, kwargs))


def traced(this: Call) -> Prepared:
    """The jaxpr of a call."""
    jaxpr = jax.make_jaxpr(this.fn)(*this.arrays)
    return Prepared(
        jaxpr, this.arrays, this.paths, this.names, this.restore, this.results
    )


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _functional(
    fn: Callable[..., Any], params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """A function without hidden state: NNX objects become explicit arrays.

    Returns:
      The function, its arguments, and from its result to that of `fn`.
    """
    nnx = adapters.loaded("nnx")
    pure = nnx and nnx.functional(fn, params, args, kwargs)
    if pure is not None:
        return tuple(pure)
    return fn, params, args, kwargs, lambda result: result
