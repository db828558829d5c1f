"""Loss, gradients and activity of one pass.

`jax.value_and_grad(bb.observe(fn, units), has_aux=True)` nests its results. Here they
come side by side, for arrays and for NNX modules.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bbjax import adapters
from bbjax.activity.observe import Where, observe
from bbjax.activity.on import On, positive
from bbjax.activity.statistics import Activity
from bbjax.model.units import Units


def value_and_grad(
    loss_fn: Callable[..., Any],
    units: Units,
    *,
    has_aux: bool = False,
    where: Where = None,
    on: On = positive,
    needs: Sequence[str] = (),
    wrt: Any = None,
) -> Callable[..., tuple[Any, Any, dict[str, Activity]]]:
    """A function that returns the loss, its gradients and the activity of the units.

    Args:
      loss_fn: the function that was traced, of `(params, *args, **kwargs)`; returns a
        scalar loss.
      units: from `bb.trace`; see `bb.observe`.
      has_aux: whether `loss_fn` returns `(loss, aux)`.
      where: padding mask, or a function of the arguments after `params` that gives it;
        see `bb.observe`.
      on: what counts as on; see `bb.on`.
      needs: further statistics to measure; pass `rule.needs`.
      wrt: of an NNX module, the variables that get gradients, as a filter of NNX;
        `nnx.Param` by default. Pass the filter that `nnx.Optimizer` has.

    Returns:
      A function of the arguments of `loss_fn` that returns `(loss, grads, activity)`,
      or `((loss, aux), grads, activity)` with `has_aux`. `grads` is a tree like
      `params`, with None for every leaf that has no gradient (functions and integers
      in an Equinox module); of NNX modules it is what `nnx.value_and_grad` returns,
      and a module that changes while it is called (BatchNorm, dropout) is updated.

    Raises:
      TypeError: `loss_fn` returns no scalar, or no pair with `has_aux`; `wrt` without
        an NNX module; and as `bb.observe`.
      ValueError: as `bb.observe`.

    Example:
      >>> import bbjax as bb
      >>> def loss(params, x):
      ...     return jnp.sum(jax.nn.relu(x @ params["up"]) @ params["down"])
      >>> params = {"up": jnp.eye(2), "down": jnp.ones((2, 1))}
      >>> x = jnp.array([[1.0, -1.0], [1.0, 1.0]])
      >>> units = bb.trace(loss, params, x)
      >>> loss, grads, activity = bb.value_and_grad(loss, units)(params, x)
      >>> float(loss), grads["down"].tolist(), activity["up"].outputs.on_rate.tolist()
      (3.0, [[2.0], [1.0]], [1.0, 0.5])
    """
    observed = observe(loss_fn, units, has_aux=has_aux, where=where, on=on, needs=needs)

    @functools.wraps(loss_fn)
    def scalar(*args: Any, **kwargs: Any) -> Any:
        loss, more = observed(*args, **kwargs)
        _check_scalar(loss)
        return loss, more

    @functools.wraps(loss_fn)
    def differentiated(params: Any, *args: Any, **kwargs: Any) -> Any:
        run = _nnx(scalar, (params, args, kwargs), wrt) or _arrays(scalar)
        (loss, more), grads = run(params, *args, **kwargs)
        if not has_aux:
            return loss, grads, more
        aux, activity = more
        return (loss, aux), grads, activity

    return differentiated


def _nnx(fn: Callable[..., Any], arguments: Any, wrt: Any) -> Callable[..., Any] | None:
    """`nnx.value_and_grad` of a function, if an argument is an NNX object."""
    nnx = adapters.loaded("nnx")
    if nnx is not None and nnx.objects_in(arguments):
        return nnx.value_and_grad(fn, arguments[0], wrt)
    if wrt is not None:
        raise TypeError(
            f"expected wrt only with an NNX module, got {wrt!r}; leave it out, and "
            "choose parameters by what you pass as params"
        )
    return None


def _arrays(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.value_and_grad` of a function, by the leaves that can have a gradient."""

    def run(params: Any, *args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten(params)
        smooth = {i: leaf for i, leaf in enumerate(leaves) if _is_smooth(leaf)}

        def of(chosen: dict[int, Any]) -> Any:
            full = [chosen.get(i, leaf) for i, leaf in enumerate(leaves)]
            return fn(jax.tree.unflatten(tree, full), *args, **kwargs)

        results, grads = jax.value_and_grad(of, has_aux=True)(smooth)
        full = [grads.get(i) for i in range(len(leaves))]
        return results, jax.tree.unflatten(tree, full)

    return run


def _is_smooth(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return isinstance(leaf, float)
    return bool(jnp.issubdtype(dtype, jnp.inexact))


def _check_scalar(loss: Any) -> None:
    shape = getattr(loss, "shape", None)
    if shape == ():
        return
    got = type(loss).__name__ if shape is None else f"an array of shape {shape}"
    raise TypeError(
        f"expected loss_fn to return a scalar, got {got}; if it returns (loss, aux), "
        "pass has_aux=True"
    )
