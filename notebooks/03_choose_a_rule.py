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
# # Choose a rule
#
# [![Open in Colab][badge]][colab]
#
# [badge]: https://colab.research.google.com/assets/colab-badge.svg
# [colab]: https://colab.research.google.com/github/OWNER/bbjax/blob/main/notebooks/03_choose_a_rule.ipynb
#
# A *rule* says which edges are kept. bbjax has twenty-one of them under one contract:
# budget, schedule, optimizer and model stay as they are, and only one argument changes.
# Here they meet on one task: accuracy against density, first for rules that prune while
# the net trains, then for rules that prune a trained net once. At the end a table says
# which differences are more than noise.
#
# About 3 minutes on a CPU with 2 cores, much of it compilation.

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

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import bbjax as bb

SMALL = bool(os.environ.get("BBJAX_SMALL"))  # a quick run: fewer seeds, steps and rules
STEPS = 120 if SMALL else 400
SEEDS = 2 if SMALL else 8
DENSITIES = jnp.array([0.3, 0.03] if SMALL else [0.3, 0.1, 0.03, 0.01])
BATCH, RATE = 64, 2e-3

# %% [markdown]
# ## The task
#
# The digits of scikit-learn, and a net with two hidden layers, 64–128–64–10. The
# kernels of both hidden layers are pruned, the head stays dense.

# %%
digits = load_digits()
images, labels = digits.data.astype(np.float32), digits.target.astype(np.int32)
train_x, test_x, train_y, test_y = train_test_split(
    images, labels, test_size=0.4, stratify=labels, random_state=0
)
mean, sd = train_x.mean(), train_x.std()
train_x, test_x = jnp.asarray((train_x - mean) / sd), jnp.asarray((test_x - mean) / sd)
train_y, test_y = jnp.asarray(train_y), jnp.asarray(test_y)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(128, name="hidden_0")(x))
        x = nn.relu(nn.Dense(64, name="hidden_1")(x))
        return nn.Dense(10, name="head")(x)


def logits(params, x):
    return Net().apply({"params": params}, x)


def loss_fn(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


def accuracy(params):
    """Test accuracy in percent."""
    return 100 * jnp.mean(jnp.argmax(logits(params, test_x), -1) == test_y)


def batches(key):
    """Which images each step sees, (STEPS, BATCH)."""
    keys = jax.random.split(key, STEPS)
    return jax.vmap(lambda k: jax.random.choice(k, len(train_y), (BATCH,), False))(keys)


# What a seed fixes, the same for every rule: first weights, batches, and a key.
keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), 3))(
    jnp.arange(SEEDS)
)
firsts = jax.jit(jax.vmap(lambda key: Net().init(key, train_x[:1])["params"]))(
    keys[:, 0]
)
orders = jax.jit(jax.vmap(batches))(keys[:, 1])
first = jax.tree.map(lambda leaf: leaf[0], firsts)
units = bb.trace(loss_fn, first, train_x[:BATCH], train_y[:BATCH]).select("hidden")
print(units)

# %% [markdown]
# ## Rules that prune while training
#
# There are four ways to begin, and a rule says which one suits it:
#
# - **on a ramp**: dense at first, then fewer and fewer edges; with regrowth, a weight
#   can come back with its old value. This is the usual way.
# - **sparse from the start**: from a random mask of the final density. Weights that
#   come back start at 0, so no dense copy is stored; `bb.wrap` gives the rule the dense
#   gradients.
# - **before training**: masks are chosen from the first weights and held with
#   `bb.hold`.
# - **as it comes**: rules that take no density. Theirs is an outcome of a knob of their
#   own, so they stand at other places of the picture and not in the table.
#
# All rules run with `k_min=0`, as the baselines among them are published.

# %%
START, STOP, EVERY = STEPS // 10, STEPS * 3 // 4, STEPS // 40
SETTINGS = {"start": START, "stop": STOP, "every": EVERY, "k_min": 0}


