"""Rules for rare features: `python -m benchmarks.rare`."""
