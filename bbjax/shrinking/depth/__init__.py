"""Depth: scores of the layers of a scan, and parameters without the lowest.

    scores       = bb.depth.scores(fn, units, params, batches)     one number per layer
    params, kept = bb.depth.drop(params, units, scores, keep=8)    fewer layers
    units        = bb.trace(fn, params, *args)                     of the smaller model

A stack of layers is what a scan runs over (`units.graph.stacks`). It has the name of
the first axis of a parameter with an entry for each layer, as `layers/up/kernel[0]`.
Layers in a Python list are no stack: skip their blocks in the code of the model.
"""

from bbjax.shrinking.depth.fewer import drop
from bbjax.shrinking.depth.influence import scores

__all__ = ["drop", "scores"]
