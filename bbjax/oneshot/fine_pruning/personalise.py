"""Fine-Pruning as a driver: fit a trained model to one person's unlabelled data.

Run the model on the data, forward only; remove what is least active; stop in time:

    for q in remove:  params_q = model without the fraction q of each layer
                      stop when scorer(params_q) falls

The data are read once: all fractions are cut from the same statistics of the dense
model, so that each mask is inside the one before. With a unit go its incoming edges,
its bias, its entries in norms, and the rows of the kernels that read it; without a
fraction q of the units of every hidden layer about `1 - (1 - q)**2` of the interior
weights are 0, so both numbers are reported. Where the units are used by anything but
known kernels (`Kernel.closed`, `Kernel.stream`), only their incoming side is removed.

Reference: Bingham, Zonouz, Aran, Patterns 6(5) 101242, 2025, arXiv 2602.18507.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from bbjax.activity.calibrate import calibrate
from bbjax.activity.observe import Where
from bbjax.activity.statistics import Activity
from bbjax.model.kernel import Kernel
from bbjax.model.numbers import check_number
from bbjax.model.removal import remove_units
from bbjax.model.units import Units
from bbjax.oneshot.fine_pruning.outputs import OutputMeter
from bbjax.oneshot.prune import both, prune
from bbjax.oneshot.rounds import as_float
from bbjax.rules.fine_pruning import fine_pruning
from bbjax.training import arguments

Scorer = Callable[[Any], Any]


class Removed(NamedTuple):
    """What was removed of a kernel, or of several together.

    Attributes:
      units: output units without an incoming edge, over all stack slices.
      of_units: out of how many.
      edges: edges that were removed.
      of_edges: out of how many.

    Example:
      >>> Removed(units=1, of_units=4, edges=7, of_edges=16).edge_share
      0.4375
    """

    units: int
    of_units: int
    edges: int
    of_edges: int

    @property
    def unit_share(self) -> float:
        """Removed fraction of the units."""
        return self.units / self.of_units

    @property
    def edge_share(self) -> float:
        """Removed fraction of the edges."""
        return self.edges / self.of_edges


class Personalised(NamedTuple):
    """A personalised model.

    Attributes:
      params: the parameters, 0 where removed.
      masks: by path, of every parameter that something was taken from or could have
        been, True where kept; for `bb.hold`, `bb.apply_masks`, or to compare.
      fraction: the fraction that was removed; 0 if the first one was too much.
      removed: by path, of every kernel that was chosen or reads one that was.
      total: of these kernels together.
      alone: paths of chosen kernels whose units lost their incoming side only,
        because they are used by more than known kernels.
      scores: `(fraction, score)` of all that was tried, the dense model first; empty
        without a scorer.
    """

    params: Any
    masks: dict[str, jax.Array]
    fraction: float
    removed: dict[str, Removed]
    total: Removed
    alone: tuple[str, ...]
    scores: tuple[tuple[float, float], ...]


def personalise(
    fn: Callable[..., Any],
    params: Any,
    units: Units,
    batches: Iterable[tuple[Any, ...]],
    *,
    remove: float | Sequence[float] = 0.65,
    by: Literal["units", "weights"] = "units",
    scope: Literal["layer", "global"] = "layer",
    include_output: bool | Literal["only"] = False,
    outputs: Callable[[Any], Any] = jax.nn.softmax,
    scorer: Scorer | None = None,
    tolerance: float = 0.0,
    where: Where = None,
) -> Personalised:
    """Removes what one person's data do not use. Forward passes only, no labels.

    Args:
      fn: the function that was traced, of `(params, *args)`.
      params: the trained parameters.
      units: from `bb.trace`; its selection, or all hidden kernels that a nonlinearity
        follows.
      batches: tuples of the arguments after `params`; read once, a generator will do.
      remove: fraction to remove, in (0, 1); or fractions in rising order, tried until
        the score falls.
      by: `"units"` or `"weights"`; see `bb.rules.fine_pruning`.
      scope: `"layer"` or `"global"` (output units are always compared with their like).
      include_output: whether units of the last layer may be removed as well. Classes
        that the
        data lack are the least active ones there, so this may be most of the effect:
        `"only"` removes nothing else, the control to stand beside every result. (The
        raw output of a removed class is 0.)
      outputs: from what `fn` returns to the activity of the output units, an array
        `(..., units)`; used where these may be removed, by units.
      scorer: from parameters to a number, higher is better. Without one the fraction is
        applied unseen.
      tolerance: how far a score may fall below the best one so far, at least 0.
      where: padding mask, as for `bb.calibrate`.

    Returns:
      The model of the last fraction before the score fell.

    Raises:
      TypeError: as `bb.calibrate`.
      ValueError: fractions out of range or order, several without a scorer, a score
        that is NaN, negative tolerance, no kernel to prune, a selection with actuator
        "out" or with outputs that are not included, a result of `fn` that is not the
        output units' activity; and as `bb.calibrate`.

    Example:
      >>> import jax.numpy as jnp
      >>> import bbjax as bb
      >>> def net(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.array([[1.0, -1.0]]), "down": jnp.ones((2, 3))}
      >>> x = jnp.array([[1.0], [2.0]])
      >>> mine = personalise(net, params, bb.trace(net, params, x), [(x,)], remove=0.5)
      >>> mine.params["up"].tolist(), mine.removed["down"].edges
      ([[1.0, 0.0]], 3)
    """
    arguments.check_units(units)
    fractions = _checked(remove, scorer, tolerance)
    cutter = _Cutter(_chosen(units, by, include_output), by, scope)
    stats = cutter.measured(fn, params, batches, outputs, where)
    kept: tuple[float, Any, dict[str, jax.Array]] = (0.0, params, {})
    scores = [] if scorer is None else [(0.0, _score(scorer, params))]
    for fraction in fractions:
        new, masks = cutter.cut(params, stats, fraction)
        if scorer is not None:
            best = max(score for _, score in scores)
            scores.append((fraction, _score(scorer, new)))
            if scores[-1][1] < best - tolerance:
                break
        kept = fraction, new, masks
    fraction, params, masks = kept
    removed = cutter.removed(masks)
    total = Removed(*map(sum, zip(*removed.values(), strict=True)))
    alone = cutter.alone()
    return Personalised(params, masks, fraction, removed, total, alone, tuple(scores))


# Arguments -----------------------------------------------------------------------
def _checked(remove: Any, scorer: Any, tolerance: float) -> list[float]:
    fractions = [float(q) for q in (remove if np.ndim(remove) else [remove])]
    steps = zip(fractions, fractions[1:], strict=False)
    rising = all(first < second for first, second in steps)
    if not fractions or not rising or not all(0 < q < 1 for q in fractions):
        raise ValueError(
            f"expected remove in (0, 1), one fraction or several in rising order, got "
            f"{remove!r}; e.g. remove=0.65"
        )
    if len(fractions) > 1 and scorer is None:
        raise ValueError(
            f"expected a scorer with several fractions, got remove={remove!r} without; "
            "pass scorer=, a function of the parameters, or one fraction"
        )
    check_number("tolerance", tolerance, "[0, inf)", "it is how far the score may fall")
    return fractions


def _score(scorer: Scorer, params: Any) -> float:
    score = as_float(scorer(params))
    if math.isnan(score):
        raise ValueError(
            "expected a score to compare, got NaN; let the scorer return a number, "
            "higher for better models"
        )
    return score


def _chosen(units: Units, by: Any, include: Any) -> Units:
    """The kernels to choose among: the hidden ones, the last ones, or both."""
    if include not in (False, True, "only"):
        raise ValueError(
            f'expected include_output to be False, True or "only", got {include!r}; '
            "the last one leaves hidden units alone"
        )
    if by == "units" and any(s.actuator == "out" for s in units.selection or ()):
        raise ValueError(
            'expected a selection with actuator "in", got "out"; units are chosen '
            "among those that a kernel makes"
        )
    picked = [k for k in units.kernels if k.path in units.budgeted]
    hidden = [k for k in units.kernels if k.hidden and k.nonlinearity]
    last = [k for k in units.kernels if not k.hidden]
    if units.selection is not None:
        hidden = [k for k in picked if k.hidden]
        last = [k for k in picked if not k.hidden] or last
        if picked != hidden and not include:
            raise ValueError(
                f"expected a selection of hidden kernels, got {last[0].path!r}, whose "
                "units are outputs of the model; pass include_output=True"
            )
    kernels = ([] if include == "only" else hidden) + (last if include else [])
    if not kernels:
        raise ValueError(
            "expected at least one kernel to prune, got none: no hidden kernel of the "
            "trace is followed by a nonlinearity; choose with units.select(...) out of "
            f"{list(units.paths)}"
        )
    return units.only(k.path for k in kernels)


# Cutting -------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class _Cutter:
    """Cuts fractions of a model."""

    units: Units  # the kernels to choose among are selected
    by: Any
    scope: Any

    def measured(
        self, fn: Any, params: Any, batches: Any, outputs: Any, where: Any
    ) -> dict[str, Activity]:
        """The activity that decides."""
        rule = fine_pruning(by=self.by, scope=self.scope)
        last = [k for k in self._kernels() if not k.hidden]
        if self.by == "units" and last:
            meter = OutputMeter.of(last, fn, params, outputs, where)
            batches = meter.passing(batches)
        stats = calibrate(
            fn, self.units, params, batches, needs=rule.needs, where=where
        )
        if self.by == "units" and last:
            stats |= meter.instead_of(stats)
        return stats

    def _kernels(self) -> list[Kernel]:
        return [self.units[path] for path in self.units.budgeted]

    def cut(
        self, params: Any, stats: Any, fraction: float
    ) -> tuple[Any, dict[str, jax.Array]]:
        """The model without a fraction of its units or edges, and the masks."""
        if self.by == "weights":
            chosen = [k.path for k in self._kernels()]
            return self._prune(params, stats, chosen, self.scope, fraction)
        masks: dict[str, jax.Array] = {}
        for hidden, scope in ((True, self.scope), (False, "layer")):
            some = [k.path for k in self._kernels() if k.hidden == hidden]
            if some:
                masks |= self._prune(params, stats, some, scope, fraction)[1]
        keep = {path: _kept_units(self.units[path], m) for path, m in masks.items()}
        own = {p: k for p, k in keep.items() if not self._whole(self.units[p])}
        full = {p: k for p, k in keep.items() if p not in own}
        params, masks = remove_units(params, self.units, full)
        params, rest = remove_units(params, self.units, own, consumers=False)
        return params, both(masks, rest)

    def _prune(
        self, params: Any, stats: Any, paths: list[str], scope: Any, fraction: float
    ) -> tuple[Any, dict[str, jax.Array]]:
        return prune(
            params,
            self.units.only(paths),
            fine_pruning(by=self.by, scope=scope, include_output=True),
            density=1 - fraction,
            stats=stats,
            k_min=0,
        )

    def _whole(self, kernel: Kernel) -> bool:
        """Whether units can be removed with all that belongs to them."""
        chosen = self.units.budgeted
        return kernel.closed and all(other in chosen for other in kernel.stream)

    def alone(self) -> tuple[str, ...]:
        """Hidden kernels whose units lose their incoming side only."""
        if self.by == "weights":
            return ()
        return tuple(k.path for k in self._kernels() if k.hidden and not self._whole(k))

    def removed(self, masks: Mapping[str, jax.Array]) -> dict[str, Removed]:
        """What masks remove, by kernel."""
        chosen = self.units.budgeted
        return {
            kernel.path: _removed(kernel, masks.get(kernel.path))
            for kernel in self.units.kernels
            if kernel.path in masks or kernel.path in chosen
        }


def _kept_units(kernel: Kernel, mask: jax.Array) -> jax.Array:
    return kernel.gather(kernel.edge_mask(mask), "outputs") > 0


def _removed(kernel: Kernel, mask: jax.Array | None) -> Removed:
    slices = math.prod(kernel.stack_shape)
    of_units, of_edges = slices * kernel.unit_count("in"), slices * kernel.edge_count
    if mask is None:
        return Removed(0, of_units, 0, of_edges)
    edges = int(np.asarray(kernel.edge_mask(mask)).sum())
    units = int(np.asarray(_kept_units(kernel, mask)).sum())
    return Removed(of_units - units, of_units, of_edges - edges, of_edges)
