"""bbjax: activity-dependent pruning for JAX, as an Optax gradient transformation."""

from bbjax import laws, on
from bbjax.degrees import degrees
from bbjax.observe import observe
from bbjax.schedules import ramp
from bbjax.topk import top_k_mask
from bbjax.trace import trace
from bbjax.units import Kernel, Units

__version__ = "0.1.0"
__all__ = [
    "Kernel",
    "Units",
    "degrees",
    "laws",
    "observe",
    "on",
    "ramp",
    "top_k_mask",
    "trace",
]
