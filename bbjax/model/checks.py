"""Checks of masks and parameters whose values are needed on the host.

Shrinking, reports, files and comparisons read values. They cannot be part of a compiled
program, where arrays are traced and have none.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from bbjax.model.kernel import unnumbered

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
    check_bools(masks)
    return {path: np.asarray(mask) for path, mask in masks.items()}


def check_bools(masks: Mapping[str, Any]) -> None:
    """Raises an error if masks, traced or not, are not bool.

    Raises:
      TypeError: if so.
    """
    for path, mask in masks.items():
        dtype = mask.dtype if hasattr(mask, "dtype") else np.asarray(mask).dtype
        if not np.issubdtype(dtype, np.bool_):
            raise TypeError(
                f"expected a bool mask at {path!r}, got {dtype}; pass what bb.masks "
                "returned, or compare weights with 0"
            )


APPLY_MASKS = (
    "put bb.transform last in the chain, and apply the masks to copies of the "
    "parameters: bb.apply_masks(params, masks)"
)


def refuse_stray(counts: Mapping[str, tuple[int, int]]) -> None:
    """Raises an error for pruned weights that are not 0.

    Args:
      counts: by path, how many pruned weights are not 0, and how many are pruned.

    Raises:
      ValueError: if there are any.
    """
    wrong = [f"{n} of {all_} in {p!r}" for p, (n, all_) in counts.items() if n]
    if wrong:
        raise ValueError(
            f"expected pruned weights to be 0, got others: {', '.join(wrong)}; "
            f"{APPLY_MASKS}"
        )


def meant(path: str, known: Iterable[str]) -> str:
    """The question whether a similar path was meant; empty if there is none.

    Most often a path lacks the name of the tree that it is in, or has one too many.

    Args:
      path: that is not known.
      known: all paths.

    Example:
      >>> meant("Conv_1/kernel", ["params/Conv_0/kernel", "params/Conv_1/kernel"])
      " (did you mean 'params/Conv_1/kernel'?)"
      >>> meant("scale", ["params/Conv_0/kernel"])
      ''
    """
    known, plain = list(known), unnumbered(path)
    near = _ending_alike(path, known)
    # Layers of one kind are no slips of the pen of each other.
    others = [k for k in known if unnumbered(k) != plain]
    near = near or difflib.get_close_matches(path, others, n=1, cutoff=0.8)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _ending_alike(path: str, known: Iterable[str]) -> list[str]:
    return [k for k in known if k.endswith(f"/{path}") or path.endswith(f"/{k}")]


def refuse_misnamed(given: Iterable[str], known: Collection[str]) -> None:
    """Raises an error for a path that is not known, but that ends as a known one.

    Raises:
      ValueError: if so. Other unknown paths belong to something else.
    """
    for path in given:
        if path not in known and _ending_alike(path, known):
            raise ValueError(
                f"expected masks by the paths of parameters, got {path!r}"
                f"{meant(path, known)}; a path has the names of all trees that a "
                "parameter is in"
            )


def count(mask: np.ndarray) -> int:
    """Number of True entries."""
    return int(np.count_nonzero(mask))
