"""Where the entries of an array are, as the parts on its axes say."""

import numpy as np


def placed(axes, shape, start=0):
    """The number of the entry at each place, in an array of some shape.

    Args:
      axes: parts on each axis; `Part.axis` is an axis of `shape`.
      shape: of the array that the entries are of.
      start: number of the first entry.
    """
    strides = np.cumprod([1, *shape[:0:-1]])[::-1]
    flat = np.array(start)
    for axis in axes:
        along = np.zeros((), np.int64)
        for part in axis:
            step = strides[part.axis] * part.stride if part.source else 0
            along = np.add.outer(along, step * np.arange(part.size))
        flat = np.add.outer(flat, along.reshape(-1))
    return flat
