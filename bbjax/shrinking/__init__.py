"""Shrinking: from masks to smaller arrays that compute the same.

api           `bb.shrink`
model         the traced function with its parameters
reading       finds every sum over units, and what each unit adds to it
constants     values of units that are the same for every input
removal       chooses the units to remove; adds their constants to biases
cut           cuts arrays to the units that stay
retraces      the function on smaller parameters, traced again
proof         compares the programs on the old and on the smaller parameters
layouts       moves of arrays as data, to compare programs
culprits      finds the groups that have to keep their size
sizes         compares the removal with that for arguments of other sizes
costs         operations, parameters and bytes of a function
result        `Shrunk`, with the report
states        cuts optimizer states along
rounds        `bb.shrink_rounds`
stacks        `bb.unstack`
unitwise      scores and masks of whole units (`bb.unitwise`)
depth         scores of layers, and parameters with fewer layers (`bb.depth`)
"""

from bbjax.shrinking.api import shrink
from bbjax.shrinking.result import Change, ShrinkReport, Shrunk
from bbjax.shrinking.rounds import ShrinkRound, shrink_rounds
from bbjax.shrinking.stacks import unstack

__all__ = [
    "Change",
    "ShrinkReport",
    "ShrinkRound",
    "Shrunk",
    "shrink",
    "shrink_rounds",
    "unstack",
]
