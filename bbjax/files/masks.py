"""Masks as files: one bit per weight, refused where they do not fit the model.

A mask file is a container (see `bbjax.files.container`) with one tensor for each mask,
and an entry that holds its path, shape, number of kept weights and the roles of its
axes. The same masks give the same bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bbjax.files import container, encoding, matching
from bbjax.files.atomic import File
from bbjax.model.checks import Masks, on_host
from bbjax.model.units import Units


def save_masks(file: File, masks: Masks, units: Units | None = None) -> None:
    """Writes masks to a file: one bit per weight.

    Args:
      file: a path (the name is taken as it is; `.safetensors` is the custom), or a
        binary file open for writing. A path holds the old file or the new one, never a
        part.
      masks: by path, bool arrays of the parameter's shape, of numpy or of JAX, as
        `bb.masks` and `bb.prune` return them.
      units: from `bb.trace`, to store which axes are inputs and outputs; loading for
        other units then compares them.

    Raises:
      TypeError: not masks by path, or not bool.
      ValueError: no mask, one of another shape than its kernel in `units`, a path of
        more than 256 levels, or no regular file.
      FileNotFoundError: the folder of the file is missing.
      OSError: not all could be written; the old file is still there.

    Example:
      >>> import io
      >>> file = io.BytesIO()
      >>> save_masks(file, {"w": np.array([[True, False, True]])})
      >>> _ = file.seek(0)
      >>> load_masks(file)
      {'w': array([[ True, False,  True]])}
    """
    leaves = []
    for path, mask in sorted(on_host(masks).items()):
        entry, bits = encoding.pack(path, None, mask)
        if units is not None and path in units:
            kernel = units[path]
            if mask.shape != kernel.shape:
                raise ValueError(
                    f"expected a mask of shape {kernel.shape} for {path!r}, got "
                    f"{mask.shape}; pass the units of the model that was pruned"
                )
            entry |= {"split": list(kernel.split), "roles": list(kernel.roles)}
        leaves.append((entry, bits))
    container.write(file, container.MASKS, leaves)


def load_masks(
    file: File, like: Any = None, *, max_bytes: int | None = None
) -> dict[str, np.ndarray]:
    """Reads masks from a file that `save_masks` or `save` wrote.

    Args:
      file: a path, or a binary file open for reading.
      like: what the masks are for; they are compared before they are returned.

        * parameters (any tree of arrays, an `nnx.Module`): every mask must be of a
          parameter and have its shape; parameters may lack one;
        * `bb.Units`: every mask must be of a kernel and have its shape and, where the
          file holds them, its roles; kernels chosen by `select` must have one;
        * other masks: the same paths and shapes.
      max_bytes: of memory that all arrays and masks may take, as in `load`.

    Returns:
      By path, bool arrays of numpy, in order of the path: on the host, so that no
      device is touched; JAX takes them as they are.

    Raises:
      ValueError: not a file with masks, a damaged one, one of a newer version, one that
        would take more than `max_bytes`, or masks that do not fit; the message lists
        the differences. There is no other error for what a file holds.

    Example:
      >>> import io
      >>> file = io.BytesIO()
      >>> save_masks(file, {"w": np.ones((2, 3), bool)})
      >>> _ = file.seek(0)
      >>> load_masks(file, like={"w": np.ones((2, 4)), "b": np.ones(4)})
      Traceback (most recent call last):
      ValueError: expected masks that fit these parameters, got 1 difference; ...
        w: shape (2, 3) in the file, shape (2, 4) here
    """
    what = "a mask file as bb.save_masks writes it"
    name, found = container.read(file, what, max_bytes=max_bytes)
    if like is not None:
        matching.fit_masks(found, like, name)
    return found.masks
