"""Named TPU topologies, described by libtpu on a machine without a TPU.

    describe("v5e:4x4") -> devices       compile for them, run on none
    mesh_of(devices)    -> (fsdp, tensor) with fsdp * tensor = chips, fsdp >= tensor

What a chip has, for estimates: its memory in GB (1e9 bytes), its peak in bf16 and the
bandwidth of its memory, as published by the vendor. `as_on` lets code that asks JAX
which backend it runs on get the answer that it would get on the described machine.
"""

import contextlib
import dataclasses
import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

# libtpu asks these of the machine; nothing in a description depends on them.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    # No chip is used, so several processes may compile at once.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """Memory in GB (1e9 bytes), peak in TFLOP/s (bf16), bandwidth in GB/s."""

    memory: float
    peak: float
    bandwidth: float


CHIPS = {
    "v5e": Chip(16, 197, 819),
    "v6e": Chip(32, 918, 1640),
    "v5p": Chip(95, 459, 2765),
}


NOT_INSTALLED = (
    "libtpu, the compiler for TPUs, is not installed; nothing was compiled.\n"
    'Install it with: pip install "bbjax\\[tpu]"'
)


def available() -> bool:
    """Whether libtpu is installed."""
    return importlib.util.find_spec("libtpu") is not None


def chip_of(name: str) -> Chip:
    """The chip of a topology such as "v5e:4x4"."""
    kind = name.split(":")[0]
    if kind not in CHIPS:
        raise ValueError(f"expected a topology of {list(CHIPS)}, got {name!r}")
    return CHIPS[kind]


def describe(name: str) -> list[Any]:
    """The devices of a named topology; JAX itself stays on the CPU."""
    chip_of(name)
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    jax.config.update("jax_platforms", "cpu")
    return list(topologies.get_topology_desc(name, platform="tpu").devices)


def mesh_of(devices: Sequence[Any], axis_type: AxisType = AxisType.Auto) -> Mesh:
    """A mesh as square as can be, more ways for "fsdp" where it is not."""
    chips = len(devices)
    tensor = max(n for n in range(1, chips + 1) if chips % n == 0 and n * n <= chips)
    grid = np.array(devices).reshape(chips // tensor, tensor)
    return Mesh(grid, ("fsdp", "tensor"), axis_types=(axis_type,) * 2)


@contextlib.contextmanager
def as_on(devices: Sequence[Any]) -> Iterator[None]:
    """Traces as a program on these devices would trace itself."""
    # Functions that were traced for other devices have the same arguments.
    jax.clear_caches()
    backend = mock.patch.object(jax, "default_backend", lambda: "tpu")
    count = mock.patch.object(jax, "device_count", lambda *_: len(devices))
    with backend, count:
        yield
    jax.clear_caches()
