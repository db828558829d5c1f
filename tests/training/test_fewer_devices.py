"""A run of eight devices that goes on on two and on one, as if nothing had happened.

The arithmetic of the model is exact on any mesh (`lattice`), so that masks, weights and
running means are those of one device from the first step to the last, bit for bit.
"""

import jax
import numpy as np
import pytest

from tests.support import resumed
from tests.support.contract import same
from tests.support.lattice import LAYOUTS, alone, equal

pytestmark = pytest.mark.skipif(
    jax.device_count() < 8, reason="needs 8 devices: XLA_FLAGS of tests/conftest.py"
)
slow = pytest.mark.slow


@slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_eight_devices_then_two_and_one(layout, tmp_path):
    half = resumed.save(tmp_path / "half", layout)
    for devices in (2, 1):
        before, end = resumed.resume(tmp_path / "half", layout, devices)
        same(*map(jax.tree.leaves, (before, half)))
        equal(end, alone("mlp")[0])


@pytest.mark.long
@pytest.mark.parametrize("devices", [2, pytest.param(1, marks=slow)])
def test_a_process_that_never_had_eight_devices(devices, tmp_path):
    half = resumed.save(tmp_path / "half", "fsdp")
    leaves = resumed.in_a_process(tmp_path / "half", "fsdp", devices)
    params, state = alone("mlp")[0]
    want = jax.tree.leaves((half, jax.device_get((params, state))))
    assert len(leaves) == len(want)
    for mine, theirs in zip(leaves, want, strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype
