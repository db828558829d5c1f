# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Benchmark on a TPU
#
# [![Open in Colab][badge]][colab]
#
# [badge]: https://colab.research.google.com/assets/colab-badge.svg
# [colab]: https://colab.research.google.com/github/OWNER/bbjax/blob/main/notebooks/07_benchmark_on_tpu.ipynb
#
# What does pruning cost on your device? This notebook measures a train step with and
# without bbjax, the optimizer update alone, and the selection of the strongest weights.
# It runs on a TPU, a GPU or a CPU, shows the figures beside those of a CPU, and saves
# them as JSON. bbjax was not measured on a TPU yet: please send your file.
#
# In Colab choose a TPU or a GPU under *Runtime → Change runtime type*. On a CPU with 2
# cores it takes about 2 minutes. On accelerators it is made to take less than 10.

# %%
from importlib.util import find_spec

# What to install where bbjax is missing: its repository, or a wheel
# ("bbjax[demo] @ file:///content/bbjax-0.1.0-py3-none-any.whl"), or "bbjax[demo]" once
# bbjax is on the package index. OWNER is still to be filled in.
SOURCE = "bbjax[demo] @ git+https://github.com/OWNER/bbjax"
# What JAX needs for the device has to be of the version of JAX that is installed.
JAX = "jax"
if find_spec("libtpu"):
    JAX = "jax[tpu]"
elif find_spec("jax_cuda12_plugin"):
    JAX = "jax[cuda12]"
if find_spec("bbjax") is None:
    print("installing", SOURCE, "and", JAX)
    # %pip install --quiet "$SOURCE" "$JAX"

# %%
import json
import os
import platform
import time

import flax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import bbjax as bb

SMALL = bool(os.environ.get("BBJAX_SMALL"))  # a quick run, to see that it works
BACKEND = jax.default_backend()  # "cpu", "gpu" or "tpu"
ON_CPU = BACKEND == "cpu"
ROUNDS = 3 if SMALL else 11 if ON_CPU else 31
# A call that is timed pays for its own dispatch. Training on an accelerator hides that
# behind the step before, so there a turn is several calls with one wait at their end.
CALLS = 1 if ON_CPU else 10
DENSITY = 0.7

# %% [markdown]
# ## The model
#
# Feed-forward blocks with residuals. All weights are in the kernels that are pruned, so
# nothing hides what pruning costs. `up` is budgeted by its incoming edges, `down` by
# its outgoing ones.
#
# On a CPU it is the model of the published figures: 8 blocks 512 → 2048 → 512, which
# are 16.8 million weights, and 256 tokens a step. On an accelerator there are 2 blocks
# 2048 → 8192 → 2048, 67 million weights, and 4096 tokens. A refresh is compiled once
# for every kernel, and few large kernels keep that short.

# %%
if SMALL:
    LAYERS, WIDTH, HIDDEN, TOKENS = 1, 32, 64, 16
elif ON_CPU:
    LAYERS, WIDTH, HIDDEN, TOKENS = 8, 512, 2048, 256
else:
    LAYERS, WIDTH, HIDDEN, TOKENS = 2, 2048, 8192, 4096
RATE = 1e-3


def init(key):
    params = {}
    for i, own in enumerate(jax.random.split(key, LAYERS)):
        up, down = jax.random.split(own)
        params[f"layer_{i}"] = {
            "up": jax.random.normal(up, (WIDTH, HIDDEN)) * WIDTH**-0.5,
            "down": jax.random.normal(down, (HIDDEN, WIDTH)) * HIDDEN**-0.5,
        }
    return params


def loss_fn(params, x, y):
    for i in range(LAYERS):
        layer = params[f"layer_{i}"]
        x = x + jax.nn.relu(x @ layer["up"]) @ layer["down"]
    return jnp.mean((x - y) ** 2)


# Shapes are enough to find the units.
PARAMS = jax.eval_shape(init, jax.random.key(0))
BATCH = (jax.ShapeDtypeStruct((TOKENS, WIDTH), jnp.float32),) * 2
traced = bb.trace(loss_fn, PARAMS, *BATCH)
units = traced.select("up$", actuator="in") + traced.select("down$", actuator="out")
print(f"{BACKEND}: {LAYERS} blocks, {TOKENS} tokens, {len(units.paths)} kernels")

