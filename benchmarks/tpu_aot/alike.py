"""Kernels that share one program, compiled for TPUs: memory, code and what moves.

    python -m benchmarks.tpu_aot.alike [--topologies v5e:2x2 v6e:2x2] [--out DIR]

The stack of feed-forward layers without a scan, weights split over both axes of a mesh:
the dense step, the pruned step with one loop over kernels that are alike, and the
pruned step with a refresh for each kernel by itself. Writes `tpu_aot_alike.json`. Two
to four minutes a topology. Needs libtpu: `pip install "bbjax[tpu]"`.
"""

import argparse
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P
from rich.console import Console

import bbjax as bb
from benchmarks.common.measure import RESULTS, write
from benchmarks.common.models import ffn
from benchmarks.tpu_aot.measure import compiled, moved
from benchmarks.tpu_aot.programs import Program, on, state_on, train_step
from benchmarks.tpu_aot.topology import (
    NOT_INSTALLED,
    as_on,
    available,
    describe,
    mesh_of,
)

SHAPE = ffn.Shape(4, 512, 2048)
TOKENS = 256
SETTINGS = {"dense": None, "together": True, "one by one": False}
PARTS = ("argument", "temp", "code", "seconds_to_compile")


def program(mesh: Any, shape: ffn.Shape, alike: bool | None) -> Program:
    """A train step of shapes: of alike kernels in one loop or not; None is dense."""
    layer = {"up": P("fsdp", "tensor"), "down": P("tensor", "fsdp")}
    specs = {f"layer_{i}": layer for i in range(shape.layers)}
    shapes = jax.eval_shape(functools.partial(ffn.init, shape), jax.random.key(0))
    one = jax.ShapeDtypeStruct((TOKENS, shape.model), jnp.float32)
    batch = (one, one)

    def loss(params: Any, batch: Any) -> jax.Array:
        return ffn.loss(params, *batch)

    tx, units = optax.adamw(3e-4), None
    if alike is not None:
        traced = bb.trace(loss, shapes, batch)
        units = traced.select("up$", "in") + traced.select("down$", "out")
        rule = dataclasses.replace(bb.rules.budgeted_broadcast(), alike=alike)
        tx = optax.chain(tx, bb.transform(units, rule))
    return Program(
        step=train_step(loss, tx, units),
        params=on(mesh, shapes, specs),
        state=state_on(mesh, tx, shapes, specs),
        batch=on(mesh, batch, (P("fsdp"), P("fsdp"))),
    )


def measure(topology: str, shape: ffn.Shape = SHAPE) -> dict[str, Any]:
    """The three steps compiled for a topology; bytes are those on one chip."""
    devices = describe(topology)
    mesh = mesh_of(devices)
    row: dict[str, Any] = {"topology": topology, "shape": dataclasses.asdict(shape)}
    for name, alike in SETTINGS.items():
        with as_on(devices):
            made = program(mesh, shape, alike)
            found, text = compiled(made)
        row[name] = {part: found[part] for part in PARTS}
        if alike is not None:
            said = moved({"pruned": text}, made.state)
            row[name] |= {
                "unit_bytes": said["limits"]["unit_bytes"],
                "collectives": said["refresh_collectives"],
            }
    return row


def main() -> None:
    """Compiles, prints and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tpu_aot.alike")
    parser.add_argument("--topologies", nargs="+", default=["v5e:2x2", "v6e:2x2"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    args, console = parser.parse_args(), Console()
    if not available():
        console.print(NOT_INSTALLED)
        return
    rows = []
    for topology in args.topologies:
        rows.append(row := measure(topology))
        for name in SETTINGS:
            temp, code = row[name]["temp"] / 1e6, row[name]["code"] / 1e6
            console.print(f"{topology}, {name}: {temp:.1f} MB, code {code:.1f} MB")
    write(args.out / "tpu_aot_alike.json", {"tokens": TOKENS, "rows": rows})


if __name__ == "__main__":
    main()
