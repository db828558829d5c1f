"""What a training step costs with Budgeted Broadcast, against the dense step.

    python -m benchmarks.speed.step [--out results.json] [--repeats 15] [--tokens 256]

An FFN stack 8 x (512 -> 2048 -> 512) with residuals, Adam, 16.8 M weights, SP-in on
every `up` and SP-out on every `down` kernel. Four steps run in turns in one process:

    dense      the plain training step
    observe    the same with `bb.observe`, the activity returned
    plain      observe + transform, a step without refresh
    refresh    the same executable at a step that refreshes all 16 kernels
    after      the same at the step after a refresh (cold caches and fresh pages)

Times are medians; ratios are medians of the ratios within a round. Amortised over
`every` steps: one refresh, one step after it, the rest plain. Parameters and optimizer
state are donated, as a training loop does.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import bbjax as bb
from benchmarks.common import machine

LAYERS, MODEL, HIDDEN = 8, 512, 2048


def init(key: jax.Array) -> dict[str, dict[str, jax.Array]]:
    """Parameters of the stack."""
    keys = jax.random.split(key, 2 * LAYERS)
    return {
        f"layer_{i}": {
            "up": jax.random.normal(keys[2 * i], (MODEL, HIDDEN)) * MODEL**-0.5,
            "down": jax.random.normal(keys[2 * i + 1], (HIDDEN, MODEL)) * HIDDEN**-0.5,
        }
        for i in range(LAYERS)
    }


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean square error of the stack."""
    for i in range(LAYERS):
        layer = params[f"layer_{i}"]
        x = x + jax.nn.relu(x @ layer["up"]) @ layer["down"]
    return jnp.mean((x - y) ** 2)


def steps(x: jax.Array, y: jax.Array, regrow: bool) -> dict[str, Callable[..., Any]]:
    """The compiled steps by name, all of `(params, opt_state)`."""
    params = jax.eval_shape(init, jax.random.key(0))
    traced = bb.trace(loss_fn, params, x, y)
    units = traced.select("up", "in") + traced.select("down", "out")
    adam = optax.adam(1e-3)
    tx = optax.chain(
        adam, bb.transform(units, density=0.7, every=4, start=0, regrow=regrow)
    )

    def dense(params, state):
        _, grads = jax.value_and_grad(loss_fn)(params, x, y)
        updates, state = adam.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def observe(params, state):
        observed = jax.value_and_grad(bb.observe(loss_fn, units), has_aux=True)
        (_, activity), grads = observed(params, x, y)
        updates, state = adam.update(grads, state, params)
        rates = [(a.inputs.on_rate, a.outputs.on_rate) for a in activity.values()]
        return optax.apply_updates(params, updates), state, rates

    def pruned(params, state):
        observed = jax.value_and_grad(bb.observe(loss_fn, units), has_aux=True)
        (_, activity), grads = observed(params, x, y)
        updates, state = tx.update(grads, state, params, activity=activity)
        return optax.apply_updates(params, updates), state

    start = {"dense": adam, "observe": adam, "pruned": tx}
    fns = {"dense": dense, "observe": observe, "pruned": pruned}
    return {
        name: (jax.jit(fn, donate_argnums=(0, 1)), start[name].init)
        for name, fn in fns.items()
    }


def measure(tokens: int, repeats: int, regrow: bool) -> dict[str, Any]:
    """Times every step in turns."""
    x, y = (jax.random.normal(jax.random.key(i), (tokens, MODEL)) for i in (1, 2))
    compiled = steps(x, y, regrow)
    held = {}
    for name, (_, make) in compiled.items():
        params = init(jax.random.key(0))
        held[name] = (params, jax.jit(make)(params))
    times: dict[str, list[float]] = {}

    def run(name: str, label: str) -> None:
        started = time.perf_counter()
        out = compiled[name][0](*held[name])
        jax.block_until_ready(out)
        times.setdefault(label, []).append(1e3 * (time.perf_counter() - started))
        held[name] = out[:2]

    order = [
        ("pruned", "refresh"),
        ("pruned", "after"),
        ("pruned", "settle"),
        ("dense", "dense"),
        ("pruned", "plain"),
        ("observe", "observe"),
    ]
    for _ in range(repeats + 2):  # two rounds to warm up
        for name, label in order:
            run(name, label)
    arrays = {k: np.array(v[2:]) for k, v in times.items() if k != "settle"}
    ratios = {k: v / arrays["dense"] for k, v in arrays.items()}
    return {
        "tokens": tokens,
        "regrow": regrow,
        "ms": {k: float(np.median(v)) for k, v in arrays.items()},
        "ratio": {k: float(np.median(v)) for k, v in ratios.items()},
        "ratio_quartiles": {
            k: [float(q) for q in np.percentile(v, (25, 75))] for k, v in ratios.items()
        },
        "amortised": {
            str(every): float(
                (
                    (every - 2) * np.median(ratios["plain"])
                    + np.median(ratios["after"])
                    + np.median(ratios["refresh"])
                )
                / every
            )
            for every in (10, 100, 1000)
        },
        "state_bytes": {k: _bytes(held[k][1]) for k in ("dense", "pruned")},
        "weight_bytes": _bytes(held["dense"][0]),
    }


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the table."""
    table = Table("tokens", "regrow", "step", "ms", "ratio to dense (quartiles)")
    for row in rows:
        for name, ms in row["ms"].items():
            low, high = row["ratio_quartiles"][name]
            ratio = f"{row['ratio'][name]:.3f} ({low:.3f}-{high:.3f})"
            table.add_row(
                str(row["tokens"]), str(row["regrow"]), name, f"{ms:.1f}", ratio
            )
        amortised = f"{row['amortised']['100']:.3f}"
        table.add_row("", "", "every=100", "", amortised)
        state = row["state_bytes"]["pruned"] / row["state_bytes"]["dense"]
        table.add_row("", "", "state bytes", "", f"{state:.3f}", end_section=True)
    Console().print(table)


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256])
    parser.add_argument("--no-regrow", action="store_true", help="measure that as well")
    args = parser.parse_args()
    rows = [
        measure(tokens, args.repeats, regrow)
        for tokens in args.tokens
        for regrow in ([True, False] if args.no_regrow else [True])
    ]
    show(rows)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
