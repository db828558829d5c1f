"""Flax linen: a train state whose optimizer also gets the activity of the units.

The `apply_gradients` of Flax's own `TrainState` calls `tx.update(grads, opt_state,
params)` and takes every other keyword for a field of the state. A pruning optimizer
needs one argument more, so here keywords are told apart by name:

    a field of the state     replaced, as in Flax (`batch_stats=...`)
    anything else            an extra argument of `tx.update` (`activity=...`)

Nothing else changes: subclass it for further fields, and read masks from it with
`bb.masks(state)`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import optax
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

__all__ = ["TrainState"]


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
      >>> observed = jax.value_and_grad(bb.observe(loss, units), has_aux=True)
      >>> (_, activity), grads = observed(state.params, x)
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
            `tx.update`, which ignores what it does not know.

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
