"""What pruning shifts, put right without training: means of units and norms.

    means    biases take over the mean of what was pruned
    norms    running statistics of norms, measured again

**Means.** With `W` the kernel before pruning, `W'` after it and `x` its inputs,

    b += (W - W')^T mean(x)

so that every output unit has the mean it had, over the data that `mean(x)` was measured
on. For whole units that are cut this is the bias compensation of FLAP,
`b_next += W_next[cut]^T mean(x_cut)`; single edges are treated alike. A window of a
convolution reads every position, so `W` is summed over it: exact inside, while outputs
at padded borders, which read fewer positions, get the same shift.

**Norms.** In training mode a norm mixes its running statistics with those of the batch,

    new = w old + (1 - w) batch

with a weight `w` that need not be known. A pass with `old = 0` and one with `old = p`
give `w = (new_p - new_0) / p` and `batch = new_0 / (1 - w)`, entry by entry, whatever
the framework is. The result is the plain mean of `batch` over all batches; old values,
from before pruning, have no part in it. Where such a norm follows a kernel, `norms`
alone puts the mean of its units right.

References: An, Zhao, Yu, Tang, Wang, "Fluctuation-based Adaptive Structured Pruning"
(FLAP), arXiv 2312.11983; the second is the batch norm adaptation of NNCF, and
`momentum=None` of PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.activity.stream import tuples
from bbjax.arrays import sharding
from bbjax.model.checks import check_by_path, meant
from bbjax.model.leaves import Leaves, leaves_by_path
from bbjax.model.units import Kernel, Units
from bbjax.model.warn import warn
from bbjax.oneshot.masked import check_dense
from bbjax.oneshot.prune import apply_masks
from bbjax.training import arguments, observations

_CLOSE = 1e-3  # how well a third pass has to agree, relative to the values in it


# Means of units ------------------------------------------------------------------
def means(
    params: Any,
    units: Units,
    masks: Mapping[str, Any],
    stats: Any,
    *,
    start: Any = None,
) -> Any:
    """Adds the mean of what was pruned to the biases of the kernels.

    For the masks of any rule, and of `bb.unitwise.cut`. The kept weights do not change.
    Costs one pass over the weights, and memory for a float32 copy of one kernel.

    The means are those of the dense net. Where so much is pruned that the inputs of
    later kernels are far from them, the shift can raise the loss: compare the loss with
    and without.

    Args:
      params: the parameters before pruning.
      units: from `bb.trace`, with or without a selection.
      masks: by path, as `bb.prune`, `bb.masks` and `bb.unitwise.cut` return them; those
        of other parameters (biases, norms) are applied. What a mask of a bias prunes
        stays 0, so a unit that is cut with its bias stays cut.
      stats: from `bb.calibrate(..., needs=["inputs.mean"])`, measured with `params`.
      start: parameters after pruning, needed where they are not just `params` under
        `masks`: where the rule or `bb.reconstruct` has set new weights. The result is
        these with new biases.

    Returns:
      The parameters under the masks with new biases, each in its dtype (computed in
      float32). Terms of kernels that share a bias add up.

    Raises:
      TypeError: an argument of the wrong kind.
      ValueError: masks or statistics that do not fit, params that were pruned already,
        weights that are not finite or complex, or no kernel with a bias.

    A warning names the pruned kernels without a bias: `bb.reconstruct` can put right
    what they lose. A bias counts where it is added to the raw output of one kernel
    (`units[path].bias`): of `h + (x @ w + b)`, but not of `(h + x @ w) + b`. For a
    kernel that is used several times, the means are those over all uses.

    Example:
      >>> import bbjax as bb
      >>> def fn(params, x):
      ...     return x @ params["w"] + params["b"]
      >>> params = {"w": jnp.array([[1.0], [3.0]]), "b": jnp.zeros(1)}
      >>> x = jnp.array([[2.0, 1.0], [4.0, 1.0]])
      >>> units = bb.trace(fn, params, x).select("w")
      >>> stats = bb.calibrate(fn, units, params, [(x,)], needs=["inputs.mean"])
      >>> _, masks = bb.prune(params, units, bb.rules.magnitude(), density=0.5)
      >>> new = means(params, units, masks, stats)
      >>> new["w"].tolist(), new["b"].tolist()
      ([[0.0], [3.0]], [3.0])
    """
    arguments.check_units(units)
    check_by_path(masks)
    dense = Leaves.of(params)
    kernels = _masked(units, masks, dense)
    tree = Leaves.of(apply_masks(params if start is None else start, masks))
    owners = [kernel for kernel in kernels if dense.bias_of(kernel) is not None]
    _name_without_bias(kernels, owners, masks)
    seen = {k.path: _mean_of(k, stats) for k in owners}
    check_dense(kernels, dense, masks)
    shifts: dict[str, jax.Array] = {}
    for kernel in owners:
        old, new = (
            jnp.asarray(each.get(kernel, "parameter")) for each in (dense, tree)
        )
        lost = old.astype(jnp.float32) - sharding.match(new, old).astype(jnp.float32)
        edges = kernel.sum_spatial(kernel.edges(lost))
        shift = kernel.gather(
            edges * kernel.spread(seen[kernel.path], "inputs"), "outputs"
        )
        flat = jnp.reshape(sharding.whole(shift), jnp.shape(tree.at(kernel.bias)))
        shifts[kernel.bias] = flat + shifts.get(kernel.bias, jnp.zeros_like(flat))
    for path, shift in shifts.items():
        bias = jnp.asarray(tree.at(path))
        shift = sharding.like(shift, bias, tuple(range(shift.ndim)))
        tree.put_at(path, (bias.astype(jnp.float32) + shift).astype(bias.dtype))
        if path in masks:
            tree.keep_at(path, jnp.asarray(masks[path]))
    return tree.tree()


def _masked(units: Units, masks: Mapping[str, Any], tree: Leaves) -> list[Kernel]:
    """The kernels that have a mask, in the order of the model."""
    kernels = [units[path] for path in units.paths if path in masks]
    if not kernels:
        got = f"{list(masks)[:5]}" if masks else "none"
        hint = "".join(meant(path, units.paths) for path in list(masks)[:1])
        raise ValueError(
            f"expected masks of kernels of the trace, got {got}{hint}; it has "
            f"{list(units.paths)}"
        )
    for kernel in kernels:
        tree.get(kernel, "parameter")
        if kernel.dtype.startswith("complex"):
            raise ValueError(
                f"expected real weights for {kernel.path!r}, got {kernel.dtype}; leave "
                "its mask out"
            )
    return kernels


def _name_without_bias(
    kernels: list[Kernel], owners: list[Kernel], masks: Mapping[str, Any]
) -> None:
    """Warns of kernels whose loss no bias can take over; an error if that is all."""
    paths = [k.path for k in kernels if k not in owners and _loses(k, masks[k.path])]
    remedy = "bb.reconstruct gives their kept weights new values instead"
    if not owners:
        raise ValueError(
            f"expected a kernel with a bias, got none among "
            f"{[kernel.path for kernel in kernels]}; {remedy}"
        )
    if paths:
        warn(f"kernels without a bias keep the shift of their means: {paths}; {remedy}")


def _loses(kernel: Kernel, mask: Any) -> bool:
    """Whether units lose some of their edges, but not all: those are cut as a whole."""
    if isinstance(mask, jax.core.Tracer):
        return True
    keep = kernel.edge_mask(jnp.asarray(mask)).astype(jnp.int32)
    degree = kernel.gather(keep, "outputs")
    return bool(jnp.any((degree > 0) & (degree < kernel.fan("in"))))


def _mean_of(kernel: Kernel, stats: Any) -> jax.Array:
    mean = observations.of_inputs(kernel, "mean", "the mean", stats)
    return sharding.whole(jnp.asarray(mean))


# Norms ---------------------------------------------------------------------------
def norms(
    update: Callable[..., Any], norms: Any, batches: Iterable[tuple[Any, ...]]
) -> Any:
    """Measures the running statistics of norms again, as after pruning.

    Costs two forward passes for every batch, three for the first; jit `update`.

    Each statistic becomes its mean over batches. So a running variance becomes the mean
    of the batches' variances, which is what training estimates and what PyTorch and
    NNCF measure. The variance of the batches' means is not added, since nothing in a
    tree tells which leaf is the mean of which variance. With n entries of a unit in a
    batch (samples times positions) it is about 1/n of the whole if they are
    independent; take batches as large as those of training.

    Args:
      update: of `(norms, *batch)`, one forward pass in training mode, returns the new
        running statistics: a tree as `norms`. It has to be deterministic; a key for
        dropout is part of the batch.
      norms: tree of running statistics of any kind: `batch_stats` of linen, a state of
        `nnx.BatchStat`, a state of Equinox. Statistics that are corrected for their
        number of updates have to be those of a trained net, since counters stay.
      batches: tuples of the arguments after `norms`; a generator will do. Batches count
        by their size, the leading axis of the first array in them.

    Returns:
      A tree like `norms`, in the same dtypes. Entries that `update` leaves alone, and
      leaves that are not of floats (counters), keep their values.

    Raises:
      TypeError: `update` cannot be called, or a batch is no tuple.
      ValueError: no batch, no leaf of floats, a tree or shapes that change, values that
        are not finite, no entry that changes (as in evaluation mode), or an update that
        is no mean of old and new.

    Example:
      >>> def update(norms, x):
      ...     return {"mean": 0.9 * norms["mean"] + 0.1 * jnp.mean(x, axis=0)}
      >>> batches = [(jnp.full((8, 2), 1.0),), (jnp.full((8, 2), 4.0),)]
      >>> new = norms(update, {"mean": jnp.zeros(2)}, batches)
      >>> new["mean"].round(4).tolist()
      [2.5, 2.5]
    """
    if not callable(update):
        raise TypeError(
            f"expected update to be a function of (norms, *batch), got "
            f"{type(update).__name__}; it returns the new running statistics"
        )
    leaves, structure = jax.tree_util.tree_flatten(norms)
    floats = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]
    if not floats:
        raise ValueError(
            "expected running statistics of floats, got a tree without any; pass "
            "variables['batch_stats'], or nnx.state(model, nnx.BatchStat)"
        )
    passes = _Passes(update, norms, leaves, structure, floats)
    total = [_Sum(*(np.zeros(np.shape(leaves[i])) for _ in range(2))) for i in floats]
    first = True
    for batch in tuples(batches):
        own, changed = passes.measured(batch, check=first)
        size, first = _size(batch), False
        total = [
            _Sum(s.value + size * v, s.weight + size * c)
            for s, v, c in zip(total, own, changed, strict=True)
        ]
    if first:
        raise ValueError(
            "expected at least one batch, got none; pass an iterable of argument "
            "tuples (a generator can be used only once)"
        )
    if not any((each.weight > 0).any() for each in total):
        raise ValueError(
            "expected update to change running statistics, got all of them back as "
            "they were; run the norms in training mode, and return what the pass has "
            "made of the statistics"
        )
    for i, (value, weight) in zip(floats, total, strict=True):
        old = jnp.asarray(leaves[i])
        mean = value / np.maximum(weight, 1.0)
        new = jnp.where(jnp.asarray(weight > 0), jnp.asarray(mean, old.dtype), old)
        leaves[i] = sharding.match(new, old)
    return jax.tree_util.tree_unflatten(structure, leaves)


class _Sum(NamedTuple):
    """Of the statistics of batches, entry by entry, and of the batches' sizes."""

    value: np.ndarray
    weight: np.ndarray


