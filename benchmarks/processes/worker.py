"""One process of a training run: it joins the others, trains and says what came out.

    python -m benchmarks.processes.worker --layouts data fsdp --out run.npz

`benchmarks.processes` starts it, once alone and once for each of several processes that
meet at `--address`. It trains a layer `y = relu(x @ up) @ down` over all devices of all
processes, by layout:

    alone    everything on one device (a process by itself only)
    data     the batch over all devices, parameters whole on each
    fsdp     the batch over all devices, and the rows of parameters and masks too

Results are exact by design, whoever adds up what: weights and steps are multiples of
1/16, inputs -1, 0 or 1, the loss an L1 distance, the optimizer `sign_sgd` and the decay
of running means 1/2. All sums are multiples of a power of two that float32 holds, so
that any difference is a mistake and not rounding. Process 0 writes the arrays, gathered
from all processes: parameters, masks, means, degrees, metrics, and churn per refresh.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import bbjax as bb

BATCH, UNIT = 32, 1 / 16
ROWS = {"alone": P(), "data": P(), "fsdp": P("data", None)}  # of every parameter
LAYOUTS = tuple(ROWS)
EVERY, START = 3, 1  # refreshes at steps 1, 4, 7, ...


def loss(params: Any, x: jax.Array) -> jax.Array:
    """Its gradient is a sign, so that gradients are multiples of 1/16 as well."""
    return jnp.mean(jnp.abs(jax.nn.relu(x @ params["up"]) @ params["down"] - 1))


def weights(width: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = {"up": (width, 2 * width), "down": (2 * width, width)}
    return {
        name: (rng.integers(-12, 13, size) * UNIT).astype(np.float32)
        for name, size in sizes.items()
    }


def batch(n: int, width: int) -> np.ndarray:
    """Inputs that are on more often the further to the right, so that units differ."""
    rng = np.random.default_rng(100 + n)
    on = rng.random((BATCH, width)) < np.linspace(0.1, 0.9, width)
    return np.where(on, rng.choice([-1, 1, 1], on.shape), 0).astype(np.float32)


def place(x: np.ndarray, mesh: Mesh, spec: P) -> jax.Array:
    """An array over all processes; each of them makes the parts on its own devices."""
    sharding = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])


def feed(x: np.ndarray, mesh: Mesh) -> jax.Array:
    """A batch of which each process has loaded its own rows only."""
    rows = mesh.local_mesh.size * len(x) // mesh.size
    first = jax.process_index() * rows
    sharding = NamedSharding(mesh, P("data", None))
    own = x[first : first + rows]
    return jax.make_array_from_process_local_data(sharding, own, x.shape)


def step(units: bb.Units, tx: Any) -> Callable[..., Any]:
    observed = bb.observe(loss, units)

    @jax.jit
    def run(params, state, x):
        (_, activity), grads = jax.value_and_grad(observed, has_aux=True)(params, x)
        updates, state = tx.update(grads, state, params, activity=activity)
        return optax.apply_updates(params, updates), state

    return run


def train(layout: str, mesh: Mesh, steps: int, width: int) -> dict[str, Any]:
    """What came out of a run, still over devices."""
    params = {k: place(w, mesh, ROWS[layout]) for k, w in weights(width).items()}
    traced = bb.trace(loss, params, feed(batch(0, width), mesh))
    units = traced.select("up", "in") + traced.select("down", "out")
    pruner = bb.transform(units, density=0.3, every=EVERY, start=START, ema=0.5)
    tx = optax.chain(optax.sign_sgd(UNIT), pruner)
    state, run, churn = tx.init(params), step(units, tx), []
    for n in range(steps):
        params, state = run(params, state, feed(batch(n, width), mesh))
        if n % EVERY == START:
            churn.append(dict(state[-1].bb_churn))
    read = {"masks": bb.masks, "degrees": bb.degrees_of, "metrics": bb.metrics}
    found = {name: jax.jit(call)(state) for name, call in read.items()}
    found |= {"params": params, "means": state[-1].bb_means, "churn": churn}
    return found | {"programs": np.int32(run._cache_size())}


def gathered(found: Any, mesh: Mesh) -> dict[str, np.ndarray]:
    """Every array whole on this process, by its path."""
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))(found)
    leaves = jax.tree_util.tree_leaves_with_path(whole)
    return {
        jax.tree_util.keystr(key, simple=True, separator="|"): np.asarray(leaf)
        for key, leaf in leaves
    }


def seen(found: dict[str, Any]) -> dict[str, Any]:
    """How a process sees the masks, before they are gathered."""
    mask = found["masks"]["up"]
    return {
        "shape": mask.shape,
        "addressable": mask.is_fully_addressable,
        "own": sorted(shard.data.shape for shard in mask.addressable_shards),
    }


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=["alone"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--address", default="")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    asked = options()
    if asked.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(asked.address, asked.processes, asked.index)
    arrays, views = {}, {}
    for layout in asked.layouts:
        devices = jax.devices()[:1] if layout == "alone" else jax.devices()
        mesh = Mesh(np.array(devices), ("data",))
        found = train(layout, mesh, asked.steps, asked.width)
        views[layout] = seen(found) | {"devices": len(devices)}
        whole = gathered(found, mesh)
        arrays |= {f"{layout}|{path}": leaf for path, leaf in whole.items()}
    if jax.process_index() == 0:
        np.savez(asked.out, views=json.dumps(views), **arrays)
    if asked.processes > 1:
        jax.distributed.shutdown()


if __name__ == "__main__":
    main()
