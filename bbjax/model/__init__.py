"""Model: the description of a network, as frozen data, and of its parameter trees.

kernel        one parameter that can be pruned: its units, and the kernels it reads
units         the kernels of a model, which `bb.trace` returns
groups        sets of units and the axes of parameters that carry them
leaves        the leaves of any parameter tree, by path
removal       removes units, and everything that becomes unused (`bb.graph`)
checks        checks of masks and parameters on the host
numbers       checks of numbers: their kind and their range
text          plain text: tables and shapes
warn          warnings that point at the user's own line
version       the version of this library
"""
