"""Recurrent networks: cells of linen and NNX, actors, sequence to sequence."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn import relu, sigmoid

from tests.support.networks.network import Hidden, Network, dense, initial, normal

X = normal(0, 3, 3, 4)  # sequences, steps, features


def over_time(cell, carry, xs, more=()):
    """Runs a cell over axis 1; what it keeps has time as axis 0."""
    steps = (jnp.swapaxes(xs, 0, 1), *more)
    seen = []
    for step in zip(*steps, strict=True):
        carry, kept = cell(carry, *step)
        seen.append(kept)
    return carry, jax.tree.map(lambda *a: jnp.stack(a), *seen)


# Gated recurrent units -----------------------------------------------------------
GRU_CHOSEN = ("ir", "hr", "in", "hn")


def gru_cell(p, h, x):
    """One step, and the values of the units of its six kernels.

    Both gates are always on. The reset gate's units go on in the candidate, which is
    multiplied by `1 - z` and has its own sign then.
    """
    r = sigmoid(dense(p["ir"], x) + dense(p["hr"], h))
    z = sigmoid(dense(p["iz"], x) + dense(p["hz"], h))
    n = jnp.tanh(dense(p["in"], x) + r * dense(p["hn"], h))
    return (1 - z) * n + z * h, {"n": (1 - z) * n, "z": z}


def gru_hidden(seen, at=""):
    """Values of the units of a GRU's kernels."""
    after = Hidden(seen["n"], "logistic product")
    candidate = dict.fromkeys(GRU_CHOSEN, after)
    gates = dict.fromkeys(("iz", "hz"), Hidden(seen["z"], "logistic"))
    return {f"{at}{k}/kernel": v for k, v in (candidate | gates).items()}


def gru():
    """GRU by `nn.RNN`, and a readout of all steps."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="out")(nn.RNN(nn.GRUCell(6, name="cell"))(x))

    def hand(variables, x):
        p = variables["params"]
        h, seen = jnp.zeros((3, 6)), []
        for t in range(x.shape[1]):
            h, kept = gru_cell(p["cell"], h, x[:, t])
            seen.append(kept | {"h": h})
        seen = jax.tree.map(lambda *a: jnp.stack(a, 1), *seen)
        return dense(p["out"], seen["h"]), gru_hidden(seen, "params/cell/")

    net = Net()
    params = initial(net, X, seed=1)
    names = [f"params/cell/{k}/kernel" for k in GRU_CHOSEN]
    return Network(net.apply, params, (X,), hand, tuple(names))


# Long short-term memory ----------------------------------------------------------
def lstm_cell(p, carry, x):
    """One step of an LSTM with a dense layer for each gate and input."""
    c, h = carry
    i, f, g, o = (
        curve(dense(p[f"i{k}"], x) + dense(p[f"h{k}"], h))
        for k, curve in zip("ifgo", (sigmoid, sigmoid, jnp.tanh, sigmoid), strict=True)
    )
    c = f * c + i * g
    h = o * jnp.tanh(c)
    return (c, h), {"ig": i * g, "f": f, "h": h}


def lstm_hidden(seen, at=""):
    """The input gate and the candidate are one product, as is the state of all gates.

    The cell goes on to the next step, so what it adds to the product does not count.
    The forget gate multiplies the cell of the step before, and is always on.
    """
    values = {
        "i": Hidden(seen["ig"], "logistic product"),
        "g": Hidden(seen["ig"], "logistic product"),
        "f": Hidden(seen["f"], "logistic"),
        "o": Hidden(seen["h"], "logistic product"),
    }
    return {f"{at}{a}{k}/kernel": v for k, v in values.items() for a in "ih"}


def lstm():
    """LSTM by `nn.RNN` and the last state."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            states = nn.RNN(nn.LSTMCell(6, name="cell"))(x)
            return nn.Dense(2, name="out")(states[:, -1])

    def hand(variables, x):
        p = variables["params"]
        carry, seen = (jnp.zeros((3, 6)),) * 2, []
        for t in range(x.shape[1]):
            carry, kept = lstm_cell(p["cell"], carry, x[:, t])
            seen.append(kept)
        seen = jax.tree.map(lambda *a: jnp.stack(a, 1), *seen)
        return dense(p["out"], carry[1]), lstm_hidden(seen, "params/cell/")

    net = Net()
    params = initial(net, X, seed=2)
    names = [f"params/cell/{a}{k}/kernel" for k in "igo" for a in "ih"]
    return Network(net.apply, params, (X,), hand, tuple(names))