def on_a_ramp(rule, params, density, key):
    """First weights, the optimizer, and the rule that is at work while training."""
    ramp = bb.ramp(density, start=START, steps=STEPS // 2, power=3)
    prune = bb.transform(units, rule, density=ramp, **SETTINGS)
    return params, optax.chain(optax.adam(RATE), prune), rule


def sparse_from_the_start(rule, params, density, key):
    seed = jax.random.randint(key, (), 0, 2**30)
    first_rule = bb.rules.random(seed=seed)
    params, masks = bb.prune(params, units, first_rule, density, k_min=0)
    settings = SETTINGS | {"density": density, "masks": masks}
    return params, bb.wrap(optax.adam(RATE), units, rule, **settings), rule


def before_training(gradient):
    def begin(rule, params, density, key):
        grads = gradient(params)
        params, masks = bb.prune(params, units, rule, density, grads=grads, k_min=0)
        return params, optax.chain(optax.adam(RATE), bb.hold(masks)), None

    return begin


def by_flow(rule, params, density, key):
    """SynFlow, which prunes in rounds and looks at no data."""
    params, masks = bb.saliency.prune_by_flow(
        logits, params, units, density, train_x[:1], rounds=5, k_min=0
    )
    return params, optax.chain(optax.adam(RATE), bb.hold(masks)), None


def as_it_comes(make, params, knob, key):
    rule = make(knob)
    prune = bb.transform(units, rule, **SETTINGS)
    return params, optax.chain(optax.adam(RATE), prune), rule


def slopes(params):
    return jax.grad(loss_fn)(params, train_x, train_y)


def curved(params):
    return bb.saliency.hessian_gradient(loss_fn, params, train_x, train_y)


rules, laws = bb.rules, bb.laws
METHODS = {
    "BB": (rules.budgeted_broadcast(), on_a_ramp),
    "BB, law alone": (rules.budgeted_broadcast(competition=0), on_a_ramp),
    "BB, quantile law": (rules.budgeted_broadcast(law=laws.quantile()), on_a_ramp),
    "BB, three-zone law": (rules.budgeted_broadcast(law=laws.three_zone()), on_a_ramp),
    "BB, threshold law": (rules.budgeted_broadcast(law=laws.threshold()), on_a_ramp),
    "activity-only": (rules.activity_only(), on_a_ramp),
    "priced at 1": (rules.priced(price=1.0), on_a_ramp),
    "priced at 0, global": (rules.priced(price=0, scope="global"), on_a_ramp),
    "magnitude, unit": (rules.magnitude(), on_a_ramp),
    "magnitude, layer": (rules.magnitude(scope="layer"), on_a_ramp),
    "magnitude, global": (rules.magnitude(scope="global"), on_a_ramp),
    "Wanda, refreshed": (rules.wanda(), on_a_ramp),
    "activation top-k": (rules.activation_topk(), on_a_ramp),
    "random": (rules.random(), sparse_from_the_start),
    "SET": (rules.set_(), sparse_from_the_start),
    "RigL": (rules.rigl(anneal=STOP), sparse_from_the_start),
    "SRigL": (rules.srigl(anneal=STOP), sparse_from_the_start),
    "SNIP": (rules.snip(), before_training(slopes)),
    "GraSP": (rules.grasp(), before_training(curved)),
    "SynFlow, 5 rounds": (rules.synflow(), by_flow),
}


def threshold(traffic):
    return rules.threshold(traffic=traffic, fraction=0.3)


def trimming(sigmas):
    return rules.apoz(sigmas=sigmas)


def free_threshold(tau):
    return rules.unbudgeted(laws.threshold(tau))


OUTCOMES = {  # the knob is the share of the traffic; standard deviations; tau
    "threshold": (threshold, as_it_comes, jnp.array([0.6, 0.3, 0.1, 0.03])),
    "APoZ": (trimming, as_it_comes, jnp.array([3.0, 2.0, 1.5, 1.0])),
    "unbudgeted threshold law": (
        free_threshold,
        as_it_comes,
        jnp.array([8.0, 4, 2, 1]),
    ),
}
if SMALL:
    METHODS = {name: METHODS[name] for name in ("BB", "RigL", "SNIP")}
    OUTCOMES = {}

# %% [markdown]
# A *lane* is one seed at one density. All lanes of a rule are one compiled program: the
# training run is a `lax.scan` whose carry holds weights and optimizer state, and two
# `vmap`s make the lanes.

# %%
PRUNED = tuple(units.budgeted)


def fit(params, tx, order, rule):
    """Trains over the batches of a seed."""
    tx = optax.with_extra_args_support(tx)

    def step(carry, rows):
        params, opt_state = carry
        batch, extra = (train_x[rows], train_y[rows]), {}
        if rule is not None and rule.reads_activity:
            measured = bb.value_and_grad(loss_fn, units, needs=rule.needs)
            _, grads, extra["activity"] = measured(params, *batch)
        else:
            grads = jax.grad(loss_fn)(params, *batch)
        updates, opt_state = tx.update(grads, opt_state, params, **extra)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(step, (params, tx.init(params)), order)[0]


def kept_share(masks):
    kept = [masks[path] for path in PRUNED]
    return sum(mask.sum() for mask in kept) / sum(mask.size for mask in kept)


def lane(rule, begin, level, params, order, key):
    """Test accuracy (%) and density of one seed at one density (or knob)."""
    params, tx, at_work = begin(rule, params, level, key)
    params, opt_state = fit(params, tx, order, at_work)
    return accuracy(params), kept_share(bb.masks(opt_state))


def all_lanes(rule, begin, levels):
    """Accuracy and density, (levels, SEEDS) each."""
    one = functools.partial(lane, rule, begin)
    seeds = jax.vmap(one, in_axes=(None, 0, 0, 0))
    run = jax.jit(jax.vmap(seeds, in_axes=(0, None, None, None)))
    return jax.device_get(run(levels, firsts, orders, keys[:, 2]))


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0))
def dense_lane(params, order):
    params, _ = fit(params, optax.adam(RATE), order, None)
    return params, accuracy(params)


