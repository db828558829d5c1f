"""Train steps compiled for TPUs, without one: what the compiler says of a refresh.

libtpu reads its environment once and then stays in a process, so whatever compiles for
a TPU runs in a process of its own. Reading compiled programs is tested on programs
written by hand, as the compiler prints them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

from benchmarks.tpu_aot import hlo, measure, topology  # noqa: E402

needs_libtpu = pytest.mark.skipif(
    not topology.available(), reason='needs libtpu: pip install "bbjax[tpu]"'
)

PROGRAM = """\
HloModule jit_pruned, is_scheduled=true

%add (a: s32[], b: s32[]) -> s32[] {
  ROOT %sum = s32[]{:T(128)} add(%a, %b)
}

%fused (keys: s32[24,2048,512]) -> s32[24,2048,4] {
  ROOT %inner = s32[24,2048,4]{2,1,0:T(8,128)} reduce(%keys), to_apply=%add
}

%search (c: (s32[24,2048])) -> (s32[24,2048]) {
  %counts = s32[24,2048,4]{2,1,0:T(8,128)} fusion(%keys), kind=kLoop, calls=%fused
  %all-reduce.1 = (s32[24,2048]{1,0:T(8,128)S(1)}, s32[24]{0}) all-reduce(%a, %b), \
to_apply=%add, metadata={op_name="jit(pruned)/bb_update/while/body/while/body/sum"}
  ROOT %out.1 = (s32[24,2048]{1,0}) tuple(%all-reduce.1)
}

%due (c: (s32[24,2048])) -> (s32[24,2048]) {
  %inner.2 = (s32[24,2048]{1,0}) while(%c), condition=%more, body=%search, \
metadata={op_name="jit(pruned)/bb_update/while/body/while"}
  %kept = u8[24,256,512]{2,1,0:T(8,128)(4,1)} copy(%bits)
}

%more (c: (s32[24,2048])) -> pred[] {
  ROOT %go = pred[]{:T(512)} constant(true)
}

