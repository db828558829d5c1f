"""Tracing: where the units of a model are, read off its jaxpr without running it.

trace         `bb.trace`: from a function to its kernels
call          a call of a function, as a function of arrays alone
primitives    one table: what JAX's primitives do
moves         which entries of an operand a result is made of
jaxprs        what JAX's own representation of a program offers, in one place
interpreter   follows a program through its calls, for every analysis
flow          which axes of which array carry which units; kernels, and where to measure
axes          which axes of all arrays must keep one size
graph         from both: units that shrink together, units that can be removed
"""
