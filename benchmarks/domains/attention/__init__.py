"""Budgeted attention, the paper's future work, in a small language model."""