%layer (h: bf16[4,2048]) -> bf16[4,2048] {
  %all-gather-start.3 = (f32[4,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%w), \
dimensions={0}
}

ENTRY %main (p: f32[24,2048,512]) -> f32[24,2048,512] {
  %layers = (bf16[4,2048]{1,0}) while(%h), condition=%more, body=%layer, \
metadata={op_name="jit(pruned)/jvp()/while"}
  %refresh = (s32[24,2048]{1,0}) while(%c), condition=%more, body=%due, \
metadata={op_name="jit(pruned)/bb_update/while" stack_frame_id=3}
  %new = f32[24,2048,512]{2,1,0:T(8,128)} copy(%p)
}
"""
LIMITS = {"unit_bytes": 4 * 24 * 2048, "mask_bytes": 24 * 2048 * 512 // 8}


def _parts(text):
    program = hlo.read(text)
    inside = hlo.refresh(program, "bb_update")
    return program, inside, set(program) - inside


def test_the_refresh_is_what_its_loop_calls():
    _, inside, rest = _parts(PROGRAM)
    assert inside == {"due", "search", "fused", "add", "more"}
    assert rest == {"main", "layer"}


def test_a_program_without_a_refresh_is_refused():
    with pytest.raises(ValueError, match="expected a loop in the scope 'other'"):
        hlo.refresh(hlo.read(PROGRAM), "other")


def test_collectives_are_told_apart():
    program, inside, rest = _parts(PROGRAM)
    found = hlo.collectives(program, inside)
    assert list(found) == ["all-reduce"]
    assert found["all-reduce"]["count"] == 1
    assert found["all-reduce"]["largest_bytes"] == 24 * 2048 * 4
    assert measure.broken(found, LIMITS) == []
    outside = hlo.collectives(program, rest)
    assert list(outside) == ["all-gather"]
    assert outside["all-gather"]["largest_bytes"] == 16 * 8 * 4


@pytest.mark.parametrize(
    "line",
    [
        "  %g = f32[24,2048,2048]{2,1,0} all-gather(%w), dimensions={2}",
        "  %g = f32[24,2048,512]{2,1,0} all-reduce(%w), to_apply=%add",
        "  %g = (u8[9], u8[24,256,2048]{2,1,0}) all-gather-start(%w), dimensions={2}",
        "  %g = pred[2,6,1536]{2,1,0:T(8,128)(4,1)S(1)} all-to-all(%r)",
    ],
)
def test_what_a_refresh_should_not_move_is_named(line):
    text = PROGRAM.replace("  %kept", line + "\n  %kept")
    program, inside, _ = _parts(text)
    (problem,) = measure.broken(hlo.collectives(program, inside), LIMITS)
    assert problem.split(" ")[0] in line
    # The same outside of the refresh is no business of it.
    program, inside, _ = _parts(PROGRAM.replace("  %new", line + "\n  %new"))
    assert measure.broken(hlo.collectives(program, inside), LIMITS) == []


def test_arrays_are_padded_to_whole_tiles():
    (made,) = hlo.arrays("s32[24,2048,4]{2,1,0:T(8,128)}")
    assert (made.bytes, made.padded) == (24 * 2048 * 4 * 4, 24 * 2048 * 128 * 4)
    assert made.in_hbm
    (turned,) = hlo.arrays("s32[24,4,2048]{2,0,1:T(8,128)S(1)}")
    assert turned.bytes == turned.padded and not turned.in_hbm
    sizes = [made.bytes for made in hlo.arrays("(pred[2,3]{1,0}, bf16[4], f32[])")]
    assert sizes == [6, 8, 4]


def test_large_arrays_and_copies_are_found():
    program, inside, rest = _parts(PROGRAM)
    first, *_ = hlo.largest(program, inside, 3)
    assert first["type"] == "s32[24,2048,4]" and first["padded"] == 24 * 2048 * 512
    size = 24 * 2048 * 512
    assert hlo.copies(program, rest, size) == {"count": 1, "bytes": 4 * size}
    assert hlo.copies(program, inside, 1)["bytes"] == size // 8


def _run(*command, **environment):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""} | environment,  # as users compile
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.long
def test_without_libtpu_it_says_what_to_install(tmp_path):
    hide = (
        "import runpy, sys, importlib.util as u; find = u.find_spec;"
        "u.find_spec = lambda n, *a: None if n == 'libtpu' else find(n, *a);"
        f"sys.argv = ['tpu_aot', '--small', '--out', {str(tmp_path)!r}];"
        "runpy.run_module('benchmarks.tpu_aot', run_name='__main__')"
    )
    assert 'pip install "bbjax[tpu]"' in _run("-c", hide)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@needs_libtpu
def test_the_whole_step_on_four_chips(tmp_path):
    _run("-m", "benchmarks.tpu_aot", "--small", "--out", str(tmp_path))
    report = json.loads((tmp_path / "tpu_aot.json").read_text())
    (row,) = report["rows"]
    assert row["chips"] == 4 and row["mesh"] == {"fsdp": 2, "tensor": 2}
    assert row["refresh_collectives"]["all-reduce"]["count"] > 0
    assert row["refresh_broken"] == []
    state, chips = row["state_bytes"]["float32 dormant"], row["chips"]
    # Masks and dormant weights lie in equal parts on all chips: none holds more.
    assert state["masks"] * 8 * chips == state["edges"]
    assert state["dormant"] * chips == 4 * state["edges"]
    assert row["state_bytes"]["bfloat16 dormant"]["dormant"] * 2 == state["dormant"]
    assert row["state_bytes"]["no regrowth"]["dormant"] == 0
    dense, pruned = row["dense"], row["pruned"]
    added = pruned["argument"] - dense["argument"]
    assert state["pruning"] <= added <= 1.1 * state["pruning"]  # whole tiles
    # Old state is overwritten, and one kernel after the other is refreshed.
    assert pruned["output"] - pruned["alias"] <= 4096
    assert pruned["temp"] <= dense["temp"] + 8 * state["dormant"]
    assert row["rest_copies"]["bytes"] <= row["dense_copies"]["bytes"]
    assert pruned["step_flops"] == dense["step_flops"] > dense["cost_flops"]
    assert pruned["fits"] and dense["fits"]


_GATHERS = """
from benchmarks.tpu_aot import __main__ as cli, measure, programs, topology
import bbjax as bb
from bbjax.rules.base import Rule

def select(seen):
    axis = len(seen.kernel.stack_shape)
    scores = seen.magnitude.reshape(*seen.kernel.stack_shape, -1)
    mask = bb.top_k_mask(scores, seen.budget, axis=axis, method="top_k")
    return mask.reshape(seen.mask.shape)

devices = topology.describe("v5e:2x2")
setting = programs.Setting(cli.SMALL, sequence=128, rule=Rule("sorts", select))
with topology.as_on(devices):
    made = programs.programs(setting, topology.mesh_of(devices))["pruned"]
    text = made.lower().compile().as_text()
for problem in measure.moved({"pruned": text}, made.state)["refresh_broken"]:
    print(problem)
"""


@pytest.mark.slow
@needs_libtpu
def test_a_rule_that_gathers_is_caught():
    assert "all-gather of" in _run("-c", _GATHERS)


_ALIKE = """
import json
from benchmarks.common.models import ffn
from benchmarks.tpu_aot import alike
print(json.dumps(alike.measure("v5e:2x2", ffn.Shape(2, 512, 2048))))
"""


@pytest.mark.slow
@needs_libtpu
def test_kernels_that_share_a_program_move_numbers_of_units_alone():
    row = json.loads(_run("-c", _ALIKE))
    for name in ("together", "one by one"):
        moved = row[name]["collectives"]
        assert set(moved) <= {"all-reduce", "all-gather"}
        sizes = [one["largest_bytes"] for one in moved.values()]
        assert max(sizes) <= row[name]["unit_bytes"]
    # Four kernels: a loop needs the scratch of one, as one after the other does.
    assert row["together"]["temp"] <= 1.15 * row["one by one"]["temp"]
    assert row["together"]["code"] < row["one by one"]["code"]
