"""A report as numbers of Python's own kinds, for JSON.

Degrees come as histograms, so that the output for a large model stays small. Unknown
figures are None, which JSON writes as null. Programs rely on the keys: when a field of
the facts is renamed, its key stays.
"""

from __future__ import annotations

import math
from typing import Any

from bbjax.reporting.data import Facts, KernelFacts, LossFacts, Measures, SideFacts


def to_dict(facts: Facts) -> dict[str, Any]:
    """All figures of a report, by name."""
    dense, stored = facts.bytes
    return _plain(
        {
            "title": facts.title,
            "origin": facts.origin,
            "updates": facts.updates,
            "notes": facts.notes,
            "density_asked": facts.asked,
            "density_got": facts.got,
            "edges": facts.edges,
            "kept": facts.kept,
            "dead_units": facts.dead,
            "churn": facts.churn,
            "churn_since": facts.since,
            "dense_bytes": dense,
            "sparse_bytes": stored,
            "model": facts.model,
            **facts.given,
            "others": [
                {"path": path, "entries": size, "kept": kept}
                for path, size, kept in facts.others
            ],
            "sensitivity": facts.losses and _losses(facts.losses),
            "kernels": [_kernel(kernel) for kernel in facts],
        }
    )


def _kernel(kernel: KernelFacts) -> dict[str, object]:
    return {
        "path": kernel.path,
        "shape": kernel.shape,
        "kind": kernel.kind,
        "actuators": kernel.actuators,
        "edges": kernel.edges,
        "kept": kernel.kept,
        "kept_by_layer": kernel.kept_by_layer,
        "kept_weights": kernel.kept_weights,
        "density_asked": kernel.asked,
        "density_got": kernel.got,
        "flipped": kernel.flipped,
        "churn": kernel.churn,
        "pruned_nonzero": kernel.stray,
        "unheard_units": kernel.no_path,
        "dense_bytes": kernel.dense_bytes,
        "sparse_bytes": kernel.sparse_bytes,
        "sides": {side.side: _side(side) for side in kernel.sides},
    }


def _losses(losses: LossFacts) -> dict[str, object]:
    return {
        "dense_loss": losses.dense,
        "densities": losses.densities,
        "rows": [
            {"name": row.name, "edges": row.edges, "increases": row.increases}
            for row in losses.rows
        ],
    }


def _side(side: SideFacts) -> dict[str, object]:
    return {
        "counted": side.counted,
        "full_degree": side.fan,
        "unobserved": side.unobserved if side.rate is not None else side.whole.units,
        **_measures(side.whole),
        "layers": [_measures(m) for m in side.layers],
        "histogram": side.histogram,
        "highest_traffic": side.busiest,
        "highest_degree": side.widest,
    }


def _measures(measures: Measures) -> dict[str, object]:
    return {
        "silent" if name == "inactive" else name: value
        for name, value in measures._asdict().items()
    }


def _plain(value: Any) -> Any:
    """Named tuples as dicts, tuples as lists, numbers that are not finite as None."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
