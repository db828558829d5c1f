"""Rules: which edges are kept, one small file each.

`base` defines what a rule is; `WRITING.md` shows how to write one.
"""

from bbjax.rules.activation_topk import activation_topk
from bbjax.rules.activity_only import activity_only
from bbjax.rules.apoz import apoz
from bbjax.rules.base import Candidates, Choice, Group, Rule
from bbjax.rules.budgeted_broadcast import budgeted_broadcast
from bbjax.rules.fine_pruning import fine_pruning
from bbjax.rules.grasp import grasp
from bbjax.rules.magnitude import magnitude
from bbjax.rules.nnrelief import nnrelief
from bbjax.rules.parts.selection import select_by_law
from bbjax.rules.priced import priced
from bbjax.rules.random import random
from bbjax.rules.ria import ria
from bbjax.rules.rigl import rigl
from bbjax.rules.set_ import set_
from bbjax.rules.snip import snip
from bbjax.rules.sparsegpt import sparsegpt
from bbjax.rules.srigl import srigl
from bbjax.rules.synflow import synflow
from bbjax.rules.threshold import threshold
from bbjax.rules.trim import trim
from bbjax.rules.unbudgeted import unbudgeted
from bbjax.rules.wanda import wanda

__all__ = [
    "Candidates",
    "Choice",
    "Group",
    "Rule",
    "activation_topk",
    "activity_only",
    "apoz",
    "budgeted_broadcast",
    "fine_pruning",
    "grasp",
    "magnitude",
    "nnrelief",
    "priced",
    "random",
    "ria",
    "rigl",
    "select_by_law",
    "set_",
    "snip",
    "sparsegpt",
    "srigl",
    "synflow",
    "threshold",
    "trim",
    "unbudgeted",
    "wanda",
]
