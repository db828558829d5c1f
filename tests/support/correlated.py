"""Correlated inputs of unlike sizes, and weights that read them."""

import numpy as np


def data(n=48, units=12, samples=192):
    """Mean of x x^T, and weights `(in, out)`."""
    mix = np.random.normal(size=(n // 4, n))
    x = np.random.normal(size=(samples, n // 4)) @ mix / np.sqrt(n // 4)
    x = (x + 0.5 * np.random.normal(size=x.shape)) * np.exp(np.random.normal(size=n))
    w = np.random.normal(size=(n, units))
    return (x.T @ x / samples).astype(np.float32), w.astype(np.float32)


def error(gram, change):
    """Mean squared change of the outputs, summed over units."""
    return np.einsum("io,ij,jo->", change, gram, change, dtype=np.float64)
