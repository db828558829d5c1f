"""One model on one topology: what the compiler says of the dense and the pruned step.

Bytes are those on one chip, as the compiler assigned them: arguments, outputs, outputs
that are written over arguments (aliased), temporaries and code. Of all these a chip

    held = argument + output - alias + temp + code

needs at once at most; a step fits where `held` is at most the chip's memory. In the
refresh, collectives must be sums of a few numbers per unit: `broken` lists those that
are larger than `COUNTS` numbers per unit of the largest kernel, or of another kind.

The compiler counts the body of a loop once, however often it runs: of L scanned layers
it counts one. So FLOPs for estimates are those of the products in the traced program,
scans counted in full, over the chips; bytes are the compiler's, a lower bound. What the
pruned step accesses beyond the dense one lies outside of the layers, but for 1 of
`PASSES` of each search; with the others added it bounds the time of a refresh.
"""

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from bbjax.training.state import find
from benchmarks.tpu_aot import hlo
from benchmarks.tpu_aot.programs import UPDATE, Program, Setting, programs
from benchmarks.tpu_aot.topology import Chip, as_on, chip_of, describe, mesh_of

COUNTS = 7  # at as many thresholds at once, for each unit
PASSES = 10  # about as many as a search over float32 keys takes, eight ways each
Report = dict[str, Any]
_PARTS = {
    "argument": "argument_size_in_bytes",
    "output": "output_size_in_bytes",
    "alias": "alias_size_in_bytes",
    "temp": "temp_size_in_bytes",
    "code": "generated_code_size_in_bytes",
}


def measure(setting: Setting, topology: str) -> Report:
    """Compiles both steps for a topology and reads what came out."""
    devices, chip = describe(topology), chip_of(topology)
    mesh = mesh_of(devices)
    with as_on(devices):
        both = programs(setting, mesh)
        report = {
            "topology": topology,
            "chips": len(devices),
            "mesh": dict(mesh.shape),
            "batch": both["dense"].batch.shape[0],
            "sequence": setting.sequence,
            "state_bytes": state_bytes(setting, mesh),
        }
        made = {name: compiled(program) for name, program in both.items()}
        flops = {n: _dots(_traced(p)) / len(devices) for n, p in both.items()}
    report |= {name: found for name, (found, _) in made.items()}
    for name in both:
        report[name] |= _fits(report[name], chip) | {"step_flops": flops[name]}
    texts = {name: text for name, (_, text) in made.items() if text}
    report |= moved(texts, both["pruned"].state)
    report["estimates"] = _estimates(report, chip)
    return report


def compiled(program: Program) -> tuple[Report, str]:
    """What the compiler says of a program, and the program's text; "" if refused."""
    started = time.perf_counter()
    lowered = program.lower()
    traced = time.perf_counter()
    try:
        made = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"refused": str(error).splitlines()[0]}, ""
    done = time.perf_counter()
    memory, cost = made.memory_analysis(), made.cost_analysis()
    found: Report = {part: getattr(memory, name) for part, name in _PARTS.items()}
    held = sum(found.values()) - 2 * found["alias"]
    found |= {
        "held": held,
        "cost_flops": cost["flops"],
        "cost_bytes": cost["bytes accessed"],
        "seconds_to_lower": traced - started,
        "seconds_to_compile": done - traced,
    }
    return found, made.as_text()


def _fits(found: Mapping[str, Any], chip: Chip) -> Report:
    return {"fits": "refused" not in found and found["held"] <= chip.memory * 1e9}


# Between chips, and inside the refresh -------------------------------------------
def moved(texts: Mapping[str, str], state: Any) -> Report:
    """The collectives and large arrays of programs."""
    limits = limits_of(state)
    found: Report = {"limits": limits}
    if "dense" in texts:
        dense = hlo.read(texts["dense"])
        found["dense_collectives"] = hlo.collectives(dense, dense)
        found["dense_copies"] = hlo.copies(dense, dense, limits["mask_bytes"])
    if "pruned" in texts:
        program = hlo.read(texts["pruned"])
        inside = hlo.refresh(program, UPDATE)
        rest = set(program) - inside
        found["rest_collectives"] = hlo.collectives(program, rest)
        found["rest_copies"] = hlo.copies(program, rest, limits["mask_bytes"])
        found["refresh_collectives"] = hlo.collectives(program, inside)
        found["refresh_broken"] = broken(found["refresh_collectives"], limits)
        found["refresh_largest"] = hlo.largest(program, inside, 12)
    return found


