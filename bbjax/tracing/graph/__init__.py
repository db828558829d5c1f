"""The unit graph: groups of units that can shrink, and sets that can be removed.

`groups` reads from `bbjax.tracing.axes` which axes of parameters carry the same units,
with `scans` for the layers of scans. `uses` finds what becomes of units, with `zeros`
for where values are 0, and `sets` derives which units can be removed one by one.
"""
