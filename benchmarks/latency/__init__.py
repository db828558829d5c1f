"""Latency of shrunk models: `python -m benchmarks.latency`."""
