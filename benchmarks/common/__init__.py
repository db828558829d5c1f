"""What benchmarks share: measuring, statistics, pages, pictures, models."""
