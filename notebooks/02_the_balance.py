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
# # The balance
#
# [![Open in Colab][badge]][colab]
#
# [badge]: https://colab.research.google.com/assets/colab-badge.svg
# [colab]: https://colab.research.google.com/github/OWNER/bbjax/blob/main/notebooks/02_the_balance.ipynb
#
# Why should a unit's degree follow its activity, and by which law? This notebook goes
# through the theory of Budgeted Broadcast, lets you play with the controller, and then
# measures units of a net that learns XOR: what the controller imposes, and what is left
# of it when masks are frozen and training goes on.
#
# About 1 minute on a CPU with 2 cores, compilation included.

# %%
from importlib.util import find_spec

# What to install where bbjax is missing: its repository, or a wheel
# ("bbjax[demo] @ file:///content/bbjax-0.1.0-py3-none-any.whl"), or "bbjax[demo]" once
# bbjax is on the package index. OWNER is still to be filled in.
SOURCE = "bbjax[demo] @ git+https://github.com/OWNER/bbjax"
if not all(map(find_spec, ["bbjax", "ipywidgets"])):
    print("installing", SOURCE)
    # %pip install --quiet "$SOURCE" ipywidgets

# %%
import os
import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import bbjax as bb

SMALL = bool(os.environ.get("BBJAX_SMALL"))  # a quick run, to see that it works
STEPS = 400 if SMALL else 2000
SEEDS = 2 if SMALL else 5

plt.rcParams.update(
    {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False}
)
BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#8a8a8a"

# %% [markdown]
# ## Entropy under a traffic limit
#
# A unit is on with probability $a$ (its *on-rate*) and keeps $k$ edges (its *degree*).
# As a code it can carry at most the entropy $H(a)$; as a sender it causes *traffic* $a
# k$, edges that are on. Let all units together carry as much as possible under a limit
# on the traffic:
# $$\max_{a_1, \dots, a_n} \sum_i H(a_i)
# \quad \text{subject to} \quad \sum_i a_i k_i \le T$$
#
# With a price $\beta$ on traffic each unit looks after itself: it wants the $a$ that
# maximises $H(a) - \beta a k$. There the slope of the entropy, which is the log-odds of
# being off, equals the price of one more unit of activity:
#
# $$\log\frac{1-a}{a} = \beta k$$
#
# This is the *selectivity–audience balance*: who speaks to many is rarely on. We check
# it without the calculus, by looking for the maximum on a grid.

# %%
BETA = 0.1  # nats of entropy per edge that is on
grid = np.linspace(1e-4, 1 - 1e-4, 9999)
entropy = -grid * np.log(grid) - (1 - grid) * np.log(1 - grid)
audience = np.arange(0, 45, 4)
best = np.array([grid[np.argmax(entropy - BETA * grid * k)] for k in audience])

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
SHOWN = {0: (GREY, "-"), 8: (BLUE, "--"), 20: (GREEN, "-."), 40: (RED, ":")}
for k, (color, style) in SHOWN.items():
    gain = entropy - BETA * grid * k
    left.plot(grid, gain, color=color, ls=style, label=f"k = {k}")
    left.plot(grid[np.argmax(gain)], gain.max(), "o", color=color, mec="black")
left.set_ylim(-0.5, 0.9)
left.set_xlabel("on-rate a")
left.set_ylabel(r"$H(a) - \beta a k$ (nats)")
left.set_title(
    rf"What a unit gains, $\beta$ = {BETA}; dots: maxima", loc="left", fontsize=10
)
left.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
right.plot(audience, BETA * audience, color="black", lw=1.2, label=r"$\beta k$")
odds_of_best = np.log((1 - best) / best)
right.plot(audience, odds_of_best, "o", color=BLUE, mec="white", label="maxima found")
right.set_xlabel("degree k (kept outgoing edges)")
right.set_ylabel(r"log-odds of being off, $\log\frac{1-a}{a}$")
right.set_title("The balance", loc="left", fontsize=10)
right.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## From the balance to degrees
#
# The theory chooses on-rates for given degrees. A network's on-rates are what training
# makes of them, so the controller reads the balance the other way round, and gives each
# unit the degree that fits its on-rate:
# $$k_i = \mathrm{clip}\Big(d_0 + \frac{1}{\beta} \log\frac{1-a_i}{a_i},
# \ k_{min},\ \text{fan}\Big)$$
#
# $d_0$ is not in the theory. It is there because you name a *density*: `bb.degrees`
# solves for the $d_0$ at which the degrees, rounded to whole edges, add up to exactly
# `round(density * edges)`. Their sum grows with $d_0$, so there is just one such place.
#
# Take 64 units of at most 128 edges, and make up their on-rates.

