"""Networks with fused kernels: one product makes several kinds of units."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import gelu, silu, softplus

from tests.support.networks.network import (
    Hidden,
    Network,
    conv,
    initial,
    normal,
    result_of,
    rms_norm,
    weights,
)


def gemma():
    """One kernel (2, F, H) makes both factors; the unit is their product."""

    class FeedForward(nn.Module):
        @nn.compact
        def __call__(self, x):
            w = self.param("gating_einsum", nn.initializers.normal(), (2, 6, 9))
            gate = x @ w[0]
            h = gelu(gate) * (x @ w[1])
            return h @ self.param("linear", nn.initializers.normal(), (9, 6))

    net, x = FeedForward(), normal(0, 3, 4, 6)
    params = initial(net, x)

    def hand(v, x):
        p = v["params"]
        h = gelu(x @ p["gating_einsum"][0]) * (x @ p["gating_einsum"][1])
        both = jnp.stack([h, h])  # one stack slice for each factor
        return h @ p["linear"], {"params/gating_einsum": Hidden(both, "gelu product")}

    return Network(net.apply, params, (x,), hand, ("params/gating_einsum",))


def gemma_einsum():
    """The same, with one einsum `...F,NHF->...NH`."""
    params = weights(1, gating=(2, 9, 6), linear=(9, 6))

    def parts(p, x):
        y = jnp.einsum("btf,nhf->btnh", x, p["gating"])
        h = gelu(y[..., 0, :]) * y[..., 1, :]
        both = jnp.stack([h, h], -2)
        return h @ p["linear"], {"gating": Hidden(both, "gelu product")}

    return Network(result_of(parts), params, (normal(0, 3, 4, 6),), parts, ("gating",))


def split_glu():
    params = weights(2, wi=(6, 18), wo=(9, 6))

    def parts(p, x):
        gate, up = jnp.split(x @ p["wi"], 2, -1)
        h = silu(gate) * up
        both = jnp.concatenate([h, h], -1)
        return h @ p["wo"], {"wi": Hidden(both, "silu product")}

    return Network(result_of(parts), params, (normal(0, 3, 4, 6),), parts, ("wi",))


def mamba2():
    """One kernel makes gate, inputs, B, C and steps of the states."""
    inner, state, nheads = 8, 3, 2
    mixed = inner + 2 * state
    shapes = {
        "inp": (6, inner + mixed + nheads),
        "conv": (3, 1, mixed),
        "out": (inner, 6),
    }
    params = weights(3, **shapes)
    params |= {"a": normal(4, nheads), "d": normal(5, nheads)}
    params |= {"scale": normal(6, inner), "dt": normal(7, nheads)}

    def parts(p, u):
        z, xbc, dt = jnp.split(u @ p["inp"], [inner, 2 * inner + 2 * state], -1)
        xbc = silu(conv(xbc, p["conv"], groups=mixed, padding=[(2, 0)]))
        x, b, c = jnp.split(xbc, [inner, inner + state], -1)
        dt = softplus(dt + p["dt"])
        x = x.reshape(*x.shape[:-1], nheads, -1)

        def step(h, t):
            x, b, c, dt = t
            decay = jnp.exp(-jnp.exp(p["a"]) * dt)[..., None, None]
            h = decay * h + (dt[..., None] * x)[..., None] * b[:, None, None]
            return h, (h * c[:, None, None]).sum(-1)

        h0 = jnp.zeros((u.shape[0], nheads, inner // nheads, state))
        xs = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), (x, b, c, dt))
        y = jnp.swapaxes(lax.scan(step, h0, xs)[1], 0, 1) + p["d"][:, None] * x
        y = rms_norm(y.reshape(*y.shape[:-2], inner) * silu(z), p["scale"])
        return y @ p["out"], {}

    return Network(result_of(parts), params, (normal(8, 2, 5, 6),), parts, ())


NETWORKS = {
    "Gemma block": gemma,
    "Gemma block by einsum": gemma_einsum,
    "T5 1.1 with one kernel": split_glu,
    "Mamba 2": mamba2,
}
