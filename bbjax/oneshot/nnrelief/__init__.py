"""NNrelief: keeps the edges that carry a share of what enters each unit.

    relieve       `bb.relieve`: one pass over a trained network
    residual      sums of a branch and a shortcut
    rounds        pruning and training in turns

Reference: Dekhovich, Tax, Sluiter, Bessa, arXiv 2109.10795.
"""
