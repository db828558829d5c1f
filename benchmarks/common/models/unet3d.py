"""A 3-D U-Net: it labels every voxel of a volume.

    down the levels:  h_l = double_conv(h_{l-1}, coarser by a maximum over 2 x 2 x 2)
    up again:         h_l = double_conv([up(h_{l+1}), h_l])

`double_conv` is twice relu(norm(conv)) with windows of 3 x 3 x 3; `up` is a transposed
convolution with a window and stride of 2; norms are over the voxels of each volume
(instance norm). Level l has `width * 2^l` units. Volumes are float32 (batch, depth,
height, width, channels) with sides divisible by 2^(levels - 1), labels int32 of the
same shape without channels. Reference: Çiçek et al., arXiv 1606.06650.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

NUMBERS = ("NDHWC", "DHWIO", "NDHWC")


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the network."""

    levels: int = 3
    width: int = 16
    channels: int = 1
    classes: int = 3

    def units(self, level: int) -> int:
        return self.width * 2**level


def _conv_params(key: jax.Array, window: int, inside: int, outside: int) -> Any:
    size = (window, window, window, inside, outside)
    kernel = jax.random.normal(key, size) * (2 / (window**3 * inside)) ** 0.5
    return {"kernel": kernel, "scale": jnp.ones(outside), "bias": jnp.zeros(outside)}


def _double_params(key: jax.Array, inside: int, outside: int) -> Any:
    a, b = jax.random.split(key)
    return {
        "a": _conv_params(a, 3, inside, outside),
        "b": _conv_params(b, 3, outside, outside),
    }


def init(shape: Shape, key: jax.Array) -> Any:
    """Parameters in float32, kernels after He."""
    keys = iter(jax.random.split(key, 3 * shape.levels))
    params, inside = {}, shape.channels
    for level in range(shape.levels):
        outside = shape.units(level)
        params[f"down_{level}"] = _double_params(next(keys), inside, outside)
        inside = outside
    for level in reversed(range(shape.levels - 1)):
        outside = shape.units(level)
        params[f"up_{level}"] = _conv_params(next(keys), 2, 2 * outside, outside)
        params[f"join_{level}"] = _double_params(next(keys), 2 * outside, outside)
    return params | {"head": _conv_params(next(keys), 1, shape.width, shape.classes)}


def _norm(x: jax.Array, w: Any) -> jax.Array:
    mean = jnp.mean(x, (1, 2, 3), keepdims=True)
    variance = jnp.mean((x - mean) ** 2, (1, 2, 3), keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * w["scale"] + w["bias"]


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1, 1), "SAME", dimension_numbers=NUMBERS
    )


def _double(x: jax.Array, w: Any) -> jax.Array:
    for part in (w["a"], w["b"]):
        x = jax.nn.relu(_norm(_conv(x, part["kernel"]), part))
    return x


def _coarser(x: jax.Array) -> jax.Array:
    """The maximum of every 2 x 2 x 2 voxels."""
    window = (1, 2, 2, 2, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")


def _finer(x: jax.Array, w: Any) -> jax.Array:
    x = jax.lax.conv_transpose(
        x, w["kernel"], (2, 2, 2), "SAME", dimension_numbers=NUMBERS
    )
    return jax.nn.relu(_norm(x, w))


def logits(shape: Shape, params: Any, volumes: jax.Array) -> jax.Array:
    """Scores of the classes at every voxel."""
    h, seen = volumes, []
    for level in range(shape.levels):
        h = _double(_coarser(h) if level else h, params[f"down_{level}"])
        seen.append(h)
    for level in reversed(range(shape.levels - 1)):
        h = jnp.concatenate([_finer(h, params[f"up_{level}"]), seen[level]], axis=-1)
        h = _double(h, params[f"join_{level}"])
    return _conv(h, params["head"]["kernel"]) + params["head"]["bias"]


def loss(shape: Shape, params: Any, volumes: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of the voxels."""
    scores = logits(shape, params, volumes)
    own = jnp.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(scores, axis=-1) - own)