# %%
FAN, COUNT = 128, 64
RATES = np.sort(np.random.default_rng(0).beta(1.2, 1.4, COUNT)).astype(np.float32)
ODDS = np.log((1 - RATES) / RATES)
DENSITY = 0.25
budget = round(DENSITY * FAN * COUNT)


def real_degrees(d0, beta, k_min=1):
    """The controller's formula, before it is rounded to whole edges."""
    return np.clip(d0 + ODDS / beta, k_min, FAN)


levels = np.linspace(-60, 160, 441)
totals = np.array([real_degrees(d0, BETA).sum() for d0 in levels])
d0 = levels[np.argmin(np.abs(totals - budget))]
k = np.asarray(bb.degrees(RATES, FAN, DENSITY, law=bb.laws.log_odds(BETA)))

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
left.plot(levels, totals, color=BLUE)
left.axhline(budget, color="black", lw=1, ls="--")
left.plot(d0, budget, "o", color=RED, mec="black")
left.set_xlabel(r"$d_0$ (edges)")
left.set_ylabel("edges of all units together")
left.set_title(f"Budget of {budget} edges: $d_0$ = {d0:.1f}", loc="left", fontsize=10)
order = np.argsort(ODDS)
right.plot(
    ODDS[order], real_degrees(d0, BETA)[order], color="black", lw=1.2, label="formula"
)
right.plot(ODDS, k, "o", color=BLUE, mec="white", label="bb.degrees")
right.set_xlabel(r"log-odds of being off, $\log\frac{1-a}{a}$")
right.set_ylabel("degree k (edges)")
right.set_title(f"{k.sum()} edges in {COUNT} units", loc="left", fontsize=10)
right.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## Play with it
#
# - **beta** is the price of traffic in log-odds per edge. A small one spreads degrees
#   wide, until units meet the *bounds* (hollow markers): no unit keeps fewer than
#   `k_min` edges or more than there are. A large one makes all degrees equal, which is
#   magnitude pruning per unit. If you name none, `bb.laws.log_odds()` uses another
#   scale: a tenth of the mean degree per nat of log-odds, within two nats of the mean.
# - **density** moves $d_0$ and so all degrees together. A bound takes units out of the
#   balance: the others have to share what is left.
# - **law**: other ways from on-rates to degrees under the same budget. With *threshold*
#   every unit carries the same traffic, $a k = \tau$; *uniform* ignores the activity.
#
# The right column shows what the budget is about: the traffic of each unit.

# %%
LAWS = {
    "log-odds": bb.laws.log_odds,
    "threshold": lambda beta: bb.laws.threshold(),
    "quantile": lambda beta: bb.laws.quantile(),
    "uniform": lambda beta: bb.laws.uniform(),
}


def draw(axes, law="log-odds", beta=0.1, density=0.25, k_min=1):
    """Degrees and traffic of the made-up units, into two axes."""
    k = np.asarray(bb.degrees(RATES, FAN, density, law=LAWS[law](beta), k_min=k_min))
    bound = (k <= k_min) | (k >= FAN)
    left, right = axes
    for ax, x, y in ((left, ODDS, k), (right, RATES, RATES * k)):
        ax.plot(x[~bound], y[~bound], "o", color=BLUE, mec="white", label="unit")
        ax.plot(
            x[bound], y[bound], "o", color=BLUE, mfc="none", label="unit on a bound"
        )
    left.set_ylim(-4, FAN + 4)
    left.set_ylabel("degree k (edges)")
    price = rf", $\beta$ = {beta:g}" if law == "log-odds" else ""
    left.set_title(
        f"{law}{price}, k_min = {k_min}: density {k.mean() / FAN:.3f}",
        loc="left",
        fontsize=10,
    )
    right.set_ylim(bottom=0)
    right.set_ylabel("traffic a k (edges on)")
    right.set_title(f"traffic {np.sum(RATES * k):.0f} in all", loc="left", fontsize=10)


