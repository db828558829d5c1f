"""The model made smaller: half of its gated units go, for real.

    python -m benchmarks.language.smaller --data FOLDER [--model FOLDER]

Units are cut by a score, then `down` gets new values (`bb.reconstruct`, least squares:
all outputs keep the same units), then `bb.shrink` removes them. Measured are perplexity
with and without new values, parameters, bytes, and the time of reading a prompt and of
each further token, dense and shrunk in turn. What is measured is kept line by line, so
that the command goes on where it was stopped. `benchmarks/language/README.md` has the
results.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.markdown import Markdown

import bbjax as bb
from benchmarks.common.measure import RESULTS
from benchmarks.common.text import finish, put_in, table
from benchmarks.language import generate, model
from benchmarks.language.__main__ import LAYERS, bench_of
from benchmarks.language.bench import Bench
from benchmarks.language.model import Params
from benchmarks.language.pruning import Clock, Stats, paths_of, with_rates

GROUP = "layers/gate/kernel[2]"
DOWN = "layers/down/kernel"
NEEDS = ("on_rate", "inputs.mean_square", "inputs.gram")
PROMPT = 256  # tokens, read at once
TOKENS = 32  # and so many after them
ROUNDS = 7
BEST = "rms x norm of down"  # the one that is shrunk

Scores = dict[str, np.ndarray]


def random(bench: Bench, stats: Stats, draw: int) -> Scores:
    """Uniform."""
    group = bench.units.graph[GROUP]
    values = np.random.default_rng(draw).random((*group.layers, group.size))
    return {GROUP: values}


def magnitude(bench: Bench, stats: Stats, draw: int) -> Scores:
    """Mean square norm of all weights of a unit."""
    return bb.unitwise.group_magnitude(bench.units, bench.params)


def activity(statistic: str, bench: Bench, stats: Stats, draw: int) -> Scores:
    """Mean |unit|, or mean square."""
    return bb.unitwise.activity(bench.units, stats, statistic)


def traffic(sign: int, bench: Bench, stats: Stats, draw: int) -> Scores:
    """The busiest units go, or the quietest; on means that the gate is above 0."""
    scores = bb.unitwise.traffic(bench.units, stats)
    # Units that are never on go in both cases.
    return {n: np.where(np.isinf(s), s, sign * s) for n, s in scores.items()}


def sent(bench: Bench, stats: Stats, draw: int) -> Scores:
    """Root mean square of a unit times the norm of its row of `down`: what it sends."""
    square = np.asarray(stats[DOWN].inputs.mean_square)
    norm = np.linalg.norm(np.asarray(bench.params["layers"]["down"]["kernel"]), axis=2)
    return {GROUP: np.sqrt(square) * norm}


SCORES: dict[str, Callable[[Bench, Stats, int], Scores]] = {
    "random": random,
    "magnitude": magnitude,
    "mean size of the unit": functools.partial(activity, "mean_abs"),
    "rms of the unit": functools.partial(activity, "mean_square"),
    "rms x norm of down": sent,
    "traffic, gate > 0": functools.partial(traffic, 1),
    "reversed traffic, gate > 0": functools.partial(traffic, -1),
}


def cut(
    bench: Bench, stats: Stats, name: str, density: float, draw: int, clock: Clock
) -> dict[str, Any]:
    """The model with half of its units masked, and with new values of `down`."""
    scores = SCORES[name](bench, stats, draw)
    scores = {GROUP: scores[GROUP]}
    masks = clock("cut", lambda: bb.unitwise.cut(bench.units, scores, density))
    masked = bb.apply_masks(bench.params, masks)
    update = functools.partial(
        bb.reconstruct, bench.params, bench.units, {DOWN: masks[DOWN]}, stats,
        start=masked, method="least_squares",
    )  # fmt: skip
    updated, _ = clock("update", update)
    return {"masks": masks, "masked": masked, "updated": updated}


def measured(
    bench: Bench, draws: int, density: float, log: Path, console: Any
) -> dict[str, Any]:
    """Perplexities by score and draw, then sizes and times of one model.

    Args:
      bench: the dense model.
      draws: of calibration data.
      density: share of the units that stay.
      log: JSON lines, one for each draw and score that is done; these are not repeated.
      console: to print to.
    """
    done = logged(log, bench, density)
    for draw in range(draws):
        left = [name for name in SCORES if (name, draw) not in done]
        if not left:
            continue
        stats = calibrated(bench, draw)
        for name in left:
            clock = Clock()
            made = cut(bench, stats, name, density, draw, clock)
            row: dict[str, Any] = {"seconds": clock.seconds}
            for kind in ("masked", "updated"):
                found = bench.perplexities(made[kind])
                row[kind] = {k: v["perplexity"] for k, v in found.items()}
                value = found["all"]["perplexity"]
                console.print(f"draw {draw}, {name:28} {kind:8} {value:10.2f}")
            done[name, draw] = row
            line = {"name": name, "draw": draw} | settings(bench, density) | row
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
    rows = {
        name: {
            "masked": [done[name, draw]["masked"] for draw in range(draws)],
            "updated": [done[name, draw]["updated"] for draw in range(draws)],
            "seconds": done[name, 0]["seconds"],
        }
        for name in SCORES
    }
    kept = cut(bench, calibrated(bench, 0), BEST, density, 0, Clock())
    return {"rows": rows, "smaller": smaller(bench, kept, console)}


def settings(bench: Bench, density: float) -> dict[str, Any]:
    """What has to be the same for a result to count."""
    return {
        "density": density,
        "windows": len(bench.windows),
        "sequences": bench.sequences,
        "layers": bench.config.layers,
    }


def logged(log: Path, bench: Bench, density: float) -> dict[tuple[str, int], Any]:
    """What is done, by score and draw. A line that was not finished does not count."""
    log.parent.mkdir(parents=True, exist_ok=True)
    text = log.read_text() if log.exists() else ""
    if text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        log.write_text(text)
    wanted = settings(bench, density).items()
    lines = map(json.loads, text.splitlines())
    return {(x["name"], x["draw"]): x for x in lines if wanted <= x.items()}


def calibrated(bench: Bench, draw: int) -> Stats:
    """Sizes of all units, on-rates of gates, and the Gram matrices of `down`."""
    fn, params = bench.forward, bench.params

    def over(names: tuple[str, ...], needs: tuple[str, ...]) -> Stats:
        units = bench.units.select(paths_of(names))
        batches = ((batch,) for batch in bench.drawn(draw))
        return bb.calibrate(fn, units, params, batches, needs=needs)

    sizes = over(model.PROJECTIONS, ("mean_abs", "mean_square", "on_rate"))
    return with_rates(sizes, bench.gate_rates(draw)) | over(("down",), NEEDS)


def smaller(bench: Bench, made: dict[str, Any], console: Any) -> dict[str, Any]:
    """Sizes, difference to the masked model, and times."""
    tokens = jnp.asarray(bench.windows[:1])
    clock = Clock()
    shrink = functools.partial(
        bb.shrink, bench.forward, made["updated"], made["masks"], tokens
    )
    small = clock("shrink", shrink)
    before = bench.forward(made["updated"], tokens)
    gap = float(jnp.max(jnp.abs(small.fn(small.params, tokens) - before)))
    found: dict[str, Any] = {
        "shrink_seconds": clock.seconds["shrink"],
        "largest_difference": gap,
        "scale_of_outputs": float(jnp.sqrt(jnp.mean(jnp.square(before)))),
        "perplexity": bench.perplexities(small.params)["all"]["perplexity"],
    }
    models = {"dense": bench.params, "shrunk": small.params}
    for name, params in models.items():
        leaves = jax.tree.leaves(params)
        found[name] = {
            "parameters": sum(a.size for a in leaves),
            "bytes": sum(a.nbytes for a in leaves),
        }
    return found | {"times": times(bench, models, console)}


def times(bench: Bench, models: dict[str, Params], console: Any) -> dict[str, Any]:
    """Seconds of a prompt and of a token after it, models in turn, by batch size."""
    config = bench.config
    room = PROMPT + TOKENS
    prefill = jax.jit(generate.prefill, static_argnums=(2, 3))
    step = jax.jit(generate.step, static_argnums=3)
    found: dict[str, Any] = {}
    for size in (1, 8):
        prompt = jnp.asarray(np.resize(bench.calibration[:PROMPT], (size, PROMPT)))
        taken: dict[str, dict[str, list[float]]] = {
            name: {"prefill": [], "token": []} for name in models
        }
        for at in range(ROUNDS + 1):
            for name, params in models.items():
                started = time.perf_counter()
                cache, scores = jax.block_until_ready(
                    prefill(params, prompt, config, room)
                )
                read = time.perf_counter()
                for _ in range(TOKENS):
                    token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
                    cache, scores = step(params, cache, token, config)
                jax.block_until_ready(scores)
                done = time.perf_counter()
                if at:  # the first round compiles
                    taken[name]["prefill"].append(read - started)
                    taken[name]["token"].append((done - read) / TOKENS)
        found[str(size)] = {
            name: {kind: statistics.median(each) for kind, each in kinds.items()}
            for name, kinds in taken.items()
        } | {
            "ratio": {
                kind: _ratio(taken["dense"][kind], taken["shrunk"][kind])
                for kind in ("prefill", "token")
            }
        }
        console.print(f"batch {size}: {found[str(size)]}")
    return found


def _ratio(dense: list[float], shrunk: list[float]) -> dict[str, float]:
    """Of neighbours in time: the median, and the quartiles."""
    each = [a / b for a, b in zip(dense, shrunk, strict=True)]
    low, middle, high = statistics.quantiles(each, n=4)
    return {"median": middle, "low": low, "high": high}


# Command ---------------------------------------------------------------------------
def results(report: dict[str, Any]) -> str:
    """The tables of the README."""
    rows, small = report["rows"], report["smaller"]
    buckets = list(next(iter(rows.values()))["masked"][0])
    head = ["units kept by", "down", *(f"ppl {name}" for name in buckets)]
    lines = [["(dense)", "", *(f"{report['dense'][b]:#.4g}" for b in buckets)]]
    for name, row in rows.items():
        for kind, label in (("masked", "as it is"), ("updated", "new values")):
            found = [_spread([one[b] for one in row[kind]]) for b in buckets]
            lines.append([name, label, *found])
    machine = report["machine"]
    about = (
        f"`{report['command']}`: {report['windows']} windows, {report['draws']} draws "
        f"(mean ± standard deviation), density {report['density']:g} of the gated "
        f"units; {machine['cpu']}, {machine['cores']} cores, jax {machine['jax']}, "
        f"{report['seconds'] / 60:.0f} minutes."
    )
    dense, shrunk = small["dense"], small["shrunk"]
    size = (
        f"Shrunk, by {BEST}: {dense['parameters'] / 1e6:.1f} → "
        f"{shrunk['parameters'] / 1e6:.1f} million parameters, "
        f"{dense['bytes'] / 1e6:.0f} → {shrunk['bytes'] / 1e6:.0f} MB in float32, "
        f"perplexity {small['perplexity']:#.4g}. The largest difference of a hidden "
        f"state to the masked model's is {small['largest_difference']:.1e} (their root "
        f"mean square is {small['scale_of_outputs']:.1f}). `bb.shrink` took "
        f"{small['shrink_seconds']:.1f} s."
    )
    timed = [
        [
            size_of,
            *(
                f"{1e3 * found[name][kind]:.0f}"
                for kind in ("prefill", "token")
                for name in ("dense", "shrunk")
            ),
            *(_quartiles(found["ratio"][kind]) for kind in ("prefill", "token")),
        ]
        for size_of, found in small["times"].items()
    ]
    columns = (
        *("batch", "prompt dense ms", "shrunk ms", "token dense ms", "shrunk ms"),
        *("prompt, times faster", "token, times faster"),
    )
    speed = (
        f"A prompt of {PROMPT} tokens, then {TOKENS} tokens one by one; medians of "
        f"{ROUNDS} rounds in turn, quartiles of the ratio:"
    )
    parts = (about, table(head, lines), size, speed, table(columns, timed))
    return "\n\n".join(parts)


def _spread(values: list[float]) -> str:
    error = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):#.4g}".rstrip(".") + error


def _quartiles(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} ({found['low']:.2f}–{found['high']:.2f})"


README = Path(__file__).parent / "README.md"


def main(given: list[str] | None = None) -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.language.smaller",
        description=__doc__.splitlines()[0],
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with text_lm/")
    add("--model", type=Path, help="folder of `pip install --target`, if one was used")
    add("--draws", type=int, default=5, help="of calibration data")
    add("--density", type=float, default=0.5, help="share of the units that stay")
    add("--windows", type=int, default=12, help="of 512 tokens, to measure on")
    add("--sequences", type=int, default=8, help="of 512 tokens, to calibrate on")
    add("--layers", type=int, default=LAYERS, help="only the first, for a trial")
    add("--out", type=Path, default=RESULTS)
    args, console = parser.parse_args(given), Console()
    if args.layers != LAYERS and args.out == RESULTS:
        parser.error("expected --out with --layers: its numbers are not results")
    began = time.perf_counter()
    bench = bench_of(args)
    dense = bench.perplexities(bench.params)
    log = args.out / "language_smaller.jsonl"
    found = measured(bench, args.draws, args.density, log, console)
    about = {
        "command": "python -m benchmarks.language.smaller --data FOLDER",
        "windows": args.windows,
        "draws": args.draws,
        "density": args.density,
        "dense": {name: value["perplexity"] for name, value in dense.items()},
    }
    report = finish("language_smaller", about | found, began, args.out)
    console.print(Markdown(results(report)))
    if args.out == RESULTS:
        README.write_text(put_in(README.read_text(), results(report), "smaller"))


if __name__ == "__main__":
    main()
