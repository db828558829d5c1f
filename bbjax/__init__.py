"""bbjax: activity-dependent pruning for JAX, as an Optax gradient transformation."""

from bbjax import laws
from bbjax.degrees import degrees
from bbjax.schedules import ramp
from bbjax.topk import top_k_mask

__version__ = "0.1.0"
__all__ = ["degrees", "laws", "ramp", "top_k_mask"]