def stacked_nnx_rnn():
    """Two recurrent layers by `nnx.RNN`, the second one backwards."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.one = nnx.RNN(nnx.SimpleCell(4, 6, rngs=rngs))
            self.two = nnx.RNN(
                nnx.SimpleCell(6, 5, rngs=rngs), reverse=True, keep_order=True
            )
            self.out = nnx.Linear(5, 2, rngs=rngs)

        def __call__(self, x):
            return self.out(self.two(self.one(x)))

    def layer(p, xs, order):
        h, states = jnp.zeros((3, p["dense_h"]["kernel"].shape[0])), {}
        for t in order:
            h = jnp.tanh(dense(p["dense_i"], xs[:, t]) + dense(p["dense_h"], h))
            states[t] = h
        return jnp.stack([states[t] for t in sorted(states)], 1)

    def hand(net, x):
        p = nnx.to_pure_dict(nnx.state(net, nnx.Param))
        one = layer(p["one"]["cell"], x, range(3))
        two = layer(p["two"]["cell"], one, reversed(range(3)))
        values = {
            f"{name}/cell/dense_{side}/kernel": Hidden(value, "tanh")
            for name, value in (("one", one), ("two", two))
            for side in "ih"
        }
        return dense(p["out"], two), values

    names = [f"{n}/cell/dense_{s}/kernel" for n in ("one", "two") for s in "ih"]
    return Network(lambda net, x: net(x), Net(nnx.Rngs(3)), (X,), hand, tuple(names))


# Reinforcement learning ------------------------------------------------------------
def recurrent_actor_critic():
    """PPO with memory: embedding, GRU that is reset at the ends of episodes, two heads.

    A gate of the GRU reads the state after the reset.
    """

    class Memory(nn.Module):
        @nn.compact
        def __call__(self, h, step):
            x, new = step
            h = jnp.where(new[:, None], jnp.zeros_like(h), h)
            return nn.GRUCell(5, name="cell")(h, x)

    class ActorCritic(nn.Module):
        @nn.compact
        def __call__(self, h, x, new):
            x = relu(nn.Dense(7, name="embed")(x))
            memory = nn.scan(
                Memory, variable_broadcast="params", split_rngs={"params": False}
            )
            _, x = memory(name="memory")(h, (x, new))
            actor = nn.Dense(3, name="policy")(relu(nn.Dense(6, name="actor")(x)))
            critic = nn.Dense(1, name="value")(relu(nn.Dense(4, name="critic")(x)))
            return jax.nn.log_softmax(actor), critic[..., 0]

    net = ActorCritic()
    x, new = normal(4, 4, 3, 4), normal(5, 4, 3) > 0.5
    start = normal(6, 3, 5)
    params = initial(net, start, x, new, seed=7)

    def hand(variables, h, x, new):
        p = variables["params"]
        embedded = relu(dense(p["embed"], x))
        seen = []
        for t in range(4):
            h = jnp.where(new[t][:, None], 0.0, h)
            h, kept = gru_cell(p["memory"]["cell"], h, embedded[t])
            seen.append(kept | {"h": h})
        seen = jax.tree.map(lambda *a: jnp.stack(a), *seen)
        actor = relu(dense(p["actor"], seen["h"]))
        critic = relu(dense(p["critic"], seen["h"]))
        out = (
            jax.nn.log_softmax(dense(p["policy"], actor)),
            dense(p["value"], critic)[..., 0],
        )
        return out, {
            "params/embed/kernel": Hidden(embedded, "relu"),
            "params/actor/kernel": Hidden(actor, "relu"),
            "params/critic/kernel": Hidden(critic, "relu"),
            **gru_hidden(seen, "params/memory/cell/"),
        }

    names = ["embed", "actor", "critic", *(f"memory/cell/{k}" for k in GRU_CHOSEN)]
    return Network(
        net.apply,
        params,
        (start, x, new),
        hand,
        tuple(f"params/{n}/kernel" for n in names),
    )


def actor_critic():
    """PPO without memory: two tanh trunks, and the clipped loss behind them."""

    class ActorCritic(nn.Module):
        @nn.compact
        def __call__(self, x):
            def trunk(name, x, out):
                for i in range(2):
                    x = jnp.tanh(nn.Dense(6, name=f"{name}{i}")(x))
                return nn.Dense(out, name=f"{name}_out")(x)

            return trunk("actor", x, 3), trunk("critic", x, 1)[:, 0]

    net = ActorCritic()
    x, action = normal(8, 12, 4), jnp.arange(12) % 3
    old, gain = normal(9, 12), normal(10, 12)
    params = initial(net, x, seed=11)

    def loss(policy, value):
        log = jax.nn.log_softmax(policy)
        ratio = jnp.exp(log[jnp.arange(12), action] - old)
        clipped = jnp.clip(ratio, 0.8, 1.2)
        actor = -jnp.minimum(ratio * gain, clipped * gain).mean()
        entropy = -(jnp.exp(log) * log).sum(-1).mean()
        return actor + 0.5 * ((value - gain) ** 2).mean() - 0.01 * entropy

    def hand(variables, x):
        p, values, ends = variables["params"], {}, {}
        for name in ("actor", "critic"):
            h = x
            for i in range(2):
                h = jnp.tanh(dense(p[f"{name}{i}"], h))
                values[f"params/{name}{i}/kernel"] = Hidden(h, "tanh")
            ends[name] = dense(p[f"{name}_out"], h)
        return loss(ends["actor"], ends["critic"][:, 0]), values

    names = [f"params/{n}{i}/kernel" for n in ("actor", "critic") for i in range(2)]
    return Network(
        lambda params, x: loss(*net.apply(params, x)), params, (x,), hand, tuple(names)
    )


def sequence_to_sequence():
    """An encoder's last state starts a decoder that is given the right answers."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, y):
            encoder = nn.RNN(nn.LSTMCell(5, name="encoder"), return_carry=True)
            state, _ = encoder(x)
            decoder = nn.RNN(nn.LSTMCell(5, name="decoder"))
            return nn.Dense(4, name="out")(decoder(y, initial_carry=state))

    net = Net()
    y = normal(12, 3, 2, 4)
    params = initial(net, X, y, seed=13)

    def hand(variables, x, y):
        p, values = variables["params"], {}
        carry, states = (jnp.zeros((3, 5)),) * 2, []
        for name, inputs in (("encoder", x), ("decoder", y)):
            seen = []
            for t in range(inputs.shape[1]):
                carry, kept = lstm_cell(p[name], carry, inputs[:, t])
                seen.append(kept)
            seen = jax.tree.map(lambda *a: jnp.stack(a, 1), *seen)
            values |= lstm_hidden(seen, f"params/{name}/")
            states = seen["h"]
        return dense(p["out"], states), values

    names = [
        f"params/{n}/{a}{k}/kernel"
        for n in ("encoder", "decoder")
        for k in "igo"
        for a in "ih"
    ]
    return Network(net.apply, params, (X, y), hand, tuple(names))


