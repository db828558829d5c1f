"""The model zoo, raw JAX: dictionaries of arrays and plain functions."""

import jax
import jax.numpy as jnp
from jax import lax

from tests.support.zoo_case import Case, Model, dense, loss, normal, rate, relu, weights

X = normal(1, 6, 4)
SEQUENCE = normal(2, 2, 5, 4)


def mlp(p, x):
    return loss(relu(x @ p["up"] + p["bias"][None]) @ p["down"])


def mlp_rates(p, x):
    h = relu(x @ p["up"] + p["bias"][None])
    return {"up": (rate(x), rate(h)), "down": (rate(h), rate(h @ p["down"]))}


def gated(p, x):
    return loss((jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"])


def gated_rates(p, x):
    h = jax.nn.silu(x @ p["gate"]) * (x @ p["up"])
    out = rate(h @ p["down"])
    return {
        "gate": (rate(x), rate(h)),
        "up": (rate(x), rate(h)),
        "down": (rate(h), out),
    }


def tied(p, x):
    h = relu(x @ p["w"])
    return loss(relu(h @ p["w"]) @ p["head"])


def tied_rates(p, x):
    h1 = relu(x @ p["w"])
    h2 = relu(h1 @ p["w"])
    uses = [(rate(x) + rate(h1)) / 2, (rate(h1) + rate(h2)) / 2]
    return {"w": tuple(uses), "head": (rate(h2), rate(h2 @ p["head"]))}


def bf16(p, x):
    x, w = x.astype(jnp.bfloat16), {k: v.astype(jnp.bfloat16) for k, v in p.items()}
    return loss((relu(x @ w["up"]) @ w["down"]).astype(jnp.float32))


def bf16_rates(p, x):
    x, w = x.astype(jnp.bfloat16), {k: v.astype(jnp.bfloat16) for k, v in p.items()}
    h = relu(x @ w["up"])
    return {"up": (rate(x), rate(h)), "down": (rate(h), rate(h @ w["down"]))}


def projections(p, x):
    """Grouped-query attention: 4 query heads on 2 key and value heads."""
    q = jnp.einsum("btd,dhk->bthk", x, p["q"])
    k = jnp.einsum("btd,dgk->btgk", x, p["k"])
    v = jnp.einsum("btd,dgk->btgk", x, p["v"])
    return q, k, v


def mixed_values(q, k, v):
    q = q.reshape(2, 5, 2, 2, 3)
    scores = jnp.einsum("btgnk,bsgk->bgnts", q, k)
    causal = jnp.tril(jnp.ones((5, 5), bool))[None, None, None]
    scores = jax.nn.softmax(jnp.where(causal, scores, -1e9))
    return jnp.einsum("bgnts,bsgk->btgnk", scores, v).reshape(2, 5, 4, 3)


def attention(p, x):
    return loss(jnp.einsum("bthk,hkd->btd", mixed_values(*projections(p, x)), p["o"]))


def attention_rates(p, x):
    q, k, v = projections(p, x)
    h = mixed_values(q, k, v)
    out = jnp.einsum("bthk,hkd->btd", h, p["o"])
    rates = {n: (rate(x), rate(y, 2)) for n, y in zip("qkv", (q, k, v), strict=True)}
    return rates | {"o": (rate(h, 2), rate(out))}


def experts(p, x):
    h = relu(jnp.einsum("ecd,edf->ecf", x, p["up"]))
    return loss(jnp.einsum("ecf,efd->ecd", h, p["down"]))


def experts_rates(p, x):
    h = relu(jnp.einsum("ecd,edf->ecf", x, p["up"]))
    out = rate(jnp.einsum("ecf,efd->ecd", h, p["down"]), lead=1)
    return {"up": (rate(x, lead=1), rate(h, lead=1)), "down": (rate(h, lead=1), out)}


def ensemble(p, x):
    return jnp.sum(jax.vmap(mlp)(p, x))


def ensemble_rates(p, x):
    h = relu(jnp.einsum("ebd,edf->ebf", x, p["up"]) + p["bias"][:, None])
    out = rate(jnp.einsum("ebf,efd->ebd", h, p["down"]), lead=1)
    return {"up": (rate(x, lead=1), rate(h, lead=1)), "down": (rate(h, lead=1), out)}


def layers(p, x):
    """A residual stack in two nested scans, rematerialised."""

    @jax.checkpoint
    def block(x, w):
        return x + jnp.tanh(relu(x @ w["up"]) @ w["down"]), None

    def pair(x, w):
        return lax.scan(block, x, w)

    return loss(lax.scan(pair, x, p)[0])


def layers_rates(p, x):
    rows = []
    for i in range(2):
        for j in range(3):
            h = relu(x @ p["up"][i, j])
            y = jnp.tanh(h @ p["down"][i, j])
            rows.append((rate(x), rate(h), rate(y)))
            x = x + y
    x, h, y = (jnp.reshape(jnp.stack(r), (2, 3, -1)) for r in zip(*rows, strict=True))
    return {"up": (x, h), "down": (h, y)}


def recurrent(p, x):
    """A plain recurrent net over time: the kernels are the same at every step."""

    def step(h, x):
        h = jnp.tanh(x @ p["wx"] + h @ p["wh"])
        return h, h

    first = jnp.zeros((x.shape[1], p["wh"].shape[0]))
    return loss(lax.scan(step, first, x)[1])


def recurrent_rates(p, x):
    h, inside = jnp.zeros((x.shape[1], p["wh"].shape[0])), []
    for v in x:
        a, b = v @ p["wx"], h @ p["wh"]
        before, h = h, jnp.tanh(a + b)
        inside.append((before, h))
    before, h = (jnp.stack(s) for s in zip(*inside, strict=True))
    return {"wx": (rate(x), rate(h)), "wh": (rate(before), rate(h))}


def branches(p, x):
    """The second of two branches runs."""

    def first(x):
        return relu(x @ p["a"])

    def second(x):
        return jnp.tanh(x @ p["b"])

    return loss(lax.cond(jnp.sum(x) > 1e6, first, second, x) @ p["c"])


def branches_rates(p, x):
    h = jnp.tanh(x @ p["b"])
    none = (jnp.zeros(4), jnp.zeros(3))
    return {"a": none, "b": (rate(x), rate(h)), "c": (rate(h), rate(h @ p["c"]))}


@jax.custom_jvp
def own_derivative(x, w):
    return relu(x @ w)


@own_derivative.defjvp
def _(primals, tangents):
    return jax.jvp(lambda x, w: relu(x @ w), primals, tangents)


def custom(p, x):
    return loss(own_derivative(x, p["up"]) @ p["down"])


def custom_rates(p, x):
    return mlp_rates({**p, "bias": jnp.zeros(3)}, x)


def masked(p, x, mask, key):
    """Masked, dropped and normalised weights stay the same kernels."""
    drop = jax.random.bernoulli(key, 0.5, p["down"].shape)
    length = jnp.sqrt(jnp.sum(jnp.square(p["up"]), axis=0, keepdims=True))
    h = relu(x @ (p["up"] / length * mask))
    return loss(h @ jnp.where(drop, p["down"], 0.0))


def masked_rates(p, x, mask, key):
    h = relu(x @ (p["up"] * mask))
    drop = jax.random.bernoulli(key, 0.5, p["down"].shape)
    out = h @ jnp.where(drop, p["down"], 0.0)
    return {"up": (rate(x), rate(h)), "down": (rate(h), rate(out))}


MLP = {"up": dense(), "down": dense()}
STACKED = dense((1,), (2,), stack=(0,))
SHAPES = {"up": (4, 3), "bias": (3,), "down": (3, 2)}


CASES = [
    Case(
        "mlp",
        lambda: Model(mlp, weights(**SHAPES), (X,)),
        MLP,
        mlp_rates,
        {"up": "relu", "down": ""},
        {"up": (), "down": ("up",)},
    ),
    Case(
        "gated",
        lambda: Model(gated, weights(gate=(4, 3), up=(4, 3), down=(3, 2)), (X,)),
        {**MLP, "gate": dense()},
        gated_rates,
        {"gate": "silu product", "up": "silu product"},
        {"down": ("gate", "up")},
    ),
    Case(
        "tied",
        lambda: Model(tied, weights(w=(4, 4), head=(4, 2)), (X,)),
        {"w": dense(), "head": dense()},
        tied_rates,
        {"w": "relu"},
        {"w": ("w",)},
    ),
    Case("bf16", lambda: Model(bf16, weights(**SHAPES), (X,)), MLP, bf16_rates),
    Case(
        "attention",
        lambda: Model(
            attention,
            weights(q=(4, 4, 3), k=(4, 2, 3), v=(4, 2, 3), o=(4, 3, 4)),
            (SEQUENCE,),
        ),
        {n: dense((0,), (1, 2)) for n in "qkv"} | {"o": dense((0, 1), (2,))},
        attention_rates,
        reads={"o": ("v",)},
    ),
    Case(
        "experts",
        lambda: Model(
            experts, weights(up=(3, 4, 5), down=(3, 5, 2)), (normal(4, 3, 6, 4),)
        ),
        {"up": STACKED, "down": STACKED},
        experts_rates,
        reads={"down": ("up",)},
    ),
    Case(
        "ensemble",
        lambda: Model(
            ensemble,
            weights(up=(3, 4, 5), bias=(3, 5), down=(3, 5, 2)),
            (normal(4, 3, 6, 4),),
        ),
        {"up": STACKED, "down": STACKED},
        ensemble_rates,
        reads={"down": ("up",)},
    ),
    Case(
        "nested_scan",
        lambda: Model(layers, weights(up=(2, 3, 4, 5), down=(2, 3, 5, 4)), (X,)),
        {n: dense((2,), (3,), stack=(0, 1)) for n in ("up", "down")},
        layers_rates,
        {"up": "relu", "down": "tanh"},
        {"down": ("up",)},
    ),
    Case(
        "recurrent",
        lambda: Model(recurrent, weights(wx=(4, 3), wh=(3, 3)), (normal(5, 5, 2, 4),)),
        {"wx": dense(), "wh": dense()},
        recurrent_rates,
        {"wx": "tanh", "wh": "tanh"},
    ),
    Case(
        "cond",
        lambda: Model(branches, weights(a=(4, 3), b=(4, 3), c=(3, 2)), (X,)),
        {n: dense() for n in "abc"},
        branches_rates,
        {"a": "relu", "b": "tanh"},
    ),
    Case(
        "custom_jvp", lambda: Model(custom, weights(**SHAPES), (X,)), MLP, custom_rates
    ),
    Case(
        "masked",
        lambda: Model(
            masked,
            weights(**SHAPES),
            (X, (normal(6, 4, 3) > 0).astype(jnp.float32), jax.random.key(7)),
        ),
        MLP,
        masked_rates,
    ),
]
