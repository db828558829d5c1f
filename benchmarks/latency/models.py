"""What is measured: sizes, parameters and inputs of every model.

A `Task` is a function to be shrunk and a function to be timed. They are one, but for
the GPT's decoding: there the keys and values are inputs and outputs, which would fix
the heads, so what is shrunk is the prefill, whose parameters both share, and the cache
of a smaller model is the smaller one that its own prefill makes.

Sizes are chosen so that a forward pass of the large batch takes 20 ms to 1 s on two
cores, and so that densities .75, .5 and .25 give whole multiples of 8 (but heads).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.measure import nbytes
from benchmarks.latency import nets

Shapes = Any
Draw = Callable[[np.random.Generator, int], jax.Array]


@dataclasses.dataclass(frozen=True)
class Task:
    """A model at one use.

    Attributes:
      name: of the row.
      fn: what is shrunk, of `(params, inputs)`.
      shapes: of the parameters.
      draw: inputs of `fn`, from a generator and a batch.
      cut: regex on names of groups; free groups that match lose units.
      large: the large batch.
      step: what is timed, of `(params, *args)`; `fn` if there is none.
      args: arguments of `step`, from parameters and the inputs of `fn`.
      tables: parameters of which a call reads some rows only.
    """

    name: str
    fn: Callable[..., Any]
    shapes: Shapes
    draw: Draw
    large: int
    cut: str = ""
    step: Callable[..., Any] | None = None
    args: Callable[[Any, jax.Array], tuple[Any, ...]] | None = None
    tables: tuple[str, ...] = ()

    @property
    def timed(self) -> Callable[..., Any]:
        """What is timed."""
        return self.step or self.fn

    def inputs(self, batch: int) -> jax.Array:
        """Inputs of `fn`."""
        return self.draw(np.random.default_rng(1), batch)

    def timed_args(self, params: Any, inputs: jax.Array) -> tuple[Any, ...]:
        """What it is called with, behind the parameters."""
        return self.args(params, inputs) if self.args else (inputs,)

    def params(self, seed: int = 0) -> Any:
        """Parameters, scaled by sqrt(2 / fan-in); variances are positive."""
        rng = np.random.default_rng(seed)
        found, tree = jax.tree_util.tree_flatten_with_path(self.shapes, _is_shape)
        leaves = [_leaf(str(path[-1].key), shape, rng) for path, shape in found]
        return jax.tree.unflatten(tree, leaves)

    def read(self, params: Any, args: tuple[Any, ...]) -> int:
        """Bytes of parameters and arguments that a call reads, tables left out."""
        kept = {name: leaf for name, leaf in params.items() if name not in self.tables}
        return nbytes((kept, args))


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple)


# Axes that are summed over, where it is not all but the last.
_FAN_IN = {"q": 1, "k": 1, "v": 1, "embed": 0, "places": 0}


def normal(rng: np.random.Generator, *shape: int) -> jax.Array:
    """Random numbers on the device; numpy's, for JAX compiles a program a shape."""
    return jnp.asarray(rng.standard_normal(shape, np.float32))


def _leaf(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> jax.Array:
    noise = normal(rng, *shape)
    if name in ("var", "scale") or name.startswith("norm"):
        return 1 + 0.1 * jnp.abs(noise)
    if name == "bias":  # keeps units on, so that few of them still say something
        return 0.3 * jnp.abs(noise)
    if name == "mean":
        return 0.1 * noise
    fan_in = math.prod(shape[: _FAN_IN.get(name, len(shape) - 1)])
    return noise * (2 / fan_in) ** 0.5


# MLP -----------------------------------------------------------------------------
def _mlp(size: str) -> list[Task]:
    wide, large = {"small": (32, 8), "cpu": (2048, 512)}.get(size, (8192, 8192))
    widths = (784, wide, wide, wide, 10)
    shapes = {
        f"layer_{i}": {"kernel": (a, b), "bias": (b,)}
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False))
    }

    def draw(rng: np.random.Generator, batch: int) -> jax.Array:
        return normal(rng, batch, widths[0])

    return [Task("mlp", nets.mlp, shapes, draw, large)]


# Convolutions --------------------------------------------------------------------
def _conv(inside: int, outside: int, window: int = 3) -> Shapes:
    norm = dict.fromkeys(("scale", "bias", "mean", "var"), (outside,))
    return {"kernel": (window, window, inside, outside)} | norm