def broken(collectives: Mapping[str, Any], limits: Mapping[str, int]) -> list[str]:
    """What a refresh moves between chips but should not."""
    return [
        f"{kind} of {row['type']} in {row['scope']}"
        for kind, row in collectives.items()
        if kind != "all-reduce" or row["largest_bytes"] > limits["unit_bytes"]
    ]


def limits_of(state: Any) -> dict[str, int]:
    """Bytes of what a refresh may send, and of a chip's part of a mask."""
    (pruning,) = find(state)
    kernels = [kernel for kernel, _ in pruning.bb_plan.kernels]
    units = [
        math.prod(kernel.per_unit_shape(side))
        for kernel in kernels
        for side in ("inputs", "outputs")
    ]
    masks = pruning.bb_masks.values()
    return {
        "unit_bytes": 4 * COUNTS * max(units),
        "mask_bytes": min(_on_chip(mask) for mask in masks),
        "edges": sum(k.edge_count * math.prod(k.stack_shape) for k in kernels),
    }


# State ---------------------------------------------------------------------------
def _on_chip(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def state_bytes(setting: Setting, mesh: Any) -> dict[str, Report]:
    """Bytes of the state on one chip, by what is remembered."""
    return {
        name: _state_bytes(programs(option, mesh)["pruned"].state)
        for name, option in setting.options()
    }


def _state_bytes(state: Any) -> Report:
    (pruning,) = find(state)
    parts = {
        name: sum(map(_on_chip, jax.tree.leaves(getattr(pruning, f"bb_{name}"))))
        for name in ("masks", "dormant", "means")
    }
    whole = sum(map(_on_chip, jax.tree.leaves(state)))
    own = sum(map(_on_chip, jax.tree.leaves(pruning)))
    edges = sum(
        kernel.edge_count * math.prod(kernel.stack_shape)
        for kernel, _ in pruning.bb_plan.kernels
    )
    return parts | {"pruning": own, "optimizer": whole - own, "edges": edges}


# Time ----------------------------------------------------------------------------
def _traced(program: Program) -> Any:
    return jax.make_jaxpr(program.step)(program.params, program.state, program.batch)


def _dots(traced: Any) -> float:
    """FLOPs of the products in a traced program, scans counted in full."""
    jaxpr = getattr(traced, "jaxpr", traced)
    return sum(map(_flops, jaxpr.eqns))


def _flops(equation: Any) -> float:
    params = equation.params
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        size = math.prod(equation.outvars[0].aval.shape)
        return 2.0 * size * math.prod(shape[a] for a in contracted)
    times = params["length"] if equation.primitive.name == "scan" else 1
    return times * sum(map(_dots, _inner(params.values())))


def _inner(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple | list):
            yield from _inner(value)
        elif hasattr(value, "eqns") or hasattr(value, "jaxpr"):
            yield value


def _estimates(report: Mapping[str, Any], chip: Chip) -> Report:
    """Milliseconds from counted FLOPs and bytes: none of them was measured."""
    per_byte, found = 1e3 / (chip.bandwidth * 1e9), {}
    for name in ("dense", "pruned"):
        flops = report[name]["step_flops"]
        found[name] = {"compute_ms": flops / (chip.peak * 1e12) * 1e3}
        if "cost_bytes" in report[name]:
            found[name]["memory_ms_at_least"] = report[name]["cost_bytes"] * per_byte
    if all("cost_bytes" in report[name] for name in ("dense", "pruned")):
        once = report["pruned"]["cost_bytes"] - report["dense"]["cost_bytes"]
        search = 4 * report["limits"]["edges"] / report["chips"]
        found["refresh_ms"] = (once + (PASSES - 1) * search) * per_byte
    return found
