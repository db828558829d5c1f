"""What a sequence of masks says: how much changes, what comes back, what stays.

With m_t the mask after refresh t and f_t = m_t xor m_(t-1) the edges that flip there:

    churn     |f_t| / (2 kept)            share of the kept edges that are replaced
    undone    |f_t and f_(t-1)| / |f_t|   flips that undo one of the refresh before
    overlap   |m_t and m_T| / kept        share of edges that are in the final mask, too

Masks that settle have churn near 0; masks that wander have churn, and lose their
overlap with any later mask. Where every mask is drawn anew, half of the flips undo the
last ones (2 p q flip, p q do so twice running), and a random exchange comes near it:
masks that oscillate undo more than half.
"""

from typing import Any

import numpy as np


def follow(packed: np.ndarray, kept: np.ndarray) -> dict[str, np.ndarray]:
    """Curves of masks given as bits, (seeds, refreshes, bytes): (seeds, refreshes).

    The first refresh has no churn (NaN), the first two no share undone.
    """
    budget = np.asarray(kept, float)[:, None]
    flips = packed[:, 1:] ^ packed[:, :-1]
    changed = _ones(flips)
    again = _ones(flips[:, 1:] & flips[:, :-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        undone = again / changed[:, 1:]
    both = _ones(packed & packed[:, -1:])
    return {
        "churn": _later(changed / (2 * budget), 1),
        "undone": _later(undone, 2),
        "overlap": both / budget,
    }


def _ones(packed: np.ndarray) -> np.ndarray:
    return np.bitwise_count(packed).sum(-1, dtype=np.int64).astype(float)


def _later(curve: np.ndarray, missing: int) -> np.ndarray:
    blank = np.full((len(curve), missing), np.nan)
    return np.concatenate([blank, curve], 1)


def last_quarter(curve: Any) -> np.ndarray:
    """Mean of each seed over the last quarter of refreshes; NaN where it has none."""
    curve = np.asarray(curve, float)
    part = curve[:, -max(curve.shape[1] // 4, 1) :]
    seen = np.isfinite(part)
    total = np.where(seen, part, 0.0).sum(1)
    return np.where(seen.any(1), total / np.maximum(seen.sum(1), 1), np.nan)
