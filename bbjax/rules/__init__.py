"""Rules: which edges are kept. One small file each; see `bbjax.rules.base`."""

from bbjax.rules.activity_only import activity_only
from bbjax.rules.base import Candidates, Rule, select_by_law
from bbjax.rules.budgeted_broadcast import budgeted_broadcast
from bbjax.rules.magnitude import magnitude
from bbjax.rules.random import random

__all__ = [
    "Candidates",
    "Rule",
    "activity_only",
    "budgeted_broadcast",
    "magnitude",
    "random",
    "select_by_law",
]
