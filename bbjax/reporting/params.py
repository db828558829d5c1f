"""What parameters add to a report: their dtypes, their sizes, and a check.

With `w` a masked kernel, `m` its mask and `b` the bytes of one value, a model takes

    dense     sum of b over all parameters
    masked    1 bit per edge + b per kept weight for kernels, the rest as it is

and a weight is stray where `w != 0` and not `m`: masks that nobody applied.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bbjax.model.leaves import Leaves
from bbjax.reporting.data import KernelFacts, Model
from bbjax.reporting.sources import Look


def dtypes(params: Any, looks: Iterable[Look]) -> dict[str, Any]:
    """The dtype of each masked kernel, by path.

    Raises:
      ValueError: a kernel that the parameters lack, or one of another shape.
    """
    tree = Leaves.of(params)
    return {k.path: tree.get(k, "parameter").dtype for k in (x.kernel for x in looks)}


def model(params: Any, kernels: Sequence[KernelFacts]) -> Model:
    """All parameters, with the masked kernels as they are stored."""
    sizes = [(math.prod(jnp.shape(leaf)), leaf) for leaf in Leaves.of(params).leaves]
    count = sum(size for size, _ in sizes)
    dense = sum(size * jnp.result_type(leaf).itemsize for size, leaf in sizes)
    saved = sum(kernel.dense_bytes - kernel.sparse_bytes for kernel in kernels)
    gone = sum(math.prod(k.shape) - k.kept_weights for k in kernels)
    return Model(count, count - gone, dense, dense - saved)


def stray(params: Any, looks: Iterable[Look]) -> dict[str, int]:
    """Pruned weights that are not 0, by path; kernels without any are left out."""
    tree, found = Leaves.of(params), {}
    for look in looks:
        weights = np.asarray(tree.get(look.kernel, "parameter"))
        count = int(np.count_nonzero((weights != 0) & ~look.mask()))
        if count:
            found[look.kernel.path] = count
    return found
