"""Checks of masks and parameters whose values are needed on the host.

Shrinking, reports, files and comparisons read values. They cannot be part of a compiled
program, where arrays are traced and have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

Masks = Mapping[str, ArrayLike]


def check_values(arrays: Mapping[str, Any], what: str) -> None:
    """Raises an error if an array has no values.

    Args:
      arrays: by path.
      what: a name for the arrays, for the message.

    Raises:
      TypeError: a traced array, or a shape alone.
    """
    for path, array in arrays.items():
        if isinstance(array, jax.core.Tracer | jax.ShapeDtypeStruct):
            kind = "a traced one" if isinstance(array, jax.core.Tracer) else "a shape"
            raise TypeError(
                f"expected {what} with values, got {kind} at {path!r}; call this "
                "outside jax.jit, where arrays have values"
            )


def check_by_path(masks: Any) -> None:
    """Raises an error if the masks are not a mapping by path.

    Raises:
      TypeError: if so.
    """
    if not isinstance(masks, Mapping) or not all(isinstance(p, str) for p in masks):
        raise TypeError(
            f"expected masks by path, got {type(masks).__name__}; pass what bb.masks, "
            "bb.prune or bb.unitwise.cut returned"
        )


def on_host(masks: Masks) -> dict[str, np.ndarray]:
    """Masks as numpy arrays.

    Args:
      masks: by path, bool arrays of numpy or of JAX. All shards have to be on devices
        of this process.

    Raises:
      TypeError: masks that are not by path, without values, or not bool.
      ValueError: there are none.

    Example:
      >>> on_host({"w": [True, False]})["w"].dtype
      dtype('bool')
    """
    check_by_path(masks)
    if not masks:
        raise ValueError("expected at least one mask, got none; see bb.masks")
    for path, mask in masks.items():
        if mask is None or isinstance(mask, Mapping):
            raise TypeError(
                f"expected a bool mask at {path!r}, got {type(mask).__name__}; the key "
                "of a mask is its whole path, as 'mlp/up'"
            )
    check_values(masks, "masks")
    found = {path: np.asarray(mask) for path, mask in masks.items()}
    for path, mask in found.items():
        if mask.dtype != bool:
            raise TypeError(
                f"expected a bool mask at {path!r}, got {mask.dtype}; pass what "
                "bb.masks returned, or compare weights with 0"
            )
    return found


def count(mask: np.ndarray) -> int:
    """Number of True entries."""
    return int(np.count_nonzero(mask))
