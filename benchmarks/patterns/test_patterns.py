"""Products of kernels that keep 2 of every 4 weights, in every way that is measured."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("rich")

from benchmarks.common.text import BEGIN, END  # noqa: E402
from benchmarks.patterns import kernel, page, ways  # noqa: E402
from benchmarks.patterns.packed import pack, unpack  # noqa: E402

pytestmark = pytest.mark.usefixtures("lenient")


def pruned(key, inputs, outputs, dtype=jnp.float32):
    """Weights, and any 2 of every 4 of them."""
    of, order = jax.random.split(key)
    ranks = jnp.argsort(jax.random.uniform(order, (inputs // 4, 4, outputs)), axis=1)
    mask = (ranks < 2).reshape(inputs, outputs)
    weights = jax.random.normal(of, (inputs, outputs)).astype(dtype)
    return jnp.where(mask, weights, 0), mask


@pytest.mark.long
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_packed_kernels_are_those_they_were(getkey, dtype):
    weights, mask = pruned(getkey(), 48, 5, dtype)
    packed = pack(weights, mask)
    assert packed.values.shape == (2, 2, 6, 5) and packed.places.shape == (6, 5)
    np.testing.assert_array_equal(unpack(packed), weights)


def test_a_kept_weight_that_is_0_keeps_its_place():
    mask = np.zeros((8, 1), bool)
    mask[[0, 3, 5, 6]] = True
    packed = pack(jnp.zeros((8, 1)), jnp.asarray(mask))
    assert int(packed.places[0, 0]) == 0 | 3 << 2 | (1 | 2 << 2) << 4


@pytest.mark.long
def test_packed_kernels_take_half_and_half_a_bit_a_weight(getkey):
    weights, mask = pruned(getkey(), 256, 64, jnp.bfloat16)
    packed = pack(weights, mask)
    assert packed.values.nbytes + packed.places.nbytes == weights.nbytes * 9 // 16


def interpreted(x, packed):
    return kernel.matmul(x, packed, interpret=True)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("way", "batch"),
    [
        ("picked", 1),
        *((way, b) for way in ("unpacked", "bcoo", "pallas") for b in (1, 3, 16, 20)),
    ],
)
def test_all_ways_compute_the_same(getkey, way, batch):
    weights, mask = pruned(getkey(), 512, 128)
    x = jax.random.normal(getkey(), (batch, 512))
    product = interpreted if way == "pallas" else ways.PRODUCTS[way]
    (stored,) = ways.stored(way, [{"w": weights}], [{"w": mask}])
    found = product(x, stored["w"])
    assert found.shape == (batch, 128) and found.dtype == x.dtype
    exact = np.asarray(x, np.float64) @ np.asarray(weights, np.float64)
    np.testing.assert_allclose(found, exact, atol=1e-5 * np.abs(exact).max())


@pytest.mark.long
def test_programs_that_share_the_groups_add_up(getkey, monkeypatch):
    weights, mask = pruned(getkey(), 1024, 64)
    x, packed = jax.random.normal(getkey(), (2, 1024)), pack(weights, mask)
    one = {}
    for programs in (1, 2, 3, 4):
        monkeypatch.setattr(kernel, "PROGRAMS", programs)
        one[programs] = interpreted(x, packed)
    for found in one.values():
        np.testing.assert_allclose(found, one[1], rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(("inputs", "outputs"), [(128, 64), (256, 32)])
def test_sizes_that_the_kernel_cannot_take_are_refused(getkey, inputs, outputs):
    weights, mask = pruned(getkey(), inputs, outputs)
    with pytest.raises(ValueError, match="in multiples of 256 and outputs of 64"):
        kernel.matmul(jnp.ones((1, inputs)), pack(weights, mask))


# From jax 0.11 on; what takes its place has to be written on a GPU.
@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_the_kernel_lowers_for_gpus_without_one(getkey):
    weights, mask = pruned(getkey(), 256, 64, jnp.bfloat16)
    allowed = jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
    export = jax.export.export(
        jax.jit(kernel.matmul), platforms=["cuda"], disabled_checks=[allowed]
    )
    try:
        exported = export(jnp.ones((1, 256), jnp.bfloat16), pack(weights, mask))
    except RuntimeError as error:
        if "No supported GPU devices found" not in str(error):
            raise
        pytest.skip("this JAX lowers Triton kernels beside a GPU alone")
    assert "__gpu$xla.gpu.triton" in exported.mlir_module()


@pytest.mark.long
def test_ways_by_backend():
    assert ways.ways(1, "cpu") == ["dense", "unpacked", "picked", "bcoo"]
    assert ways.ways(16, "cpu") == ["dense", "unpacked", "bcoo"]
    assert ways.ways(16, "gpu") == ["dense", "unpacked", "bcoo", "pallas"]


@pytest.mark.slow
def test_a_small_run(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "benchmarks.patterns", "--small", "--out", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=300,
    )
    report = json.loads((tmp_path / "patterns.json").read_text())
    assert report["bytes"]["unpacked"] * 32 == report["bytes"]["dense"] * 17
    assert set(report["batches"]["1"]) == {"dense", "unpacked", "picked", "bcoo"}
    assert page.results(report).count("| unpacked |") == 3


@pytest.mark.long
def test_the_readme_says_what_was_measured():
    found = page.PAGE.saved()
    assert found and not any(report["small"] for report in found)
    part = page.PAGE.path.read_text().split(BEGIN, 1)[1].split(END, 1)[0].strip()
    assert part == "\n\n".join(page.results(report) for report in found).strip()
