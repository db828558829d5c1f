"""Where units are: abstract interpretation of a jaxpr, without running anything.

`values` says what is known of one array (which of its axes carry which units, or which
axes of which parameter), `transfer` how primitive operations change that, `walk`
follows a whole jaxpr through nested calls, and `kernels` reads the result: the kernels
and the places where their units' activity is measured.
"""
