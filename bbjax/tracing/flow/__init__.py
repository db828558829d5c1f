"""Where units are, and who knows them: a jaxpr is read without running anything.

`values` says what is known of one array (which of its axes carry which units, or which
axes of which parameter), `transfer` how primitive operations change that, `walk`
follows a whole jaxpr through nested calls, and `kernels` reads the result: the kernels
and the places where their units' activity is measured.

A second, stricter reading finds the unit graph. `tracks` says which entry of a source
each entry of an array stands for, `combine`, `products` and `zeros` how operations
change that, `follow` goes once through the nodes and takes the notes of `seen`, and
`links` draws the conclusions.
"""
