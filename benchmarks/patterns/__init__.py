"""Two of every four weights, stored so: `python -m benchmarks.patterns`."""
