"""Turns the stacked layers of a scan into a list of layers.

A scan gives all layers one shape. So `bb.shrink` removes as many units from every layer
as from the layer that can lose fewest; the other layers keep units without effect. A
loop over layers has no such limit. `unstack` makes the list of layers for it:

    {"layers": {"up": (3, 8, 32)}}   ->   {"layers": [{"up": (8, 32)}, ... three times]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from bbjax.model.checks import Masks, check_by_path


def unstack(
    params: Any, masks: Masks, path: str, axis: int = 0
) -> tuple[Any, dict[str, ArrayLike]]:
    """Parameters and masks with a list of layers in place of a stack of layers.

    Args:
      params: nested dicts.
      masks: by path.
      path: of the stack, a dict whose arrays all have the layers along `axis`.
      axis: of the layers.

    Returns:
      The parameters with a list of dicts at `path`, and the masks. The path of a mask
      of the stack now has the number of the layer after `path`.

    Raises:
      ValueError: nothing at the path, or arrays or masks with different numbers of
        layers.
      TypeError: masks that are not by path.

    Example:
      >>> params = {"layers": {"up": jnp.ones((2, 3, 4))}}
      >>> masks = {"layers/up": jnp.ones((2, 3, 4), bool)}
      >>> params, masks = unstack(params, masks, "layers")
      >>> params["layers"][1]["up"].shape, sorted(masks)
      ((3, 4), ['layers/0/up', 'layers/1/up'])
    """
    check_by_path(masks)
    *lead, last = path.split("/")
    outer = params
    for key in [*lead, last]:
        if not isinstance(outer, Mapping) or key not in outer:
            there = f"the keys there are {list(outer)}" * isinstance(outer, Mapping)
            raise ValueError(
                f"expected a stack of layers at {path!r}, got none at {key!r}; "
                + (there or f"nested dicts are expected, not {type(outer).__name__}")
            )
        outer = outer[key]
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(outer)]
    if short := [shape for shape in shapes if _size(shape, axis) is None]:
        raise ValueError(
            f"expected arrays with layers along axis {axis} at {path!r}, got one of "
            f"shape {short[0]}; pass the dict of the stacked arrays alone"
        )
    counts = {shape[axis] for shape in shapes}
    if len(counts) != 1:
        raise ValueError(
            f"expected arrays with one number of layers at {path!r}, got "
            f"{sorted(counts)}; pass the dict of the stacked arrays alone"
        )
    count = counts.pop()
    layers = [_layer(outer, i, axis) for i in range(count)]
    found: dict[str, ArrayLike] = {}
    for name, mask in masks.items():
        if not name.startswith(f"{path}/"):
            found[name] = mask
            continue
        rest = name.removeprefix(f"{path}/")
        if _size(np.shape(mask), axis) != count:
            raise ValueError(
                f"expected a mask with {count} layers for {name!r}, got one of shape "
                f"{np.shape(mask)}; masks have the shapes of the parameters"
            )
        for i in range(count):
            found[f"{path}/{i}/{rest}"] = _layer(mask, i, axis)
    return _put(params, [*lead, last], layers), found


def _size(shape: tuple[int, ...], axis: int) -> int | None:
    """Of an axis; None if there is none."""
    return shape[axis] if -len(shape) <= axis < len(shape) else None


def _layer(tree: Any, index: int, axis: int) -> Any:
    return jax.tree.map(lambda array: jnp.take(array, index, axis=axis), tree)


def _put(tree: Any, keys: list[str], value: Any) -> Any:
    """Nested dicts with another value at a path."""
    if not keys:
        return value
    return {**tree, keys[0]: _put(tree[keys[0]], keys[1:], value)}
