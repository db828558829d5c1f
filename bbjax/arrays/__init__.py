"""Arrays: what the library does with arrays, whatever they stand for.

topk          exact top-k masks along an axis, ties broken by index
bracket       exact searches: the last integer at which something holds, per unit
keys          floats as integers of the same order
reductions    several reductions of one array in one pass
bits          boolean arrays as packed bits
sharding      where an array lies on devices
types         types of arguments
loop          a change that is made only where a condition holds, without copies
"""
