"""Models that are hard to make smaller: skips, concatenations, heads, shared weights.

Raw JAX, shapes from the parameters alone, so that the same function runs on smaller
ones. `free` says which groups can shrink, by an axis that makes the units; all other
groups that a kernel makes cannot.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.support.zoo_case import normal, relu


@dataclasses.dataclass(frozen=True)
class Hard:
    """One model.

    Attributes:
      name: unique.
      fn: of `(params, *args)`.
      params: shapes by name, nested.
      args: arrays.
      free: names of the groups that can shrink.
    """

    name: str
    fn: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]
    free: frozenset[str]

    def made(self) -> Any:
        """Parameters, the same at every call; running variances are positive."""
        shapes, tree = jax.tree.flatten(self.params, is_leaf=_is_shape)
        rng = np.random.default_rng(300)
        leaves = [0.5 * rng.standard_normal(s) for s in shapes]
        params = jax.tree.unflatten(tree, leaves)
        return jax.tree_util.tree_map_with_path(
            lambda path, a: jnp.asarray(
                np.abs(a) + 0.5 if path[-1].key == "var" else a, jnp.float32
            ),
            params,
        )


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple)


IMAGE = normal(1, 2, 8, 8, 3)
TOKENS = jax.random.randint(jax.random.key(2), (2, 6), 0, 11)


def conv(x, w, stride=1, padding="SAME", groups=1):
    return lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def norm_shapes(n):
    return {"mean": (n,), "var": (n,), "scale": (n,), "bias": (n,)}


def norm(x, p):
    """Batch norm with running statistics."""
    lead = (None,) * (x.ndim - 1)
    x = (x - p["mean"][lead]) * lax.rsqrt(p["var"][lead] + 1e-5)
    return x * p["scale"][lead] + p["bias"][lead]


def rms(x, scale):
    lead = (None,) * (x.ndim - 1)
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * scale[lead]


def add(x, bias):
    return x + bias[(None,) * (x.ndim - 1)]


def resnet(p, x):
    """A stem, an identity block, and a block with stride and a projection."""
    x = relu(norm(conv(x, p["stem"]["w"]), p["stem"]["norm"]))
    for block in (p["one"], p["two"]):
        stride = 2 if "skip" in block else 1
        h = relu(norm(conv(x, block["a"], stride), block["norm_a"]))
        h = norm(conv(h, block["b"]), block["norm_b"])
        skip = norm(conv(x, block["skip"], 2), block["norm"]) if "skip" in block else x
        x = relu(h + skip)
    return add(jnp.mean(x, axis=(1, 2)) @ p["head"]["w"], p["head"]["b"])


def block_shapes(into, mid, out, skip):
    shapes = {
        "a": (3, 3, into, mid),
        "norm_a": norm_shapes(mid),
        "b": (3, 3, mid, out),
        "norm_b": norm_shapes(out),
    }
    return shapes | (
        {"skip": (1, 1, into, out), "norm": norm_shapes(out)} if skip else {}
    )


RESNET = Hard(
    "resnet",
    resnet,
    {
        "stem": {"w": (3, 3, 3, 6), "norm": norm_shapes(6)},
        "one": block_shapes(6, 5, 6, False),
        "two": block_shapes(6, 7, 8, True),
        "head": {"w": (8, 4), "b": (4,)},
    },
    (IMAGE,),
    frozenset({"stem/w[3]", "one/a[3]", "two/a[3]", "two/b[3]"}),
)


def densenet(p, x):
    """Every layer reads all before it."""
    for name in ("a", "b", "c"):
        x = jnp.concatenate(
            [x, relu(add(conv(x, p[name]["w"]), p[name]["b"]))], axis=-1
        )
    x = relu(conv(x, p["mix"]["w"]))
    return jnp.mean(x, axis=(1, 2)) @ p["head"]["w"]


DENSENET = Hard(
    "densenet",
    densenet,
    {
        "a": {"w": (3, 3, 3, 4), "b": (4,)},
        "b": {"w": (3, 3, 7, 5), "b": (5,)},
        "c": {"w": (3, 3, 12, 6), "b": (6,)},
        "mix": {"w": (1, 1, 18, 7)},
        "head": {"w": (7, 2)},
    },
    (IMAGE,),
    frozenset({"a/w[3]", "b/w[3]", "c/w[3]", "mix/w[3]"}),
)


def unet(p, x):
    """Down, up again, and across."""
    one = relu(add(conv(x, p["one"]["w"]), p["one"]["b"]))
    low = lax.reduce_window(one, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    low = relu(add(conv(low, p["two"]["w"]), p["two"]["b"]))
    up = jnp.repeat(jnp.repeat(low, 2, axis=1), 2, axis=2)
    x = jnp.concatenate([one, up], axis=-1)
    x = relu(add(conv(x, p["three"]["w"]), p["three"]["b"]))
    return conv(x, p["out"]["w"])


UNET = Hard(
    "unet",
    unet,
    {
        "one": {"w": (3, 3, 3, 5), "b": (5,)},
        "two": {"w": (3, 3, 5, 6), "b": (6,)},
        "three": {"w": (3, 3, 11, 7), "b": (7,)},
        "out": {"w": (1, 1, 7, 2)},
    },
    (IMAGE,),
    frozenset({"one/w[3]", "two/w[3]", "three/w[3]"}),
)


def attend(p, x):
    """Grouped-query attention; heads from the shapes of the parameters."""
    q = jnp.einsum("btd,dgnk->btgnk", x, p["q"])
    k = jnp.einsum("btd,dgk->btgk", x, p["k"])
    v = jnp.einsum("btd,dgk->btgk", x, p["v"])
    scores = jnp.einsum("btgnk,bsgk->bgnts", q, k) / k.shape[-1] ** 0.5
    n = x.shape[1]
    causal = jnp.tril(jnp.ones((n, n), bool))[None, None, None]
    scores = jax.nn.softmax(jnp.where(causal, scores, -1e9))
    h = jnp.einsum("bgnts,bsgk->btgnk", scores, v)
    return jnp.einsum("btgnk,gnkd->btd", h, p["o"])


def gated(p, x):
    return (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]


def gpt_layer(p, x):
    x = x + attend(p, rms(x, p["norm_a"]))
    return x + gated(p, rms(x, p["norm_b"]))


def gpt(p, tokens):
    """Grouped-query attention and gated MLPs on one residual stream."""
    x = p["embed"][tokens] + p["places"][None, : tokens.shape[1]]
    for layer in (p["one"], p["two"]):
        x = gpt_layer(layer, x)
    return rms(x, p["norm"]) @ p["head"]


def layer_shapes(*lead):
    return {
        "norm_a": (*lead, 8),
        "q": (*lead, 8, 2, 2, 4),
        "k": (*lead, 8, 2, 4),
        "v": (*lead, 8, 2, 4),
        "o": (*lead, 2, 2, 4, 8),
        "norm_b": (*lead, 8),
        "gate": (*lead, 8, 10),
        "up": (*lead, 8, 10),
        "down": (*lead, 10, 8),
    }


def layer_groups(path, lead=0):
    axes = ((1, "q"), (2, "q"), (3, "q"), (2, "v"), (1, "gate"))
    return {f"{path}/{name}[{axis + lead}]" for axis, name in axes}


ENDS = {"embed": (11, 8), "places": (7, 8), "norm": (8,), "head": (8, 11)}
GPT = Hard(
    "gpt",
    gpt,
    {"one": layer_shapes(), "two": layer_shapes(), **ENDS},
    (TOKENS,),
    frozenset(layer_groups("one") | layer_groups("two")),
)


def scanned(p, tokens):
    """The same, all layers in one scan."""
    x = p["embed"][tokens] + p["places"][None, : tokens.shape[1]]
    x, _ = lax.scan(
        lambda x, p: (jax.checkpoint(gpt_layer)(p, x), None), x, p["layers"]
    )
    return rms(x, p["norm"]) @ p["head"]


SCANNED = Hard(
    "scanned",
    scanned,
    {"layers": layer_shapes(3), **ENDS},
    (TOKENS,),
    frozenset(layer_groups("layers", 1)),
)


def vit(p, x):
    """Patches, a class token, biases everywhere, layer norm."""
    x = add(conv(x, p["patch"]["w"], 4, "VALID"), p["patch"]["b"])
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    first = jnp.broadcast_to(p["class"][None], (x.shape[0], 1, x.shape[-1]))
    x = jnp.concatenate([first, x], axis=1) + p["places"][None]
    h = layer_norm(x, p["norm_a"])
    q, k, v = (
        jnp.einsum("btd,dhk->bthk", h, p[n]["w"]) + p[n]["b"][None, None] for n in "qkv"
    )
    scores = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k) * q.shape[-1] ** -0.5)
    x = x + jnp.einsum("bhts,bshk,hkd->btd", scores, v, p["o"])
    h = jax.nn.gelu(add(layer_norm(x, p["norm_b"]) @ p["up"]["w"], p["up"]["b"]))
    x = x + add(h @ p["down"]["w"], p["down"]["b"])
    return layer_norm(x, p["norm"])[:, 0] @ p["head"]


def layer_norm(x, p):
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return add(rms(x, p["scale"]), p["bias"])


LAYER_NORM = {"scale": (6,), "bias": (6,)}
HEADS = {"w": (6, 2, 3), "b": (2, 3)}
VIT = Hard(
    "vit",
    vit,
    {
        "patch": {"w": (4, 4, 3, 6), "b": (6,)},
        "class": (1, 6),
        "places": (5, 6),
        "norm_a": LAYER_NORM,
        "q": HEADS,
        "k": HEADS,
        "v": HEADS,
        "o": (2, 3, 6),
        "norm_b": LAYER_NORM,
        "up": {"w": (6, 9), "b": (9,)},
        "down": {"w": (9, 6), "b": (6,)},
        "norm": LAYER_NORM,
        "head": (6, 4),
    },
    (IMAGE,),
    frozenset({"q/w[1]", "q/w[2]", "v/w[2]", "up/w[1]"}),
)


def mixer(p, x):
    """MLPs over positions and over channels, in turn."""
    x = x.reshape(x.shape[0], 16, -1) @ p["patch"]
    h = layer_norm(x, p["norm_a"]).swapaxes(1, 2)
    x = x + mlp(p["positions"], h).swapaxes(1, 2)
    x = x + mlp(p["channels"], layer_norm(x, p["norm_b"]))
    return jnp.mean(x, axis=1) @ p["head"]


def mlp(p, x):
    return add(jax.nn.gelu(add(x @ p["up"], p["b"])) @ p["down"], p["c"])


MIXER = Hard(
    "mixer",
    mixer,
    {
        "patch": (12, 6),
        "norm_a": LAYER_NORM,
        "positions": {"up": (16, 7), "b": (7,), "down": (7, 16), "c": (16,)},
        "norm_b": LAYER_NORM,
        "channels": {"up": (6, 9), "b": (9,), "down": (9, 6), "c": (6,)},
        "head": (6, 4),
    },
    (IMAGE,),
    frozenset({"positions/up[1]", "channels/up[1]"}),
)


def flatten(p, x):
    """Convolutions without padding, flattened into a dense layer."""
    x = jax.nn.sigmoid(add(conv(x, p["a"]["w"], 1, "VALID"), p["a"]["b"]))
    x = jax.nn.sigmoid(add(conv(x, p["b"]["w"], 2, "VALID"), p["b"]["b"]))
    x = x.reshape(x.shape[0], -1)
    x = jnp.tanh(add(x @ p["c"]["w"], p["c"]["b"]))
    return add(x @ p["d"]["w"], p["d"]["b"])


FLATTEN = Hard(
    "flatten",
    flatten,
    {
        "a": {"w": (3, 3, 3, 5), "b": (5,)},
        "b": {"w": (2, 2, 5, 6), "b": (6,)},
        "c": {"w": (54, 7), "b": (7,)},
        "d": {"w": (7, 2), "b": (2,)},
    },
    (IMAGE,),
    frozenset({"a/w[3]", "b/w[3]", "c/w[1]"}),
)


def siamese(p, left, right):
    """One encoder for two inputs."""

    def encode(x):
        x = jnp.tanh(add(x @ p["a"]["w"], p["a"]["b"]))
        return jnp.tanh(add(x @ p["b"]["w"], p["b"]["b"]))

    return add(jnp.abs(encode(left) - encode(right)) @ p["head"]["w"], p["head"]["b"])


SIAMESE = Hard(
    "siamese",
    siamese,
    {
        "a": {"w": (4, 6), "b": (6,)},
        "b": {"w": (6, 5), "b": (5,)},
        "head": {"w": (5, 2), "b": (2,)},
    },
    (normal(4, 3, 4), normal(5, 3, 4)),
    frozenset({"a/w[1]", "b/w[1]"}),
)


def depthwise(p, x):
    """Pointwise, depthwise, pointwise, and one in two groups."""
    x = relu(add(conv(x, p["in"]["w"]), p["in"]["b"]))
    x = relu(add(conv(x, p["deep"]["w"], groups=x.shape[-1]), p["deep"]["b"]))
    x = relu(conv(x, p["out"]["w"]))
    x = relu(conv(x, p["pair"], groups=2))
    return jnp.mean(x, axis=(1, 2)) @ p["head"]


DEPTHWISE = Hard(
    "depthwise",
    depthwise,
    {
        "in": {"w": (1, 1, 3, 6), "b": (6,)},
        "deep": {"w": (3, 3, 1, 6), "b": (6,)},
        "out": {"w": (1, 1, 6, 8)},
        "pair": (3, 3, 4, 10),
        "head": (10, 2),
    },
    (IMAGE,),
    frozenset({"in/w[3]", "out/w[3]", "pair[3]"}),
)


def fused(p, x):
    """Queries, keys and values of one kernel; two halves of one kernel as a gate."""
    q, k, v = jnp.split(x @ p["qkv"], 3, axis=-1)
    scores = jax.nn.softmax(jnp.einsum("btk,bsk->bts", q, k))
    x = x + jnp.einsum("bts,bsk->btk", scores, v) @ p["o"]
    gate, up = jnp.split(x @ p["pair"], 2, axis=-1)
    return (jax.nn.silu(gate) * up) @ p["down"]


FUSED = Hard(
    "fused",
    fused,
    {"qkv": (4, 15), "o": (5, 4), "pair": (4, 12), "down": (6, 2)},
    (normal(6, 2, 5, 4),),
    frozenset({"qkv[1]", "pair[1]"}),
)


def experts(p, x):
    """A soft mixture of experts in one stack, and a scan over time beside it."""
    gates = jax.nn.softmax(x @ p["router"])
    h = jnp.tanh(jnp.einsum("btd,edh->bteh", x, p["up"]) + p["b"][None, None])
    x = jnp.einsum("bteh,ehd,bte->btd", h, p["down"], gates)

    def step(state, x):
        state = jnp.tanh(x @ p["w"] + state @ p["again"])
        return state, state

    zero = jnp.zeros((x.shape[0], p["w"].shape[1]))
    _, states = lax.scan(step, zero, x.swapaxes(0, 1))
    return states @ p["head"]


EXPERTS = Hard(
    "experts",
    experts,
    {
        "router": (4, 3),
        "up": (3, 4, 6),
        "b": (3, 6),
        "down": (3, 6, 5),
        "w": (5, 7),
        "again": (7, 7),
        "head": (7, 2),
    },
    (normal(7, 2, 5, 4),),
    frozenset({"up[2]", "down[2]", "w[1]"}),
)

HARD = (
    RESNET,
    DENSENET,
    UNET,
    GPT,
    SCANNED,
    VIT,
    MIXER,
    FLATTEN,
    SIAMESE,
    DEPTHWISE,
    FUSED,
    EXPERTS,
)
