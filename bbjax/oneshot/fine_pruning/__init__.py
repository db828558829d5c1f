"""Fine-Pruning: a network for the data of one user, without labels.

personalise   `bb.personalise`
outputs       the activity of output units
"""
