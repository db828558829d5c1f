"""Every rule on the same small problems: `python -m benchmarks.rules`."""
