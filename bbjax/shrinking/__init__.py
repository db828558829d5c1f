"""Shrinking: from masks to smaller arrays that compute the same.

`known` and `reading` say what units add to every sum, whatever the input is, `plan`
which can go, `folds` moves constants into biases, `cut` takes arrays apart, `proof`
compares the function on smaller parameters with what it was, `sizes` the plan with that
for arguments of other lengths, and `api` is `bb.shrink`.
"""

from bbjax.shrinking.api import shrink
from bbjax.shrinking.result import Change, Report, Shrunk
from bbjax.shrinking.rounds import ShrinkRound, shrink_rounds
from bbjax.shrinking.stacks import unstack

__all__ = [
    "Change",
    "Report",
    "ShrinkRound",
    "Shrunk",
    "shrink",
    "shrink_rounds",
    "unstack",
]
