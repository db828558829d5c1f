"""bbjax: activity-dependent pruning for JAX, as an Optax gradient transformation."""

import importlib
from types import ModuleType

from bbjax import laws, on, rules
from bbjax.degrees import degrees
from bbjax.metrics import metrics
from bbjax.observe import observe
from bbjax.schedules import ramp
from bbjax.state import degrees_of, masks, on_rates
from bbjax.topk import top_k_mask
from bbjax.trace import trace
from bbjax.transform import transform, wrap
from bbjax.units import Kernel, Units

__version__ = "0.1.0"
__all__ = [
    "Kernel",
    "Units",
    "degrees",
    "degrees_of",
    "laws",
    "masks",
    "metrics",
    "observe",
    "on",
    "on_rates",
    "ramp",
    "rules",
    "top_k_mask",
    "trace",
    "transform",
    "wrap",
]

_NEEDS_FLAX = ("linen", "nnx")


def __getattr__(name: str) -> ModuleType:
    """Imports the adapters when they are first used: Flax takes its time."""
    if name in _NEEDS_FLAX:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
