"""Parts of rules: what several rules share.

selection     the best edges of every unit, of a layer, or of several kernels
competition   a share of the degrees from competition inside the layer
pools         rules whose edges compete by a score, in a layer or over all kernels
whole_units   units that keep all of their edges or none
scores        scores of edges
matrices      kernels as matrices, as one-shot rules see them
calibrated    slopes of a law chosen from calibration data
regrowth      regrowth of pruned edges
hysteresis    pruned edges that stay pruned for a while
shares        the largest entries that carry a share of a sum
brain_surgeon updates of kept weights that make up for pruned ones
refit         new values of kept weights after any rule
swaps         better masks after any rule
traffic       the local threshold: one traffic for all units
"""
