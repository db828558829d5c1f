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
# # Rare features
#
# [![Open in Colab][badge]][colab]
#
# [badge]: https://colab.research.google.com/assets/colab-badge.svg
# [colab]: https://colab.research.google.com/github/OWNER/bbjax/blob/main/notebooks/05_rare_features.ipynb
#
# A rule that prunes by size sees what matters often. Budgeted Broadcast is meant to
# protect what is rare: an input that is seldom on has a small traffic, so it may keep a
# large audience. Here is a task with rare, moderate and common features, and the
# question in two parts: do rare inputs keep their fan-out, and is what depends on them
# recognised better for it?
#
# About 2 minutes on a CPU with 2 cores, compilation included.

# %%
from importlib.util import find_spec

# What to install where bbjax is missing: its repository, or a wheel
# ("bbjax[demo] @ file:///content/bbjax-0.1.0-py3-none-any.whl"), or "bbjax[demo]" once
# bbjax is on the package index. OWNER is still to be filled in.
SOURCE = "bbjax[demo] @ git+https://github.com/OWNER/bbjax"
if find_spec("bbjax") is None:
    print("installing", SOURCE)
    # %pip install --quiet "$SOURCE"

# %%
import functools
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import bbjax as bb

SMALL = bool(os.environ.get("BBJAX_SMALL"))  # a quick run, to see that it works
STEPS = 600 if SMALL else 3000
SEEDS = 2 if SMALL else 8
DENSITIES = [0.1] if SMALL else [0.2, 0.1, 0.05]

# %% [markdown]
# ## The task
#
# The label is a DNF, an OR of clauses; a clause is a feature AND a gate of its own. All
# bits are independent:
#
# - **features** are on with probability .02 (rare), .2 (moderate) or .5 (common);
# - **gates** are on with probability .5, every clause has one;
# - **distractors** have the same on-rates as the features and mean nothing.
#
# So an input's on-rate says nothing about whether it is of use. To ask what a net knows
# of rare clauses, we look at inputs that are positive because of rare clauses *only*,
# and likewise for the other two kinds.

# %%
RATES = {"rare": 0.02, "moderate": 0.2, "common": 0.5}
CLAUSES = {"rare": 8, "moderate": 3, "common": 1}
KIND = np.repeat(list(CLAUSES), list(CLAUSES.values()))  # of each clause
N = len(KIND)
ON = np.array([RATES[kind] for kind in KIND], np.float32)
ON = jnp.asarray(np.concatenate([ON, np.full(N, 0.5, np.float32), ON]))
ROLES = {
    "feature": slice(0, N),
    "gate": slice(N, 2 * N),
    "distractor": slice(2 * N, None),
}


def clauses(x):
    """Which clauses are met, (count, N)."""
    return (x[:, ROLES["feature"]] > 0) & (x[:, ROLES["gate"]] > 0)


def sample(key, count):
    """Inputs (count, 3 N) of zeros and ones, and labels (count,)."""
    x = jax.random.bernoulli(key, ON, (count, len(ON))).astype(jnp.float32)
    return x, clauses(x).any(1).astype(jnp.float32)


test_x, test_y = sample(jax.random.key(1000), 2**16)
met = np.asarray(clauses(test_x))
by_kind = {kind: met[:, KIND == kind].any(1) for kind in RATES}
ONLY = {k: by_kind[k] & (sum(by_kind.values()) == 1) for k in RATES}
print(f"{float(test_y.mean()):.0%} of the labels are positive; because of")
for kind, rows in ONLY.items():
    print(f"  {kind} clauses only: {rows.mean():.1%} ({rows.sum()} test inputs)")

# %% [markdown]
# ## Net, rules and training
#
# One hidden layer of 64 units. Budgeted is the first kernel, from its input side: with
# `actuator="out"` the units are the *inputs*, and the budget counts their outgoing
# edges.
#
# All rules keep exactly the same number of edges:
#
# - *Budgeted Broadcast*, the law alone and steep: half of the mean degree per nat of
#   log-odds, within five nats, so that what it does is plain to see. (The default is
#   mild, and gives raw inputs what their edges win in the whole layer.) Once with a
#   floor of one edge per input, once with three (`k_min=3`), which the busiest inputs
#   live on;
# - *activity-only*: degrees in proportion to $1 - a$, a control without a price on the
#   degree;
# - *magnitude, layer*: all edges of the kernel compete by size;
# - *magnitude, equal*: every input keeps the same number of edges.

