"""A residual network for small images, after the CIFAR networks of He et al.

    h = relu(norm(conv h)),   h = relu(h + norm(conv relu(norm(conv h))))

A stem, then stages of `blocks` blocks each (the first block of a later stage halves
height and width and has a 1 x 1 projection beside it), a mean over positions and a
linear head. Norms use the statistics of the batch, so that the loss is a pure function
of `(params, images, labels)`. Images are float32 (batch, height, width, 3), labels
int32 (batch,), kernels (height, width, in, out). `Shape(widths=(16, 32, 64), blocks=3)`
is ResNet-20 with projections. Reference: He et al., arXiv 1512.03385.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the network."""

    widths: tuple[int, ...] = (32, 64, 128)
    blocks: int = 3
    classes: int = 10

    def parts(self) -> Iterator[tuple[str, int, int, int]]:
        """Name, stride, units in and units out of every block."""
        before = self.widths[0]
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                stride = 2 if stage and not block else 1
                yield f"stage_{stage}_block_{block}", stride, before, width
                before = width


def _conv_params(key: jax.Array, window: int, inside: int, outside: int) -> Any:
    size = (window, window, inside, outside)
    kernel = jax.random.normal(key, size) * (2 / (window**2 * inside)) ** 0.5
    return {"kernel": kernel, "scale": jnp.ones(outside), "bias": jnp.zeros(outside)}


def init(shape: Shape, key: jax.Array) -> Any:
    """Parameters in float32, kernels after He."""
    parts, first, last = list(shape.parts()), shape.widths[0], shape.widths[-1]
    keys = iter(jax.random.split(key, 3 * len(parts) + 2))
    params: dict[str, Any] = {"stem": _conv_params(next(keys), 3, 3, first)}
    for name, stride, inside, outside in parts:
        params[name] = {
            "a": _conv_params(next(keys), 3, inside, outside),
            "b": _conv_params(next(keys), 3, outside, outside),
        }
        if stride > 1:
            params[name]["beside"] = _conv_params(next(keys), 1, inside, outside)
    head = jax.random.normal(next(keys), (last, shape.classes)) * last**-0.5
    return params | {"head": {"kernel": head, "bias": jnp.zeros(shape.classes)}}


def _conv(x: jax.Array, w: Any, stride: int = 1) -> jax.Array:
    """Convolution and norm over the batch."""
    x = jax.lax.conv_general_dilated(
        x,
        w["kernel"],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    mean = jnp.mean(x, (0, 1, 2), keepdims=True)
    variance = jnp.mean((x - mean) ** 2, (0, 1, 2), keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * w["scale"] + w["bias"]


def logits(shape: Shape, params: Any, images: jax.Array) -> jax.Array:
    """Scores of the classes, (batch, classes)."""
    h = jax.nn.relu(_conv(images, params["stem"]))
    for name, stride, _, _ in shape.parts():
        w = params[name]
        inner = _conv(jax.nn.relu(_conv(h, w["a"], stride)), w["b"])
        h = jax.nn.relu(inner + (_conv(h, w["beside"], stride) if stride > 1 else h))
    return jnp.mean(h, (1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


def loss(shape: Shape, params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of the labels."""
    scores = logits(shape, params, images)
    own = jnp.take_along_axis(scores, labels[:, None], axis=-1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(scores, axis=-1) - own)
