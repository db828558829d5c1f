"""NNrelief's residual rule: the negligible side of a residual sum is removed.

A block with a shortcut adds a branch `u` and a shortcut `r`, channel by channel. With

    ||u||_c = || mean_n |u_c^n| ||_F      over positions, r likewise

a side is removed where its share of `||u||_c + ||r||_c` is less than `1 - alpha`.
Measured are the values that are added: after what norms do to each side, before the
nonlinearity that follows the sum. A branch, and a shortcut that is a projection, end in
a kernel and can be cut there; on an identity there is no parameter to cut, and a
negligible one is only reported. Reference: Dekhovich, Tax, Sluiter, Bessa, arXiv
2109.10795, whose code multiplies shortcuts by masks of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.activity.calibrate import Meter
from bbjax.activity.observe import Where
from bbjax.activity.on import positive
from bbjax.model.kernel import Kernel, Side
from bbjax.model.text import printable
from bbjax.model.units import Units


@dataclasses.dataclass(frozen=True)
class Residual:
    """A block whose output is the sum of a branch and a shortcut.

    Name the kernel whose output units are the shortcut (`projection`), or a kernel
    whose *input* units are the shortcut, because it reads the block's input
    (`identity`).

    Attributes:
      branch: path of the last kernel of the branch.
      projection: path of the kernel on the shortcut.
      identity: path of a kernel that reads the block's input.

    Raises:
      ValueError: no shortcut, or two.

    Example:
      >>> Residual("block/conv2/kernel", identity="block/conv1/kernel").shortcut
      'block/conv1/kernel'
    """

    branch: str
    projection: str | None = None
    identity: str | None = None

    def __post_init__(self) -> None:
        if (self.projection is None) == (self.identity is None):
            raise ValueError(
                f"expected a projection or an identity for the branch {self.branch!r}, "
                f"got {self.projection!r} and {self.identity!r}; name the kernel on "
                "the shortcut, or one that reads the block's input"
            )

    @property
    def shortcut(self) -> str:
        """Path of the kernel at which the shortcut is measured."""
        return self.projection or self.identity or ""

    @property
    def side(self) -> Side:
        """The side of that kernel whose units are the shortcut."""
        return "outputs" if self.projection else "inputs"


class ResidualCut(NamedTuple):
    """The result of the residual rule for a block.

    Attributes:
      block: the block.
      branch: where the branch stays, bool, one per channel.
      shortcut: where the shortcut is worth keeping, likewise; an identity stays as it
        is all the same.
      u: norms of the branch, float32, one per channel.
      r: norms of the shortcut.
    """

    block: Residual
    branch: np.ndarray
    shortcut: np.ndarray
    u: np.ndarray
    r: np.ndarray

    def ends(self) -> Iterator[tuple[str, np.ndarray]]:
        """Paths of the kernels that can be cut, and the output units that stay."""
        yield self.block.branch, self.branch
        if self.block.projection:
            yield self.block.projection, self.shortcut

    def __str__(self) -> str:
        done = "cut" if self.block.projection else "negligible, left as they are"
        return (
            f"residual {printable(self.block.branch)}: {(~self.branch).sum()} of "
            f"{self.branch.size} channels of the branch cut, "
            f"{(~self.shortcut).sum()} of the shortcut {done}"
        )


def residual_keep(u: Any, r: Any, alpha: Any) -> tuple[jax.Array, jax.Array]:
    """Which sides of a residual sum are worth keeping, channel by channel.

    Where both sides are 0, both are kept.

    Args:
      u: norms of the branch, at least 0, float array, one per channel.
      r: norms of the shortcut, likewise.
      alpha: in [1/2, 1], so that at least one side stays; 1 keeps both. May be traced.

    Returns:
      Bool arrays: where the branch stays, and where the shortcut does.

    Raises:
      ValueError: alpha out of range.

    Example:
      >>> u, r = jnp.array([1.0, 9.0, 5.0]), jnp.array([9.0, 1.0, 5.0])
      >>> [side.tolist() for side in residual_keep(u, r, 0.8)]
      [[False, True, True], [True, False, True]]
    """
    if not isinstance(alpha, jax.core.Tracer) and not 0.5 <= float(alpha) <= 1:
        raise ValueError(
            f"expected alpha in [0.5, 1] for residuals, got {alpha!r}; below, both "
            "sides of a sum could be removed"
        )
    least = (1 - alpha) * (u + r)
    return u >= least, r >= least


def residual_cuts(
    fn: Callable[..., Any],
    params: Any,
    units: Units,
    batches: Iterable[tuple[Any, ...]],
    blocks: Sequence[Residual],
    alpha: Mapping[str, Any],
    where: Where = None,
) -> list[ResidualCut]:
    """Measures both sides of every block and applies the residual rule.

    Args:
      fn: the function that was traced.
      params: its parameters.
      units: from `bb.trace`.
      batches: tuples of the arguments after `params`.
      blocks: the blocks.
      alpha: for each path of a branch, as in `residual_keep`.
      where: padding mask, as for `bb.observe`.

    Returns:
      One `ResidualCut` per block.

    Raises:
      KeyError: a path that is no kernel's.
      ValueError: sides of different sizes, alpha out of range.

    Example:
      >>> import bbjax as bb
      >>> def fn(params, x):
      ...     return x + jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.eye(2), "down": jnp.diag(jnp.array([1.0, 0.01]))}
      >>> x = jnp.ones((5, 2))
      >>> units, block = bb.trace(fn, params, x), Residual("down", identity="up")
      >>> (cut,) = residual_cuts(fn, params, units, [(x,)], [block], {"down": 0.9})
      >>> cut.branch.tolist(), cut.shortcut.tolist()
      ([True, False], [True, True])
    """
    if not blocks:
        return []
    for block in blocks:
        _check(units, block)
    part = units.only(p for b in blocks for p in (b.branch, b.shortcut))
    needs = ("inputs.abs_map", "outputs.abs_map")
    meter = Meter.of(fn, part, needs, where, positive, terms=True)
    stats = meter.measure(params, batches)
    cuts = []
    for block in blocks:
        u = _norms(units[block.branch], "outputs", stats[block.branch])
        r = _norms(units[block.shortcut], block.side, stats[block.shortcut])
        keep = residual_keep(u, r, alpha[block.branch])
        cuts.append(ResidualCut(block, *map(np.asarray, (*keep, u, r))))
    return cuts


def _norms(kernel: Kernel, side: Side, activity: Any) -> jax.Array:
    """Norm over positions of each unit's mean map: `stack + units`."""
    mean_map = getattr(activity, side).abs_map
    stack, ndim = len(kernel.stack_shape), len(kernel.per_unit_shape(side))
    positions = tuple(range(stack, stack + mean_map.ndim - ndim))
    return jnp.sqrt(jnp.sum(jnp.square(mean_map), axis=positions))


def _check(units: Units, block: Residual) -> None:
    mine = units[block.branch].per_unit_shape("outputs")
    theirs = units[block.shortcut].per_unit_shape(block.side)
    if mine != theirs:
        raise ValueError(
            f"expected a shortcut of shape {mine} (stack + units) beside the branch "
            f"{block.branch!r}, got {theirs}, the {block.side} of {block.shortcut!r}; "
            "name the two sides of one sum"
        )