def canvas(rows):
    """Axes (rows, 2): degrees on the left, traffic on the right."""
    size = (9.5, 0.6 + 2.3 * rows)
    figure, axes = plt.subplots(
        rows, 2, figsize=size, layout="constrained", sharex="col", squeeze=False
    )
    axes[-1, 0].set_xlabel(r"log-odds of being off, $\log\frac{1-a}{a}$")
    axes[-1, 1].set_xlabel("on-rate a")
    return axes


CHOICES = (
    {"beta": 0.1},
    {"beta": 0.03},
    {"beta": 1.0},
    {"law": "threshold"},
)
for axes, choice in zip(rows := canvas(len(CHOICES)), CHOICES, strict=True):
    draw(axes, **choice)
rows[0, 0].legend(frameon=False, fontsize=8, loc="upper left")
plt.show()

# %% [markdown]
# Now by hand. Sliders need a front end that answers the kernel, and a run without one
# can wait for that answer for ever: so they are made only where Colab or a Jupyter
# server started the kernel. Elsewhere set `INTERACTIVE = True`.

# %%
INTERACTIVE = "google.colab" in sys.modules or "JPY_SESSION_NAME" in os.environ

if INTERACTIVE:
    import ipywidgets as widgets

    def redraw(**choice):
        draw(canvas(1)[0], **choice)
        plt.show()

    def slider(kind, **settings):
        return kind(continuous_update=False, **settings)

    widgets.interact(
        redraw,
        law=list(LAWS),
        beta=slider(widgets.FloatLogSlider, value=0.1, min=-2.5, max=0.5, step=0.1),
        density=slider(widgets.FloatSlider, value=0.25, min=0.02, max=1.0, step=0.01),
        k_min=slider(widgets.IntSlider, value=1, min=0, max=16),
    )
else:
    print("no sliders: INTERACTIVE is False")

# %% [markdown]
# ## Measured: a net that learns XOR
#
# Two inputs, each a sign times a size between 0.2 and 1; the label says whether the
# signs differ. The net is 2–64–128–1 with ReLU, its biases are drawn uniformly, as
# PyTorch does: so the 64 hidden units of the first layer begin with on-rates all over
# the place.
#
# Budgeted is the second kernel, 64 × 128, with `actuator="out"`: the budget counts the
# *outgoing* edges of the 64 units, their audience in the sense of the theory.

# %%
SIZES = (2, 64, 128, 1)
BATCH = 256
PATH = "layer2/kernel"


def sample(key, count):
    """Inputs (count, 2) and labels (count,)."""
    for_signs, for_sizes = jax.random.split(key)
    signs = jax.random.rademacher(for_signs, (count, 2), jnp.float32)
    sizes = jax.random.uniform(for_sizes, (count, 2), minval=0.2, maxval=1.0)
    return signs * sizes, (signs[:, 0] != signs[:, 1]).astype(jnp.float32)


def init(key):
    """Weights and biases uniform within 1 / sqrt(fan-in)."""
    params = {}
    for i, (fan_in, fan_out) in enumerate(zip(SIZES[:-1], SIZES[1:], strict=True), 1):
        key, for_kernel, for_bias = jax.random.split(key, 3)
        end = fan_in**-0.5
        params[f"layer{i}"] = {
            "kernel": jax.random.uniform(
                for_kernel, (fan_in, fan_out), minval=-end, maxval=end
            ),
            "bias": jax.random.uniform(for_bias, (fan_out,), minval=-end, maxval=end),
        }
    return params


