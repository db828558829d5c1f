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
# # Any model
#
# [![Open in Colab][badge]][colab]
#
# [badge]: https://colab.research.google.com/assets/colab-badge.svg
# [colab]: https://colab.research.google.com/github/OWNER/bbjax/blob/main/notebooks/04_any_model.ipynb
#
# bbjax reads units off the function that you train, not off a library's layers. Here is
# one net in Flax linen, Flax NNX, Equinox and Keras; then a stack of scanned and
# rematerialised Transformer blocks, with padding, and budgets for every layer of the
# stack; and last, what cannot be measured and how you are told.
#
# About 2 minutes on a CPU with 2 cores, compilation included.

# %%
from importlib.util import find_spec

# What to install where bbjax is missing: its repository, or a wheel
# ("bbjax[demo] @ file:///content/bbjax-0.1.0-py3-none-any.whl"), or "bbjax[demo]" once
# bbjax is on the package index. OWNER is still to be filled in.
SOURCE = "bbjax[demo] @ git+https://github.com/OWNER/bbjax"
if not all(map(find_spec, ["bbjax", "equinox", "keras"])):
    print("installing", SOURCE)
    # %pip install --quiet "$SOURCE" equinox keras

# %%
import os

os.environ["KERAS_BACKEND"] = "jax"  # Keras reads it when it is imported

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import bbjax as bb

SMALL = bool(os.environ.get("BBJAX_SMALL"))  # a quick run, to see that it works
STEPS = 40 if SMALL else 300

# %% [markdown]
# ## One net, four libraries
#
# 16 inputs, 64 hidden units, 2 classes: the label says whether the first two inputs
# have the same sign. In each case the loss is a function of the parameters (or the
# module) and a batch, and that function is all that bbjax sees.

# %%
x = jax.random.normal(jax.random.key(0), (512, 16))
batch = {"x": x, "y": (x[:, 0] * x[:, 1] > 0).astype(jnp.int32)}


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def pruning(units):
    """An optimizer that keeps a fifth of the edges, the same for every library."""
    prune = bb.transform(units, density=0.2, start=20, every=10)
    return optax.chain(optax.adam(1e-2), prune)


def report(units, opt_state, loss):
    print(units)
    for path, mask in bb.masks(opt_state).items():
        print(f"\nkept {int(mask.sum())} of {mask.size} edges of {path};", end=" ")
    print(f"loss {float(loss):.3f}")


# %% [markdown]
# **Flax linen.** Paths are those of the parameter tree. `bb.linen.TrainState` is Flax's
# own, with an optimizer that takes `activity=`.

# %%
net = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(2)])
params = net.init(jax.random.key(1), x[:1])["params"]


def linen_loss(params, batch):
    return cross_entropy(net.apply({"params": params}, batch["x"]), batch["y"])


units = bb.trace(linen_loss, params, batch)
state = bb.linen.TrainState.create(apply_fn=net.apply, params=params, tx=pruning(units))


@jax.jit
def linen_step(state, batch):
    loss, grads, activity = bb.value_and_grad(linen_loss, units)(state.params, batch)
    return state.apply_gradients(grads=grads, activity=activity), loss


for _ in range(STEPS):
    state, loss = linen_step(state, batch)
report(units, state.opt_state, loss)

# %% [markdown]
# **Flax NNX.** The module itself is the first argument, with `nnx.jit` and
# `nnx.Optimizer`.

# %%
rngs = nnx.Rngs(1)
module = nnx.Sequential(
    nnx.Linear(16, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 2, rngs=rngs)
)


def nnx_loss(module, batch):
    return cross_entropy(module(batch["x"]), batch["y"])


units = bb.trace(nnx_loss, module, batch)
optimizer = nnx.Optimizer(module, pruning(units), wrt=nnx.Param)


@nnx.jit
def nnx_step(module, optimizer, batch):
    loss, grads, activity = bb.value_and_grad(nnx_loss, units)(module, batch)
    optimizer.update(module, grads, activity=activity)
    return loss


for _ in range(STEPS):
    loss = nnx_step(module, optimizer, batch)
report(units, optimizer.opt_state, loss)

# %% [markdown]
# **Equinox.** Its weights are stored as (out, in), and its layers act on one sample,
# under `jax.vmap`: the trace finds out which axis is which.

# %%
mlp = eqx.nn.MLP(16, 2, width_size=64, depth=1, key=jax.random.key(1))


def eqx_loss(mlp, batch):
    return cross_entropy(jax.vmap(mlp)(batch["x"]), batch["y"])


