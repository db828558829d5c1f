"""Sizes of axes, as products and sums of factors that arrays share.

Two axes that an operation reads index for index must have one size: they are *tied*.
An axis (a `Dim`) is a tuple of factors, major to minor. A factor is whole, until an
operation looks inside:

    reshape (512,) -> (8, 64)     512 becomes the product 8 * 64
    concatenate 64 and 32         96 is the sum 64 + 32
    x[:, :32] of 512              512 becomes the sum 32 + 480

What is tied to the axis looks the same inside from then on. Whole factors are what can
shrink: each is a set of units that all arrays with it share. A factor is *fixed*, with
a reason, where something outside decides its size. This is unification (Robinson, 1965)
of sizes instead of terms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

MOST = 64  # parts of a sum, and sums inside of sums
Dim = tuple[int, ...]
Dims = tuple[Dim, ...]


class Extents:
    """All factors of one program, and what is known of them."""

    def __init__(self):
        self._sizes: list[int] = []
        self._same: dict[int, int] = {}  # tied to
        self._product: dict[int, Dim] = {}
        self._sum: dict[int, tuple[Dim, ...]] = {}
        self._fixed: dict[int, str] = {}
        self.noted: list[tuple[Dim, str]] = []  # what `fix` was called with, in order
        self._depth = 0
        self._seen: dict[Dim, Dim] = {}  # wholes, until something is looked into
        self._placed: dict[tuple[Dim, int], np.ndarray] = {}  # positions, likewise
        self._single: dict[Dims, dict[int, int]] = {}  # single axes, likewise

    # Making ----------------------------------------------------------------------
    def new(self, size: int, fixed: str = "") -> Dim:
        """A dim of one whole factor."""
        self._sizes.append(int(size))
        factor = len(self._sizes) - 1
        if fixed:
            self._fixed[factor] = fixed
        return (factor,)

    def shape(self, shape: Sequence[int], fixed: str = "") -> Dims:
        """New dims for every axis of an array."""
        return tuple(self.new(n, fixed) for n in shape)

    def joined(self, dims: Sequence[Dim]) -> Dim:
        """The dim that these make one after the other."""
        dims = [d for d in dims if self.size(d)]
        if len(dims) == 1:
            return dims[0]
        joined = self.new(sum(self.size(d) for d in dims))
        self._sum[joined[0]] = tuple(p for d in dims for p in self._pieces(d))
        return joined

    # Reading ---------------------------------------------------------------------
    def size(self, dim: Dim) -> int:
        """Number of entries along a dim."""
        return math.prod(self._sizes[f] for f in dim)

    def factors(self, dim: Dim) -> Dim:
        """A dim with products taken apart, without factors of size 1."""
        found: list[int] = []
        for factor in dim:
            root = self._root(factor)
            if root in self._product:
                found += self.factors(self._product[root])
            elif self._sizes[root] != 1:
                found.append(root)
        return tuple(found)

    def wholes(self, dim: Dim) -> Dim:
        """The whole factors that a dim is made of, in order, once each."""
        if dim in self._seen:
            return self._seen[dim]
        found: dict[int, None] = {}
        for factor in self.factors(dim):
            pieces = self._sum.get(factor)
            inside = [self.wholes(p) for p in pieces] if pieces else [(factor,)]
            found.update(dict.fromkeys(w for ws in inside for w in ws))
        self._seen[dim] = tuple(found)
        return self._seen[dim]

    def terms(self, dim: Dim) -> dict[Dim, int]:
        """The size of a dim as a polynomial in the sizes of whole factors.

        Returns:
          The coefficient of every product of whole factors, sorted. Fixed ones are
          numbers, and part of the coefficients.
        """
        found: dict[Dim, int] = {(): 1}
        for factor in self.factors(dim):
            if factor in self._sum:
                parts = [self.terms(part) for part in self._sum[factor]]
                own = added(parts)
            elif factor in self._fixed:
                own = {(): self._sizes[factor]}
            else:
                own = {(factor,): 1}
            found = multiplied(found, own)
        return found

    def why_fixed(self, whole: int) -> str:
        """Why the size of a whole factor cannot change; empty if it can."""
        return self._fixed.get(whole, "")

    def select(self, dim: Dim, kept: Mapping[int, np.ndarray]) -> np.ndarray:
        """Which entries of a dim are kept.

        Args:
          dim: of any make.
          kept: by whole factor, bool arrays `(..., size)`; one that is not there is
            kept whole. Leading axes are broadcast.
        """
        return self.over(dim, kept.get, _all, np.logical_and)

    def positions(self, dim: Dim, whole: int) -> np.ndarray:
        """Which unit of a whole factor each entry of a dim is of; -1 for none."""

        def own(factor: int) -> np.ndarray | None:
            return np.arange(self._sizes[whole]) if factor == whole else None

        if (dim, whole) not in self._placed:
            found = self.over(dim, own, lambda n: np.full(n, -1), np.maximum)
            self._placed[dim, whole] = found
        return self._placed[dim, whole]

    def single_axes(self, dims: Dims) -> dict[int, int]:
        """The axis of each whole factor that is on one axis of an array alone."""
        if dims not in self._single:
            axes: dict[int, list[int]] = {}
            for axis, dim in enumerate(dims):
                for whole in self.wholes(dim):
                    axes.setdefault(whole, []).append(axis)
            found = {whole: its[0] for whole, its in axes.items() if len(its) == 1}
            self._single[dims] = found
        return self._single[dims]

    def over(
        self,
        dim: Dim,
        entries: Callable[[int], np.ndarray | None],
        default: Callable[[int], np.ndarray],
        both: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> np.ndarray:
        """One entry along a dim from entries of its wholes.

        Args:
          dim: of any make.
          entries: of a whole factor, `(..., size)`, or None.
          default: of a size, where there are none.
          both: from the entries of two factors of a product to that of the product.
        """
        found = None
        for factor in self.factors(dim):
            if factor in self._sum:
                parts = [
                    self.over(p, entries, default, both) for p in self._sum[factor]
                ]
                own = _concatenated(parts)
            else:
                given = entries(factor)
                own = default(self._sizes[factor]) if given is None else given
            if found is None:
                found = own
            else:
                found = both(found[..., :, None], own[..., None, :])
                found = found.reshape(*found.shape[:-2], -1)
        return np.asarray(default(1)) if found is None else np.asarray(found)

    # Tying -----------------------------------------------------------------------
    def fix(self, dim: Dim, why: str) -> None:
        """Notes why the size of a dim cannot change; the first reason stays."""
        self.noted.append((dim, why))
        self._hold(dim, why)

    def tie(self, one: Dim, two: Dim) -> None:
        """Makes two dims of the same size one and the same."""
        left, right = list(self.factors(one)), list(self.factors(two))
        while left and right:
            x, y = left.pop(0), right.pop(0)
            m, n = self._sizes[x], self._sizes[y]
            if m == n:
                self._merge(x, y)
            elif m % n == 0 and self._divide(x, n):
                left.insert(0, x)
                right.insert(0, y)
            elif n % m == 0 and self._divide(y, m):
                left.insert(0, x)
                right.insert(0, y)
            else:
                why = "reshaped into sizes that do not nest"
                self.fix((x, y, *left, *right), why)
                return
            left = list(self.factors(tuple(left)))
            right = list(self.factors(tuple(right)))

    def tie_each(self, one: Dims, two: Dims) -> None:
        """Ties the axes of two arrays of one shape."""
        for a, b in zip(one, two, strict=True):
            self.tie(a, b)

    def reshaped(self, dims: Dims, shape: Sequence[int]) -> Dims:
        """Dims of a reshape: factors are handed out to the axes of the new shape."""
        if 0 in shape:
            return self.shape(shape, "an array without entries")
        left = list(self.factors(sum(dims, ())))
        found = []
        for n in shape:
            taken: list[int] = []
            need = n
            while need != 1:
                head = left.pop(0)
                size = self._sizes[head]
                if need % size == 0:
                    taken.append(head)
                    need //= size
                elif size % need == 0 and self._divide(head, need):
                    left = [*self.factors((head,)), *left]
                else:
                    self.fix((*taken, head, *left), "reshaped across its entries")
                    return self.shape(shape, "reshaped across its entries")
            found.append(tuple(taken) if n != 1 else self.new(1))
        return tuple(found)

    def cut(self, dim: Dim, at: Sequence[int]) -> list[Dim]:
        """Parts of a dim between the bounds `0, *at, size`.

        What is fixed already is not looked into: a shift of a long sequence against
        itself would tie every entry to the next.
        """
        wholes = self.wholes(dim)
        if wholes and all(self.why_fixed(w) for w in wholes):
            why = self.why_fixed(wholes[0])
            bounds = [0, *at, self.size(dim)]
            return [self.new(b - a, why) for a, b in itertools.pairwise(bounds)]
        parts, rest, start = [], dim, 0
        for bound in at:
            if start < bound < start + self.size(rest):
                head, rest = self._parted(rest, bound - start)
                parts.append(head)
                start = bound
            elif bound == start:
                parts.append(self.new(0))
            else:
                parts.append(rest)
                start, rest = bound, self.new(0)
        return [*parts, rest]

    # Inside ----------------------------------------------------------------------
    def _hold(self, dim: Dim, why: str) -> None:
        for whole in self.wholes(dim):
            self._fixed.setdefault(whole, why)

    def _forget(self) -> None:
        """Forgets what was read before something was looked into or tied."""
        self._seen.clear()
        self._placed.clear()
        self._single.clear()

    def _root(self, factor: int) -> int:
        while factor in self._same:
            factor = self._same[factor]
        return factor

    def _pieces(self, dim: Dim) -> tuple[Dim, ...]:
        """The parts of a dim, if it is a sum as a whole."""
        factors = self.factors(dim)
        if len(factors) == 1 and factors[0] in self._sum:
            return tuple(p for q in self._sum[factors[0]] for p in self._pieces(q))
        return (dim,)

    def _divide(self, factor: int, major: int) -> bool:
        """Makes a whole factor the product of `major` and the rest."""
        if factor in self._sum:
            return False
        why = self._fixed.get(factor, "")
        minor = self._sizes[factor] // major
        self._product[factor] = self.new(major, why) + self.new(minor, why)
        self._forget()
        return True

    def _merge(self, one: int, two: int) -> None:
        one, two = self._root(one), self._root(two)
        if one == two:
            return
        if one in self._sum and two in self._sum:
            if all(self.why_fixed(w) for w in self.wholes((one, two))):
                return  # their parts need no more ties
            if self._depth == MOST:  # units shifted against themselves, one by one
                self.fix((one, two), "tied to others of the same axis")
                return
            self._depth += 1
            self._align(one, two)
            self._depth -= 1
            one, two = self._root(one), self._root(two)
            if one == two:
                return
        elif two in self._sum:
            one, two = two, one
        self._same[two] = one
        self._forget()
        why = self._fixed.get(two)
        if why:
            self._hold((one,), why)

    def _align(self, one: int, two: int) -> None:
        """Cuts two sums at the bounds of both, and ties their parts."""
        left = list(self._pieces((one,)))
        right = list(self._pieces((two,)))
        found = []
        while left and right:
            p, q = left.pop(0), right.pop(0)
            m, n = self.size(p), self.size(q)
            if m > n:
                p, rest = self._parted(p, n)
                left.insert(0, rest)
            elif n > m:
                q, rest = self._parted(q, m)
                right.insert(0, rest)
            self.tie(p, q)
            found.append(p)
        self._sum[self._root(one)] = tuple(found)
        self._forget()

    def _parted(self, dim: Dim, at: int) -> tuple[Dim, Dim]:
        """A dim cut in two."""
        factors = self.factors(dim)
        head, rest = factors[0], factors[1:]
        inner = self.size(rest)
        if rest and at % inner == 0:
            one, two = self._parted((head,), at // inner)
            return one + rest, two + rest
        if rest:
            why = "cut across its entries"
            self.fix(dim, why)
            return self.new(at, why), self.new(self.size(dim) - at, why)
        if head not in self._sum:
            why = self._fixed.get(head, "")
            parts = self.new(at, why), self.new(self._sizes[head] - at, why)
            self._sum[head] = parts
            self._forget()
            return parts
        pieces = list(self._pieces((head,)))
        if len(pieces) >= MOST:
            why = "cut into very many parts"
            self.fix(dim, why)
            return self.new(at, why), self.new(self.size(dim) - at, why)
        before: list[Dim] = []
        for i, piece in enumerate(pieces):
            left = at - sum(self.size(p) for p in before)
            size = self.size(piece)
            if 0 < left < size:
                pieces[i : i + 1] = self._parted(piece, left)
                self._sum[head] = tuple(pieces)
                self._forget()
            if left:
                before.append(pieces[i])
        after = pieces[len(before) :]
        return self.joined(before), self.joined(after)


def added(polynomials: Iterable[Mapping[Dim, int]]) -> dict[Dim, int]:
    """A sum of polynomials, each given as by `Extents.terms`.

    Example:
      >>> added([{(1,): 2, (): 3}, {(1,): 1}])
      {(1,): 3, (): 3}
    """
    found: dict[Dim, int] = {}
    for polynomial in polynomials:
        for factors, times in polynomial.items():
            found[factors] = found.get(factors, 0) + times
    return found


def multiplied(one: Mapping[Dim, int], two: Mapping[Dim, int]) -> dict[Dim, int]:
    """A product of two polynomials.

    Example:
      >>> multiplied({(1,): 2, (): 3}, {(0,): 5})
      {(0, 1): 10, (0,): 15}
    """
    return added(
        {tuple(sorted((*a, *b))): m * n} for a, m in one.items() for b, n in two.items()
    )


def _all(size: int) -> np.ndarray:
    return np.ones(size, bool)


def _concatenated(parts: Sequence[np.ndarray]) -> np.ndarray:
    lead = np.broadcast_shapes(*(p.shape[:-1] for p in parts))
    full = [np.broadcast_to(p, (*lead, p.shape[-1])) for p in parts]
    return np.concatenate(full, axis=-1)
