"""Shrinking: from masks to smaller arrays that compute the same.

`known` and `reading` say what units add to every sum, whatever the input is, `plan`
which can go, `folds` moves constants into biases, `cut` takes arrays apart, `proof`
compares the function on smaller parameters with what it was, and `api` is `bb.shrink`.
"""

from bbjax.shrink.api import shrink
from bbjax.shrink.result import Change, Report, Shrunk

__all__ = ["Change", "Report", "Shrunk", "shrink"]