trained, dense = dense_lane(firsts, orders)
dense = np.asarray(dense)
found = {}
for name, (rule, begin) in METHODS.items():
    found[name], density = all_lanes(rule, begin, DENSITIES)
    # Exact to the edge; rules that keep whole units can only come near.
    near = 5e-3 if name == "activation top-k" else 1e-3
    assert np.allclose(density, DENSITIES[:, None], atol=near), name
came_out = {name: all_lanes(*how) for name, how in OUTCOMES.items()}
print(f"dense {dense.mean():.2f} ± {dense.std(ddof=1):.2f} %")

# %% [markdown]
# ## Rules that prune a trained net
#
# The dense nets from above are pruned once, without retraining. `bb.calibrate` measures
# what the rules need on the training images: all statistics of all rules in one pass.
# Labels play no part in it.
#
# NNrelief and APoZ take no density either.

# %%
ONCE = {
    "magnitude, unit": rules.magnitude(),
    "magnitude, layer": rules.magnitude(scope="layer"),
    "Wanda": rules.wanda(),
    "SparseGPT": rules.sparsegpt(),
    "BB": rules.budgeted_broadcast(),
    "BB, Wanda's score": rules.budgeted_broadcast(score="wanda", competition=0),
    "priced at 1": rules.priced(price=1.0),
    "fine-pruning, weights": rules.fine_pruning(by="weights"),
    "fine-pruning, units": rules.fine_pruning(),
    "activation top-k": rules.activation_topk(),
}


def relief(alpha):
    return rules.nnrelief(alpha=alpha)


