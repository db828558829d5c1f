"""What a layer's code says and how much of it arrives (claim C5), on any net.

A layer is a sample of what its units say, the kernel that makes them and the one that
reads them. Information is that of the reader's output behind noise, twice as wide as
that output is in the dense net of the same seed (as in
`benchmarks/claims/information`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.claims.information.measure import code, information

SAMPLES = 512
NOISE = 2.0


class Layer(NamedTuple):
    """A code and its channel.

    Attributes:
      values: of the units, (samples, units).
      seen: what the reader multiplies, (samples, fan-in): the values themselves for a
        dense kernel, patches of them for a convolution.
      reader: the kernel that reads, (fan-in, outputs).
      share: kept share of each unit's edges, incoming and outgoing, (units,).
    """

    values: Any
    seen: Any
    reader: Any
    share: Any


def measure(
    layers: list[Layer], seed: int, noise: list[float] | None = None
) -> dict[str, Any]:
    """Means over layers of all numbers, and the noise of each layer.

    entropy       mean H(a) of the units' on-rates, bits
    correlation   mean absolute correlation over pairs of units that vary
    dimension     participation ratio, as a share of the units
    traffic       mean over units of on-rate times kept share of edges
    power         tr(W' S W) over outputs, in units of the noise's variance
    information   of code and output behind noise, nats

    Args:
      layers: of a net.
      seed: of the noise.
      noise: standard deviation of each layer's noise; None takes twice that of its own
        output.
    """
    key = jax.random.key(seed)
    found = []
    for number, layer in enumerate(layers):
        sigma = -1.0 if noise is None else noise[number]
        found.append(jax.tree.map(float, _one(*layer, sigma, key)))
    means = {n: round(float(np.mean([f[n] for f in found])), 5) for n in found[0]}
    del means["noise"]
    return means | {"noise": [float(f"{f['noise']:.5g}") for f in found]}


def of_dense(values: Any, maker: Any, reader: Any) -> Layer:
    """The layer of units (..., units) between two dense kernels."""
    values = jnp.reshape(values, (-1, jnp.shape(values)[-1]))
    some = values[_rows(len(values))]
    return Layer(some, some, reader, _share(maker, reader))


def of_convolution(values: Any, maker: Any, reader: Any) -> Layer:
    """The layer of units (n, *positions, units) that a convolution reads, stride 1."""
    values, reader = jnp.asarray(values), jnp.asarray(reader)
    window, units = reader.shape[:-2], reader.shape[-2]
    space = "DHW"[-len(window) :]
    patches = jax.lax.conv_general_dilated_patches(
        values,
        window,
        (1,) * len(window),
        "SAME",
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
    )
    # In a patch, the unit comes before the place in the window.
    matrix = jnp.moveaxis(reader, -2, 0).reshape(-1, reader.shape[-1])
    rows = _rows(patches[..., 0].size)
    return Layer(
        values.reshape(-1, units)[rows],
        patches.reshape(-1, patches.shape[-1])[rows],
        matrix,
        _share(maker, reader),
    )


def _rows(count: int) -> np.ndarray:
    """Some samples, the same for every net."""
    return np.sort(np.random.default_rng(0).permutation(count)[:SAMPLES])


def _share(maker: Any, reader: Any) -> jax.Array:
    """Kept share of the edges (input, output) of each unit between two kernels."""
    into, out = (
        jnp.any(jnp.asarray(k) != 0, axis=tuple(range(jnp.ndim(k) - 2)))
        for k in (maker, reader)
    )
    return (into.sum(0) + out.sum(1)) / (into.shape[0] + out.shape[1])


@jax.jit
def _one(
    values: jax.Array,
    seen: jax.Array,
    reader: jax.Array,
    share: jax.Array,
    sigma: Any,
    key: jax.Array,
) -> dict[str, jax.Array]:
    found = code(values)
    rate = jnp.mean((values > 0).astype(jnp.float32), 0)
    means = seen @ reader
    spread = jnp.sqrt(jnp.mean((means - means.mean(0)) ** 2))
    # A reader of zeros says nothing, whatever the noise.
    sigma = jnp.where(sigma > 0, sigma, NOISE * jnp.maximum(spread, 1e-6))
    low, high = information(key, means, sigma)
    return {
        "entropy": found["entropy"],
        "correlation": found["correlation"],
        "dimension": found["dimension"] / values.shape[1],
        "traffic": jnp.mean(rate * share),
        "power": (spread / sigma) ** 2,
        "information": (low + high) / 2,
        "noise": sigma,
    }
