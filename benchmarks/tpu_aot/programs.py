"""The dense and the pruned train step as programs of shapes: no weight is ever made.

    dense    loss, grads = value_and_grad(loss);                 adamw
    pruned   loss, activity, grads = value_and_grad(observe(..)); adamw, bb.transform

Parameters and state are donated. State lies where `tx.init` would put it: types of an
explicit mesh carry shardings, so that

    with jax.set_mesh(explicit_mesh):
        state = jax.eval_shape(tx.init, params)

says it of every leaf, and the program for an automatic mesh takes it from there. (On
an automatic mesh `jax.jit(tx.init)` cannot: where arguments lie is no part of their
types, and nothing in a state depends on the values of weights.) Batches are split over
"fsdp", and so is no axis of the embedding, which activations would follow.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import bbjax as bb
from benchmarks.common.models import gpt

UPDATE = "bb_update"  # what the update is called in a program


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is compiled."""

    shape: gpt.Shape
    sequence: int = 2048
    per_chip: int = 1  # sequences in a batch for each chip
    attention: bool = False
    regrow: bool = True
    dormant_dtype: Any = None
    rule: Any = None

    def options(self) -> list[tuple[str, "Setting"]]:
        """The same with other things remembered, by name."""
        change = functools.partial(dataclasses.replace, self)
        return [
            ("float32 dormant", change(dormant_dtype=None, regrow=True)),
            ("bfloat16 dormant", change(dormant_dtype=jnp.bfloat16, regrow=True)),
            ("no regrowth", change(dormant_dtype=None, regrow=False)),
        ]


@dataclasses.dataclass(frozen=True)
class Program:
    """A train step and what it takes: shapes with shardings."""

    step: Callable[..., Any]
    params: Any
    state: Any
    batch: Any

    def lower(self) -> Any:
        """The step on its devices, not yet compiled."""
        mesh = jax.tree.leaves(self.batch)[0].sharding.mesh
        held = jax.tree.map(lambda leaf: leaf.sharding, (self.params, self.state))
        jitted = jax.jit(
            self.step,
            donate_argnums=(0, 1),
            out_shardings=(*held, NamedSharding(mesh, P())),
        )
        return jitted.lower(self.params, self.state, self.batch)


def specs() -> Any:
    """How parameters lie."""
    return gpt.specs() | {"embedding": P("tensor", None)}


def _shapes(shape: gpt.Shape) -> Any:
    return jax.eval_shape(functools.partial(gpt.init, shape), jax.random.key(0))


def on(mesh: Mesh, shapes: Any, specs: Any) -> Any:
    """Shapes with the shardings that specs say."""

    def one(leaf: Any, spec: P) -> jax.ShapeDtypeStruct:
        where = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(one, shapes, specs)


def state_on(mesh: Mesh, tx: Any, shapes: Any, specs: Any) -> Any:
    """The state of an optimizer, every leaf where `tx.init` puts it.

    Args:
      mesh: automatic or explicit.
      tx: the optimizer.
      shapes: of the parameters.
      specs: how the parameters lie.
    """
    kinds = (AxisType.Explicit,) * mesh.devices.ndim
    explicit = Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)
    with jax.set_mesh(explicit):
        state = jax.eval_shape(tx.init, on(explicit, shapes, specs))

    def spec(leaf: Any) -> P:
        return P() if leaf.sharding is None else leaf.sharding.spec

    return on(mesh, state, jax.tree.map(spec, state))


def loss_on(mesh: Mesh, shape: gpt.Shape) -> Callable[[Any, Any], jax.Array]:
    """`gpt.loss`, activations split over batches alone at the start of each layer.

    Weights are split along the axis that activations contract with. Left to choose,
    the compiler splits activations in the same way and batches not at all.
    """
    where = NamedSharding(mesh, P("fsdp"))

    def place(h: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(h, where)

    return lambda params, tokens: gpt.loss(shape, params, tokens, place)


def units_of(setting: Setting, loss: Any, shapes: Any, tokens: Any) -> bb.Units:
    """All MLP kernels, and those of attention where asked for."""
    traced = bb.trace(loss, shapes, tokens)
    units = traced.select("layers/up", actuator="in")
    units += traced.select("layers/down", actuator="out")
    if setting.attention:
        units += traced.select("layers/[qkv]$", actuator="in")
        units += traced.select("layers/o$", actuator="out")
    return units


def train_step(loss: Callable[[Any, Any], jax.Array], tx: Any, units: Any) -> Any:
    """A step of `(params, state, batch)`; without units it measures no activity."""

    def dense(params: Any, state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    def pruned(params: Any, state: Any, batch: Any) -> Any:
        observed = jax.value_and_grad(bb.observe(loss, units), has_aux=True)
        (value, activity), grads = observed(params, batch)
        with jax.named_scope(UPDATE):
            updates, state = tx.update(grads, state, params, activity=activity)
        return optax.apply_updates(params, updates), state, value

    return dense if units is None else pruned


def programs(setting: Setting, mesh: Mesh) -> dict[str, Program]:
    """The dense and the pruned step on a mesh."""
    loss = loss_on(mesh, setting.shape)
    shapes = _shapes(setting.shape)
    batch = (setting.per_chip * mesh.devices.size, setting.sequence + 1)
    plain = jax.ShapeDtypeStruct(batch, jnp.int32)
    units = units_of(setting, loss, shapes, plain)
    adam = optax.adamw(3e-4)
    tx = optax.chain(
        adam,
        bb.transform(
            units,
            setting.rule,
            regrow=setting.regrow,
            dormant_dtype=setting.dormant_dtype,
        ),
    )

    def program(tx: Any, units: Any) -> Program:
        return Program(
            step=train_step(loss, tx, units),
            params=on(mesh, shapes, specs()),
            state=state_on(mesh, tx, shapes, specs()),
            batch=on(mesh, plain, P("fsdp")),
        )

    return {"dense": program(adam, None), "pruned": program(tx, units)}
