"""Files of all format versions, written once, load for ever.

The files in `fixtures` must never be written again: they stand for those that users
have. A new format version gets files of its own beside them.
"""

import io

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax.files import container
from tests.support.fixtures import (
    EXTRA,
    FIXTURES,
    KERNELS,
    MASKS,
    OF_KERNELS,
    UNITS,
    VALUES,
)

MODELS = ["params_v1_packed.safetensors", "params_v1_dense.safetensors"]


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
