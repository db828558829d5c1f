"""The paper's experiments on real data, small enough for two cores."""