def neural_ode():
    """One vector field, used in every step of a scan."""
    params: dict[str, Any] = {
        "up": normal(14, 4, 6),
        "time": normal(15, 6),
        "down": normal(16, 6, 4) / 3,
        "out": normal(17, 4, 2),
    }

    def fn(p, x):
        def step(x, t):
            h = jnp.tanh(x @ p["up"] + t * p["time"])
            return x + 0.2 * (h @ p["down"]), None

        return lax.scan(step, x, jnp.linspace(0.0, 1.0, 5))[0] @ p["out"]

    def hand(p, x):
        seen = []
        for t in jnp.linspace(0.0, 1.0, 5):
            h = jnp.tanh(x @ p["up"] + t * p["time"])
            x = x + 0.2 * (h @ p["down"])
            seen.append(h)
        return x @ p["out"], {"up": Hidden(jnp.stack(seen), "tanh")}

    return Network(fn, params, (normal(18, 7, 4),), hand, ("up",))


NETWORKS = {
    "GRU": gru,
    "LSTM": lstm,
    "recurrent layers, one backwards (NNX)": stacked_nnx_rnn,
    "actor and critic (PPO)": actor_critic,
    "actor and critic with memory (PPO)": recurrent_actor_critic,
    "sequence to sequence": sequence_to_sequence,
    "neural ODE": neural_ode,
}
