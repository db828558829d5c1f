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
# # Pruning in five lines
#
# [![Open in Colab][badge]][colab]
#
# [badge]: https://colab.research.google.com/assets/colab-badge.svg
# [colab]: https://colab.research.google.com/github/OWNER/bbjax/blob/main/notebooks/01_five_lines.ipynb
#
# We train a small Flax net on the handwritten digits of scikit-learn and prune it
# *while* it trains. Then we look at what is left: the masks, the degrees of the units
# beside their activity, and the accuracy at several densities beside magnitude pruning.
#
# About 1 minute on a CPU with 2 cores, compilation included. It runs alike on CPU, GPU
# and TPU.

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

SMALL = bool(os.environ.get("BBJAX_SMALL"))  # a quick run, to see that it works
STEPS = 200 if SMALL else 600
SEEDS = 2 if SMALL else 5
BATCH = 64
RATE = 2e-3

# %% [markdown]
# ## Data and net
#
# 1797 images of 8 × 8 pixels. Two fifths are held out, so one test image is 0.14 points
# of accuracy. The net has two hidden layers with ReLU. Nothing here knows about
# pruning.

# %%
digits = load_digits()
images, labels = digits.data.astype(np.float32), digits.target.astype(np.int32)
train_x, test_x, train_y, test_y = train_test_split(
    images, labels, test_size=0.4, stratify=labels, random_state=0
)
mean, sd = train_x.mean(), train_x.std()
train = {"x": jnp.asarray((train_x - mean) / sd), "y": jnp.asarray(train_y)}
test = {"x": jnp.asarray((test_x - mean) / sd), "y": jnp.asarray(test_y)}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(128)(x))
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(10)(x)


model = Net()


