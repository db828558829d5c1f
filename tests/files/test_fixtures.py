"""Files of all format versions, written once, load for ever.

The files in `fixtures` must never be written again: they stand for those that users
have. A new format version gets files of its own beside them.
"""

import io
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import bbjax as bb
from bbjax.files import container

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODELS = ["params_v1_packed.safetensors", "params_v1_dense.safetensors"]

# What was saved, by arithmetic that numpy does the same way for ever.
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


@pytest.mark.parametrize("name", MODELS)
def test_a_file_of_version_1_loads(name):
    params, masks, extra, header = bb.load(FIXTURES / name, units=UNITS)
    assert params.keys() == {"layers", "conv", "norm", "codes", "rate", "key"}
    for path, value in VALUES.items():
        found = params
        for key in path.split("/"):
            found = found[key]
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        assert found.tobytes() == value.tobytes()
    assert (type(params["rate"]), params["rate"]) == (float, 0.1)
    assert jax.random.key_impl(params["key"]) == "threefry2x32"
    assert jax.random.key_data(params["key"]).tolist() == [0, 42]
    chex.assert_trees_all_equal(masks, MASKS, strict=True)
    assert extra == EXTRA
    assert header.version == 1 and header.bbjax == "0.1.0"
    assert header.kept == {"layers/up": 8, "conv": 22}
    assert header.density == {"layers/up": 8 / 24, "conv": 22 / 30}
    assert header.actuators == {"layers/up": ("in",), "conv": ("in",)}
    # Of each layer; of a convolution, windows that keep anything.
    assert header.budgets == {"layers/up": (4, 4), "conv": (10,)}


@pytest.mark.parametrize("name", MODELS)
def test_models_are_written_as_they_were(name, monkeypatch):
    monkeypatch.setattr(container, "__version__", "0.1.0")
    file = io.BytesIO()
    tree = {path: value for path, value in VALUES.items()}
    tree |= {"rate": 0.1, "key": jax.random.key(42)}
    bb.save(file, tree, MASKS, UNITS, EXTRA, packed="packed" in name)
    assert file.getvalue() == (FIXTURES / name).read_bytes()


def test_packed_is_smaller_than_dense():
    packed, dense = ((FIXTURES / name).stat().st_size for name in MODELS)
    # 16 float32 and 8 bfloat16 are not there; names and padding differ by some bytes.
    assert 0 < dense - packed < 16 * 4 + 8 * 2 + 100


# Masks ---------------------------------------------------------------------------
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
OF_ANY_PATH = {
    "": np.array(True),
    "w": np.ones((8, 8), bool),
    "w:mask": np.zeros((0, 3), bool),
    "é/ü": np.arange(9) % 2 == 1,
}


@pytest.mark.parametrize("name", ["masks_v1_units.npz", "masks_v2_units.safetensors"])
def test_masks_of_kernels_load(name):
    chex.assert_trees_all_equal(bb.load_masks(FIXTURES / name), OF_KERNELS, strict=True)
    like = {path: jnp.zeros(mask.shape) for path, mask in OF_KERNELS.items()}
    found = bb.load_masks(FIXTURES / name, like)
    chex.assert_trees_all_equal(found, OF_KERNELS, strict=True)
    report, told = bb.report(FIXTURES / name), bb.report(OF_KERNELS, KERNELS)
    assert len(report.kernels) == 3
    assert report.others == told.others == (("bias", 5, 3),)
    for mine in report.kernels:
        theirs = told[mine.path]
        assert mine.kind == theirs.kind
        for one, two in zip(mine.sides, theirs.sides, strict=True):
            np.testing.assert_array_equal(one.degree, two.degree, strict=True)


@pytest.mark.parametrize("name", ["masks_v1_plain.npz", "masks_v2_plain.safetensors"])
def test_masks_of_any_path_and_shape_load(name):
    found = bb.load_masks(FIXTURES / name, like=OF_ANY_PATH)
    chex.assert_trees_all_equal(found, OF_ANY_PATH, strict=True)
    assert list(found) == sorted(OF_ANY_PATH)
