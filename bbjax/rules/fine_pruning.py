"""Fine-Pruning: what a person's own data never use goes; forward passes only.

Two readings of the published text, both without labels or gradients:

    units     the units of a layer with the lowest mean |a_u| go whole
    weights   score = |w_ij| * mean |x_i|, the lowest of a layer go one by one

The mean is over the samples and positions of the target data (the published sum, up to
the number of entries). `scope="global"` lets all budgeted kernels compete: as many
units, or edges, stay in all as would layer by layer, wherever they are. For removing
units with all that belongs to them, and for stopping in time, see `bb.personalise`.
Shapes: statistics `stack + units`, scores per edge. Reference: Bingham, Zonouz, Aran,
Patterns 6(5) 101242, 2025, arXiv 2602.18507.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bbjax.arrays.topk import share_out, top_k_mask
from bbjax.rules.base import Candidates, Group, Rule
from bbjax.rules.parts.limits import of_living
from bbjax.rules.parts.pools import in_slices, over_all
from bbjax.rules.parts.selection import edges_of, in_steps_of, whole_units


def fine_pruning(
    *,
    by: Literal["units", "weights"] = "units",
    scope: Literal["layer", "global"] = "layer",
    include_output: bool = False,
) -> Rule:
    """Keeps what is most active on the data that the statistics are of.

    Args:
      by: `"units"`: whole units by their activity, the density is a share of units and
        every slice keeps at least one; `"weights"`: single edges by weight times
        activity of their input.
      scope: `"layer"`: every stack slice by itself; `"global"`: all kernels together.
      include_output: whether units of a last layer may go. Classes that the data lack
        are the least active ones there, so pruning them is by itself most of the
        effect: measure it apart (`bb.personalise(..., include_output="only")`).

    Returns:
      A rule that needs `mean_abs` of the units, or `inputs.mean_abs`.

    Raises:
      ValueError: unknown `by` or `scope`. When edges are chosen, by units: both sides
        of a kernel budgeted, a kernel that makes outputs without `include_output`.

    Example:
      >>> fine_pruning().needs, fine_pruning(by="weights").needs
      (('mean_abs',), ('inputs.mean_abs',))
    """
    if by not in ("units", "weights"):
        raise ValueError(
            f'expected by "units" or "weights", got {by!r}; the first removes whole '
            "units, the second single edges"
        )
    if scope not in ("layer", "global"):
        raise ValueError(
            f'expected scope "layer" or "global", got {scope!r}; under the second all '
            "budgeted kernels compete"
        )
    together, name = scope == "global", f"fine_pruning[{by}]"
    if by == "weights":
        weights = _everywhere if together else _in_layer
        return Rule(name, weights, needs=("inputs.mean_abs",), joint=together)
    choose: Callable[[Any], Any] = _units_everywhere if together else _units_in_layer

    def select(seen: Any) -> Any:
        for member in seen.members if together else (seen,):
            _check_units(member, name, include_output)
        return choose(seen)

    return Rule(
        name,
        select,
        needs=("mean_abs",),
        joint=together,
        patterned=False,
        one_sided=True,
    )


def _check_units(seen: Candidates, name: str, include_output: bool) -> None:
    (actuator,) = seen.actuators
    if actuator == "in" and not (seen.kernel.hidden or include_output):
        raise ValueError(
            f"expected kernels of hidden units for rule {name!r}, got "
            f"{seen.kernel.path!r}, whose units are outputs of the model; leave it out "
            'of the selection, select its inputs (actuator "out"), or pass '
            "include_output=True"
        )


# Weights -------------------------------------------------------------------------
def _score(seen: Candidates) -> Float[Array, "*edges"]:
    mean = seen.statistics["inputs.mean_abs"]
    return seen.magnitude * seen.kernel.spread(mean, "inputs")


_in_layer, _everywhere = in_slices(_score), over_all(_score)


# Units ---------------------------------------------------------------------------
def _activity(seen: Candidates) -> Float[Array, "*units"]:
    (actuator,) = seen.actuators
    return of_living(seen, seen.of_units("mean_abs", actuator), actuator)


def _units_in_layer(seen: Candidates) -> Bool[Array, "*edges"]:
    return whole_units(seen, _activity(seen), seen.actuators[0])


def _units_everywhere(group: Group) -> list[Bool[Array, "..."]]:
    """As many units in all as layer by layer; the best of every slice come first."""
    scores, count = [], jnp.zeros((), jnp.int32)
    for seen in group.members:
        stack, fan = seen.kernel.stack_shape, seen.kernel.fan(seen.actuators[0])
        count += jnp.sum(in_steps_of(seen.budget, fan), dtype=jnp.int32)
        flat = jnp.reshape(_activity(seen), (*stack, -1)).astype(jnp.float32)
        first = top_k_mask(flat, 1, axis=flat.ndim - 1)
        scores.append(jnp.where(first, jnp.inf, flat))
    masks = []
    for seen, flat, share in zip(
        group.members, scores, share_out(scores, count), strict=True
    ):
        keep = top_k_mask(flat, share, axis=tuple(range(flat.ndim)))
        keep = jnp.reshape(keep, _activity(seen).shape)
        masks.append(edges_of(seen, keep, seen.actuators[0]))
    return masks
