"""Why a speed-up is not the ideal: every product alone, and widths side by side.

A model's time is that of its products and of the rest (element-wise operations, moves,
calls). The ideal counts operations of products only, so it is missed where products of
narrow layers run at a lower rate than those of wide ones, or where the rest shrinks
less than they do. Timing every product of a model alone, compiled by itself on arrays
of its shapes, tells the two apart:

    products  (ms of all products dense / shrunk) / ideal
    share     ms of all products / ms of the model

`widths` times one dense layer and one convolution with n units in and out, for n as
layers fall and around a power of two.
"""

import collections
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bbjax as bb
from bbjax.shrinking import costs
from bbjax.tracing import jaxprs
from benchmarks.common.measure import spread
from benchmarks.latency import cut
from benchmarks.latency.measure import DENSITIES, SEED, in_turns
from benchmarks.latency.models import Task, normal
from benchmarks.latency.nets import conv

NAMES = ("dot_general", "conv_general_dilated")
AROUND = (112, 120, 124, 126, 127, 128, 129, 130, 132, 136, 144)
FALLING = (16, 24, 32, 48, 64, 96, 192, 256)
CALLS = 5  # of a turn


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every product of a jaxpr, those of inner ones as well."""
    inner, _ = jaxprs.opened(jaxpr)
    for eqn in inner.eqns:
        if eqn.primitive.name in NAMES:
            yield eqn
        for body, _ in jaxprs.bodies(eqn):
            yield from equations(body)


def kinds(task: Task, params: Any, inputs: jax.Array) -> collections.Counter[Any]:
    """How often each product is there: operation and shapes."""
    jaxpr = jax.make_jaxpr(task.timed)(params, *task.timed_args(params, inputs))
    found: collections.Counter[Any] = collections.Counter()
    for eqn in equations(jaxpr):
        shapes = tuple(tuple(a.aval.shape) for a in eqn.invars)
        settings = tuple(sorted((n, _Plain(v)) for n, v in eqn.params.items()))
        found[eqn.primitive, shapes, settings] += 1
    return found


class _Plain:
    """A parameter of an equation, compared by what it says."""

    def __init__(self, value: Any) -> None:
        self.value, self.text = value, repr(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Plain) and self.text == other.text

    def __lt__(self, other: "_Plain") -> bool:
        return self.text < other.text

    def __hash__(self) -> int:
        return hash(self.text)


def alone(kind: Any) -> Callable[[], Any]:
    """A call of one product, compiled by itself."""
    primitive, shapes, settings = kind
    params = {name: plain.value for name, plain in settings}
    rng = np.random.default_rng(0)
    arrays = [normal(rng, *shape) for shape in shapes]
    program = jax.jit(lambda *a: primitive.bind(*a, **params)).lower(*arrays).compile()
    return lambda: program(*arrays)


def of_models(task: Task, rounds: int) -> dict[str, Any]:
    """Milliseconds of all products of a model at the large batch, by density."""
    params = task.params()
    inputs = task.inputs(task.large)
    models = {"dense": params}
    for density in DENSITIES:
        masks, _ = cut.masks(task, params, inputs, density, SEED)
        models[str(density)] = bb.shrink(task.fn, params, masks, inputs).params
    counts = {name: kinds(task, p, inputs) for name, p in models.items()}
    calls = {kind: alone(kind) for found in counts.values() for kind in found}
    ms = in_turns(calls, rounds, CALLS)
    each = {kind: float(np.median(t)) for kind, t in ms.items()}
    return {
        name: sum(n * each[kind] for kind, n in found.items())
        for name, found in counts.items()
    }


def explained(row: dict[str, Any], products: dict[str, float]) -> dict[str, Any]:
    """What products alone reach of the ideal, and their share of the time.

    Args:
      row: of a model at the large batch, as `measure.compare` gives it.
      products: milliseconds of all products, dense and by density.
    """
    share = {"dense": products["dense"] / row["dense_ms"]["median"]}
    reach = {}
    for density, found in row["densities"].items():
        share[density] = products[density] / found["ms"]["shrunk"]["median"]
        gain = products["dense"] / products[density]
        reach[density] = gain / found["ideal"]["flops"]
    return {"ms": products, "share": share, "efficiency": reach}


# Widths --------------------------------------------------------------------------
def widths(rounds: int, small: bool) -> dict[str, Any]:
    """GFLOP/s of a dense layer and a convolution with n units in and out."""
    batch, images = (8, 1) if small else (4096, 16)
    sizes = (8, 7) if small else (*FALLING, *AROUND)

    def dense(n: int) -> tuple[Any, tuple[jax.Array, ...]]:
        return jnp.matmul, (jnp.ones((batch, n)), jnp.ones((n, n)))

    def image(n: int) -> tuple[Any, tuple[jax.Array, ...]]:
        return conv, (jnp.ones((images, 16, 16, n)), jnp.ones((3, 3, n, n)))

    return {"dense": _rates(dense, sizes, rounds), "conv": _rates(image, sizes, rounds)}


def _rates(
    make: Callable[[int], tuple[Any, tuple[jax.Array, ...]]],
    sizes: tuple[int, ...],
    rounds: int,
) -> dict[str, dict[str, float]]:
    calls, flops = {}, {}
    for n in sizes:
        fn, args = make(n)
        program = jax.jit(fn).lower(*args).compile()
        flops[n] = costs.flops(jax.make_jaxpr(fn)(*args))
        calls[n] = functools.partial(program, *args)
    ms = in_turns(calls, rounds, CALLS)
    return {str(n): spread(1e-6 * flops[n] / t) for n, t in ms.items()}