units = bb.trace(eqx_loss, mlp, batch)
tx = pruning(units)
opt_state = tx.init(eqx.filter(mlp, eqx.is_inexact_array))


@eqx.filter_jit
def eqx_step(mlp, opt_state, batch):
    loss, grads, activity = bb.value_and_grad(eqx_loss, units)(mlp, batch)
    params = eqx.filter(mlp, eqx.is_inexact_array)
    updates, opt_state = tx.update(grads, opt_state, params, activity=activity)
    return eqx.apply_updates(mlp, updates), opt_state, loss


for _ in range(STEPS):
    mlp, opt_state, loss = eqx_step(mlp, opt_state, batch)
report(units, opt_state, loss)

# %% [markdown]
# **Keras 3** runs on JAX if `KERAS_BACKEND` says so. `stateless_call` computes with
# values that you pass, so parameters can be a dict with the variables' own paths as
# keys. Running means of BatchNorm and the seed of Dropout are variables without a
# gradient: they go in as a second argument and come out beside the loss.

# %%
keras.utils.set_random_seed(1)
keras_net = keras.Sequential(
    [
        keras.Input((16,)),
        keras.layers.Dense(64, name="up"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.ReLU(),
        keras.layers.Dropout(0.1),
        keras.layers.Dense(2, name="head"),
    ],
    name="net",
)


def keras_loss(params, rest, batch):
    given = [params[v.path] for v in keras_net.trainable_variables]
    logits, rest = keras_net.stateless_call(given, rest, batch["x"], training=True)
    return cross_entropy(logits, batch["y"]), rest


params = {v.path: v.value for v in keras_net.trainable_variables}
rest = [v.value for v in keras_net.non_trainable_variables]
units = bb.trace(keras_loss, params, rest, batch)
tx = pruning(units)
opt_state = tx.init(params)


@jax.jit
def keras_step(params, rest, opt_state, batch):
    measured = bb.value_and_grad(keras_loss, units, has_aux=True)
    (loss, rest), grads, activity = measured(params, rest, batch)
    updates, opt_state = tx.update(grads, opt_state, params, activity=activity)
    return optax.apply_updates(params, updates), rest, opt_state, loss


for _ in range(STEPS):
    params, rest, opt_state, loss = keras_step(params, rest, opt_state, batch)
report(units, opt_state, loss)

# %% [markdown]
# Back into the Keras model, which is sparse from now on: `evaluate`, `predict` and
# `save` work as always.

# %%
for variable in keras_net.trainable_variables:
    variable.assign(params[variable.path])
for variable, value in zip(keras_net.non_trainable_variables, rest, strict=True):
    variable.assign(value)

right = jnp.argmax(keras_net(x), -1) == batch["y"]
zeros = jnp.mean(keras_net.get_layer("up").kernel.value == 0)
print(f"accuracy {right.mean():.1%}, {zeros:.1%} of the first kernel are 0")

# %% [markdown]
# To make a Keras model really smaller, whole units have to leave. Keras layers check
# the shapes of their variables, so `bb.shrink` needs a model that has the sizes of the
# values that it passes. `keras.models.clone_model` makes one: a layer is made again
# from its config, with another number of units.


# %%
def resized(net, values):
    """The same Keras model, its layers as wide as the kernels in `values`."""

    def sized(layer):
        config = layer.get_config()
        for size in {"units", "filters"} & set(config):
            config[size] = values[layer.kernel.path].shape[-1]
        return layer.from_config(config)

    with jax.ensure_compile_time_eval():  # new variables, also while JAX traces
        return keras.models.clone_model(net, clone_function=sized)


def outputs(values, x):
    net = resized(keras_net, values)
    given = [values[v.path] for v in net.trainable_variables]
    rest = [values.get(v.path, v.value) for v in net.non_trainable_variables]
    return net.stateless_call(given, rest, x)[0]


values = {v.path: v.value for v in keras_net.weights}
units = bb.trace(outputs, values, x)
masks = bb.unitwise.cut(units, bb.unitwise.group_magnitude(units, values), density=0.5)
small = bb.shrink(outputs, values, masks, x)

keras_small = resized(keras_net, small.params)
for variable in keras_small.weights:
    variable.assign(small.params[variable.path])
print(small.report)
difference = jnp.abs(outputs(bb.apply_masks(values, masks), x) - keras_small(x)).max()
print(f"largest difference to the masked model: {float(difference):.1e}")

# %% [markdown]
# ## A scanned stack of Transformer blocks
#
# Four blocks of attention and a feed-forward net as *one* block that is scanned over
# its depth and rematerialised: its parameters carry a leading axis of 4. Tools that
# hook into layers see such a block once, or not at all. Here statistics, degrees and
# budgets are those of every layer.
#
# The task: sequences of up to 24 tokens, padded with 0; say at every position whether
# its token has occurred before.

# %%
VOCABULARY, LENGTH, WIDTH, DEPTH = 20, 24, 32, 4


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        attend = nn.MultiHeadDotProductAttention(num_heads=2, name="attend")
        x = x + attend(nn.LayerNorm()(x), mask=mask)
        hidden = nn.relu(nn.Dense(4 * WIDTH, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(WIDTH, name="down")(hidden), None


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY + 1, WIDTH, name="embed")(tokens)
        x = x + self.param("places", nn.initializers.normal(0.02), (LENGTH, WIDTH))
        mask = nn.combine_masks(
            nn.make_causal_mask(tokens), nn.make_attention_mask(tokens > 0, tokens > 0)
        )
        stack = nn.scan(
            nn.remat(Block, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=DEPTH,
        )
        x, _ = stack(name="layers")(x, mask)
        return nn.Dense(2, name="head")(nn.LayerNorm()(x))


transformer = Transformer()


def sample(key, count=64):
    """Tokens (count, LENGTH) with 0 as padding, and labels of the same shape."""
    for_tokens, for_lengths = jax.random.split(key)
    tokens = jax.random.randint(for_tokens, (count, LENGTH), 1, VOCABULARY + 1)
    lengths = jax.random.randint(for_lengths, (count, 1), 4, LENGTH + 1)
    tokens = jnp.where(jnp.arange(LENGTH) < lengths, tokens, 0)
    same = tokens[:, :, None] == tokens[:, None, :]
    before = jnp.tril(jnp.ones((LENGTH, LENGTH), bool), -1)
    return tokens, jnp.any(same & before, axis=-1).astype(jnp.int32)


def loss_fn(params, tokens, labels):
    logits = transformer.apply({"params": params}, tokens)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses, where=tokens > 0)


tokens, labels = sample(jax.random.key(0))
params = jax.jit(transformer.init)(jax.random.key(1), tokens)["params"]
units = bb.trace(loss_fn, params, tokens, labels)
print(units)

# %% [markdown]
# What the table says:
#
# - **shape** is that of the parameter, stack axis included; **units** counts the units
#   of one layer, and how many layers are stacked. An attention kernel has heads × width
#   as its units.
# - **budget** is what `bb.transform` would prune if you chose nothing: hidden kernels
#   that a nonlinearity follows, here `up`. The rest stays dense until you ask for it.
# - **outputs measured**: where activity is read. Where no nonlinearity follows, "on"
#   means a positive raw output, which says little: budget the *input* side of such a
#   kernel instead. The outgoing edges of the feed-forward units are `down` with
#   `actuator="out"`.
#
# ## Choosing kernels
#
# `select` takes a regular expression, searched in the path, and `+` joins two
# selections. A pattern that fits nothing is an error that names what is near.

# %%
both = units.select(r"/up/", actuator="in") + units.select(r"/down/", actuator="out")
print(both.budgeted)

try:
    units.select("mlp/up")
except ValueError as error:
    print("\nValueError:", error)

# %% [markdown]
# ## Padding
#
# A unit's on-rate is a mean over batch and positions. Padded positions would count as
# well, and they do not look like real ones. `where=` names the real ones: an array, or
# a function of the arguments after the parameters.

# %%
print(f"{float((tokens == 0).mean()):.0%} of the positions are padding")


def real(tokens, labels):
    return tokens > 0


def on_rates(where):
    _, activity = bb.observe(loss_fn, both, where=where)(params, tokens, labels)
    return np.asarray(activity["layers/up/kernel"].outputs.on_rate)


apart = np.abs(on_rates(real) - on_rates(None))
for layer in range(DEPTH):
    print(f"layer {layer}: on-rates move by {apart[layer].mean():.3f}", end=" ")
    print(f"on average, by {apart[layer].max():.3f} at most")

# %% [markdown]
# ## Train, with a budget for every layer
#
# A density can be named kernel by kernel, with patterns; the first that matches counts.
# Here `up` keeps a fifth of its edges and `down` a tenth, in every layer.

# %%
LONG = 4 * STEPS
tx = optax.chain(
    optax.adam(optax.cosine_decay_schedule(3e-3, LONG)),
    bb.transform(
        both,
        density={
            "/up/": bb.ramp(0.2, start=LONG // 10, steps=LONG // 2, power=3),
            "/down/": bb.ramp(0.1, start=LONG // 10, steps=LONG // 2, power=3),
        },
        start=LONG // 10,
        every=LONG // 40,
        stop=LONG * 3 // 4,
    ),
)


@jax.jit
def train_step(params, opt_state, key):
    measured = bb.value_and_grad(loss_fn, both, where=real)
    _, grads, activity = measured(params, *sample(key))
    updates, opt_state = tx.update(grads, opt_state, params, activity=activity)
    return optax.apply_updates(params, updates), opt_state


@jax.jit
def accuracy(params, key):
    """In percent, of the net and of always saying the more frequent label."""
    tokens, labels = sample(key, 512)
    right = jnp.argmax(transformer.apply({"params": params}, tokens), -1) == labels
    share = jnp.mean(labels, where=tokens > 0)
    return 100 * jnp.mean(right, where=tokens > 0), 100 * jnp.maximum(share, 1 - share)


opt_state = tx.init(params)
for step in range(LONG):
    key = jax.random.fold_in(jax.random.key(2), step)
    params, opt_state = train_step(params, opt_state, key)
got, guess = accuracy(params, jax.random.key(3))
print(f"accuracy {got:.1f} %, always the same answer {guess:.1f} %")
for path, degrees in bb.degrees_of(opt_state).items():
    size = both[path].edge_count
    print(f"{path}: edges kept in each layer {degrees.sum(1).tolist()} of {size}")

# %% [markdown]
# Every layer has met its budget to the edge, and `bb.degrees_of` and `bb.on_rates` have
# a row for each. Within a layer degrees follow activity; layers may differ as much as
# they like.

# %%
plt.rcParams.update(
    {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False}
)
rates, degrees = bb.on_rates(opt_state), bb.degrees_of(opt_state)
figure, axes = plt.subplots(
    1, DEPTH, figsize=(11, 3.4), layout="constrained", sharey=True
)
for layer, ax in enumerate(axes):
    for path, look in (
        ("layers/up/kernel", {"color": "#0072b2", "marker": "o", "mec": "white"}),
        ("layers/down/kernel", {"color": "#d55e00", "marker": "^", "mfc": "none"}),
    ):
        a = np.clip(np.asarray(rates[path][layer]), 0.01, 0.99)
        odds = np.log((1 - a) / a)
        side = "incoming, up" if "up" in path else "outgoing, down"
        ax.plot(odds, degrees[path][layer], ls="", ms=5, label=side, **look)
    ax.set_title(f"layer {layer}", loc="left", fontsize=10)
    ax.set_xlabel(r"log-odds of being off, $\log\frac{1-a}{a}$", fontsize=9)
axes[0].set_ylabel(f"degree k (kept edges of {WIDTH})")
handles, labels = axes[0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
plt.show()

# %% [markdown]
# Should layers have equal shares? Rules whose edges compete across kernels let the
# weights decide. Here what is left is pruned once more, by magnitude over all layers of
# both kernels together, to a tenth of all their edges:

# %%
rule = bb.rules.magnitude(scope="global")
_, masks = bb.prune(params, both, rule, density=0.1, k_min=0)
for path, mask in masks.items():
    shares = ", ".join(f"{share:.1%}" for share in np.asarray(mask).mean((1, 2)))
    print(f"{path}: density of each layer {shares}")

# %% [markdown]
# ## What cannot be measured
#
# Some code hides a multiplication: a `custom_vjp`, a Pallas kernel, a `while` loop.
# Some uses a parameter in a way that has no units, or cuts it up. Nothing of that is
# skipped silently: the trace lists it with the reason, and to select it is an error.

# %%
odd = {name: jnp.eye(16) for name in ("plain", "secret", "looped", "cut")}
odd["head"] = jnp.ones((8, 2))


@jax.custom_vjp
def secret(x, kernel):
    return x @ kernel


secret.defvjp(
    lambda x, kernel: (x @ kernel, (x, kernel)),
    lambda saved, slope: (slope @ saved[1].T, saved[0].T @ slope),
)


def odd_loss(params, x):
    x = jax.nn.relu(x @ params["plain"])
    x = jax.nn.relu(secret(x, params["secret"]))
    x = jax.lax.while_loop(lambda y: y.max() > 1, lambda y: y @ params["looped"], x)
    x = x @ params["cut"][:8].T
    return jnp.mean((x @ params["head"]) ** 2)


units = bb.trace(odd_loss, odd, x)
print(units)

try:
    units.select("secret")
except ValueError as error:
    print("\nValueError:", error)

# %% [markdown]
# The rest of such a model can be pruned as usual: select what the table lists as a
# kernel.
