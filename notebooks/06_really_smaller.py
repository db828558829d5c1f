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
# # Really smaller
#
# [![Open in Colab][badge]][colab]
#
# [badge]: https://colab.research.google.com/assets/colab-badge.svg
# [colab]: https://colab.research.google.com/github/OWNER/bbjax/blob/main/notebooks/06_really_smaller.ipynb
#
# Masks alone make nothing faster: a product with zeros in it takes as long as without.
# A model with fewer units does get faster. Here a trained convolutional net loses its
# units, a quarter at a time, is trained on in between, and comes out as a smaller model
# of the same kind, with fewer parameters, fewer operations and less time per call.
#
# About a minute on a CPU with 2 cores, compilation included.

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
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import bbjax as bb

SMALL = bool(os.environ.get("BBJAX_SMALL"))  # a quick run, to see that it works
STEPS = 150 if SMALL else 600
TUNE = 60 if SMALL else 200
ROUNDS = 2 if SMALL else 6

# %% [markdown]
# ## A net for digits
#
# An ordinary Flax NNX module. Nothing in it knows of pruning.

# %%
digits = load_digits()
images = jnp.asarray(digits.images[..., None] / 16.0, jnp.float32)
labels = jnp.asarray(digits.target)
order = np.random.default_rng(0).permutation(len(labels))
train, test = order[:1200], order[1200:]


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.second = nnx.Conv(32, 64, (3, 3), strides=2, rngs=rngs)
        self.dense = nnx.Linear(4 * 4 * 64, 128, rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.first(x))
        x = nnx.relu(self.second(x))
        x = nnx.relu(self.dense(x.reshape(x.shape[0], -1)))
        return self.head(x)