def logits(params, x):
    for name in ("layer1", "layer2"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return (x @ params["layer3"]["kernel"] + params["layer3"]["bias"])[:, 0]


def loss_fn(params, x, y):
    return optax.sigmoid_binary_cross_entropy(logits(params, x), y).mean()


held_out = sample(jax.random.key(1000), 8192)
units = bb.trace(loss_fn, init(jax.random.key(0)), *held_out).select(
    "layer2", actuator="out"
)
print(units)

# %% [markdown]
# One run is one compiled function. Until `stop` the controller is at work, in the last
# two fifths of the steps masks are frozen. On-rates are measured anew on held-out
# inputs, 20 times during training.
#
# XOR is soon solved, and without errors hardly any weight moves. So that frozen masks
# meet some change, a second continuation flips each label with probability `noise` from
# `stop` on.

# %%
EVERY, START, STOP = STEPS // 80, STEPS // 10, STEPS * 3 // 5


def train(rule, noise, seed, stop=STOP):
    """On-rates and degrees of the 64 units, and test accuracy, over time."""
    first, rest = jax.random.split(jax.random.key(seed))
    params = init(first)
    ramp = bb.ramp(DENSITY, start=START, steps=STEPS * 2 // 5, power=3)
    prune = bb.transform(
        units, rule, density=ramp, every=EVERY, start=START, stop=stop, ema=0.95
    )
    tx = optax.chain(optax.adam(5e-3), prune)

    def step(carry, now):
        n, key = now
        params, opt_state = carry
        for_batch, for_noise = jax.random.split(key)
        x, y = sample(for_batch, BATCH)
        flip = jax.random.bernoulli(for_noise, jnp.where(n < STOP, 0.0, noise), y.shape)
        y = jnp.where(flip, 1 - y, y)
        _, grads, activity = bb.value_and_grad(loss_fn, units)(params, x, y)
        updates, opt_state = tx.update(grads, opt_state, params, activity=activity)
        return (optax.apply_updates(params, updates), opt_state), None

    def stretch(carry, now):
        carry, _ = jax.lax.scan(step, carry, now)
        params, opt_state = carry
        _, activity = bb.observe(loss_fn, units)(params, *held_out)
        correct = (logits(params, held_out[0]) > 0) == (held_out[1] > 0.5)
        return carry, {
            "a": activity[PATH].inputs.on_rate,
            "k": bb.degrees_of(opt_state)[PATH],
            "accuracy": 100 * correct.mean(),
        }

    now = jnp.arange(STEPS), jax.random.split(rest, STEPS)
    now = jax.tree.map(lambda v: v.reshape(20, STEPS // 20), now)
    return jax.lax.scan(stretch, (params, tx.init(params)), now)[1]


NOISES = jnp.array([0.0, 0.25])


def train_all(rule, **settings):
    """Lanes (noise, seed), then time, as NumPy arrays."""

    def lane(noise, seed):
        return train(rule, noise, seed, **settings)

    lanes = jax.vmap(jax.vmap(lane, (None, 0)), (0, None))
    return jax.tree.map(np.asarray, jax.jit(lanes)(NOISES, jnp.arange(SEEDS)))


rule = bb.rules.budgeted_broadcast(beta=BETA)
balance = train_all(rule)

# %% [markdown]
# Now the line. We fit the log-odds against the degree over the units that sit on no
# bound: more than `k_min` edges, fewer than all, and an on-rate between .01 and .99,
# where the law clips. The slope should be `beta`; the line need not go through the
# origin, that is what $d_0$ is for.

# %%
FROZEN, END = 11, 19  # of the 20 measurements: masks just frozen, and the last


def log_odds(a):
    a = np.clip(a, 0.003, 0.997)
    return np.log((1 - a) / a)


def free(a, k):
    """Units that sit on no bound."""
    return (k > 1) & (k < FAN) & (a > 0.01) & (a < 0.99)


def line(a, k):
    """Slope, intercept and R2 of the log-odds on the degree."""
    use = free(a, k)
    if use.sum() < 3 or np.ptp(k[use]) == 0:
        return np.nan, np.nan, np.nan
    slope, intercept = np.polyfit(k[use], log_odds(a[use]), 1)
    return slope, intercept, np.corrcoef(k[use], log_odds(a[use]))[0, 1] ** 2


def fits(runs, noise, time):
    """Slope, intercept and R2 of every seed, (SEEDS, 3)."""
    pairs = zip(runs["a"][noise, :, time], runs["k"][noise, :, time], strict=True)
    return np.array([line(a, k) for a, k in pairs])


def show(ax, a, k, title):
    use = free(a, k)
    slope, intercept, r2 = line(a, k)
    ax.plot(k[use], log_odds(a[use]), "o", color=BLUE, mec="white", label="unit")
    ax.plot(
        k[~use], log_odds(a[~use]), "o", color=BLUE, mfc="none", label="unit on a bound"
    )
    ends = np.array([k[use].min(), k[use].max()])
    ax.plot(ends, intercept + slope * ends, color="black", lw=1.2, label="fit")
    ax.set_title(
        f"{title}\nslope {slope:.3f}, $R^2$ = {r2:.2f}", loc="left", fontsize=10
    )
    ax.set_xlabel("degree k (kept outgoing edges)")


figure, axes = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained", sharey=True)
for ax, noise, time, title in (
    (axes[0], 0, FROZEN, "masks just frozen"),
    (axes[1], 0, END, "at the end, clean labels"),
    (axes[2], 1, END, "at the end, a quarter flipped"),
):
    show(ax, balance["a"][noise, 0, time], balance["k"][noise, 0, time], title)
axes[0].set_ylabel(r"log-odds of being off, $\log\frac{1-a}{a}$")
axes[0].legend(frameon=False, fontsize=8)
plt.show()

slope, _, r2 = fits(balance, 0, FROZEN).T
silent = balance["a"][0, :, FROZEN] < 0.01
held = np.sum(balance["k"][0, :, FROZEN] * silent) / budget / SEEDS
accuracy = balance["accuracy"][0, :, FROZEN]
print(f"test accuracy when masks are frozen: {accuracy.mean():.1f} %")
print(f"slope {slope.mean():.4f} ± {slope.std(ddof=1):.4f} (sd of seeds), beta {BETA}")
print(f"R2 {r2.mean():.3f} ± {r2.std(ddof=1):.3f}, {SEEDS} seeds")
print(f"{silent.mean():.0%} of the units are hardly ever on (a < .01)", end=" ")
print(f"and hold {held:.0%} of the edges")

# %% [markdown]
# The last line shows the other side of the law: a unit that says nothing is the
# quietest of all, so it gets the most edges. `bb.metrics` counts such units, and the
# law clips on-rates at .01 so that a few of them do not take everything.
#
# ## Who makes the line?
#
# The controller. It computes degrees from on-rates by the very formula that we then
# fit, so a slope of `beta` with an R² near 1 says that the code does what it says. It
# is no evidence that networks seek the balance. Three further runs tell more:
#
# - masks **frozen**, with clean labels and with flipped ones: does the line stay when
#   nobody maintains it?
# - the controller **at work to the end**, with flipped labels: does it follow?
# - **shuffled** degrees: the same law, but each unit gets the degree of another one,
#   whose activity it does not have. Now on-rates would have to move for a line to come
#   about. Does training bring them there?

# %%
elsewhere = np.random.default_rng(0).permutation(SIZES[1])


def shuffled(beta):
    """The log-odds law, with degrees handed to the wrong units."""
    right = bb.laws.log_odds(beta)

    def profile(on_rate, mean_degree):
        return right.profile(on_rate, mean_degree)[..., elsewhere]

    return bb.laws.Law("shuffled", profile, "shift")


maintained = train_all(rule, stop=None)
wrong = train_all(bb.rules.budgeted_broadcast(law=shuffled(BETA)))

CASES = {  # runs, index of the noise, marker and line
    "frozen, clean": (balance, 0, {"color": BLUE, "marker": "o", "ls": "-"}),
    "frozen, flipped": (balance, 1, {"color": RED, "marker": "v", "ls": "--"}),
    "maintained, flipped": (maintained, 1, {"color": GREEN, "marker": "D", "ls": "-."}),
    "shuffled, clean": (wrong, 0, {"color": GREY, "marker": "s", "ls": ":"}),
    "shuffled, flipped": (wrong, 1, {"color": ORANGE, "marker": "^", "ls": ":"}),
}
steps = (np.arange(20) + 1) * STEPS // 20
figure, ax = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
for name, (runs, noise, style) in CASES.items():
    r2 = np.array([fits(runs, noise, time)[:, 2] for time in range(20)])
    ax.plot(steps, r2.mean(1), label=name, ms=5, **style)
ax.axvline(STOP, color="black", lw=1, ls=":")
ax.annotate(
    "masks frozen", (STOP, 1.04), fontsize=8, ha="center", annotation_clip=False
)
ax.set_ylim(-0.03, 1.02)
ax.set_xlabel("training step")
ax.set_ylabel(f"$R^2$ of the balance line, mean of {SEEDS} seeds")
figure.legend(frameon=False, fontsize=8, loc="outside right center")
plt.show()

print("                     moved since   at the end, mean ± sd of seeds")
print("                      the freeze   slope           R2")
for name, (runs, noise, _) in CASES.items():
    moved = np.abs(runs["a"][noise, :, END] - runs["a"][noise, :, FROZEN]).mean()
    slope, _, r2 = fits(runs, noise, END).T
    print(
        f"{name:20} {moved:10.3f}   {slope.mean():+.3f} ± {slope.std(ddof=1):.3f}"
        f"  {r2.mean():.2f} ± {r2.std(ddof=1):.2f}"
    )

# %% [markdown]
# How to read the table. *Moved* is the mean change of an on-rate between the freeze and
# the end. Where on-rates do not move, a frozen line stays for the simple reason that
# neither side of it changes. It is put to the test only where they do.

# %%
frozen, kept = fits(balance, 1, END)[:, 2].mean(), fits(maintained, 1, END)[:, 2].mean()
pulled = fits(wrong, 1, END)[:, 0].mean()
print(f"With flipped labels frozen masks end at R2 = {frozen:.2f},", end=" ")
print(f"maintained ones at {kept:.2f}.")
print(
    "So the line is the controller's work, and lasts as long as it is maintained."
    if frozen < kept - 0.1
    else "So here the line outlives the controller."
)
print(f"Shuffled degrees end with a slope of {pulled:+.3f};", end=" ")
print(f"the balance asks for {BETA:+.3f}.")
print(
    "Training did not pull units to the balance."
    if abs(pulled) < BETA / 2
    else "Training pulled units towards the balance."
)

# %% [markdown]
# ## The threshold law
#
# The paper also has a local rule: a unit prunes while its traffic exceeds $\tau$. It
# settles where every unit carries the same traffic, $a k = \tau$. As
# `bb.laws.threshold()` it is a law like the other: under a density, $\tau$ is what the
# budget makes it. Its units should lie on a straight line of slope −1 in logarithms,
# and not on the balance line.

# %%
level = train_all(bb.rules.budgeted_broadcast(law=bb.laws.threshold()))
a, k = level["a"][0, 0, FROZEN], level["k"][0, 0, FROZEN]
use = free(a, k)
tau = np.median(a[use] * k[use])

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
left.plot(k[use], a[use], "o", color=BLUE, mec="white", label="unit")
reach = np.array([k[use].min(), k[use].max()])
left.plot(reach, tau / reach, color="black", lw=1.2, label=rf"$a k = \tau$ = {tau:.1f}")
left.set_xscale("log")
left.set_yscale("log")
left.set_xlabel("degree k (kept outgoing edges)")
left.set_ylabel("on-rate a")
left.set_title("Threshold law, units off their bounds", loc="left", fontsize=10)
left.set_xticks([10, 20, 40], ["10", "20", "40"])
left.set_yticks([0.2, 0.5, 1.0], ["0.2", "0.5", "1"])
left.minorticks_off()
left.legend(frameon=False, fontsize=8)
show(right, a, k, "The same units, with the balance line")
right.set_ylabel(r"log-odds of being off, $\log\frac{1-a}{a}$")
plt.show()

powers, spreads = [], []
for a, k in zip(level["a"][0, :, FROZEN], level["k"][0, :, FROZEN], strict=True):
    use = free(a, k)
    powers.append(np.polyfit(np.log(k[use]), np.log(a[use]), 1)[0])
    spreads.append(np.std(a[use] * k[use]) / np.mean(a[use] * k[use]))
r2 = fits(level, 0, FROZEN)[:, 2]
power, spread = np.mean(powers), np.mean(spreads)
print(f"power of k in a: {power:.3f} ± {np.std(powers, ddof=1):.3f}, expected -1")
print(f"traffic of units off their bounds: sd {spread:.1%} of the mean")
print(f"balance line fitted to these units: R2 {r2.mean():.2f} ± {r2.std(ddof=1):.2f}")

# %% [markdown]
# The last number is a warning. These units obey another law, so they cannot lie on the
# balance line, and still a line through them explains as much as it says: degrees fall
# with activity, and a straight line is a fair account of anything that falls. To tell
# laws apart, look at the residuals, or at the prediction that only one of them makes:
# equal traffic here, a slope of `beta` above.
