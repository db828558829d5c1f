"""The notebook that benchmarks a TPU: its figures of a CPU, and its programs.

The programs are compiled for a TPU without one, at the sizes that the notebook takes
there. libtpu stays in a process, so that happens in a process of its own.
"""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "07_benchmark_on_tpu.py"
if not (NOTEBOOK.is_file() and (ROOT / "benchmarks").is_dir()):
    pytest.skip("the notebooks are not here", allow_module_level=True)

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason='needs libtpu: pip install "bbjax[tpu]"',
)
MEASURE = "# %% [markdown]\n# ## Measure\n"  # what follows runs; above are definitions


def published():
    """The figures that the notebook shows beside its own."""
    for node in ast.parse(NOTEBOOK.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CPU":
            return ast.literal_eval(node.value)
    raise ValueError("expected a literal CPU in the notebook, got none")


def test_figures_of_the_cpu_are_those_of_the_benchmark():
    path = ROOT / "benchmarks" / "results" / "speed_cpu.json"
    parts = json.loads(path.read_text())["parts"]
    model = parts["step"]["rows"]["ffn-256"]
    want = {"dense/plain, ms": model["dense_ms"]["median"]}
    for name, row in (("law", "bb"), ("default", "bb, competition")):
        found = model["pruned"][row]
        for kind in ("plain", "refresh"):
            want[f"{name}/{kind}"] = found["ratio"][kind]["median"]
        want[f"{name}/every=100"] = found["amortised"]["100"]["median"]
    ways = {"count": "count", "sort": "top_k", "lax.top_k": "sort"}
    given = published()
    for name in given:
        if "axis" in name:
            shape, axis = name.split(" ", 1)
            ms = parts["topk"]["rows"][f"{shape} float32 {axis}"]["ms"]
            want[name] = {ours: ms[row]["median"] for ours, row in ways.items()}
    assert list(given) == list(want)
    for name, value in want.items():
        assert given[name] == pytest.approx(value, rel=1e-3, abs=6e-4), name


_COMPILE = """
import sys

import jax
from jax.sharding import SingleDeviceSharding

from benchmarks.tpu_aot import topology

devices = topology.describe("v5e:2x2")
where = SingleDeviceSharding(devices[0])


def compiled(program, *shapes, **options):
    def place(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.jit(program, **options).lower(*jax.tree.map(place, shapes)).compile()


with topology.as_on(devices):
    book = {}
    exec(sys.stdin.read(), book)
    assert book["BACKEND"] == "tpu", book["BACKEND"]
    params, batch = book["PARAMS"], book["BATCH"]
    loss = book["bb"].observe(book["loss_fn"], book["units"])
    activity = jax.eval_shape(loss, params, *batch)[1]
    for kind, more in (("STEPS", batch), ("UPDATES", (params, activity))):
        for name, (program, init) in book[kind].items():
            state = jax.eval_shape(init, params)
            made = compiled(program, params, state, *more, donate_argnums=(0, 1))
            memory = made.memory_analysis()
            # What is donated is overwritten: a step needs no second copy of it.
            assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 65536
            print(kind, name)
    shape = book["SHAPES"][-1]
    for axis in (0, 1):
        scores = jax.ShapeDtypeStruct(shape, "float32")
        k = jax.ShapeDtypeStruct((shape[1 - axis],), "int32")
        for name, way in book["selections"](axis, shape[axis]).items():
            compiled(way, scores, k)
            print(axis, name)
"""


@pytest.mark.slow
@needs_libtpu
def test_its_programs_compile_for_a_tpu():
    definitions, _ = NOTEBOOK.read_text(encoding="utf-8").split(MEASURE)
    environment = {k: v for k, v in os.environ.items() if k != "BBJAX_SMALL"}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE],
        input=definitions,
        cwd=ROOT,
        env=environment | {"XLA_FLAGS": ""},  # as users compile
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = done.stdout.splitlines()[1:]  # behind what the notebook prints
    programs = ["dense", "law", "default"], ["sgd", "law", "default"]
    want = [f"STEPS {n}" for n in programs[0]] + [f"UPDATES {n}" for n in programs[1]]
    want += [f"{axis} {n}" for axis in (0, 1) for n in ("count", "sort", "lax.top_k")]
    assert found == want
