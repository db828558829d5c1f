"""Parameters with fewer layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.model.checks import check_values
from bbjax.model.groups import Stack
from bbjax.model.leaves import Leaves
from bbjax.model.numbers import check_int, check_number
from bbjax.model.units import Units
from bbjax.shrinking.cut import Cut, cut
from bbjax.shrinking.depth.stacks import each, stacks_of


def drop(
    params: Any,
    units: Units,
    scores: Mapping[str, np.ndarray],
    *,
    keep: int | Mapping[str, int] | None = None,
    density: float | Mapping[str, float] | None = None,
    protect: Sequence[int] | Mapping[str, Sequence[int]] = (),
) -> tuple[Any, dict[str, np.ndarray]]:
    """Parameters without the layers of the lowest scores.

    A layer is dropped from every parameter that its scan slices: kernels, biases,
    norms, anything with an entry for each layer. The order of the others stays. The
    same function runs on the result if it takes the number of layers from its
    parameters. If the number is written in the model (`length=` of `nn.scan` in linen,
    a `length=` of `lax.scan`, keys that are split for each layer), build the model with
    the new number. Arguments with an entry for each layer lose those that
    `kept` does not have. Then trace again: units, masks and optimizer states of the
    deeper model do not fit.

    Args:
      params: tree of parameters or `nnx.Module`, as traced, or a tree of that structure
        and those shapes (moments, averages).
      units: from `bb.trace`.
      scores: by name of stack, one number for each layer, as from `bb.depth.scores`;
        stacks without scores stay whole. Of equal scores the first layers stay.
      keep: number of layers that stay, at least 1; for all stacks or by name.
      density: share of layers that stay in place of `keep`, in (0, 1]:
        `round(density * layers)` of them, at least 1.
      protect: numbers of layers that stay whatever their scores; those below 0 count
        from the last: `(0, -1)`. For all stacks or by name.

    Returns:
      The smaller tree, and by name of stack the numbers of the layers that stay.

    Raises:
      ValueError: no scan over layers; scores of an unknown stack, of another shape or
        NaN; none or both of `keep` and `density`, one out of range, or fewer layers
        than `protect` has; parameters of another shape.
      TypeError: scores that are not by name; parameters or scores without values.

    Example:
      >>> import bbjax as bb
      >>> def net(params, x):
      ...     def layer(x, p):
      ...         return x + jnp.tanh(x @ p["up"]) @ p["down"], None
      ...
      ...     return jax.lax.scan(layer, x, params)[0]
      >>> params = {"up": jnp.ones((3, 2, 4)), "down": jnp.ones((3, 4, 2))}
      >>> units = bb.trace(net, params, jnp.ones((1, 2)))
      >>> scores = {"down[0]": np.array([0.3, 0.1, 0.2])}
      >>> params, kept = drop(params, units, scores, keep=2)
      >>> kept["down[0]"].tolist(), params["up"].shape
      ([0, 2], (2, 2, 4))
    """
    stacks = stacks_of(units)
    checked = _checked(scores, stacks)
    if (keep is None) == (density is None):
        raise ValueError(
            f"expected a number of layers or a density, got keep={keep!r} and "
            f"density={density!r}; pass one of them"
        )
    which, what = (density, "densities") if keep is None else (keep, "numbers to keep")
    numbers = each(which, checked, what)
    protected = each(protect, checked, "layers to protect")
    kept: dict[str, np.ndarray] = {}
    for name, score in checked.items():
        if name not in numbers:
            raise ValueError(
                f"expected {what} of every stack with scores, got none for {name!r}; "
                "leave its scores out to keep all its layers"
            )
        count = _count(name, numbers[name], stacks[name].layers, keep is not None)
        kept[name] = _best(name, score, count, protected.get(name, ()))
    return _without(params, stacks, kept), kept


def _checked(scores: Any, stacks: Mapping[str, Stack]) -> dict[str, np.ndarray]:
    if not isinstance(scores, Mapping):
        raise TypeError(
            f"expected scores by name of stack, got {type(scores).__name__}; pass what "
            "bb.depth.scores returned"
        )
    check_values(scores, "scores")
    found = {}
    for name, score in each(scores, stacks, "scores of stacks").items():
        score = np.asarray(score)
        if score.shape != (stacks[name].layers,) or score.dtype.kind not in "biuf":
            raise ValueError(
                f"expected {stacks[name].layers} scores for {name!r}, one number for "
                f"each layer, got {score.dtype} of shape {score.shape}"
            )
        found[name] = score.astype(np.float64)
        if np.isnan(found[name]).any():
            raise ValueError(
                f"expected scores that are numbers for {name!r}, got NaN; check what "
                "they were computed from"
            )
    return found


def _count(name: str, number: Any, layers: int, is_count: bool) -> int:
    """How many layers of a stack stay."""
    if is_count:
        remedy = f"{name!r} has {layers} layers"
        return check_int("keep", number, 1, layers, remedy)
    remedy = f"it is the share of the {layers} layers of {name!r} that stay"
    check_values({"density": number}, "densities")
    return max(round(check_number("density", number, "(0, 1]", remedy) * layers), 1)


def _best(name: str, score: np.ndarray, count: int, protected: Any) -> np.ndarray:
    """The numbers of the layers that stay, in order."""
    layers = len(score)
    if isinstance(protected, str) or not isinstance(protected, Iterable):
        raise TypeError(
            f"expected numbers of layers to protect in {name!r}, got {protected!r}; "
            "pass a sequence, as (0, -1)"
        )
    remedy = f"it is the number of a layer of {name!r}"
    firm = {
        check_int("protect", i, -layers, layers - 1, remedy) % layers for i in protected
    }
    if len(firm) > count:
        raise ValueError(
            f"expected to keep the {len(firm)} layers of {name!r} in protect, got "
            f"{count} to keep; keep more, or protect fewer"
        )
    others = ~np.isin(np.arange(layers), list(firm))
    order = np.lexsort((-score, others))  # stable: ties by number
    return np.sort(order[:count])


def _without(
    params: Any, stacks: Mapping[str, Stack], kept: Mapping[str, np.ndarray]
) -> Any:
    """Parameters with these layers alone."""
    leaves = Leaves.of(params)
    cuts: dict[str, list[Cut]] = {}
    for name, indices in kept.items():
        stack = stacks[name]
        for (path, axis), shape in zip(stack.members, stack.shapes, strict=True):
            if path not in leaves.by_path or jnp.shape(leaves.at(path)) != shape:
                there = path in leaves.by_path
                got = f"shape {jnp.shape(leaves.at(path))}" if there else "no such path"
                raise ValueError(
                    f"expected {path!r} of shape {shape}, got {got}; pass units and "
                    "parameters of one model"
                )
            cuts.setdefault(path, []).append((axis, (), indices))
    check_values(
        {p: a for p, a in leaves.named().items() if _is_shape(a)}, "parameters"
    )
    for path, mine in cuts.items():
        leaves.put_at(path, cut(leaves.at(path), tuple(mine)))
    return leaves.tree()


def _is_shape(array: Any) -> bool:
    return isinstance(array, jax.ShapeDtypeStruct)