# %%
HIDDEN, BATCH, PATH = 64, 256, "layer1/kernel"


def init(key):
    first, second = jax.random.split(key)
    return {
        "layer1": {
            "kernel": jax.random.normal(first, (len(ON), HIDDEN))
            * (2 / len(ON)) ** 0.5,
            "bias": jnp.zeros(HIDDEN),
        },
        "layer2": {
            "kernel": jax.random.normal(second, (HIDDEN, 1)) * HIDDEN**-0.5,
            "bias": jnp.zeros(1),
        },
    }


def logits(params, x):
    x = jax.nn.relu(x @ params["layer1"]["kernel"] + params["layer1"]["bias"])
    return (x @ params["layer2"]["kernel"] + params["layer2"]["bias"])[:, 0]


def loss_fn(params, x, y):
    return optax.sigmoid_binary_cross_entropy(logits(params, x), y).mean()


batch = sample(jax.random.key(0), BATCH)
units = bb.trace(loss_fn, init(jax.random.key(0)), *batch).select(
    "layer1", actuator="out"
)
print(units)

STEEP = bb.laws.log_odds(spread=0.5, limit=5.0, floor=0.0)
RULES = {  # and the least number of edges of an input
    "BB": (bb.rules.budgeted_broadcast(law=STEEP), 1),
    "BB, k_min = 3": (bb.rules.budgeted_broadcast(law=STEEP), 3),
    "activity-only": (bb.rules.activity_only(), 1),
    "magnitude, layer": (bb.rules.magnitude(scope="layer"), 1),
    "magnitude, equal": (bb.rules.magnitude(), 1),
}

# %%
TIMES = 30  # measurements during training


