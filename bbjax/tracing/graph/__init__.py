"""The unit graph: groups of units that can shrink, and sets that can be removed.

`groups` reads from `bbjax.tracing.axes` which axes of parameters carry the same units,
with `scans` for the layers of scans. `uses` makes one pass over all nodes and finds
what becomes of units; `steps` does that for one operation, `zeros` finds where values
are 0, `records` holds what is found. `sets` derives which units can be removed.
"""