class _Passes(NamedTuple):
    """Passes with probes in the place of the running statistics."""

    update: Callable[..., Any]
    norms: Any
    leaves: list[Any]
    structure: Any
    floats: list[int]

    def measured(
        self, batch: tuple[Any, ...], check: bool
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The statistics of a batch, 0 where nothing changed, and which entries did."""
        at_0 = self._run([0.0] * len(self.floats), batch)
        # A probe as large as the values: the weight is then known to a few ulp.
        probes = [
            2.0 ** math.ceil(math.log2(max(np.abs(x).max(initial=0), 1))) for x in at_0
        ]
        at_p = self._run(probes, batch)
        changed = [
            (a != 0) | (b != p) for a, b, p in zip(at_0, at_p, probes, strict=True)
        ]
        weights = [(b - a) / p for a, b, p in zip(at_0, at_p, probes, strict=True)]
        at_2p = self._run([2 * p for p in probes], batch) if check else None
        own = []
        for n, (a, w, p, c) in enumerate(
            zip(at_0, weights, probes, changed, strict=True)
        ):
            good = ~c | ((w > -_CLOSE) & (w < 1))
            if at_2p is not None:
                good &= np.abs(at_2p[n] - (a + 2 * p * w)) <= _CLOSE * p
            if not good.all():
                self._refuse(n)
            own.append(a / np.where(c, 1 - w, 1.0))
        return own, changed

    def _run(self, probes: list[float], batch: tuple[Any, ...]) -> list[np.ndarray]:
        """The floats after a pass that begins with constants, as float64."""
        given = list(self.leaves)
        for i, probe in zip(self.floats, probes, strict=True):
            leaf = jnp.asarray(self.leaves[i])
            # In float32 at least: bfloat16 would lose the weight in its rounding.
            dtype = jnp.float32 if jnp.finfo(leaf.dtype).bits < 32 else leaf.dtype
            given[i] = sharding.match(jnp.full(leaf.shape, probe, dtype), leaf)
        made = self.update(jax.tree_util.tree_unflatten(self.structure, given), *batch)
        leaves, structure = jax.tree_util.tree_flatten(made)
        shapes = [np.shape(leaf) for leaf in leaves]
        if structure != self.structure or shapes != list(map(np.shape, self.leaves)):
            here, there = (
                {path: np.shape(leaf) for path, leaf in leaves_by_path(tree)[0]}
                for tree in (self.norms, made)
            )
            what = "its containers" if here == there else f"{there}"
            raise ValueError(
                f"expected update to return a tree like norms, {here}, got another: "
                f"{what}; return all running statistics and nothing else"
            )
        found = [np.asarray(leaves[i], np.float64) for i in self.floats]
        for n, values in enumerate(found):
            if not np.isfinite(values).all():
                raise ValueError(
                    f"expected finite running statistics, got NaN or infinity at "
                    f"{self._path(n)!r}; check the parameters and the batches"
                )
        return found

    def _refuse(self, n: int) -> None:
        raise ValueError(
            f"expected update to return w old + (1 - w) new with 0 <= w < 1, got "
            f"something else at {self._path(n)!r}; run all norms in training mode with "
            "one momentum, or leave this statistic out of norms"
        )

    def _path(self, n: int) -> str:
        return leaves_by_path(self.norms)[0][self.floats[n]][0]


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.asarray(leaf).dtype), jnp.floating)


def _size(batch: tuple[Any, ...]) -> int:
    """The leading axis of the first array; 1 if there is none."""
    shapes = (np.shape(leaf) for leaf in jax.tree_util.tree_leaves(batch))
    return next((shape[0] for shape in shapes if shape), 1)
