"""Attention in which every head and sequence keeps an exact number of pairs.

A key token speaks to the queries that attend to it: its traffic is its loudness times
the number of queries that it reaches. The law of Budgeted Broadcast gives loud tokens
few queries and quiet ones many. `pairs` says which pairs are kept, `attention` attends.

Reference: Meirovitch et al., arXiv 2510.01263, which names it as future work.
"""
