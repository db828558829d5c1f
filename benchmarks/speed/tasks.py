"""The models that are trained, each in three sizes: small, cpu, accelerator.

A task is a loss of `(params, *batch)` with its first parameters, a batch and the
kernels that get a budget: `(pattern, actuator)` pairs, or none for what `bb.trace`
takes by itself (hidden kernels that a nonlinearity follows, incoming edges).

    ffn-256, ffn-4096   8 x (512 -> 2048 -> 512) at so many tokens, up "in", down "out"
    ffn-deep            100 x (256 -> 512 -> 256) at 256 tokens: 200 kernels, no scan
    gpt, gpt-24         scanned and rematerialised, 12 and 24 layers, likewise
    resnet, unet3d      by default

On a CPU a dense step takes 0.1 to 2 seconds. All is float32 but the GPT on
accelerators, which computes in bfloat16.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import bbjax as bb
from benchmarks.common.models import ffn, gpt, resnet, unet3d

UP_AND_DOWN = (("up$", "in"), ("down$", "out"))
Make = Callable[[jax.Array], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A model, what it is trained on, and which kernels are budgeted.

    Attributes:
      loss: of `(params, *batch)`.
      init: parameters from a key.
      batch: a tuple of arrays from a key.
      shape: sizes of the model, for the report.
    """

    name: str
    loss: Callable[..., jax.Array]
    init: Make
    batch: Make
    shape: Any
    select: tuple[tuple[str, Any], ...] = ()

    def shapes(self) -> tuple[Any, tuple[Any, ...]]:
        """Shapes of parameters and batch."""
        key = jax.random.key(0)
        return jax.eval_shape(self.init, key), jax.eval_shape(self.batch, key)

    def units(self) -> bb.Units:
        """The kernels, with those chosen that get a budget."""
        params, batch = self.shapes()
        traced = bb.trace(self.loss, params, *batch)
        chosen = [traced.select(pattern, side) for pattern, side in self.select]
        return functools.reduce(lambda a, b: a + b, chosen) if chosen else traced

    def about(self) -> dict[str, Any]:
        """What the JSON says of it."""
        params, batch = self.shapes()
        return {
            "model": str(self.shape),
            "batch": [f"{x.dtype}{list(x.shape)}" for x in batch],
            "weights": sum(leaf.size for leaf in jax.tree.leaves(params)),
        }


def _ffn(name: str, size: str) -> Task:
    shape, tokens = {
        "ffn-256": (ffn.Shape(), 256),
        "ffn-4096": (ffn.Shape(), 4096),
        "ffn-deep": (ffn.Shape(100, 256, 512), 256),
    }[name]
    if size == "small":
        layers = 34 if name == "ffn-deep" else 2  # more than share one loop
        shape, tokens = ffn.Shape(layers, 32, 64), tokens // 64

    def batch(key: jax.Array) -> Any:
        keys = jax.random.split(key)
        return tuple(jax.random.normal(k, (tokens, shape.model)) for k in keys)

    init = functools.partial(ffn.init, shape)
    return Task(name, ffn.loss, init, batch, shape, UP_AND_DOWN)


def _gpt(name: str, size: str) -> Task:
    shape, lines, length = {
        "small": (gpt.Shape(2, 32, 64, 2, 2, 64), 2, 16),
        "cpu": (gpt.SMALL, 4, 128),
        "accelerator": (gpt.GPT_125M, 8, 1024),
    }[size]
    if name == "gpt-24":
        shape = dataclasses.replace(shape, layers=4 if size == "small" else 24)

    def batch(key: jax.Array) -> Any:
        return (jax.random.randint(key, (lines, length + 1), 0, shape.vocabulary),)

    init, loss = (functools.partial(f, shape) for f in (gpt.init, gpt.loss))
    return Task(name, loss, init, batch, shape, UP_AND_DOWN)


def _resnet(name: str, size: str) -> Task:
    shape, images, side = {
        "small": (resnet.Shape((8, 16), 1), 4, 8),
        "cpu": (resnet.Shape(), 16, 32),
        "accelerator": (resnet.Shape((64, 128, 256)), 256, 32),
    }[size]
    init, loss = (functools.partial(f, shape) for f in (resnet.init, resnet.loss))
    batch = _labelled((images, side, side, 3), (images,), shape.classes)
    return Task(name, loss, init, batch, shape)


def _unet3d(name: str, size: str) -> Task:
    shape, volumes, side = {
        "small": (unet3d.Shape(2, 8), 1, 8),
        "cpu": (unet3d.Shape(), 1, 32),
        "accelerator": (unet3d.Shape(3, 32), 2, 64),
    }[size]
    init, loss = (functools.partial(f, shape) for f in (unet3d.init, unet3d.loss))
    voxels = (volumes, side, side, side)
    batch = _labelled((*voxels, shape.channels), voxels, shape.classes)
    return Task(name, loss, init, batch, shape)


def _labelled(values: tuple[int, ...], labels: tuple[int, ...], classes: int) -> Make:
    """A batch of random values with random labels."""

    def batch(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, b = jax.random.split(key)
        drawn = jax.random.randint(b, labels, 0, classes, jnp.int32)
        return jax.random.normal(a, values), drawn

    return batch


_MAKERS = {
    "ffn-256": _ffn,
    "ffn-4096": _ffn,
    "ffn-deep": _ffn,
    "gpt": _gpt,
    "resnet": _resnet,
    "unet3d": _unet3d,
    "gpt-24": _gpt,
}
MODELS = tuple(
    name for name in _MAKERS if name != "gpt-24"
)  # that one is compiled only


@functools.cache
def task(name: str, size: str) -> Task:
    """The task of that name; the same object at every call."""
    return _MAKERS[name](name, size)
