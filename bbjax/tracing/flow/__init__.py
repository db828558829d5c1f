"""Where units are, and what depends on them, read off a jaxpr without running it.

`values` holds what is known of one array: which of its axes carry which units, or which
axes of which parameter. `ranges` holds what a slice leaves of the units on an axis.
`transfer` computes all that for the results of operations, `contract` finds the
products that are uses of kernels, `walk` follows a whole jaxpr through nested calls,
and `kernels` reads the result: the kernels and the places where the activity of their
units is measured.

A second, stricter analysis finds the unit graph. `tracks` holds from which entry of a
source each entry of an array is computed; `combine`, `products` and `zeros` compute
that for operations; `follow` makes one pass over the nodes and records what `seen`
lists; `links` derives the graph.
"""
