"""What every benchmark records: where its numbers come from."""

import os
import platform
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax


def machine() -> dict[str, Any]:
    """What the numbers hold for."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()
