"""Finds the groups of units that must keep their size.

Tracing a function again costs time, so few choices of groups are tried. A difference
between the programs names the groups on the axes where it is; where a function raises
an error, the lines of code that were reached name them. Groups of one kind (as those of
the layers of one model) are tried by their first member.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from bbjax.shrinking.model import Kept
from bbjax.shrinking.proof import Difference

Differences = Callable[[Kept], Sequence[Difference]]


def to_refuse(
    kept: Kept,
    names: Mapping[int, str],
    kinds: Mapping[int, Hashable],
    differences: Differences,
) -> dict[int, str]:
    """Finds the groups that must keep their size, with the reason.

    Args:
      kept: by group that gets smaller, which units stay.
      names: by group, for the reasons.
      kinds: by group, equal for groups that mostly make the same differences.
      differences: between the programs if only these groups get smaller.
    """
    left: dict[int, np.ndarray] = dict(kept)
    refused: dict[int, str] = {}
    while left and (found := differences(left)):
        certain = {
            group: difference.text
            for difference in reversed(found)
            if difference.certain
            for group in difference.groups
        }
        wrong = certain or _tried(left, found[0], names, kinds, differences)
        refused |= wrong
        left = {group: keep for group, keep in left.items() if group not in wrong}
    return refused


def _tried(
    left: Mapping[int, np.ndarray],
    first: Difference,
    names: Mapping[int, str],
    kinds: Mapping[int, Hashable],
    differences: Differences,
) -> dict[int, str]:
    """Groups that make a difference by themselves; if none does, all that may do so."""
    suspects = [group for group in left if group in first.groups]
    others = [group for group in left if group not in suspects]
    found = _alone(suspects, left, first, names, kinds, differences)
    # A number may come from the size of a group that only looks like another one.
    found = found or _alone(others, left, first, names, kinds, differences)
    return found or dict.fromkeys(suspects or others, first.text)


def _alone(
    suspects: Sequence[int],
    left: Mapping[int, np.ndarray],
    first: Difference,
    names: Mapping[int, str],
    kinds: Mapping[int, Hashable],
    differences: Differences,
) -> dict[int, str]:
    """Those of some groups that make a difference by themselves, and others alike."""
    alike: dict[Hashable, list[int]] = {}
    for group in suspects:
        alike.setdefault(kinds[group], []).append(group)
    found: dict[int, str] = {}
    for kind, groups in alike.items():
        one = groups[0]
        alone = differences({one: left[one]}) if len(left) > 1 else [first]
        if alone:
            text = alone[0].text
            others = f"{text} (found for {names[one]})" if alone[0].failed else text
            found |= {g: others for g in left if kinds[g] == kind} | {one: text}
        else:
            found |= _halved(groups[1:], left, differences)
    return found


def _halved(
    groups: Sequence[int], left: Mapping[int, np.ndarray], differences: Differences
) -> dict[int, str]:
    """Groups that make a difference by themselves, by bisection."""
    found = differences({group: left[group] for group in groups}) if groups else []
    if not found or len(groups) == 1:
        return {group: found[0].text for group in groups if found}
    half = len(groups) // 2
    both = _halved(groups[:half], left, differences)
    both |= _halved(groups[half:], left, differences)
    return both or dict.fromkeys(groups, found[0].text)
