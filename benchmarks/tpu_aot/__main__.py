"""Compiles train steps for TPUs, with none at hand, and says what they would need.

    python -m benchmarks.tpu_aot [--models 125m 1b3 8b] [--topologies v5e:4x4 ...]
        [--attention] [--no-regrow] [--dormant-bfloat16] [--out DIR] [--small]

Dense against Budgeted Broadcast, AdamW, float32 weights, sequences of 2048 tokens, one
for each chip: bytes per chip, collectives, estimated times. Writes `tpu_aot.json` after
every step; rows that were not compiled now stay as they were. A pair of steps takes one
to five minutes, `--small` less than one (it writes only where `--out` says). Needs
libtpu: `pip install "bbjax[tpu]"`. Without `--topologies` each model has its own.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from rich.console import Console

from benchmarks.common.measure import RESULTS, write
from benchmarks.common.models import gpt
from benchmarks.tpu_aot import table
from benchmarks.tpu_aot.measure import measure
from benchmarks.tpu_aot.programs import Setting
from benchmarks.tpu_aot.topology import CHIPS, NOT_INSTALLED, available

SMALL = gpt.Shape(4, 256, 1024, 4, 2, 512, jnp.bfloat16)
MODELS = {
    "small": SMALL,
    "125m": gpt.GPT_125M,
    "1b3": gpt.GPT_1B3,
    "8b": gpt.GPT_8B,
}
PLACES = {
    "small": ["v5e:2x2"],
    "125m": ["v5e:2x2", "v5e:4x4"],
    "1b3": ["v5e:4x4", "v5e:16x16", "v6e:4x4", "v5p:2x2x4"],
    "8b": ["v5e:8x8", "v5e:16x16", "v6e:8x8", "v5p:4x4x4"],
}
NOTES = [
    "bytes are per chip; GB is 1e9 bytes; held = arguments + outputs - aliased + "
    "temporaries + code",
    "cost_flops and cost_bytes are the compiler's: bodies of loops counted once",
    "step_flops: products of the traced program, scans in full, over the chips",
    "estimates: FLOPs / peak and bytes / bandwidth of the chip; nothing was run",
    "seconds are those of a shared machine",
]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tpu_aot", description=__doc__.splitlines()[0]
    )
    models = [name for name in MODELS if name != "small"]
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--topologies", nargs="+", metavar="NAME", help="v5e:4x4 ...")
    parser.add_argument("--attention", action="store_true", help="prune q, k, v, o too")
    parser.add_argument("--no-regrow", action="store_true")
    parser.add_argument("--dormant-bfloat16", action="store_true")
    parser.add_argument("--out", type=Path, help=f"default: {RESULTS.name}/, or none")
    parser.add_argument("--small", action="store_true", help="tiny: does it run?")
    return parser.parse_args()


def setting(args: argparse.Namespace, model: str) -> Setting:
    """What the command line asks for."""
    return Setting(
        MODELS[model],
        sequence=256 if args.small else 2048,
        attention=args.attention,
        regrow=not args.no_regrow,
        dormant_dtype=jnp.bfloat16 if args.dormant_bfloat16 else None,
    )


def options(args: argparse.Namespace) -> str:
    """What is not as by default, to tell rows apart."""
    asked = {
        "attention": args.attention,
        "no regrowth": args.no_regrow,
        "bfloat16 dormant": args.dormant_bfloat16,
    }
    return ", ".join(name for name, given in asked.items() if given)


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["model"], row["topology"], row["options"]


def main() -> None:
    """Compiles, prints and writes."""
    args, console = parsed(), Console()
    if not available():
        console.print(NOT_INSTALLED)
        return
    out = args.out or (None if args.small else RESULTS)
    path = out and out / "tpu_aot.json"
    old = json.loads(path.read_text())["rows"] if path and path.exists() else []
    rows = {_key(row): row for row in old}
    now = []
    for model in ["small"] if args.small else args.models:
        for topology in args.topologies or PLACES[model]:
            started = time.perf_counter()
            row = {"model": model, "options": options(args)}
            row |= measure(setting(args, model), topology)
            rows[_key(row)] = row
            now.append(row)
            took = time.perf_counter() - started
            console.print(f"{model} {topology}: {took:.0f} s")
            if path:
                chips = {name: vars(chip) for name, chip in CHIPS.items()}
                notes = {"notes": NOTES, "chips": chips}
                write(path, notes | {"rows": list(rows.values())})
    table.show(now)


if __name__ == "__main__":
    main()
