"""Parts of rules: what several rules share.

selection     the strongest edges of every unit, by its degree
competition   the strongest edges of a kernel, with a quota for each unit
pools         selection over a whole layer or network
scores        scores of edges
matrices      kernels as matrices, as one-shot rules see them
calibrated    slopes of a law chosen from calibration data
limits        bounds of degrees
regrowth      regrowth of pruned edges
hysteresis    pruned edges that stay pruned for a while
shares        the largest entries that carry a share of a sum
brain_surgeon updates of kept weights that make up for pruned ones
traffic       the local threshold: one traffic for all units
"""
