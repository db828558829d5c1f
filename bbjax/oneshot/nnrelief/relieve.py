"""NNrelief: what one pass over a trained net removes.

    convolutions    scored on the net as it is, and cut         `bb.rules.nnrelief`
    products        scored on what is left of it, and cut       likewise
    dead units      0 on all samples: max |a| = 0               lose their inputs
    residuals       ||u|| < (1 - alpha) (||u|| + ||r||)         lose the weaker side
    sweep           units that no kernel reads any more         lose their inputs

All convolutions see the un-pruned net, all products the net without the cut
convolutions: two passes over the data, one where a net has only one kind. The sweep
runs backwards on the unit graph once, at the end. A unit loses its incoming edges, its
bias and its entries in norms. Masks only shrink from pass to pass. A unit without
incoming edges is 0, so the edges that read it have size 0 in the next pass.

Reference: Dekhovich, Tax, Sluiter, Bessa, arXiv 2109.10795; `u` and `r` are a block's
branch and shortcut (`bbjax.oneshot.nnrelief.residual`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bbjax.activity.calibrate import calibrate
from bbjax.activity.observe import Where
from bbjax.activity.statistics import Activity
from bbjax.model.kernel import Kernel
from bbjax.model.removal import remove_units, sweep
from bbjax.model.text import printable, table
from bbjax.model.units import Units
from bbjax.oneshot.nnrelief.residual import Residual, ResidualCut, residual_cuts
from bbjax.oneshot.prune import Masks, apply_masks, both, prune
from bbjax.rules.base import Rule
from bbjax.rules.nnrelief import ConvScore, nnrelief
from bbjax.training import arguments


@dataclasses.dataclass(frozen=True)
class ReliefReport:
    """What one pass did; `str()` is a table.

    Attributes:
      kept: kept weights and all weights, by path of the kernel.
      dead: units that were 0 on all samples, bool `stack + units`, by path.
      swept: units that no kernel reads any more, and that the sweep removed, likewise.
      residuals: what the residual rule found.
      left_out: `(path, reason)` of parameters that cannot be measured and stay dense.
    """

    kept: Mapping[str, tuple[int, int]]
    dead: Mapping[str, np.ndarray]
    swept: Mapping[str, np.ndarray]
    residuals: tuple[ResidualCut, ...]
    left_out: tuple[tuple[str, str], ...]

    @property
    def density(self) -> float:
        """Kept share of the weights of all kernels together."""
        kept, of = (sum(column) for column in zip(*self.kept.values(), strict=True))
        return kept / of

    def __str__(self) -> str:
        rows = [
            (path, str(kept), f"{kept / of:.4f}", *self._units(path))
            for path, (kept, of) in self.kept.items()
        ]
        total = sum(kept for kept, _ in self.kept.values())
        rows.append(("all together", str(total), f"{self.density:.4f}", "", ""))
        head = ("kernel", "kept", "density", "dead units", "swept units")
        lines = [table(head, rows)]
        notes = [str(cut) for cut in self.residuals]
        notes += [f"stays dense: {path}: {why}" for path, why in self.left_out]
        lines += map(printable, notes)
        return "\n".join(lines)

    def _units(self, path: str) -> tuple[str, str]:
        return str(self.dead[path].sum()), str(self.swept[path].sum())


class Relieved(NamedTuple):
    """Result of `relieve`.

    Attributes:
      params: the parameters, pruned entries 0.
      masks: by path, of kernels, biases and norm parameters.
      report: what was pruned.
    """

    params: Any
    masks: Masks
    report: ReliefReport


def relieve(
    fn: Callable[..., Any],
    params: Any,
    units: Units,
    batches: Iterable[tuple[Any, ...]],
    *,
    alpha_conv: float = 0.9,
    alpha_dense: float = 0.95,
    conv: ConvScore = "fro_of_mean",
    residuals: Sequence[Residual] = (),
    masks: Mapping[str, Any] | None = None,
    where: Where = None,
) -> Relieved:
    """Prunes a trained net once by NNrelief.

    Args:
      fn: the function that was traced, of `(params, *args)`.
      params: its parameters.
      units: from `bb.trace`; the selected kernels are pruned, all kernels if nothing
        was selected (the authors prune every layer, the last one too).
      batches: tuples of the arguments after `params`, no labels needed; kept in memory
        if they come from an iterator that can be read once only.
      alpha_conv: share of a unit's signal that a convolution keeps, in (0, 1].
      alpha_dense: likewise, of a matrix product.
      conv: size of an edge of a convolution, see `bb.rules.nnrelief`.
      residuals: blocks to apply the residual rule to, at the alpha of their branch,
        which has to be at least 1/2 then.
      masks: from an earlier pass, by path; pruned entries stay pruned.
      where: padding mask, as for `bb.observe`.

    Returns:
      The parameters, pruned entries 0; masks by path, of kernels, biases and norm
      parameters, for `bb.hold` and `bb.apply_masks`; and a `ReliefReport`.

    Raises:
      TypeError: `units` is no `Units`, batches that are no tuples, masks that are not
        given by path.
      ValueError: alpha out of range, a selection that counts outgoing edges, masks
        that fit no parameter, residuals of kernels that are not pruned or of different
        sizes, no batch.

    Example:
      >>> import bbjax as bb
      >>> def fn(params, x):
      ...     return jnp.maximum(x @ params["up"], 0) @ params["down"]
      >>> params = {"up": jnp.eye(3), "down": jnp.array([[4.0], [1.0], [0.1]])}
      >>> x = jnp.array([[1.0, 1.0, 1.0]])
      >>> units = bb.trace(fn, params, x)
      >>> _, masks, report = relieve(fn, params, units, [(x,)], alpha_dense=0.9)
      >>> masks["down"][:, 0].tolist(), masks["up"].sum(0).tolist()
      ([True, True, False], [1, 1, 0])
      >>> report.swept["up"].tolist()
      [False, False, True]
    """
    job = _Job(fn, units, list(batches), _rules(alpha_conv, alpha_dense, conv), where)
    kernels = _chosen(units)
    found: Masks = {k.path: jnp.ones(k.shape, bool) for k in kernels}
    if masks is not None:
        arguments.check_held(masks)
        params = apply_masks(params, masks)
        found = both(found, masks)
    alphas = {k.path: alpha_conv if _is_conv(k) else alpha_dense for k in kernels}
    _check_blocks(residuals, alphas)
    cuts = residual_cuts(fn, params, units, job.batches, residuals, alphas, where)
    dead: dict[str, np.ndarray] = {}
    for is_conv in (True, False):
        stage = [k for k in kernels if _is_conv(k) is is_conv]
        if stage:
            params, found, zero = job.stage(params, stage, found, cuts)
            dead |= zero
    after, taken = _swept(units, found)
    report = ReliefReport(
        kept={k.path: _count(after[k.path]) for k in kernels},
        dead={k.path: dead[k.path] for k in kernels},
        swept={k.path: taken[k.path] for k in kernels},
        residuals=tuple(cuts),
        left_out=units.problems,
    )
    return Relieved(apply_masks(params, after), after, report)


@dataclasses.dataclass(frozen=True)
class _Job:
    """What all stages share; `rules` by whether a kernel is a convolution."""

    fn: Callable[..., Any]
    units: Units
    batches: list[tuple[Any, ...]]
    rules: Mapping[bool, Rule]
    where: Where

    def stage(
        self,
        params: Any,
        kernels: Sequence[Kernel],
        found: Masks,
        cuts: Sequence[ResidualCut],
    ) -> tuple[Any, Masks, dict[str, np.ndarray]]:
        """Prunes kernels of one kind, all measured before any is cut; finds dead units.

        Returns:
          Parameters, masks of everything so far, and dead units by path.
        """
        rule = self.rules[_is_conv(kernels[0])]
        part = self.units.only(k.path for k in kernels)
        needs = (*rule.needs, "outputs.max_abs")
        stats = calibrate(
            self.fn, part, params, self.batches, needs=needs, where=self.where
        )
        _, kept = prune(params, part, rule, stats=stats, masks=found)
        dead = {k.path: _dead(stats[k.path]) for k in kernels}
        stay = {path: ~zero for path, zero in dead.items()}
        for path, channels in (end for cut in cuts for end in cut.ends()):
            if path in stay:
                stay[path] = stay[path] & np.reshape(channels, stay[path].shape)
        losing = {path: keep for path, keep in stay.items() if not keep.all()}
        _, gone = remove_units(params, self.units, losing, consumers=False)
        found = both(both(found, kept), gone)
        return apply_masks(params, found), found, dead


# Kernels -------------------------------------------------------------------------
def _chosen(units: Units) -> list[Kernel]:
    arguments.check_units(units)
    if not units.kernels:
        why = dict(units.problems) or "no product with a parameter"
        raise ValueError(
            f"expected a function with kernels, got a trace that found none: {why}; "
            "trace a function that multiplies by its parameters"
        )
    if units.selection is None:
        return list(units.kernels)
    out = [s.path for s in units.selected if s.actuator == "out"]
    if out:
        raise ValueError(
            f"expected a selection with actuator 'in', got 'out' for {out}: nnrelief "
            "shares out what enters a unit; select with actuator='in'"
        )
    return [units[path] for path in units.budgeted]


def _check_blocks(blocks: Sequence[Residual], pruned: Iterable[str]) -> None:
    named = {p for block in blocks for p in (block.branch, block.projection) if p}
    stray = sorted(named - set(pruned))
    if stray:
        raise ValueError(
            f"expected residuals whose branch and projection are pruned, got {stray}; "
            f"the kernels to prune are {list(pruned)}"
        )


def _rules(alpha_conv: Any, alpha_dense: Any, conv: ConvScore) -> dict[bool, Rule]:
    return {
        True: nnrelief(alpha=alpha_conv, conv=conv),
        False: nnrelief(alpha=alpha_dense, conv=conv),
    }


def _is_conv(kernel: Kernel) -> bool:
    return kernel.op == "conv_general_dilated"


# Removed units ------------------------------------------------------------------
def _dead(activity: Activity) -> np.ndarray:
    """Units that were measured, and 0 on every sample."""
    seen = np.asarray(activity.outputs.count) > 0
    return seen & (np.asarray(activity.outputs.max_abs) == 0)


def _swept(units: Units, masks: Masks) -> tuple[Masks, dict[str, np.ndarray]]:
    """Masks after the sweep, and for each kernel the units that it took."""
    after = sweep(units, masks)
    kernels = [k for k in units.kernels if k.path in masks]
    taken = {k.path: _alive(k, masks) & ~_alive(k, after) for k in kernels}
    return after, taken


def _alive(kernel: Kernel, masks: Masks) -> np.ndarray:
    """Output units with an incoming edge or a bias."""
    edges = kernel.edge_mask(masks[kernel.path])
    alive = np.asarray(kernel.gather(edges, "outputs")) > 0
    if kernel.bias in masks:
        alive |= np.reshape(np.asarray(masks[kernel.bias]), alive.shape)
    return alive


def _count(mask: Any) -> tuple[int, int]:
    return int(np.asarray(mask).sum()), mask.size
