"""A report as numbers of Python's own kinds, for JSON.

Degrees come as histograms, so that the numbers of a large model stay small; what is not
known is None, which JSON writes as null.
"""

from __future__ import annotations

import math
from typing import Any

from bbjax.reporting.data import KernelFacts, Measures, Report, SideFacts, Unit


def to_dict(report: Report) -> dict[str, Any]:
    """All figures of a report, by name."""
    dense, stored = report.bytes
    return {
        "title": report.title,
        "origin": report.origin,
        "updates": report.updates,
        "notes": list(report.notes),
        "density_asked": report.asked,
        "density_got": report.got,
        "edges": report.edges,
        "kept": report.kept,
        "dead_units": report.dead,
        "churn": report.churn,
        "churn_since": report.since,
        "dense_bytes": dense,
        "sparse_bytes": stored,
        "model": None if report.model is None else report.model._asdict(),
        "latency_ms": dict(report.latency),
        "shrunk": {name: list(pair) for name, pair in report.shrunk.items()},
        "others": [
            {"path": path, "entries": size, "kept": kept}
            for path, size, kept in report.others
        ],
        "kernels": [_kernel(kernel) for kernel in report],
    }


def _kernel(kernel: KernelFacts) -> dict[str, Any]:
    return {
        "path": kernel.path,
        "shape": list(kernel.shape),
        "kind": kernel.kind,
        "actuators": list(kernel.actuators),
        "edges": kernel.edges,
        "kept": kernel.kept,
        "kept_by_layer": list(kernel.kept_by_layer),
        "kept_weights": kernel.kept_weights,
        "density_asked": kernel.asked,
        "density_got": kernel.got,
        "flipped": kernel.flipped,
        "churn": kernel.churn,
        "unheard_units": kernel.unheard,
        "dense_bytes": kernel.dense_bytes,
        "sparse_bytes": kernel.sparse_bytes,
        "sides": {side.side: _side(side) for side in kernel.sides},
    }


def _side(side: SideFacts) -> dict[str, Any]:
    return {
        "counted": side.counted,
        "full_degree": side.fan,
        "unobserved": side.unobserved if side.rate is not None else side.whole.units,
        **_measures(side.whole),
        "layers": [_measures(m) for m in side.layers],
        "histogram": side.histogram._asdict() | {"counts": list(side.histogram.counts)},
        "highest_traffic": [_unit(unit) for unit in side.busiest],
        "highest_degree": [_unit(unit) for unit in side.widest],
    }


def _measures(measures: Measures) -> dict[str, Any]:
    return {name: _finite(value) for name, value in measures._asdict().items()}


def _unit(unit: Unit) -> dict[str, Any]:
    return unit._asdict() | {"layer": list(unit.layer), "place": list(unit.place)}


def _finite(value: Any) -> Any:
    return value if value is None or math.isfinite(value) else None