ONCE_OUTCOMES = {  # the knob is the kept share of a unit's signal; standard deviations
    "NNrelief": (relief, jnp.array([0.95, 0.8, 0.6, 0.4])),
    "APoZ": (trimming, jnp.array([3.0, 2.0, 1.5, 1.0])),
}
if SMALL:
    few = ("magnitude, layer", "SparseGPT", "fine-pruning, units")
    ONCE = {name: ONCE[name] for name in few}
    del ONCE_OUTCOMES["APoZ"]
needs = {need for rule in ONCE.values() for need in rule.needs}
needs |= {need for make, knobs in ONCE_OUTCOMES.values() for need in make(0.5).needs}
each = [jax.tree.map(lambda leaf, s=s: leaf[s], trained) for s in range(SEEDS)]
pass_over = [(train_x, train_y)]
stats = [
    bb.calibrate(loss_fn, units, params, pass_over, needs=sorted(needs))
    for params in each
]


def once(make, levels):
    """Accuracy and density of nets pruned once, (levels, SEEDS) each."""

    @jax.jit
    def one(level, params, stats):
        rule, density = make(level)
        pruned, masks = bb.prune(params, units, rule, density, stats=stats, k_min=0)
        return accuracy(pruned), kept_share(masks)

    # Nets take turns rather than lanes: SparseGPT factors a matrix for every kernel,
    # and on a CPU with few cores XLA can hang in many of those at once.
    results = [
        [one(level, *net) for net in zip(each, stats, strict=True)] for level in levels
    ]
    return np.moveaxis(np.array(results), -1, 0)


found_once, came_out_once = {}, {}
for name, rule in ONCE.items():
    found_once[name], _ = once(lambda density, rule=rule: (rule, density), DENSITIES)
for name, (make, knobs) in ONCE_OUTCOMES.items():
    came_out_once[name] = once(lambda knob, make=make: (make(knob), None), knobs)

# %% [markdown]
# ## Accuracy against density
# The broad grey line is the *front*: at each density the best mean of all rules. Rules
# that are not in the legend are drawn in light grey. Crosses are rules whose density is
# an outcome.

# %%
plt.rcParams.update(
    {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False}
)
LOOKS = {
    "BB": {"color": "#0072b2", "marker": "o", "ls": "-"},
    "activity-only": {"color": "#e69f00", "marker": "^", "ls": "-."},
    "magnitude, unit": {"color": "#8a8a8a", "marker": "s", "ls": "--"},
    "magnitude, layer": {"color": "#555555", "marker": "s", "ls": "-"},
    "priced at 0, global": {"color": "#009e73", "marker": "D", "ls": "--"},
    "RigL": {"color": "#d55e00", "marker": "v", "ls": ":"},
    "SNIP": {"color": "#cc79a7", "marker": "P", "ls": ":"},
    "Wanda": {"color": "#009e73", "marker": "D", "ls": "--"},
    "SparseGPT": {"color": "#d55e00", "marker": "v", "ls": ":"},
    "fine-pruning, weights": {"color": "#cc79a7", "marker": "P", "ls": "-."},
    "fine-pruning, units": {"color": "black", "marker": "X", "ls": ":"},
}
x = np.asarray(DENSITIES)
ACCURACIES = (10, 50, 80, 90, 95, 97, 98)  # ticks; the axis is a log scale of the error
figure, axes = plt.subplots(1, 2, figsize=(11, 5.6), layout="constrained", sharey=True)
for ax, scores, outcomes, title in (
    (axes[0], found, came_out, "Pruned while training, or before"),
    (axes[1], found_once, came_out_once, "Pruned once, after training"),
):
    front = np.max([s.mean(1) for s in scores.values()], axis=0)
    ax.plot(x, 100 - front, color="black", lw=5, alpha=0.25, label="front")
    for name, s in scores.items():
        plain = {"color": "#cccccc", "lw": 1, "zorder": 1}
        look = LOOKS.get(name, plain)
        label = name if name in LOOKS else None
        ax.plot(x, 100 - s.mean(1), ms=5, label=label, **look)
    for (name, (s, density)), marker in zip(outcomes.items(), "x+1", strict=False):
        look = {"color": "black", "marker": marker, "ls": "", "ms": 7}
        ax.plot(density.mean(1), 100 - s.mean(1), label=name, **look)
    ax.axhline(100 - dense.mean(), color="black", lw=1, ls=(0, (6, 2)), label="dense")
    ax.set_xscale("log")
    ax.set_xticks(x, [f"{density:g}" for density in x])
    ax.minorticks_off()
    ax.grid(color="#e4e4e4", lw=0.6)
    ax.set_xlabel("density (kept share of the edges of both hidden kernels)")
    ax.set_title(title, loc="left", fontsize=10)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": 3}
    ax.legend(frameon=False, fontsize=8, **below)
