"""A witness set of W disjoint clauses, for a net whose first layer stays random.

    y = OR of W clauses, each the AND of 3 bits of its own; bits are -1 or 1

For each clause there is a witness, in which it alone is true, and a near miss, the like
of a witness with one bit of the clause off: P = 2 W points, half of them positive. The
rest of the bits is random, but makes no other clause true. The net is

    score = v . relu(x (mask * U) + c)          U, c random and frozen; v is learnt

with H hidden units. A linear readout of H features parts P points in general position
under random labels with probability 1/2 at P = 2 H, that is at H = W (Cover 1965).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linprog

from benchmarks.claims.common import net

LITERALS = 3
KERNEL = "layer_0/kernel"


class Points(NamedTuple):
    """x (2 W, 3 W) of -1 and 1, y (2 W,) of 0 and 1."""

    x: jax.Array
    y: jax.Array


def witness_set(key: jax.Array, clauses: int) -> Points:
    """Witnesses, then near misses."""
    count = 2 * clauses
    bits_key, broken_key, missed_key = jax.random.split(key, 3)
    bits = jax.random.bernoulli(bits_key, 0.5, (count, clauses, LITERALS))
    # Where all bits of a clause are on, one of them goes off.
    broken = jax.random.randint(broken_key, (count, clauses), 0, LITERALS)
    true = jnp.all(bits, -1, keepdims=True)
    bits &= ~(true & jax.nn.one_hot(broken, LITERALS, dtype=bool))
    own = jnp.tile(jnp.eye(clauses, dtype=bool), (2, 1))[..., None]
    missed = jax.random.randint(missed_key, (clauses,), 0, LITERALS)
    near = ~jax.nn.one_hot(missed, LITERALS, dtype=bool)
    whole = jnp.concatenate([jnp.ones((clauses, LITERALS), bool), near])
    bits = jnp.where(own, whole[:, None], bits)
    x = 2.0 * bits.reshape(count, -1).astype(jnp.float32) - 1
    return Points(x, jnp.repeat(jnp.array([1.0, 0.0]), clauses))


def separable(features: np.ndarray, y: np.ndarray) -> bool:
    """Whether some readout without bias parts the labels: a linear program decides."""
    signed = np.where(y > 0.5, 1.0, -1.0)[:, None] * np.asarray(features, float)
    scale = np.abs(signed).max()
    signed = signed / (scale if scale > 0 else 1.0)
    count = signed.shape[1]
    found = linprog(
        np.zeros(count), -signed, -np.ones(len(signed)), bounds=[(None, None)] * count
    )
    return found.status == 0


def first_weights(key: jax.Array, clauses: int, hidden: int) -> net.Params:
    """The net, its readout without bias."""
    params = net.init(key, (LITERALS * clauses, hidden, 1))
    params["layer_1"]["bias"] = jnp.zeros(1)
    return params
