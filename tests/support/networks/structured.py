"""Networks for sets, graphs, fields and states, and networks that make networks."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import gelu, relu, sigmoid, softplus

from tests.support.networks.network import (
    Hidden,
    Network,
    layer_norm,
    normal,
    result_of,
    weights,
)


def values(after, **named):
    """Hidden units after one nonlinearity, by path."""
    return {k: Hidden(v, after) for k, v in named.items()}


# Sets and graphs -------------------------------------------------------------------
def deep_sets():
    """The sum over a set of what a network says of its members."""
    params = weights(0, one=(3, 6), two=(6, 7), three=(7, 5), out=(5, 2))

    def parts(p, x):
        one = relu(x @ p["one"])
        two = relu(one @ p["two"])
        three = relu(two.sum(1) @ p["three"])
        return three @ p["out"], values("relu", one=one, two=two, three=three)

    return Network(
        result_of(parts),
        params,
        (normal(1, 4, 6, 3),),
        parts,
        ("one", "two", "three"),
    )


def point_net():
    """Points are turned by a matrix that a network makes; the largest value is kept."""
    params = weights(2, look=(3, 5), turn=(5, 9), one=(3, 6), two=(6, 8), out=(8, 2))

    def parts(p, x):
        look = relu(x @ p["look"])
        turn = (look.max(1) @ p["turn"]).reshape(-1, 3, 3)
        one = relu(jnp.einsum("bni,bij->bnj", x, turn + jnp.eye(3)) @ p["one"])
        two = relu(one @ p["two"])
        return two.max(1) @ p["out"], values("relu", look=look, one=one, two=two)

    return Network(
        result_of(parts),
        params,
        (normal(3, 4, 6, 3),),
        parts,
        ("look", "one", "two"),
    )


SENDERS = np.array([0, 1, 1, 2, 3, 4, 0, 2])
RECEIVERS = np.array([1, 0, 2, 3, 4, 0, 3, 1])


def graph_net():
    """Messages along edges from both ends and a global value; sums at nodes."""
    shapes = {"edge": (3 + 4 + 4 + 2, 6), "edge2": (6, 5), "node": (4 + 5 + 2, 7)}
    shapes |= {"node2": (7, 6), "global": (5 + 6 + 2, 8), "out": (8, 1)}
    params = weights(4, **shapes)

    def parts(p, nodes, edges, context):
        n, e = nodes.shape[0], edges.shape[0]
        ends = [nodes[SENDERS], nodes[RECEIVERS], jnp.tile(context, (e, 1))]
        edge = relu(jnp.concatenate([edges, *ends], -1) @ p["edge"])
        edge2 = relu(edge @ p["edge2"])
        arrived = jax.ops.segment_sum(edge2, RECEIVERS, n)
        node = [nodes, arrived, jnp.tile(context, (n, 1))]
        node = relu(jnp.concatenate(node, -1) @ p["node"])
        node2 = relu(node @ p["node2"])
        summary = [edge2.sum(0, keepdims=True), node2.sum(0, keepdims=True), context]
        whole = relu(jnp.concatenate(summary, -1) @ p["global"])
        seen = {"edge": edge, "edge2": edge2, "node": node, "node2": node2}
        return whole @ p["out"], values("relu", **seen, **{"global": whole})

    names = ("edge", "edge2", "node", "node2", "global")
    args = normal(5, 5, 4), normal(6, 8, 3), normal(7, 1, 2)
    return Network(result_of(parts), params, args, parts, names)


def graph_convolution():
    """Features of neighbours, divided by the roots of the degrees; norm and a sum."""
    params = weights(8, embed=(4, 6), one=(6, 6), two=(6, 6), out=(6, 2))
    degree = np.bincount(RECEIVERS, minlength=5).astype(np.float32)[:, None]

    def parts(p, nodes):
        h, seen = nodes @ p["embed"], {}
        for name in ("one", "two"):
            seen[name] = y = relu(h @ p[name])
            y = jax.ops.segment_sum((y / degree**0.5)[SENDERS], RECEIVERS, 5)
            h = layer_norm(h + y / degree**0.5)
        return h.mean(0) @ p["out"], values("relu", **seen)

    return Network(result_of(parts), params, (normal(9, 5, 4),), parts, ("one", "two"))


def graph_attention():
    """GAT: shares from a sum of two numbers of each end, heads side by side."""
    params = weights(10, w=(4, 2, 5), out=(10, 3)) | {
        "left": normal(11, 2, 5),
        "right": normal(12, 2, 5),
    }

    def parts(p, nodes):
        h = jnp.einsum("ni,ihd->nhd", nodes, p["w"])
        one, two = (h * p["left"]).sum(-1), (h * p["right"]).sum(-1)
        shares = jnp.exp(jax.nn.leaky_relu(one[SENDERS] + two[RECEIVERS], 0.2))
        total = jax.ops.segment_sum(shares, RECEIVERS, 5)[RECEIVERS]
        sent = h[SENDERS] * (shares / total)[..., None]
        y = jax.nn.elu(jax.ops.segment_sum(sent, RECEIVERS, 5).reshape(5, 10))
        return y @ p["out"], {"w": Hidden(y.reshape(5, 2, 5), "elu")}

    return Network(result_of(parts), params, (normal(13, 5, 4),), parts, ("w",))


# Fields ----------------------------------------------------------------------------
def radiance_field():
    """NeRF: waves of positions, a second entrance, density and colour, sums on rays."""
    shapes = {"0": (12, 8), "1": (8, 8), "2": (20, 8), "3": (8, 8), "density": (8, 1)}
    shapes |= {"feature": (8, 8), "view": (8 + 3, 6), "colour": (6, 3)}
    params = weights(14, **shapes) | {f"b{i}": normal(15 + i, 8) for i in range(4)}

    def parts(p, rays, directions):
        scaled = rays[..., None, :] * 2.0 ** jnp.arange(2.0)[:, None]
        waves = jnp.concatenate([jnp.sin(scaled), jnp.cos(scaled)], -1)
        waves = waves.reshape(*rays.shape[:-1], 12)
        h, seen = waves, {}
        for i in range(4):
            if i == 2:
                h = jnp.concatenate([h, waves], -1)
            seen[str(i)] = h = relu(h @ p[str(i)] + p[f"b{i}"])
        density = relu(h @ p["density"])[..., 0]
        view = jnp.broadcast_to(directions[:, None], rays.shape)
        view = relu(jnp.concatenate([h @ p["feature"], view], -1) @ p["view"])
        colour = sigmoid(view @ p["colour"])
        solid = 1 - jnp.exp(-density * 0.1)
        free = jnp.cumprod(1 - solid + 1e-10, 1)
        colour = ((solid * free)[..., None] * colour).sum(1)
        return colour, values("relu", **seen, view=view)

    args = normal(20, 3, 4, 3), normal(21, 3, 3)
    names = ("0", "1", "2", "3", "view")
    return Network(result_of(parts), params, args, parts, names)


def sine_field():
    """SIREN: sines of large multiples."""
    params = weights(22, one=(2, 6), two=(6, 7), out=(7, 1)) | {"b": normal(23, 6)}

    def parts(p, x):
        one = jnp.sin(30.0 * (x @ p["one"] + p["b"]))
        two = jnp.sin(30.0 * (one @ p["two"]))
        return two @ p["out"], values("sin", one=one, two=two)

    return Network(
        result_of(parts), params, (normal(24, 30, 2),), parts, ("one", "two")
    )


def fourier_operator():
    """FNO: products of low frequencies with complex weights, beside a plain kernel."""
    shapes = {"lift": (2, 6), "real": (3, 6, 6), "imag": (3, 6, 6), "w": (6, 6)}
    params = weights(25, **shapes, out=(6, 1))

    def parts(p, x):
        h = x @ p["lift"]
        waves = jnp.fft.rfft(h, axis=1)[:, :3]
        spectral = lax.complex(p["real"], p["imag"])
        waves = jnp.einsum("bki,kio->bko", waves, spectral)
        h = gelu(jnp.fft.irfft(waves, n=8, axis=1) + h @ p["w"])
        return h @ p["out"], values("gelu", w=h)

    return Network(result_of(parts), params, (normal(26, 3, 8, 2),), parts, ("w",))


# Networks from networks ------------------------------------------------------------
def hypernetwork():
    """A network makes the weights of another one, whose units no kernel makes."""
    params = weights(27, code=(3, 6), make=(6, 20), out=(5, 2))

    def parts(p, x, z):
        code = relu(z @ p["code"])
        made = (code @ p["make"]).reshape(-1, 4, 5)
        h = relu(jnp.einsum("bi,bij->bj", x, made))
        return h @ p["out"], values("relu", code=code)

    args = normal(28, 7, 4), normal(29, 7, 3)
    return Network(result_of(parts), params, args, parts, ("code",))


def ensemble():
    """Five networks side by side by `vmap`, their mean."""
    params = weights(30, w=(5, 4, 6), b=(5, 6), o=(5, 6, 2))

    def parts(p, x):
        h = relu(jnp.einsum("bi,eij->ebj", x, p["w"]) + p["b"][:, None])
        hidden = Hidden(jnp.moveaxis(h, 0, 1), "relu")
        return jnp.einsum("ebj,ejo->ebo", h, p["o"]).mean(0), {"w": hidden}

    def fn(p, x):
        def one(p):
            return relu(x @ p["w"] + p["b"]) @ p["o"]

        return jax.vmap(one)(p).mean(0)

    return Network(fn, params, (normal(31, 7, 4),), parts, ("w",))


def masked_autoregressive():
    """MADE: fixed masks on the weights let an output read the inputs before it."""
    params = weights(32, one=(4, 8), two=(8, 8), out=(8, 4))
    order = np.arange(8) % 3
    first = (np.arange(4)[:, None] <= order).astype(np.float32)
    second = (order[:, None] <= order).astype(np.float32)
    last = (order[:, None] < np.arange(4)).astype(np.float32)

    def parts(p, x):
        one = relu(x @ (p["one"] * first))
        two = relu(one @ (p["two"] * second))
        return two @ (p["out"] * last), values("relu", one=one, two=two)

    return Network(result_of(parts), params, (normal(33, 9, 4),), parts, ("one", "two"))


# States ----------------------------------------------------------------------------
def state_space():
    """S4D: diagonal states of a real kernel each, then a gated layer.

    The states of a channel have no kernel between inputs and themselves; the layer that
    mixes channels is one, and so is the gate that the same channels go through.
    """
    params = weights(34, embed=(3, 6), mix=(6, 6), gate=(6, 6), out=(6, 2)) | {
        "decay": normal(35, 6, 4),
        "b": normal(36, 6, 4),
        "c": normal(37, 6, 4),
        "d": normal(38, 6),
    }

    def parts(p, x):
        u = x @ p["embed"]
        decay = jnp.exp(-softplus(p["decay"]))

        def step(state, u):
            state = decay * state + p["b"] * u[..., None]
            return state, (p["c"] * state).sum(-1)

        _, y = lax.scan(step, jnp.zeros((x.shape[0], 6, 4)), jnp.swapaxes(u, 0, 1))
        y = gelu(jnp.swapaxes(y, 0, 1) + p["d"] * u)
        gated = (y @ p["mix"]) * sigmoid(y @ p["gate"])
        hidden = Hidden(gated, "logistic product")
        return (u + gated).mean(1) @ p["out"], {"mix": hidden, "gate": hidden}

    return Network(
        result_of(parts),
        params,
        (normal(39, 3, 5, 3),),
        parts,
        ("mix", "gate"),
    )


NETWORKS = {
    "deep sets": deep_sets,
    "PointNet": point_net,
    "GraphNet": graph_net,
    "graph convolution": graph_convolution,
    "graph attention": graph_attention,
    "NeRF": radiance_field,
    "SIREN": sine_field,
    "Fourier neural operator": fourier_operator,
    "hypernetwork": hypernetwork,
    "ensemble": ensemble,
    "MADE": masked_autoregressive,
    "state space (S4D)": state_space,
}