# %% [markdown]
# ## The train steps
#
# Three of them: *dense*; *law*, which is Budgeted Broadcast without competition, with
# one selection in each refresh; and *default*, which has two. A refresh chooses masks
# anew. Refresh and plain step are one compiled program.
#
# In a round a pruned program takes `CALLS + 3` steps: the refresh, the step after it,
# one that is not counted, then plain steps. So it refreshes every `CALLS + 3` steps.

# %%
EVERY = CALLS + 3
RULES = {
    "law": bb.rules.budgeted_broadcast(competition=0),
    "default": bb.rules.budgeted_broadcast(),
}


def pruning(rule):
    return bb.transform(units, rule, density=DENSITY, every=EVERY, start=0)


def dense_step(params, state, x, y):
    grads = jax.grad(loss_fn)(params, x, y)
    updates, state = optax.adam(RATE).update(grads, state, params)
    return optax.apply_updates(params, updates), state


def pruned_step(tx):
    def step(params, state, x, y):
        _, grads, activity = bb.value_and_grad(loss_fn, units)(params, x, y)
        updates, state = tx.update(grads, state, params, activity=activity)
        return optax.apply_updates(params, updates), state

    return step


# Name: the step, and what makes its optimizer state.
STEPS = {"dense": (dense_step, optax.adam(RATE).init)}
for name, rule in RULES.items():
    tx = optax.chain(optax.adam(RATE), pruning(rule))
    STEPS[name] = (pruned_step(tx), tx.init)

# %% [markdown]
# **The update alone**, without a model: SGD, and SGD with pruning, from gradients and
# on-rates that are given.


# %%
def sgd_update(params, state, grads, activity):
    updates, state = optax.sgd(RATE).update(grads, state, params)
    return optax.apply_updates(params, updates), state


def pruned_update(tx):
    def update(params, state, grads, activity):
        updates, state = tx.update(grads, state, params, activity=activity)
        return optax.apply_updates(params, updates), state

    return update


UPDATES = {"sgd": (sgd_update, optax.sgd(RATE).init)}
for name, rule in RULES.items():
    tx = optax.chain(optax.sgd(RATE), pruning(rule))
    UPDATES[name] = (pruned_update(tx), tx.init)

# %% [markdown]
# **Selection**: which `k` entries of every unit are the largest, with another `k` for
# every unit. `bb.top_k_mask` counts; its reference sorts with `jax.lax.top_k`. The time
# of `lax.top_k` alone stands beside it, because that makes no mask yet.

# %%
SHAPES = [(32, 64), (64, 64)] if SMALL else [(512, 2048), (2048, 2048)]
if not (SMALL or ON_CPU):
    SHAPES.append((4096, 4096))  # sorting takes 3 seconds on a CPU


def selections(axis, entries):
    """Functions of scores and of k, by name."""
    return {
        "count": lambda s, k: bb.top_k_mask(s, k, axis=axis, method="count"),
        "sort": lambda s, k: bb.top_k_mask(s, k, axis=axis, method="top_k"),
        "lax.top_k": lambda s, k: jax.lax.top_k(jnp.moveaxis(s, axis, 1), entries)[0],
    }


# %% [markdown]
# ## Measure
#
# Times of one process drift with the machine. So everything that is compared runs in
# turns, round after round, every other round in reverse order. A ratio is taken within
# a round. Reported are medians and quartiles over the rounds.


# %%
def milliseconds(call):
    """How long a call takes until its result is there."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return 1e3 * (time.perf_counter() - start)


def spread(values):
    """Median and quartiles."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return {"median": float(median), "low": float(low), "high": float(high)}


def compiled(program, *args):
    """A program that overwrites its first two arguments, and the time to compile it."""
    start = time.perf_counter()
    made = jax.jit(program, donate_argnums=(0, 1)).lower(*args).compile()
    return made, time.perf_counter() - start


