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

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Self

import flax.linen as nn
import jax.numpy as jnp
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
    another number. Within this function, `self.param` of every module returns the
    parameter that is given, whatever the sizes of its axes. Modules of Flax that use
    such a number elsewhere (attention, grouped convolutions, recurrent cells in
    `nn.RNN`) take it from their parameters. Modules of your own need no change, unless
    they use such a number themselves, as in a reshape.

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
    """Lets a module take the sizes of its parameters for the time of a call."""
    module = context.module
    if module.scope is None or "param" in vars(module):  # unbound, or done already
        return call(*args, **kwargs)
    cell = module.cell if isinstance(module, nn.RNN) else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(_set(module, {"param": _param(module)}))
        stack.enter_context(_set(module, _sizes(module, args)))
        if cell is not None and cell.scope is not None:  # makes the first carry itself
            stack.enter_context(_set(cell, _sizes(cell, ())))
        return call(*args, **kwargs)


def _param(module: nn.Module) -> Callable[..., Any]:
    """`module.param`, which returns a given parameter whatever its sizes.

    Flax traces the initializer of every parameter to compare shapes. Without that,
    tracing a module is faster by a third.
    """

    def param(name: str, init_fn: Any, *args: Any, unbox: bool = True, **kwargs: Any):
        if module.has_variable("params", name):
            given: Any = module.get_variable("params", name)
            return nn.meta.unbox(given) if unbox else given
        return type(module).param(module, name, init_fn, *args, unbox=unbox, **kwargs)

    return param


@contextlib.contextmanager
def _set(module: nn.Module, fields: dict[str, Any]) -> Iterator[None]:
    """Sets attributes of a module, which is frozen for everybody else, for a time."""
    before = {name: vars(module).get(name, _NONE) for name in fields}
    try:
        for name, value in fields.items():
            object.__setattr__(module, name, value)
        yield
    finally:
        for name, value in before.items():
            if value is _NONE:
                object.__delattr__(module, name)
            else:
                object.__setattr__(module, name, value)


_NONE = object()


def _sizes(module: Any, args: Any) -> dict[str, Any]:
    """Numbers of a module that it uses beside the shapes of its parameters."""
    for kind, fields in _SIZES:
        if isinstance(module, kind):
            return fields(module, args)
    return {}


def _shape(module: Any) -> tuple[int, ...] | None:
    """The shape of the kernel of a module; None before it is made."""
    if not module.has_variable("params", "kernel"):
        return None
    return jnp.shape(nn.meta.unbox(module.get_variable("params", "kernel")))


def _conv(module: Any, args: Any) -> dict[str, Any]:
    shape = _shape(module)
    if shape is None or module.feature_group_count == 1:
        return {}
    return {"feature_group_count": args[0].shape[-1] // shape[-2]}


def _general(module: Any, args: Any) -> dict[str, Any]:
    shape = _shape(module)
    if shape is None:
        return {}
    many = not isinstance(module.features, int)
    count = len(module.features) if many else 1
    units = shape[len(shape) - count :]
    return {"features": units if many else units[0]}


def _cell(module: Any, args: Any) -> dict[str, Any]:
    """The inputs of a recurrent kernel are the units of a cell."""
    layers = nn.meta.unbox(module.variables.get("params", {}))
    recurrent = [layer for name, layer in layers.items() if name.startswith("h")]
    return {"features": recurrent[0]["kernel"].shape[-2]} if recurrent else {}


_CELLS = (nn.LSTMCell, nn.OptimizedLSTMCell, nn.SimpleCell, nn.GRUCell, nn.MGUCell)
_SIZES: tuple[tuple[Any, Callable[[Any, Any], dict[str, Any]]], ...] = (
    (nn.DenseGeneral, _general),
    (nn.Conv, _conv),
    ((*_CELLS, nn.ConvLSTMCell), _cell),
)
