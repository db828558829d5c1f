"""Budgets from curves: edges go where they lower the loss most.

A curve is what the loss is with so many edges of one part of a model, the rest dense.
Its lower convex hull, and behind the minimum a constant, is convex and does not rise.
If losses add up, then for a total of edges

    min  sum_r loss_r(edges_r)      sum_r edges_r = total,   edges_r >= least_r

is solved by spending edges piece by piece, the steepest pieces of all hulls first. Of
pieces of equal slope each gets its share (`bbjax.budgets.degrees.solve`).

Between its corners a hull may lie below the points that were measured. The result is
then the best for the hulls.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from bbjax.budgets.degrees import solve


class Curve(NamedTuple):
    """Points of a curve: numbers of edges, ascending, and the losses with them."""

    edges: Int[np.ndarray, " points"]
    losses: Float[np.ndarray, " points"]


class _Piece(NamedTuple):
    """A straight piece of a hull."""

    slope: float
    row: int
    edges: int


def hull(curve: Curve) -> Curve:
    """The lower convex hull of a curve, constant behind its minimum.

    Args:
      curve: points in any order; of points with as many edges the lowest counts.

    Example:
      >>> edges, losses = np.array([1, 2, 3, 4]), np.array([9.0, 8.0, 1.0, 2.0])
      >>> found = hull(Curve(edges, losses))
      >>> found.edges.tolist(), found.losses.tolist()
      ([1, 3, 4], [9.0, 1.0, 1.0])
    """
    corners: list[tuple[int, float]] = []
    points = sorted(zip(curve.edges.tolist(), curve.losses.tolist(), strict=True))
    for _, same in itertools.groupby(points, key=lambda point: point[0]):
        x, y = next(same)
        while len(corners) > 1:
            (x1, y1), (x2, y2) = corners[-2:]
            if (y2 - y1) * (x - x2) < (y - y2) * (x2 - x1):
                break
            corners.pop()
        corners.append((x, y))
    edges, losses = zip(*corners, strict=True)
    return Curve(np.array(edges), np.minimum.accumulate(np.array(losses, np.float64)))


def spend(
    curves: Sequence[Curve], total: int, least: Sequence[int]
) -> Int[np.ndarray, " rows"]:
    """Edges of each row of least summed loss.

    A row gets no fewer edges than its first point has, and no more than its last.

    Args:
      curves: of each row, from few edges to all of them.
      total: edges of all rows together.
      least: for each row the fewest edges that it may get.

    Returns:
      As many edges as `total`; the fewest allowed, if those are more, or all.

    Example:
      >>> steep = Curve(np.array([2, 6, 10]), np.array([8.0, 0.0, 0.0]))
      >>> flat = Curve(np.array([2, 6, 10]), np.array([2.0, 1.0, 0.0]))
      >>> spend([steep, flat], 11, [0, 0]).tolist()
      [6, 5]
    """
    hulls = [hull(curve) for curve in curves]
    given = np.array(
        [max(int(h.edges[0]), low) for h, low in zip(hulls, least, strict=True)]
    )
    pieces = sorted(
        piece for row, h in enumerate(hulls) for piece in _pieces(h, row, given[row])
    )
    left = total - int(given.sum())
    for _, same in itertools.groupby(pieces, key=lambda piece: piece.slope):
        tied = list(same)
        lengths = [piece.edges for piece in tied]
        take = min(left, sum(lengths))
        if take <= 0:
            break
        shares = lengths if take == sum(lengths) else _shared(lengths, take)
        for piece, share in zip(tied, shares, strict=True):
            given[piece.row] += share
        left -= take
    return given


def _pieces(curve: Curve, row: int, start: int) -> list[_Piece]:
    """The pieces of a hull from a number of edges on."""
    found = []
    points = list(zip(curve.edges.tolist(), curve.losses.tolist(), strict=True))
    for (x1, y1), (x2, y2) in itertools.pairwise(points):
        if x2 > start:
            found.append(_Piece((y2 - y1) / (x2 - x1), row, x2 - max(x1, int(start))))
    return found


def _shared(lengths: Sequence[int], take: int) -> list[int]:
    """Edges in proportion to the lengths of pieces, `take` in all."""
    if len(lengths) == 1:
        return [take]
    caps = jnp.asarray(lengths, jnp.int32)
    same = jnp.full(caps.shape, 0.5, jnp.float32)
    profile = caps.astype(jnp.float32)
    return [int(n) for n in solve(profile, "scale", take, caps, 0, same)]