def in_turns(programs, first, args):
    """Milliseconds by label and round; seconds to compile, by name."""
    run, held, times, seconds = {}, {}, {}, {}
    for name, (program, make_state) in programs.items():
        params = jax.tree.map(jnp.copy, first)
        held[name] = params, jax.jit(make_state)(params)
        run[name], seconds[name] = compiled(program, *held[name], *args)

    def spend(name, label, calls):
        def call():
            for _ in range(calls):
                held[name] = run[name](*held[name], *args)
            return held[name]

        times.setdefault(label, []).append(milliseconds(call) / calls)

    for round_ in range(ROUNDS + 1):
        order = list(programs) if round_ % 2 else list(programs)[::-1]
        for name in order:
            if name in RULES:
                for label in ("refresh", "after", "not counted"):
                    spend(name, f"{name}/{label}", 1)
                spend(name, f"{name}/plain", CALLS)
            else:
                spend(name, f"{name}/once", 1)
                spend(name, f"{name}/plain", CALLS)
    # The first round, which warms up, is left out.
    return {label: np.array(ms[1:]) for label, ms in times.items()}, seconds


def report(times, base):
    """Milliseconds of everything, and ratios to the program `base`."""
    found = {label: spread(ms) for label, ms in times.items() if "not" not in label}
    ratios = {}
    for name in RULES:
        plain = times[f"{name}/plain"] / times[f"{base}/plain"]
        # Single calls are compared with single calls.
        after, refresh = (
            times[f"{name}/{kind}"] / times[f"{base}/once"]
            for kind in ("after", "refresh")
        )
        hundred = (98 * plain + after + refresh) / 100
        ratios |= {f"{name}/plain": spread(plain), f"{name}/refresh": spread(refresh)}
        ratios[f"{name}/every=100"] = spread(hundred)
    return {"ms": found, "ratio": ratios}


# %%
begun = time.perf_counter()
first = jax.jit(init)(jax.random.key(0))
x, y = (jax.random.normal(jax.random.key(n), (TOKENS, WIDTH)) for n in (1, 2))
times, seconds = in_turns(STEPS, first, (x, y))
steps = report(times, "dense") | {"compile_seconds": seconds}

_, activity = jax.jit(bb.observe(loss_fn, units))(first, x, y)
grads = jax.tree.map(jnp.ones_like, first)
times, _ = in_turns(UPDATES, first, (grads, activity))
updates = report(times, "sgd")
print(f"{time.perf_counter() - begun:.0f} s")


# %%
def selected(shape, axis):
    """Milliseconds of every way to select; the masks have to be equal."""
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=shape).astype(np.float32))
    k = jnp.asarray(rng.integers(0, shape[axis] + 1, shape[1 - axis]), jnp.int32)
    ways = {
        name: jax.jit(way).lower(scores, k).compile()
        for name, way in selections(axis, shape[axis]).items()
    }
    assert bool((ways["count"](scores, k) == ways["sort"](scores, k)).all())
    slowest = max(milliseconds(lambda w=way: w(scores, k)) for way in ways.values())
    calls = CALLS if slowest < 100 else 1
    times = {name: [] for name in ways}
    for round_ in range(ROUNDS):
        order = list(ways) if round_ % 2 else list(ways)[::-1]
        for name in order:
            ms = milliseconds(lambda w=ways[name]: [w(scores, k) for _ in range(calls)])
            times[name].append(ms / calls)
    return {name: spread(ms) for name, ms in times.items()}


begun = time.perf_counter()
selection = {
    f"{shape[0]}x{shape[1]} axis {axis}": selected(shape, axis)
    for shape in SHAPES
    for axis in (0, 1)
}
print(f"{time.perf_counter() - begun:.0f} s")

# %% [markdown]
# ## Your device beside a CPU
#
# The figures of the CPU are those that the repository publishes
# (`benchmarks/results/speed_cpu.json`): medians on 2 cores of an AMD EPYC, jax 0.10.2,
# the model with 8 blocks and 256 tokens.

# %%
CPU = {
    "dense/plain, ms": 201.7,
    "law/plain": 1.013,
    "law/refresh": 1.288,
    "law/every=100": 1.016,
    "default/plain": 1.009,
    "default/refresh": 1.604,
    "default/every=100": 1.015,
    "512x2048 axis 0": {"count": 4.607, "sort": 171.8, "lax.top_k": 168.6},
    "512x2048 axis 1": {"count": 2.509, "sort": 198.3, "lax.top_k": 220.4},
    "2048x2048 axis 0": {"count": 19.9, "sort": 963.0, "lax.top_k": 909.6},
    "2048x2048 axis 1": {"count": 11.4, "sort": 977.8, "lax.top_k": 940.8},
    "4096x4096 axis 0": {"count": 123.7, "sort": 4448.0, "lax.top_k": 4315.0},
    "4096x4096 axis 1": {"count": 79.99, "sort": 4149.0, "lax.top_k": 4409.0},
}


