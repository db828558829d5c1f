"""How the cost of pruning grows: `python -m benchmarks.growth`."""
