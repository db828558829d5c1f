"""Axes: which axes of which arrays have one size, because they carry the same units.

`extents` is the algebra of sizes, `moves` and `products` say what operations make of
the axes of their operands, `program` goes once through a jaxpr, and `groups` reads the
result: the groups of axes of parameters that shrink together or not at all.
"""
