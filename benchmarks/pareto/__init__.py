"""Accuracy against density in one program: `python -m benchmarks.pareto`."""