def cell(value, digits=2):
    low, median, high = (value[kind] for kind in ("low", "median", "high"))
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


device = jax.devices()[0].device_kind
print(f"this device: {BACKEND}, {device}, jax {jax.__version__}; {TOKENS} tokens")
dense_ms = steps["ms"]["dense/plain"]
print(f"\n{'train step':26} {'this device':24} CPU, published")
print(f"{'dense, ms':26} {cell(dense_ms):24} {CPU['dense/plain, ms']:.1f}")
for label, ratio in steps["ratio"].items():
    print(f"{label + ' / dense':26} {cell(ratio):24} {CPU[label]:.2f}")
compiling = ", ".join(
    f"{name} {s:.1f} s" for name, s in steps["compile_seconds"].items()
)
print("compile:", compiling)

print(f"\n{'update alone, ms':26} this device")
for label in ("sgd/plain", *(f"{n}/{k}" for n in RULES for k in ("plain", "refresh"))):
    print(f"{label:26} {cell(updates['ms'][label])}")

print(f"\n{'selection, ms':18} {'way':10} {'this device':30} CPU, published")
for case, ways in selection.items():
    for way, ms in ways.items():
        published = CPU.get(case, {}).get(way)
        print(f"{case:18} {way:10} {cell(ms):30} {published or '-'}")

# %%
plt.rcParams.update(
    {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False}
)
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#8a8a8a"
figure, (left, right) = plt.subplots(
    1, 2, figsize=(10.5, 4), layout="constrained", width_ratios=(1.2, 1)
)
labels = list(steps["ratio"])
rows = np.arange(len(labels))[::-1]
middle, low, high = (
    np.array([steps["ratio"][label][kind] for label in labels])
    for kind in ("median", "low", "high")
)
reach = middle - low, high - middle
left.errorbar(
    middle, rows, xerr=reach, fmt="o", color=BLUE, capsize=3, label=f"this {BACKEND}"
)
left.plot(
    [CPU[label] for label in labels],
    rows,
    "D",
    color=GREY,
    mfc="none",
    label="CPU, published",
)
left.axvline(1, color="black", lw=1, ls=":")
left.set_yticks(rows, [label.replace("/", ", ") for label in labels])
left.set_xlabel("time of a train step / dense, median and quartiles")
left.legend(frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))

at = np.arange(len(selection))
for way, color, marker in (("count", BLUE, "o"), ("lax.top_k", ORANGE, "^")):
    ms = [ways[way]["median"] for ways in selection.values()]
    right.plot(at, ms, marker, color=color, label=f"{way}, this {BACKEND}")
    known = [CPU.get(case, {}).get(way, np.nan) for case in selection]
    right.plot(
        at,
        known,
        marker,
        color=color,
        mfc="none",
        ms=10,
        label=f"{way}, CPU, published",
    )
right.set_yscale("log")
names = [
    case.replace(" axis ", "\naxis ").replace("x", " ×\n", 1) for case in selection
]
right.set_xticks(at, names, fontsize=8)
right.set_ylabel("selection, ms, median")
right.legend(
    frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1)
)
plt.show()

# %% [markdown]
# ## Save, and send back
#
# The file holds the kind of device, the versions and all figures, and nothing else of
# your machine. In Colab you find it under *Files*. Attach it to an issue of the
# repository, <https://github.com/OWNER/bbjax>.

# %%
FILE = f"bbjax_benchmark_{BACKEND}.json"
result = {
    "backend": BACKEND,
    "device": device,
    "devices": jax.device_count(),
    "cores": os.cpu_count(),
    "small": SMALL,
    "versions": {
        "python": platform.python_version(),
        "bbjax": bb.__version__,
        **{m.__name__: m.__version__ for m in (jax, flax, optax, np)},
    },
    "model": {
        "layers": LAYERS,
        "width": WIDTH,
        "hidden": HIDDEN,
        "tokens": TOKENS,
        "density": DENSITY,
    },
    "rounds": ROUNDS,
    "calls_per_turn": CALLS,
    "step": steps,
    "update": updates,
    "selection": selection,
}
with open(FILE, "w", encoding="utf-8") as file:
    json.dump(result, file, indent=1)
print("saved", FILE)