axes[0].set_yscale("log")
axes[0].set_yticks([100 - a for a in ACCURACIES], ACCURACIES)
axes[0].minorticks_off()
axes[0].invert_yaxis()
axes[0].set_ylabel(f"test accuracy (%), mean of {SEEDS} seeds")
plt.show()

# %% [markdown]
# ## The table, and what is noise
#
# Mean ± sd over the seeds; `*` is the best mean of a column, `=` what these seeds
# cannot tell from it: the paired difference to the best is below the 5 % point of
# Student's distribution, corrected for the number of rules in the column (Bonferroni).
# So `=` means "not told apart", not "equal": where a rule comes out very differently
# from seed to seed, even a large gap can stay unresolved.
#
# The last column is the mean rank over the densities: it orders the rows, and says
# nothing by itself.

# %%
LUCK = np.random.default_rng(0).standard_t(SEEDS - 1, 4_000_000)


def table(scores):
    """Prints a table; returns for each density how many rules equal the best."""
    names, values = list(scores), np.array(list(scores.values()))
    means = values.mean(2)
    better = (means[None] > means[:, None]).sum(1)
    tied = (means[None] == means[:, None]).sum(1)
    ranks = (better + (tied + 1) / 2).mean(1)

    critical = np.quantile(np.abs(LUCK), 1 - 0.05 / (len(names) - 1))
    best = means.argmax(0)
    gaps = values[best, np.arange(len(x))] - values
    errors = gaps.std(2, ddof=1) / SEEDS**0.5
    equal = gaps.mean(2) <= critical * errors
    print(f"{'':22}" + "".join(f"density {d:<10g}" for d in x) + "mean rank")
    for i in np.argsort(ranks, kind="stable"):
        row = f"{names[i]:22}"
        for j in range(len(x)):
            mark = "*" if i == best[j] else "=" if equal[i, j] else " "
            row += f"{means[i, j]:5.1f} ± {values[i, j].std(ddof=1):4.1f} {mark}    "
        print(f"{row}{ranks[i]:6.1f}")
    return equal.sum(0)


print("while training, or before\n")
alike = table(found)
print("\nonce, after training\n")
alike_once = table(found_once)

print("\ndensity is an outcome\n")
for outcomes in (came_out, came_out_once):
    for name, (scores, density) in outcomes.items():
        pairs = zip(density.mean(1), scores.mean(1), strict=True)
        print(f"{name:26}" + ",  ".join(f"{s:.1f} % at {d:.3f}" for d, s in pairs))

# %%
for what, many, scores in (
    ("While training", alike, found),
    ("In one shot", alike_once, found_once),
):
    for density, number in zip(x, many, strict=True):
        share = f"{number} of {len(scores)} rules"
        print(
            f"{what}, density {density:g}: {share} cannot be told apart from the best"
        )

# %% [markdown]
# Two cautions. With few seeds a true difference of a few tenths of a point stays in the
# noise; and the best of many means is too good by luck, because it was chosen for being
# the best. What the table can show is large: which rules fall off as the budget
# tightens, and where it makes no difference which one you take.
#
# This is one small net on one small data set. To choose for a task of your own, run
# this comparison on it: the rules are the same.