def _images(side: int) -> Draw:
    return lambda rng, batch: normal(rng, batch, side, side, 3)


def _resnet(size: str) -> list[Task]:
    sizes = {"small": (8, 2, 2, 8), "cpu": (64, 16, 3, 32)}
    width, large, stages, side = sizes.get(size, (64, 512, 4, 64))
    shapes: Shapes = {"stem": _conv(3, width)}
    before = width
    for stage in range(stages):
        for block in range(2):
            after = width * 2**stage
            parts = {"a": _conv(before, after), "b": _conv(after, after)}
            if stage and not block:
                parts["skip"] = _conv(before, after, 1)
            shapes[f"block_{stage}_{block}"] = parts
            before = after
    shapes["head"] = {"kernel": (before, 10), "bias": (10,)}
    return [Task("resnet", nets.resnet, shapes, _images(side), large)]


def _unet(size: str) -> list[Task]:
    sizes = {"small": (16, 2, 2, 8), "cpu": (32, 8, 4, 64)}
    width, large, levels, side = sizes.get(size, (64, 32, 5, 256))
    shapes: Shapes = {}
    for level in range(levels):
        inside, mine = (width * 2 ** (level - 1) if level else 3), width * 2**level
        shapes[f"down_{level}"] = {"a": _conv(inside, mine), "b": _conv(mine, mine)}
        if level < levels - 1:
            join = {"a": _conv(3 * mine, mine), "b": _conv(mine, mine)}
            shapes[f"up_{level}"] = join
    shapes["head"] = (1, 1, width, 4)
    return [Task("unet", nets.unet, shapes, _images(side), large)]


# GPT -----------------------------------------------------------------------------
def _gpt_shapes(depth: int, model: int, groups: int, head: int, length: int) -> Shapes:
    """Two query heads share keys and values; the MLP is four times as wide."""
    vocabulary, hidden = 4 * model, 4 * model
    layer = {
        "norm_a": (model,),
        "q": (model, groups, 2, head),
        "k": (model, groups, head),
        "v": (model, groups, head),
        "o": (groups, 2, head, model),
        "norm_b": (model,),
        "gate": (model, hidden),
        "up": (model, hidden),
        "down": (hidden, model),
    }
    return {
        "embed": (vocabulary, model),
        "places": (length + 1, model),
        "layers": {f"layer_{i}": layer for i in range(depth)},
        "norm": (model,),
        "head": (model, vocabulary),
    }


def _behind(params: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
    """A cache of these parameters' own, and the token that comes next."""
    return _cache(params, tokens), tokens[:, -1:]


@jax.jit
def _cache(params: Any, tokens: jax.Array) -> Any:
    return nets.prefill(params, tokens)[1]


def _gpt(size: str) -> list[Task]:
    sizes = {
        "small": (2, 16, 4, 4, 8, 2, 2),
        "cpu": (4, 512, 4, 64, 256, 4, 64),
    }
    large_sizes = (12, 2048, 8, 128, 1024, 16, 128)
    depth, model, groups, head, length, many, more = sizes.get(size, large_sizes)
    shapes = _gpt_shapes(depth, model, groups, head, length)

    def draw(rng: np.random.Generator, batch: int) -> jax.Array:
        tokens = rng.integers(shapes["embed"][0], size=(batch, length))
        return jnp.asarray(tokens, jnp.int32)

    # Whole groups of heads and units of the MLP: what deployments cut. The number of
    # queries a group, and the units of a head, could shrink as well.
    common = functools.partial(
        Task,
        fn=nets.gpt,
        shapes=shapes,
        draw=draw,
        cut=r"/(q\[1\]|gate\[1\])$",
        tables=("embed", "places"),
    )
    return [
        common("gpt prefill", large=many),
        common("gpt decode", large=more, step=nets.decode, args=_behind),
    ]


MODELS = ("mlp", "resnet", "unet", "gpt prefill", "gpt decode")


def tasks(names: Sequence[str], size: str) -> list[Task]:
    """The tasks of some names; sizes are "small", "cpu" or "accelerator"."""
    made = [t for make in (_mlp, _resnet, _unet, _gpt) for t in make(size)]
    return [task for task in made if task.name in names]
