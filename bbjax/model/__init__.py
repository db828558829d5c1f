"""Model: what a network is to this library, as frozen data.

kernel        one pruned parameter: its units, their edges, and who reads them
units         the kernels of a model, what `bb.trace` returns
groups        sets of units and the axes of parameters that carry them
leaves        the leaves of any parameter tree, by path
removal       the unit graph: removing units and what becomes unused (`bb.graph`)
checks        checks of masks and parameters on the host
text          plain text: tables and shapes
version       the version of this library
"""
