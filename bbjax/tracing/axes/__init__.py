"""Axes: which axes of which arrays have one size, because they carry the same units.

`extents` is the algebra of sizes; `operations` and `products` compute the axes of
results from those of operands; `program` makes one pass over a jaxpr.
"""