def loss_fn(params, batch):
    logits = model.apply({"params": params}, batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


@jax.jit
def accuracy(params):
    """Test accuracy in percent."""
    logits = model.apply({"params": params}, test["x"])
    return 100 * jnp.mean(jnp.argmax(logits, -1) == test["y"])


params = jax.jit(model.init)(jax.random.key(0), train["x"][:1])["params"]

# %% [markdown]
# ## The five lines
#
# 1. `import bbjax as bb`, above.
# 2. **`bb.trace`** reads off your loss function where the kernels are and which axes of
#    them are units. It computes nothing and the model stays as it is.
# 3. **`bb.transform`** is an Optax transformation. It comes *last* in the chain. Here
#    it keeps 10 % of the edges, reached on a ramp.
# 4. **`bb.value_and_grad`** is `jax.value_and_grad` that returns the activity of the
#    units as well.
# 5. **`activity=`** hands that on to the optimizer.

# %%
every = STEPS // 40  # steps between refreshes, at which masks are chosen anew
start, stop = STEPS // 10, STEPS * 3 // 4  # first refresh; from `stop` on masks stay
ramp = bb.ramp(0.1, start=start, steps=STEPS // 2, power=3)

units = bb.trace(loss_fn, params, train)  # 2
prune = bb.transform(units, density=ramp, every=every, start=start, stop=stop)  # 3
tx = optax.chain(optax.adam(RATE), prune)


@jax.jit
def train_step(params, opt_state, batch):
    loss, grads, activity = bb.value_and_grad(loss_fn, units)(params, batch)  # 4
    updates, opt_state = tx.update(grads, opt_state, params, activity=activity)  # 5
    return optax.apply_updates(params, updates), opt_state, loss


print(units)

# %% [markdown]
# The table lists every kernel. The column `budget` says which are pruned, and from
# which side: by default the hidden kernels that a nonlinearity follows, counted by the
# *incoming* edges of their output units. The head, `Dense_2`, stays dense.
#
# Now train. It is the loop that you would write without pruning.

# %%
rng = np.random.default_rng(0)
opt_state = tx.init(params)
for _ in range(STEPS):
    rows = rng.choice(len(train_y), BATCH, replace=False)
    batch = {"x": train["x"][rows], "y": train["y"][rows]}
    params, opt_state, loss = train_step(params, opt_state, batch)

print(f"test accuracy {accuracy(params):.1f} %")
for path in bb.masks(opt_state):
    weights = params[path.split("/")[0]]["kernel"]
    kept = int((weights != 0).sum())
    share = f"{kept} of {weights.size} weights are not 0 ({kept / weights.size:.1%})"
    print(f"{path}: {share}")

# %% [markdown]
# The budget is met to the edge, and the parameters themselves are sparse: there is no
# mask to apply when you evaluate, export or save them.
#
# ## Look at the masks
#
# `bb.masks(opt_state)` are boolean arrays, True where an edge is kept. The inputs of
# the first kernel are pixels, so we can also draw where in the image its kept edges
# begin.

# %%
plt.rcParams.update(
    {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False}
)
mask = np.asarray(bb.masks(opt_state)["Dense_0/kernel"])

figure, (left, right) = plt.subplots(
    1, 2, figsize=(9.5, 3.8), layout="constrained", width_ratios=(1.6, 1)
)
left.imshow(mask, cmap="Greys", aspect="auto", interpolation="nearest")
left.set_title("Mask of Dense_0/kernel (black: kept)", loc="left", fontsize=10)
left.set_xlabel("output unit")
left.set_ylabel("input unit (pixel)")
drawn = right.imshow(mask.sum(1).reshape(8, 8), cmap="Greys", vmin=0)
figure.colorbar(drawn, ax=right, label="kept outgoing edges")
right.set_title("Where the kept edges begin", loc="left", fontsize=10)
right.set_xlabel("pixel column")
right.set_ylabel("pixel row")
plt.show()

# %% [markdown]
# Some pixels are hardly ever inked. Do edges that begin there survive?

# %%
blank = (train_x > 0).mean(0) < 0.02
print(f"{blank.sum()} pixels are inked in fewer than 2 % of the images")
print(f"they keep {mask[blank].mean():.1%} of their edges, the others", end=" ")
print(f"{mask[~blank].mean():.1%}")

# %% [markdown]
# ## Degrees against activity
#
# The *degree* of a unit is the number of edges it keeps, its *on-rate* the share of
# inputs on which it is above 0. A degree has two parts. One is competition: three
# quarters of the edges that the unit's weights win among all weights of the layer. The
# other is the balance of Budgeted Broadcast: quiet units get more edges, busy units
# fewer, on a straight line of the log-odds of being off, $\log\frac{1-a}{a}$. The next
# notebook says why. `competition=0` leaves the line alone.
#
# `bb.degrees_of` and `bb.on_rates` read both from the optimizer state. The scatter
# around a line is competition, and what the on-rates did since masks stayed, from step
# `stop` on.

# %%
degrees, rates = bb.degrees_of(opt_state), bb.on_rates(opt_state)

figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
for ax, path in zip(axes, degrees, strict=True):
    a = np.clip(np.asarray(rates[path]), 0.01, 0.99)
    ax.plot(np.log((1 - a) / a), degrees[path], "o", ms=5, color="#0072b2", mec="white")
    ax.axhline(1, color="black", lw=1, ls=":", label="lower bound, k_min = 1")
    title = f"{path}, {len(a)} units of at most {units[path].fan('in')} edges"
    ax.set_title(title, loc="left", fontsize=10)
    ax.set_xlabel(r"log-odds of being off, $\log\frac{1-a}{a}$ (a within .01 to .99)")
    ax.set_ylabel("degree (kept incoming edges)")
    ax.set_ylim(0, 1.15 * int(degrees[path].max()))  # room for the legend
    ax.locator_params(axis="y", integer=True)
    ax.legend(frameon=False, fontsize=8, loc="upper left")
plt.show()

# %% [markdown]
# Everything else worth logging is in `bb.metrics(opt_state)`: scalars, which may also
# be computed inside `jit`.

# %%
for name, value in jax.jit(bb.metrics)(opt_state).items():
    if name.startswith("overall/"):
        print(f"{name.removeprefix('overall/'):15} {float(value):10.3f}")

# %% [markdown]
# ## Accuracy against density
#
# Another rule is another argument: `bb.rules.magnitude()` gives every unit the same
# degree and looks at no activity. We compare the two at several densities. Density 1
# prunes nothing, so that is the dense net. A seed fixes the first weights and the
# batches, the same for both rules, so their differences are paired.
#
# The whole training run is one compiled function of density and seed: the optimizer
# state, masks included, is part of the carry of `lax.scan`, and `vmap` runs all seeds
# at once.

# %%
DENSITIES = [0.3, 0.05, 0.02] if SMALL else [0.3, 0.1, 0.05, 0.03, 0.02]


def batches(key):
    """Which images each step sees, (STEPS, BATCH)."""
    keys = jax.random.split(key, STEPS)
    return jax.vmap(lambda k: jax.random.choice(k, len(train_y), (BATCH,), False))(keys)


def run(rule, density, seed):
    """Test accuracy (%) of a net trained from scratch, and its densities."""
    first, order = jax.random.split(jax.random.key(seed))
    params = model.init(first, train["x"][:1])["params"]
    ramp = bb.ramp(density, start=start, steps=STEPS // 2, power=3)
    prune = bb.transform(units, rule, density=ramp, every=every, start=start, stop=stop)
    tx = optax.chain(optax.adam(RATE), prune)

    def step(carry, rows):
        params, opt_state = carry
        batch = {"x": train["x"][rows], "y": train["y"][rows]}
        _, grads, activity = bb.value_and_grad(loss_fn, units)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params, activity=activity)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, opt_state), _ = jax.lax.scan(
        step, (params, tx.init(params)), batches(order)
    )
    kept = [mask.mean() for mask in bb.masks(opt_state).values()]
    return accuracy(params), jnp.array(kept)


RULES = {
    "Budgeted Broadcast": bb.rules.budgeted_broadcast(),
    "magnitude": bb.rules.magnitude(),
}
found = {}
for name, rule in RULES.items():
    seeds = jax.jit(
        jax.vmap(lambda d, s, rule=rule: run(rule, d, s), in_axes=(None, 0))
    )
    for density in [1.0, *DENSITIES]:
        scores, got = seeds(jnp.float32(density), jnp.arange(SEEDS))
        found[name, density] = np.asarray(scores)
        assert np.allclose(got, density, atol=1e-3)
dense = found["magnitude", 1.0]

# %%
STYLES = {
    "Budgeted Broadcast": {"color": "#0072b2", "marker": "o", "ls": "-"},
    "magnitude": {"color": "#8a8a8a", "marker": "s", "ls": "--"},
}
figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
around = dense.std(ddof=1)
ax.axhspan(dense.mean() - around, dense.mean() + around, color="#ececec")
ax.axhline(dense.mean(), color="black", lw=1.2, ls=":", label="dense")
for shift, (name, style) in zip((0.98, 1.02), STYLES.items(), strict=True):
    scores = np.array([found[name, d] for d in DENSITIES])
    ax.errorbar(
        np.array(DENSITIES) * shift,
        scores.mean(1),
        scores.std(1, ddof=1),
        capsize=3,
        label=name,
        **style,
    )
ax.set_xscale("log")
ax.set_xticks(DENSITIES, [f"{d:g}" for d in DENSITIES])
ax.minorticks_off()
ax.set_xlabel("density (kept share of the edges of both hidden kernels)")
ax.set_ylabel(f"test accuracy (%), mean ± sd of {SEEDS} seeds")
ax.legend(frameon=False)
ax.grid(color="#e4e4e4", lw=0.6)
plt.show()

# %% [markdown]
# What of this is more than noise? For each density the mean of the paired differences
# over its standard error is held against the 5 % point of Student's distribution. That
# is one test per density: expect one false alarm in twenty.

# %%
t = np.random.default_rng(0).standard_t(SEEDS - 1, 1_000_000)
critical = np.quantile(np.abs(t), 0.95)  # 2.78 for five seeds
print(f"dense {dense.mean():.2f} ± {around:.2f} %, one test image is", end=" ")
print(f"{100 / len(test_y):.2f} points")
print("density   BB − magnitude, points   with these seeds")
for density in DENSITIES:
    gap = found["Budgeted Broadcast", density] - found["magnitude", density]
    error = gap.std(ddof=1) / SEEDS**0.5
    sure = abs(gap.mean()) > critical * error
    verdict = "noise" if not sure else ("BB better" if gap.mean() > 0 else "BB worse")
    print(f"{density:7g}   {gap.mean():+10.2f} ± {error:.2f} (se)    {verdict}")

# %% [markdown]
# ## Where to go from here
#
# - `02_the_balance`: why degrees follow the log-odds, and what the controller does.
# - `03_choose_a_rule`: all rules on this task, with a table.
# - `04_any_model`: NNX, Equinox, Keras, scanned Transformer blocks, padding.
# - `05_rare_features`: what happens to inputs that are rarely on.
# - `06_really_smaller`: fewer units, and less time per call.
# - `07_benchmark_on_tpu`: what a train step costs on your device.
