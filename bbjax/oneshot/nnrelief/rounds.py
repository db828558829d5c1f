"""NNrelief in rounds: prune, train, and prune again.

    for every round:    params, masks = relieve(params, masks)
                        start  = masks * first_params    (rewind)
                               = params                  (fine-tune)
                        params = train(start, masks)

Training is the caller's: any loop whose optimizer ends in `bb.hold(masks)`. Masks only
shrink. The authors rewind LeNets to their very first parameters, with a new optimizer,
and fine-tune convolutional nets on CIFAR. (They reload the epoch that is best on the
*test* set: to choose a round, score on a split that nothing else uses.)

`densities_of` gives the control that belongs beside every result, magnitude pruning
with the same number of edges in each layer. Reference: Dekhovich, Tax, Sluiter, Bessa,
arXiv 2109.10795.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bbjax.model.checks import meant, on_host
from bbjax.model.leaves import Leaves
from bbjax.model.units import Units
from bbjax.oneshot.nnrelief.relieve import ReliefReport, Relieved, relieve
from bbjax.oneshot.prune import Masks, apply_masks
from bbjax.oneshot.rounds import as_float, rounds


class Round(NamedTuple):
    """The net after a round.

    Attributes:
      number: of the round, from 1.
      params: after training, pruned entries 0.
      masks: by path, as `relieve` returns them.
      report: what was pruned in this round.
      score: of `params`, from the caller's scorer; None without one.
    """

    number: int
    params: Any
    masks: Masks
    report: ReliefReport
    score: float | None

    @property
    def summary(self) -> Summary:
        """The round without its arrays."""
        mark = fingerprint(self.masks)
        return Summary(self.number, self.report.density, self.score, mark)


class Summary(NamedTuple):
    """One line of a history.

    Attributes:
      number: of the round, from 1.
      density: kept share of the weights of all kernels together.
      score: from the caller's scorer; None without one.
      fingerprint: of the masks; equal masks have equal ones.
    """

    number: int
    density: float
    score: float | None
    fingerprint: str


class Trained(NamedTuple):
    """Result of `relieve_and_train`: the last net, and a line for every round."""

    params: Any
    masks: Masks
    history: tuple[Summary, ...]


Train = Callable[[Any, Masks], Any]


def relief_rounds(
    fn: Callable[..., Any],
    params: Any,
    units: Units,
    batches: Iterable[tuple[Any, ...]],
    train: Train,
    *,
    iterations: int,
    rewind: Any = None,
    score: Callable[[Any], float] | None = None,
    masks: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Round]:
    """Prunes and trains in turn, one round at a time; stop when it is enough.

    Args:
      fn: the function that was traced, of `(params, *args)`.
      params: trained parameters.
      units: as for `bb.relieve`.
      batches: as for `bb.relieve`, the same in every round.
      train: from `(params, masks)` to trained parameters. Put `bb.hold(masks)` last in
        its optimizer, and make that anew in every round.
      iterations: most rounds, at least 1.
      rewind: parameters that every round starts to train from, under its masks, e.g.
        the first ones; None trains on from where the net is.
      score: of trained parameters, e.g. accuracy on a held-out split.
      masks: to begin with, from earlier rounds.
      **settings: of `bb.relieve`.

    Returns:
      An iterator; each `Round` is made when it is asked for.

    Raises:
      TypeError: iterations is no int, `train` cannot be called.
      ValueError: iterations out of range, what `train` returns is not 0 where the masks
        prune; as `bb.relieve`.

    Example:
      >>> import bbjax as bb
      >>> def fn(params, x):
      ...     return x @ params["w"]
      >>> first, x = {"w": jnp.array([[8.0], [4.0], [2.0], [1.0]])}, jnp.ones((1, 4))
      >>> units = bb.trace(fn, first, x)
      >>> rounds = relief_rounds(
      ...     fn, first, units, [(x,)], lambda p, m: p, iterations=9, alpha_dense=0.6
      ... )
      >>> for done in rounds:
      ...     print(done.number, done.params["w"][:, 0].tolist())
      ...     if done.report.density <= 0.25:
      ...         break
      1 [8.0, 4.0, 0.0, 0.0]
      2 [8.0, 0.0, 0.0, 0.0]
    """
    if not callable(train):
        raise TypeError(
            f"expected train to be a function of (params, masks), got {train!r}; it "
            "returns the trained parameters"
        )
    batches = list(batches)

    def once(params: Any, before: Relieved | None) -> Relieved:
        held = masks if before is None else before.masks
        return Relieved(*relieve(fn, params, units, batches, masks=held, **settings))

    def trained(pruned: Relieved) -> Any:
        held = pruned.masks
        start = pruned.params if rewind is None else apply_masks(rewind, held)
        after = train(start, held)
        _check_trained(after, held)
        return after

    mark = None if score is None else lambda params: as_float(score(params))
    made = rounds(params, once, trained, iterations=iterations, score=mark)
    return (
        Round(done.number, done.params, *done.pruned[1:], done.score) for done in made
    )


def relieve_and_train(
    fn: Callable[..., Any],
    params: Any,
    units: Units,
    batches: Iterable[tuple[Any, ...]],
    train: Train,
    *,
    iterations: int,
    **settings: Any,
) -> Trained:
    """Prunes and trains in turn, a fixed number of times; see `relief_rounds`.

    Args:
      fn: as for `relief_rounds`.
      params: as for `relief_rounds`.
      units: as for `relief_rounds`.
      batches: as for `relief_rounds`.
      train: as for `relief_rounds`.
      iterations: rounds, at least 1.
      **settings: `rewind`, `score` and `masks` as for `relief_rounds`, and what
        `bb.relieve` takes.

    Returns:
      The last parameters and masks, and the history of all rounds.

    Raises:
      TypeError: as `relief_rounds`.
      ValueError: as `relief_rounds`.

    Example:
      >>> import bbjax as bb
      >>> def fn(params, x):
      ...     return x @ params["w"]
      >>> first, x = {"w": jnp.array([[8.0], [4.0], [2.0], [1.0]])}, jnp.ones((1, 4))
      >>> _, masks, history = relieve_and_train(
      ...     fn,
      ...     first,
      ...     bb.trace(fn, first, x),
      ...     [(x,)],
      ...     lambda params, masks: params,
      ...     iterations=2,
      ...     alpha_dense=0.6,
      ... )
      >>> [line.density for line in history]
      [0.5, 0.25]
    """
    history = []
    for done in relief_rounds(
        fn, params, units, batches, train, iterations=iterations, **settings
    ):
        history.append(done.summary)
    return Trained(done.params, done.masks, tuple(history))


def _check_trained(params: Any, masks: Masks) -> None:
    tree = Leaves.of(params)
    loose = [
        path
        for path, mask in masks.items()
        if path not in tree.by_path
        or np.any(np.asarray(tree.at(path)) != 0, where=~np.asarray(mask))
    ]
    if loose:
        raise ValueError(
            f"expected trained parameters that are 0 where the masks prune, got others "
            f"at {loose}; put bb.hold(masks) last in the optimizer"
        )


def fingerprint(masks: Mapping[str, Any]) -> str:
    """A short name of masks: equal for equal masks, whatever made them.

    Args:
      masks: by path, bool arrays.

    Returns:
      16 hexadecimal digits. (`bb.overlap` measures how similar two masks are.)

    Raises:
      TypeError: not masks by path, or not bool.

    Example:
      >>> mask = np.array([True, False])
      >>> fingerprint({"w": mask}) == fingerprint({"w": jnp.asarray(mask)})
      True
      >>> fingerprint({"w": mask}) == fingerprint({"w": ~mask})
      False
    """
    digest = hashlib.sha256()
    for path, mask in sorted(on_host(masks).items()):
        digest.update(f"{path}{mask.shape}".encode())
        digest.update(np.packbits(mask).tobytes())
    return digest.hexdigest()[:16]


def densities_of(masks: Mapping[str, Any], units: Units) -> dict[str, float]:
    """The density of every kernel, to prune by another rule to the same counts.

    The control for NNrelief is magnitude with these densities, all edges of a layer
    competing and no floor:

        bb.prune(params, units, bb.rules.magnitude(scope="layer"),
                 densities_of(masks, units), k_min=0)

    Args:
      masks: by path; only those of kernels count.
      units: from `bb.trace`.

    Returns:
      From a pattern that matches one kernel's path to its density, such that
      `round(density * edges)` is the number of edges that the mask keeps.

    Raises:
      ValueError: no mask of a kernel, one of another shape, one that keeps nothing (no
        density is 0), or slices of a stack that keep different numbers.

    Example:
      >>> import bbjax as bb
      >>> kernel = bb.Kernel("w", (3, 2), fan_in=(0,), fan_out=(1,))
      >>> mask = jnp.array([[True, False], [True, True], [False, False]])
      >>> densities_of({"w": mask}, bb.Units((kernel,)))
      {'^w$': 0.5}
    """
    kernels = [k for k in units.kernels if k.path in masks]
    if not kernels:
        raise ValueError(
            f"expected masks of kernels, got {list(masks)[:5]}"
            f"{''.join(meant(p, units.paths) for p in list(masks)[:1])}; the kernels "
            f"are {list(units.paths)}"
        )
    found = {}
    for kernel in kernels:
        mask = np.asarray(masks[kernel.path])
        if mask.shape != kernel.shape:
            raise ValueError(
                f"expected a mask of shape {kernel.shape} for {kernel.path!r}, got "
                f"{mask.shape}; use the masks and the trace of one model"
            )
        edges = kernel.edge_mask(jnp.asarray(mask))
        counts = np.unique(edges.sum(kernel.axes("group", "in", "out")))
        if len(counts) > 1 or counts[0] == 0:
            raise ValueError(
                f"expected as many edges, at least one, in every slice of "
                f"{kernel.path!r}, got {counts.tolist()}; leave this mask out"
            )
        found[f"^{re.escape(kernel.path)}$"] = int(counts[0]) / kernel.edge_count
    return found