def train(rule, k_min, density, seed):
    """Over time: fan-out of every input; at the end: what is recognised, in percent."""
    first, rest = jax.random.split(jax.random.key(seed))
    params = init(first)
    prune = bb.transform(
        units,
        rule,
        density=bb.ramp(density, start=STEPS // 10, steps=STEPS // 2, power=3),
        start=STEPS // 10,
        every=STEPS // 60,
        stop=STEPS * 3 // 4,
        k_min=k_min,
    )
    tx = optax.chain(optax.adam(5e-3), prune)

    def step(carry, key):
        params, opt_state = carry
        measured = bb.value_and_grad(loss_fn, units)
        _, grads, activity = measured(params, *sample(key, BATCH))
        updates, opt_state = tx.update(grads, opt_state, params, activity=activity)
        return (optax.apply_updates(params, updates), opt_state), None

    def stretch(carry, keys):
        carry, _ = jax.lax.scan(step, carry, keys)
        return carry, bb.degrees_of(carry[1])[PATH]

    keys = jax.random.split(rest, STEPS).reshape(TIMES, -1)
    carry, fan_out = jax.lax.scan(stretch, (params, tx.init(params)), keys)
    yes = logits(carry[0], test_x) > 0
    scores = {kind: 100 * jnp.mean(yes, where=rows) for kind, rows in ONLY.items()}
    scores["false alarms"] = 100 * jnp.mean(yes, where=test_y == 0)
    return fan_out, scores


fan_outs, recalls = {}, {}
for name, (rule, k_min) in RULES.items():
    run = functools.partial(train, rule, k_min)
    seeds = jax.jit(jax.vmap(run, in_axes=(None, 0)))
    for density in DENSITIES:
        fan_out, scores = jax.device_get(seeds(jnp.float32(density), jnp.arange(SEEDS)))
        assert (fan_out[:, -1].sum(1) == round(density * len(ON) * HIDDEN)).all()
        fan_outs[name, density], recalls[name, density] = fan_out, scores
_, dense = jax.device_get(seeds(jnp.float32(1), jnp.arange(SEEDS)))  # prunes nothing

# %% [markdown]
# ## Who keeps an audience?
#
# Mean fan-out over training, at the density of .1. The dotted line is where every input
# would be with equal degrees.

# %%
plt.rcParams.update(
    {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False}
)
LOOKS = {
    ("feature", "rare"): {"color": "#0072b2", "marker": "o", "ls": "-"},
    ("feature", "moderate"): {"color": "#009e73", "marker": "D", "ls": "-"},
    ("feature", "common"): {"color": "#d55e00", "marker": "v", "ls": "-"},
    ("distractor", "rare"): {
        "color": "#0072b2",
        "marker": "o",
        "ls": ":",
        "mfc": "white",
    },
    ("gate", "rare"): {"color": "#8a8a8a", "marker": "s", "ls": "--"},
}


def of_inputs(per_input, role, kind):
    """Entries of inputs of a role and a kind; a gate has the kind of its clause."""
    return per_input[..., ROLES[role]][..., KIND == kind]


steps = (np.arange(TIMES) + 1) * STEPS // TIMES
figure, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained", sharey=True)
for ax, name in zip(axes, ("BB", "activity-only", "magnitude, layer"), strict=True):
    for i, ((role, kind), look) in enumerate(LOOKS.items()):
        mean = of_inputs(fan_outs[name, 0.1], role, kind).mean((0, 2))
        label = f"gates of {kind} features" if role == "gate" else f"{kind} {role}s"
        ax.plot(steps, mean, markevery=(i, 5), ms=5, label=label, **look)
    ax.axhline(0.1 * HIDDEN, color="black", lw=1, ls=":")
    ax.set_yscale("log", base=2)
    ax.set_yticks([1, 2, 4, 8, 16, 32, 64], [1, 2, 4, 8, 16, 32, 64])
    ax.set_title(name, loc="left", fontsize=10)
    ax.set_xlabel("training step")
axes[0].set_ylabel(f"fan-out (kept edges of {HIDDEN}), mean")
handles, labels = axes[0].get_legend_handles_labels()
figure.legend(
    handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9
)
plt.show()

print("fan-out at the end, density 0.1: mean over inputs and seeds")
print("                    features             gates of             distractors")
print(
    "                    rare  mod.  common   rare  mod.  common   rare  mod.  common"
)
for name in RULES:
    last = fan_outs[name, 0.1][:, -1]
    row = "".join(
        "   " + "".join(f"{of_inputs(last, role, kind).mean():6.1f}" for kind in RATES)
        for role in ROLES
    )
    print(f"{name:17}{row}")

# %%
rare = {n: of_inputs(fan_outs[n, 0.1][:, -1], "feature", "rare").mean() for n in RULES}
useless = {
    n: of_inputs(fan_outs[n, 0.1][:, -1], "distractor", "rare").mean() for n in RULES
}
for name in ("BB", "magnitude, layer"):
    sees = "cannot tell" if abs(rare[name] / useless[name] - 1) < 0.2 else "tells"
    print(f"{name}: a rare feature keeps {rare[name]:.1f} edges, a rare", end=" ")
    print(f"distractor {useless[name]:.1f};")
    print(f"   the rule {sees} what is of use from what is only rare")

# %% [markdown]
# ## Is it recognised?
#
# Recall on inputs that are positive because of one kind of clause only, and false
# alarms on negative inputs, in percent. The last column compares the recall on rare
# clauses with that of magnitude in the layer, seed by seed: mean difference ± its
# standard error. It is called noise unless it exceeds the 5 % point of Student's
# distribution, corrected for the number of comparisons made here (Bonferroni).

# %%
REFERENCE = "magnitude, layer"
tests = (len(RULES) - 1) * len(DENSITIES)
t = np.random.default_rng(0).standard_t(SEEDS - 1, 4_000_000)
critical = np.quantile(np.abs(t), 1 - 0.05 / tests)


COLUMNS = [*RATES, "false alarms"]


def cell(values):
    return f"{values.mean():5.1f} ± {values.std(ddof=1):4.1f}"


verdicts = {}
print(f"recall on positives by clauses of one kind only; mean ± sd of {SEEDS} seeds")
header = " ".join(f"{c:^14}" for c in COLUMNS)
print(f"{'density':>7} {'rule':17} {header}   rare, against {REFERENCE}")
print(f"{1:7g} {'dense':17}", *(f"{cell(dense[c]):^14}" for c in COLUMNS))
for density in DENSITIES:
    for name in RULES:
        scores = recalls[name, density]
        line = f"{density:7g} {name:17}"
        line += "".join(f" {cell(scores[c]):^14}" for c in COLUMNS)
        if name != REFERENCE:
            gap = scores["rare"] - recalls[REFERENCE, density]["rare"]
            error = gap.std(ddof=1) / SEEDS**0.5
            sure = abs(gap.mean()) > critical * error
            verdict = ("better" if gap.mean() > 0 else "worse") if sure else "noise"
            verdicts[name, density] = verdict
            line += f" {gap.mean():+6.1f} ± {error:.1f} {verdict}"
        print(line)

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained")
STYLES = {
    "BB": {"color": "#0072b2", "marker": "o", "ls": "-"},
    "BB, k_min = 3": {"color": "#009e73", "marker": "D", "ls": "--"},
    "activity-only": {"color": "#e69f00", "marker": "^", "ls": "-."},
    "magnitude, layer": {"color": "#8a8a8a", "marker": "s", "ls": "-"},
    "magnitude, equal": {"color": "black", "marker": "v", "ls": ":"},
}
for ax, score in zip(axes, ("rare", "false alarms"), strict=True):
    for i, (name, style) in enumerate(STYLES.items()):
        values = np.array([recalls[name, density][score] for density in DENSITIES])
        at = np.array(DENSITIES) * 1.02 ** (i - 2)  # error bars side by side
        mean = values.mean(1)
        reach = mean - values.min(1), values.max(1) - mean
        ax.errorbar(at, mean, reach, capsize=2, label=name, **style)
    ax.set_xscale("log")
    ax.set_xticks(DENSITIES, [f"{density:g}" for density in DENSITIES])
    ax.minorticks_off()
    ax.set_xlabel("density (kept share of the edges of the first kernel)")
    ax.grid(color="#e4e4e4", lw=0.6)
axes[0].set_ylabel(f"recall on rare clauses (%), mean and range of {SEEDS} seeds")
axes[1].set_ylabel("false alarms on negative inputs (%)")
handles, labels = axes[0].get_legend_handles_labels()
figure.legend(
    handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9
)
plt.show()

# %% [markdown]
# ## Reading it
#
# The two parts of the question are answered apart.

# %%
common = of_inputs(fan_outs["BB", 0.1][:, -1], "feature", "common").mean()
gates = {n: of_inputs(fan_outs[n, 0.1][:, -1], "gate", "rare").mean() for n in RULES}
count = {v: list(verdicts.values()).count(v) for v in ("better", "worse", "noise")}
protected = rare["BB"] > 2 * common
print(f"1. Under BB a rare feature keeps {rare['BB']:.1f} edges,", end=" ")
print(f"a common one {common:.1f};")
print(f"   rare inputs {'do' if protected else 'do not'} keep their audience.")
print(f"2. Recall on rare clauses against {REFERENCE}, in {tests} comparisons:")
print("  ", ", ".join(f"{number} {verdict}" for verdict, number in count.items()))
for name in ("BB", "BB, k_min = 3"):
    found = ", ".join(f"{verdicts[name, d]} at {d:g}" for d in DENSITIES)
    print(f"   {name}: {found}")
print("3. A clause needs its gate. Edges that the gate of a rare feature keeps:")
print("  ", ", ".join(f"{name} {number:.1f}" for name, number in gates.items()))

# %% [markdown]
# Point 3 is the place to look at before you use such a rule on inputs. A budget knows
# how often an input is on, and nothing of what it is needed for: a busy input that many
# rare ones depend on is cut like any other busy one, and a rare input that means
# nothing is kept like any other rare one. The floor is the direct test: `k_min=3` keeps
# law and budget as they are, and takes from the quiet inputs what the busiest ones need
# to have three edges. Between hidden units, whose activity training shapes, things may
# come out differently: that is a question for your own task, with magnitude at the same
# density beside it.