def loss_fn(net, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(net(x), y).mean()


def accuracy(net):
    return float(jnp.mean(jnp.argmax(net(images[test]), axis=-1) == labels[test]))


def trained(net, steps, rate=1e-3):
    graph, params = nnx.split(net)
    tx = optax.adam(optax.cosine_decay_schedule(rate, steps))
    state = tx.init(params)

    @jax.jit
    def step(params, state, key):
        batch = jax.random.choice(key, jnp.asarray(train), (64,))

        def loss(params):
            return loss_fn(nnx.merge(graph, params), images[batch], labels[batch])

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for key in jax.random.split(jax.random.key(1), steps):
        params, state = step(params, state, key)
    return nnx.merge(graph, params)


net = trained(Net(nnx.Rngs(0)), STEPS)
print(f"test accuracy {accuracy(net):.2%}")

# %% [markdown]
# ## Which axes carry the same units
#
# bbjax reads the function and ties the axes of all its arrays. A *group* is one set of
# units: the kernel that makes them, the biases beside them, the kernels that read them,
# also across the reshape. What has a size for some other reason says which.

# %%
example = images[:64], labels[:64]
units = bb.trace(loss_fn, net, *example)
print(units.graph)

# %% [markdown]
# ## Half of all units
#
# Three ways to say which units matter: the size of all that belongs to a unit (group
# magnitude, as in DepGraph), its activity (as in Fine-Pruning), and its traffic,
# on-rate times listeners: Budgeted Broadcast for units that speak to all or to none.
# Without training on, this is what half of the units cost:

# %%
batches = [(images[train[i : i + 200]], labels[train[i : i + 200]]) for i in (0, 200)]
stats = bb.calibrate(loss_fn, units, net, batches, needs=("mean_abs", "on_rate"))
scores = {
    "group magnitude": bb.unitwise.group_magnitude(units, net),
    "activity": bb.unitwise.activity(units, stats),
    "traffic": bb.unitwise.traffic(units, stats),
}
for name, score in scores.items():
    masks = bb.unitwise.cut(units, score, density=0.5)
    small = bb.shrink(loss_fn, net, masks, *example)
    before, after = small.report.params
    print(
        f"{name:>16}: {after / before:.1%} of parameters, {accuracy(small.params):.2%}"
    )

# %% [markdown]
# `small.params` is a `Net` again, with smaller layers that know their sizes. It
# computes what the masked net does:

# %%
print(small.report)
print(small.params.second.kernel.shape, small.params.second.out_features)
pruned = bb.apply_masks(net, masks)
difference = jnp.abs(pruned(images[test]) - small.params(images[test])).max()
print(f"largest difference of logits: {float(difference):.1e}")

# %% [markdown]
# ## A quarter at a time, and train on
#
# `bb.shrink_rounds` shrinks and trains in turn and stops before the score falls below
# what we accept.

# %%
history = [(bb.shrink(loss_fn, net, {}, *example).report.params[0], accuracy(net), net)]


def choose(net, units):
    return bb.unitwise.cut(units, bb.unitwise.group_magnitude(units, net), 0.75)


for done in bb.shrink_rounds(
    loss_fn,
    net,
    choose,
    lambda small: trained(small.params, TUNE, 5e-4),
    *example,
    iterations=ROUNDS,
    score=accuracy,
    least=0.9,
):
    history.append((done.small.report.params[1], done.score, done.params))
    widths = {path: after for path, (_, after) in done.small.widths.items()}
    print(f"round {done.number}: {done.score:.2%} with {widths}")

# %% [markdown]
# ## Time per call
#
# One call on all test images. On a shared machine a time drifts by more than the nets
# differ. So all nets take turns, round after round, every other round in reverse order.
# A turn is three calls, of which the median counts. What is reported is the ratio to
# the dense net of the same round: the median over the rounds, and the quartiles.
# (Ratios on a CPU with two cores say little about your accelerator: measure there.)

# %%
params, scored, nets = zip(*history, strict=True)


def compiled(net):
    """A call on the test images, without the overhead of taking a module apart."""
    graph, values = nnx.split(net)
    call = jax.jit(lambda values, x: nnx.merge(graph, values)(x))
    return call.lower(values, images[test]).compile(), values


def turn(call, values):
    """Seconds of a call, the median of three."""
    spent = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(call(values, images[test]))
        spent.append(time.perf_counter() - start)
    return np.median(spent)


def in_turns(calls, rounds=8 if SMALL else 60):
    """Seconds by round and net. A first round, which warms up, is left out."""
    spent = np.zeros((rounds + 1, len(calls)))
    for i in range(rounds + 1):
        order = range(len(calls)) if i % 2 else reversed(range(len(calls)))
        for j in order:
            spent[i, j] = turn(*calls[j])
    return spent[1:]


seconds = in_turns([compiled(one) for one in nets])
low, ratio, high = np.percentile(seconds / seconds[:, :1], (25, 50, 75), axis=0)
print(f"the dense net takes {1e3 * np.median(seconds[:, 0]):.1f} ms a call")
for row in zip(params, scored, ratio, low, high, strict=True):
    print(
        "{:>8,} parameters  {:.2%}  {:.2f} of the time ({:.2f} to {:.2f})".format(*row)
    )

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
left.plot(params, [100 * s for s in scored], marker="o", color="#2a6fb8")
left.set(xscale="log", xlabel="parameters", ylabel="test accuracy, %")
left.set_title("A quarter of the units at a time", loc="left", fontsize=10)
reach = ratio - low, high - ratio
right.errorbar(params, ratio, reach, marker="o", color="#2a6fb8", capsize=3)
right.set(xscale="log", xlabel="parameters", ylabel="time per call / dense")
right.set_ylim(0, None)
right.set_title("Time per call, median and quartiles", loc="left", fontsize=10)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# Time does not fall as parameters do. Narrow convolutions run at a lower rate on a CPU,
# and a narrower net can even take longer than the one before it. If the quartiles of
# the two do not overlap, that is not noise. So measure the widths that you want to use.
# With `multiple_of=16`, `bb.unitwise.cut` keeps multiples of 16 units.
#
# ## What to take home
#
# - Cut units, not edges, if you want speed: `bb.unitwise.cut` and `bb.shrink`.
# - The smaller model is an ordinary one. Save it, export it, train it on.
# - Which score is best is an empirical question; look at all of them on your task.
# - More in [Smaller for real](../bbjax/shrinking/README.md).
