"""Feed-forward blocks with kernels that keep 2 of every 4 weights, in several ways.

    x <- x + relu(x up) down        block after block, as in a decoding step

dense      kernels with zeros in them
unpacked   stored packed; XLA fills in zeros and multiplies
picked     stored packed; XLA picks inputs by place, multiplies and adds, batch 1 only
bcoo       `jax.experimental.sparse.BCOO`
pallas     stored packed; the kernel in `kernel.py`, GPUs only
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import sparse

import bbjax as bb
from benchmarks.patterns import kernel
from benchmarks.patterns.packed import Packed, by_place, pack, places, unpack

Params = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Size:
    """A stack of blocks: `width -> hidden -> width`, in a dtype."""

    blocks: int
    width: int
    hidden: int
    dtype: Any


SIZES = {
    "small": Size(2, 256, 512, jnp.float32),
    "cpu": Size(4, 1024, 4096, jnp.float32),
    "accelerator": Size(8, 4096, 16384, jnp.bfloat16),
}


def blocks(product: Callable[[jax.Array, Any], jax.Array]) -> Callable[..., jax.Array]:
    """The stack, with some product of inputs and kernel."""

    def run(params: Params, x: jax.Array) -> jax.Array:
        for block in params:
            x = x + product(jax.nn.relu(product(x, block["up"])), block["down"])
        return x

    return run


def picked(x: jax.Array, packed: Packed) -> jax.Array:
    """`x @ w`: every kept weight times the input that it stands at."""
    inputs, found = by_place(x)[:, :, 0, :, None], places(packed.places)
    total = jnp.zeros(packed.places.shape[1:], jnp.float32)
    for kept in (0, 1):
        for half in (0, 1):
            here = [found[kept][half] == place for place in range(4)]
            chosen = jnp.select(here, list(inputs[half]))
            products = packed.values[kept, half].astype(jnp.float32) * chosen
            total += products.sum(axis=0)
    return total[None].astype(x.dtype)


PRODUCTS: Mapping[str, Callable[[jax.Array, Any], jax.Array]] = {
    "dense": jnp.matmul,
    "unpacked": lambda x, packed: x @ unpack(packed),
    "picked": picked,
    "bcoo": lambda x, matrix: x @ matrix,
    "pallas": kernel.matmul,
}


def ways(batch: int, backend: str) -> list[str]:
    """What can be measured."""
    left_out = set() if batch == 1 else {"picked"}
    if backend not in ("gpu", "cuda"):
        left_out.add("pallas")
    return [way for way in PRODUCTS if way not in left_out]


def pruned(size: Size, seed: int = 0) -> tuple[Params, Params]:
    """Random parameters, 2 of every 4 kept by magnitude; and their masks."""
    params, masks = [], []
    for key in jax.random.split(jax.random.key(seed), size.blocks):
        shapes = {"up": (size.width, size.hidden), "down": (size.hidden, size.width)}
        block = {}
        for (name, shape), k in zip(
            shapes.items(), jax.random.split(key, 2), strict=True
        ):
            weights = jax.random.normal(k, shape, jnp.float32) * shape[0] ** -0.5
            block[name] = weights.astype(size.dtype)
        x = jax.ShapeDtypeStruct((1, size.width), size.dtype)
        units = bb.trace(lambda p, x: blocks(jnp.matmul)([p], x), block, x)
        rule, pattern = bb.rules.magnitude(), bb.n_m(2, 4)
        kept, mask = bb.prune(block, units.select("up|down"), rule, pattern=pattern)
        params.append(kept)
        masks.append(mask)
    return params, masks


def stored(way: str, params: Params, masks: Params) -> Params:
    """The parameters as a way reads them."""
    make = {
        "dense": lambda weights, mask: weights,
        "bcoo": lambda weights, mask: sparse.BCOO.fromdense(weights),
    }.get(way, jax.jit(pack))
    return [
        {name: make(block[name], mask[name]) for name in block}
        for block, mask in zip(params, masks, strict=True)
    ]
