"""Flax linen: a train state that passes on activity, and modules of other sizes.

The `apply_gradients` of Flax's own `TrainState` calls `tx.update(grads, opt_state,
params)` and takes every other keyword for a field of the state. A pruning optimizer
needs one more argument, so here keywords are sorted by name:

    a field of the state     replaced, as in Flax (`batch_stats=...`)
    anything else            an extra argument of `tx.update` (`activity=...`)

Nothing else changes: subclass it for further fields, and read masks from it with
`bb.masks(state)`.

The sizes of layers are written in modules. For parameters that `bb.shrink` has made
smaller, `resized` lets Flax's layers take the numbers from the parameters, and
`features` gives the numbers to build a smaller module with.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import flax.linen as nn
import optax
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

__all__ = ["TrainState", "features", "resized"]


class TrainState(train_state.TrainState):
    """Flax's `TrainState` for optimizers with extra arguments.

    Example:
      >>> import bbjax as bb
      >>> import flax.linen as nn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> class Model(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         hidden = nn.relu(nn.Dense(8, name="up")(x))
      ...         return nn.Dense(1, name="down")(hidden)
      >>> model, x = Model(), jnp.ones((5, 4))
      >>> params = model.init(jax.random.key(0), x)["params"]
      >>> def loss(params, x):
      ...     return jnp.mean(model.apply({"params": params}, x) ** 2)
      >>> units = bb.trace(loss, params, x)
      >>> tx = optax.chain(optax.sgd(0.1), bb.transform(units, density=0.5, start=0))
      >>> state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
      >>> _, grads, activity = bb.value_and_grad(loss, units)(state.params, x)
      >>> state = state.apply_gradients(grads=grads, activity=activity)
      >>> int((state.params["up"]["kernel"] != 0).sum())
      16
    """

    def apply_gradients(self, *, grads: Any, **kwargs: Any) -> Self:
        """One step of the optimizer.

        Args:
          grads: gradients, the tree of `params`. Entries under Flax's
            `_overwrite_with_gradient` replace the parameters of that name.
          **kwargs: fields of the state to replace; every other keyword goes to
            `tx.update`, which ignores unknown ones.

        Returns:
          The state with `step` one higher, new `params` and `opt_state`, and the given
          fields replaced.

        Raises:
          TypeError: `step`, `params` or `opt_state` as a keyword: the step itself
            replaces them.
          ValueError: as the `update` of `bb.transform`.

        Example:
          >>> params = {"w": 1.0}
          >>> state = TrainState.create(apply_fn=None, params=params, tx=optax.sgd(0.5))
          >>> float(state.apply_gradients(grads=params, value=1.0).params["w"])
          0.5
        """
        names = {field.name for field in dataclasses.fields(self)}
        fields = {k: v for k, v in kwargs.items() if k in names}
        extra = {k: v for k, v in kwargs.items() if k not in names}
        params, _ = _divided(self.params)
        gradients, overwritten = _divided(grads)
        tx = optax.with_extra_args_support(self.tx)
        updates, opt_state = tx.update(gradients, self.opt_state, params, **extra)
        new = optax.apply_updates(params, updates)
        return self.replace(
            step=self.step + 1,
            params={**new, **overwritten} if overwritten else new,
            opt_state=opt_state,
            **fields,
        )

    @classmethod
    def create(cls, *, apply_fn: Any, params: Any, tx: Any, **kwargs: Any) -> Self:
        """A state at step 0.

        Args:
          apply_fn: usually `model.apply`.
          params: parameters, the tree that was traced.
          tx: optimizer, usually a chain that ends with `bb.transform`.
          **kwargs: further fields of a subclass.

        Example:
          >>> state = TrainState.create(
          ...     apply_fn=None, params={"w": 1.0}, tx=optax.sgd(0.5)
          ... )
          >>> state.step
          0
        """
        trained, _ = _divided(params)
        return cls(
            step=0,
            apply_fn=apply_fn,
            params=params,
            tx=tx,
            opt_state=tx.init(trained),
            **kwargs,
        )


def _divided(tree: Any) -> tuple[Any, dict[str, Any]]:
    """What the optimizer trains, and what gradients replace outright (fp8 scales).

    Flax hands the optimizer the inside of `params`; here the key stays, so that the
    paths are those of the tree that was traced.
    """
    if not hasattr(tree, "keys") or OVERWRITE_WITH_GRADIENT not in tree:
        return tree, {}
    trained = {k: v for k, v in tree.items() if k != OVERWRITE_WITH_GRADIENT}
    return trained, {OVERWRITE_WITH_GRADIENT: tree[OVERWRITE_WITH_GRADIENT]}


# Shrunk parameters ---------------------------------------------------------------
def resized(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function of linen modules that takes parameters of other sizes.

    A linen module fixes how many units its layers have and refuses parameters that have
    another number. Within this function, Flax's own layers take their numbers from the
    parameters that they are given. Modules of your own need no change, unless they use
    such a number themselves.

    Args:
      fn: calls `module.apply`.

    Returns:
      The same function.

    Example:
      >>> import flax.linen as nn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> module, x = nn.Dense(8), jnp.ones((1, 4))
      >>> small = {"params": {"kernel": jnp.ones((4, 5)), "bias": jnp.zeros(5)}}
      >>> resized(module.apply)(small, x).shape
      (1, 5)
    """

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(_take_sizes):
            return fn(*args, **kwargs)

    return call


def features(small: Any) -> dict[str, int | tuple[int, ...]]:
    """The `features` of the layers of a smaller model, to build its module with.

    Args:
      small: from `bb.shrink`.

    Returns:
      By path of layer: an int, or a tuple where units have several axes.

    Example:
      >>> import bbjax as bb
      >>> import flax.linen as nn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> net, x = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), jnp.ones((1, 4))
      >>> params = net.init(jax.random.key(0), x)["params"]
      >>> def model(params, x):
      ...     return net.apply({"params": params}, x)
      >>> read = jnp.broadcast_to(jnp.arange(8)[:, None] < 5, (8, 2))
      >>> small = bb.shrink(model, params, {"layers_2/kernel": read}, x)
      >>> bb.linen.features(small)
      {'layers_0': 5, 'layers_2': 2}
    """
    found: dict[str, int | tuple[int, ...]] = {}
    for kernel in small.units.kernels:
        units = kernel.out_units
        layer = kernel.path.rpartition("/")[0]
        found[layer] = units[0] if len(units) == 1 else units
    return found


def _take_sizes(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Gives a layer the sizes of its parameters for the time of a call."""
    module = context.module
    sizes = next((s for kind, s in _SIZES.items() if isinstance(module, kind)), None)
    if sizes is None or not module.has_variable("params", sizes.name):
        return call(*args, **kwargs)
    array = nn.meta.unbox(module.get_variable("params", sizes.name))
    fields = sizes.fields(module, array.shape, args)
    before = {name: getattr(module, name) for name in fields}
    _set(module, fields)
    try:
        return call(*args, **kwargs)
    finally:
        _set(module, before)


def _set(module: nn.Module, fields: dict[str, Any]) -> None:
    """Sets fields of a module, which is frozen for everybody else."""
    for name, value in fields.items():
        object.__setattr__(module, name, value)


class _Sizes(NamedTuple):
    """How a layer's fields follow from its parameter of a name."""

    name: str
    fields: Callable[[Any, tuple[int, ...], Any], dict[str, Any]]


def _conv(module: Any, shape: tuple[int, ...], args: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"features": shape[-1]}
    if module.feature_group_count > 1:
        fields["feature_group_count"] = args[0].shape[-1] // shape[-2]
    return fields


def _general(module: Any, shape: tuple[int, ...], args: Any) -> dict[str, Any]:
    many = not isinstance(module.features, int)
    count = len(module.features) if many else 1
    units = shape[len(shape) - count :]
    return {"features": units if many else units[0]}


_SIZES = {
    nn.Dense: _Sizes("kernel", lambda module, shape, args: {"features": shape[-1]}),
    nn.DenseGeneral: _Sizes("kernel", _general),
    nn.Conv: _Sizes("kernel", _conv),
    nn.ConvTranspose: _Sizes(
        "kernel",
        lambda module, shape, args: {
            "features": shape[-2 if module.transpose_kernel else -1]
        },
    ),
    nn.Embed: _Sizes(
        "embedding",
        lambda module, shape, args: {"num_embeddings": shape[0], "features": shape[1]},
    ),
    nn.Einsum: _Sizes("kernel", lambda module, shape, args: {"shape": shape}),
}
