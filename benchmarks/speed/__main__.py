"""What bbjax costs, measured in one process, as ratios to the dense step.

    python -m benchmarks.speed [--parts step topk bytes compile jaxpruner]
        [--models ffn-256 ffn-4096 ffn-deep gpt resnet unet3d] [--jaxpruner PATH]
        [--no-regrow] [--rounds N] [--out DIR] [--small]

    step        dense, observe, plain and refresh steps, amortised      steps.py
    topk        `top_k_mask` by method and size, beside a read pass     topk.py
    bytes       state, temporaries, FLOPs                               memory.py
    compile     tracing, lowering, compiling                            compiling.py
    jaxpruner   the FFN step under JaxPruner, given its checkout        peer.py

Prints tables and writes `speed_<backend>.json` and `.png`; parts that were not measured
now stay as they were. On an accelerator the same command takes larger models, more
calls and more rounds. `--small` runs everything in seconds, to see that it runs: it
writes only where `--out` says.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from benchmarks.common.measure import RESULTS, commit
from benchmarks.speed import (
    compiling,
    memory,
    peer,
    plot,
    report,
    steps,
    table,
    tasks,
    topk,
)
from benchmarks.speed.options import Options

PARTS: dict[str, Callable[[Options], Iterator[tuple[str, Any]]]] = {
    "step": steps.rows,
    "topk": topk.rows,
    "bytes": memory.rows,
    "compile": compiling.rows,
    "jaxpruner": peer.rows,
}
NO_PEER = (
    "jaxpruner: skipped; it needs --jaxpruner PATH, a checkout of JaxPruner "
    "(github.com/google-research/jaxpruner)"
)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--models", nargs="+", choices=tasks.MODELS, default=list(tasks.MODELS)
    )
    parser.add_argument("--small", action="store_true", help="tiny: does it run?")
    parser.add_argument("--rounds", type=int, help="of measuring; default by backend")
    parser.add_argument("--out", type=Path, help=f"default: {RESULTS.name}/, or none")
    parser.add_argument("--jaxpruner", type=Path, metavar="PATH", help="its checkout")
    parser.add_argument(
        "--no-regrow", action="store_true", help="measure regrow=False as well"
    )
    args = parser.parse_args()
    if args.rounds is not None and args.rounds < 1:
        parser.error(f"expected --rounds of at least 1, got {args.rounds}")
    return args


def chosen(args: argparse.Namespace) -> Options:
    """The options that the command line stands for."""
    full = "cpu" if jax.default_backend() == "cpu" else "accelerator"
    return Options(
        models=tuple(args.models),
        size="small" if args.small else full,
        rounds=args.rounds,
        no_regrow=args.no_regrow,
        jaxpruner=args.jaxpruner,
    )


def run(names: list[str], options: Options, path: Path | None, say: Any) -> Any:
    """Measures these parts; returns all that is known, old parts included."""
    where, origin = report.about(options.small), {"commit": commit()}
    parts = report.load(path) if path else {}
    for name in names:
        for label, row in PARTS[name](options):
            parts = report.merged(parts, name, where, {label: row | origin})
            if path:
                report.save(path, parts)
            say.log(f"measured {name}: {label}")
    return parts


def main() -> None:
    """Measures, prints, writes, draws."""
    args, console = parsed(), Console(log_path=False)
    # What was compiled in an earlier process would say nothing of compiling.
    jax.config.update("jax_enable_compilation_cache", False)
    options, names = chosen(args), list(args.parts)
    if "jaxpruner" in names and args.jaxpruner is None:
        names.remove("jaxpruner")
        console.print(NO_PEER)
    elif "jaxpruner" in names:
        peer.load(args.jaxpruner)  # a wrong path stops the run here, not at its end
    out = args.out or (None if args.small else RESULTS)
    path = out / f"speed_{jax.default_backend()}.json" if out else None
    parts = run(names, options, path, console)
    table.show(parts, names, console)
    if path and parts:
        plot.draw(parts, path.with_suffix(".png"))
        console.print(f"written: {path}, {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
