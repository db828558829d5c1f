"""Where units are, and what depends on them, read off a jaxpr without running it.

`values` holds what is known of one array: which of its axes carry which units, or which
axes of which parameter. `ranges` holds what a slice leaves of the units on an axis.
`transfer` computes all that for the results of operations, `contract` finds the
products that are uses of kernels, `walk` follows a whole jaxpr through nested calls,
and `kernels` reads the result: the kernels and the places where the activity of their
units is measured.
"""
