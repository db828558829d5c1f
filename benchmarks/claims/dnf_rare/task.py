"""A DNF whose clauses hang on rare, moderate and common features.

    y = OR over clauses of (key AND gate)

Inputs are independent bits. The key of a clause has the on-rate of its class (rare: a
parameter, moderate 0.2, common 0.5), its gate 0.5; clauses share no bit. Distractors of
each class belong to no clause. Bits, in order:

    keys of 4 rare, 2 moderate, 1 common clauses | 7 gates | 20 distractors a class

One kernel is budgeted on its rows (actuator "out"), in two placements:

    inputs   `layer_0/kernel` (74, 64): units are the bits, their on-rates are given
    hidden   `layer_1/kernel` (64, 128): units are what the first layer made of them
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.claims.common.net import Task

CLASSES = ("rare", "moderate", "common")
CLAUSES = (4, 2, 1)
DISTRACTORS = 20
MODERATE, COMMON, GATE = 0.2, 0.5, 0.5
COUNT = sum(CLAUSES)
KEYS, GATES = np.arange(COUNT), COUNT + np.arange(COUNT)
OF_CLAUSE = np.repeat(np.arange(3), CLAUSES)  # class of each clause
OF_DISTRACTOR = np.repeat(np.arange(3), DISTRACTORS)
INPUTS = 2 * COUNT + len(OF_DISTRACTOR)
PLACEMENTS = {"inputs": "layer_0/kernel", "hidden": "layer_1/kernel"}
SIZES = (INPUTS, 64, 128, 1)
FANS = {"inputs": 64, "hidden": 128}


def rates(rare: Any) -> jax.Array:
    """On-rate of every bit, (inputs,)."""
    of_class = jnp.stack([jnp.asarray(rare, jnp.float32), MODERATE, COMMON])
    gates = jnp.full(COUNT, GATE)
    return jnp.concatenate([of_class[OF_CLAUSE], gates, of_class[OF_DISTRACTOR]])


def satisfied(x: jax.Array) -> jax.Array:
    """Which clauses are true: (n, clauses)."""
    return (x[:, KEYS] > 0) & (x[:, GATES] > 0)


def task(rare: Any) -> Task:
    """The task at an on-rate of its rare features."""

    def sample(key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        x = _bits(key, n, rare)
        return x, jnp.any(satisfied(x), -1).astype(jnp.float32)

    return Task(SIZES, sample)


def _bits(key: jax.Array, n: int, rare: Any) -> jax.Array:
    return jax.random.bernoulli(key, rates(rare), (n, INPUTS)).astype(jnp.float32)


def detected(
    hidden: Callable[[jax.Array], jax.Array], key: jax.Array, n: int, rare: Any
) -> jax.Array:
    """Class of the clause that moves each hidden unit most: int (units,).

    By the size of the mean activation where that clause alone is true, less the mean
    over all samples, in standard deviations: the rarity of a clause does not matter. A
    unit that never changes is moved by none: -1.
    """
    values = hidden(_bits(key, n, rare))
    wanted = jnp.repeat(jnp.eye(COUNT), n, 0)
    alone = hidden(_only(_bits(key, n * COUNT, rare), wanted))
    shift = alone.reshape(COUNT, n, -1).mean(1) - values.mean(0)
    sd = values.std(0)
    size = jnp.abs(shift) / jnp.where(sd > 0, sd, jnp.inf)
    return jnp.where(size.max(0) > 0, jnp.asarray(OF_CLAUSE)[size.argmax(0)], -1)


def positives(key: jax.Array, n: int, rare: Any, kind: int) -> jax.Array:
    """Samples in which one clause of a class is true, and no other clause."""
    bits, which = jax.random.split(key)
    first = int(np.flatnonzero(OF_CLAUSE == kind)[0])
    clause = first + jax.random.randint(which, (n,), 0, CLAUSES[kind])
    return _only(_bits(bits, n, rare), jax.nn.one_hot(clause, COUNT))


def negatives(key: jax.Array, n: int, rare: Any) -> jax.Array:
    """Samples in which no clause is true."""
    return _only(_bits(key, n, rare), jnp.zeros((n, COUNT)))


def near_misses(key: jax.Array, n: int, rare: Any, kind: int) -> jax.Array:
    """As `positives`, with the gate of the clause turned off: no clause is true."""
    x = positives(key, n, rare, kind)
    return x.at[:, GATES].multiply(1 - satisfied(x).astype(jnp.float32))


def _only(x: jax.Array, wanted: jax.Array) -> jax.Array:
    """Makes the wanted clauses true, and breaks the others at their keys."""
    held = satisfied(x).astype(jnp.float32)
    keys = jnp.where(wanted > 0, 1.0, x[:, KEYS] * (1 - held))
    gates = jnp.where(wanted > 0, 1.0, x[:, GATES])
    return x.at[:, KEYS].set(keys).at[:, GATES].set(gates)
