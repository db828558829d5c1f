"""What the files in `tests/fixtures` hold.

Made by arithmetic whose results do not change between versions of numpy.
"""

from pathlib import Path

import ml_dtypes
import numpy as np

import bbjax as bb

FIXTURES = Path(__file__).parents[1] / "fixtures"
UP = np.arange(24).reshape(2, 3, 4) % 3 == 0
CONV = np.arange(30).reshape(3, 2, 5) % 4 != 1
MASKS = {"layers/up": UP, "conv": CONV}
VALUES = {
    "layers/up": np.where(UP, np.arange(24).reshape(2, 3, 4) / 8 - 1, 0).astype("<f4"),
    "conv": np.where(CONV, np.arange(30).reshape(3, 2, 5) - 15, 0).astype(
        ml_dtypes.bfloat16
    ),
    "norm/scale": np.array([1.5, -0.0, np.inf], "<f2"),
    "norm/seen": np.array(2**31 - 1, "<i4"),
    "norm/on": np.array([True, False]),
    "codes/0": np.array([0.5, -448.0, 2.0**-9]).astype(ml_dtypes.float8_e4m3fn),
    "codes/1": np.array([-8, 7, 0]).astype(ml_dtypes.int4),
    "codes/2": np.array([1 - 2j], "<c8"),
}
EXTRA = {"step": 1200, "loss": 0.1, "tags": ["é", None, True]}
UNITS = bb.Units(
    (
        bb.Kernel("layers/up", (2, 3, 4), stack=(0,), fan_in=(1,), fan_out=(2,)),
        bb.Kernel("conv", (3, 2, 5), spatial=(0,), fan_in=(1,), fan_out=(2,)),
    )
).select("up|conv")
GROUPED = bb.Kernel(
    "grouped",
    (3, 2, 6),
    groups=2,
    split=(3, 2, 2, 3),
    roles=("spatial", "in", "group", "out"),
)
KERNELS = bb.Units((*UNITS.kernels, GROUPED))
OF_KERNELS = {
    **MASKS,
    "grouped": np.arange(36).reshape(3, 2, 6) % 5 < 2,
    "bias": np.arange(5) % 2 == 0,
}
