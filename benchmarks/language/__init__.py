"""Pruning a pretrained language model in one shot."""
