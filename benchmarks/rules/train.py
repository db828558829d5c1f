"""Training every method on the same seeds and batches, all lanes in one program.

A lane is one seed at one density; lanes are batched with `vmap`, so that a method is
compiled once for all of them. A seed fixes the first weights and the order of the
images, the same for every method: differences between methods are paired.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bbjax as bb
from bbjax.demo.data import batches
from benchmarks.rules.data import Problem
from benchmarks.rules.methods import Method

BATCH, RATE, CALIBRATION = 64, 1e-3, 1000
SELECTED = "hidden"

Params = dict[str, dict[str, jax.Array]]


def init(seed: jax.Array, problem: Problem) -> Params:
    """First weights of the net: He normal, no bias."""
    sizes = (problem.train_x.shape[1], *problem.hidden, 10)
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    layers = {}
    for i, key in enumerate(keys):
        name = f"hidden_{i}" if i < len(problem.hidden) else "out"
        scale = (2 / sizes[i]) ** 0.5
        kernel = jax.random.normal(key, (sizes[i], sizes[i + 1])) * scale
        layers[name] = {"kernel": kernel, "bias": jnp.zeros(sizes[i + 1])}
    return layers


def logits(params: Params, x: jax.Array) -> jax.Array:
    """The net: hidden layers with ReLU, then the output layer."""
    for name in sorted(params):
        x = x @ params[name]["kernel"] + params[name]["bias"]
        if name != "out":
            x = jax.nn.relu(x)
    return x


def loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    scores = optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y)
    return jnp.mean(scores)


class Bench:
    """One problem with its seeds: trains methods and tests them."""

    def __init__(self, problem: Problem, seeds: int, steps: int) -> None:
        """Puts the images on the device and fixes the batches of every seed."""
        self.problem, self.steps = problem, steps
        self.x, self.y = jnp.asarray(problem.train_x), jnp.asarray(problem.train_y)
        self.test = jnp.asarray(problem.test_x), jnp.asarray(problem.test_y)
        self.seeds = jnp.arange(seeds)
        count = len(problem.train_x)
        order = [batches(seed, steps, count, BATCH) for seed in range(seeds)]
        self.order = jnp.asarray(np.stack(order), jnp.int32)
        traced = bb.trace(
            loss, init(jnp.int32(0), problem), self.x[:BATCH], self.y[:BATCH]
        )
        self.units = traced.select(SELECTED)

    # While training, or before ---------------------------------------------------
    def train(self, method: Method, densities: Sequence[float]) -> dict[str, Any]:
        """Test accuracy in percent and density got, (densities, seeds) each."""

        def lane(density, seed, order):
            return self._lane(method, density, seed, order)

        run = jax.jit(jax.vmap(jax.vmap(lane, (None, 0, 0)), (0, None, None)))
        accuracy, got = run(jnp.asarray(densities), self.seeds, self.order)
        return {"accuracy": np.asarray(accuracy), "density": np.asarray(got)}

    def dense(self) -> tuple[Params, np.ndarray]:
        """The dense net of every seed, and its test accuracy in percent."""

        def lane(seed, order):
            params = init(seed, self.problem)
            params, _ = self._fit(params, optax.adam(RATE), order, None)
            return params, self._accuracy(params)

        params, accuracy = jax.jit(jax.vmap(lane))(self.seeds, self.order)
        return params, np.asarray(accuracy)

    def _lane(self, method: Method, density, seed, order):
        params = init(seed, self.problem)
        rule = method.make(self.steps)
        if method.when == "init":
            params, masks = self._prune_first(method, rule, params, density)
            tx = optax.chain(optax.adam(RATE), bb.hold(masks))
            params, state = self._fit(params, tx, order, None)
        else:
            params, tx = self._sparse(method, rule, params, density, seed)
            params, state = self._fit(params, tx, order, rule)
        kept = sum(jnp.sum(m) for m in bb.masks(state).values())
        size = sum(m.size for m in bb.masks(state).values())
        return self._accuracy(params), kept / size

    def _prune_first(self, method: Method, rule, params, density):
        """At initialisation, from one pass over the first images."""
        some = self.x[:CALIBRATION], self.y[:CALIBRATION]
        if method.driver is not None:
            return method.driver(logits, params, self.units, density, some[0][:1])
        grads = method.grads(loss, params, *some)
        return bb.prune(params, self.units, rule, density, grads=grads, k_min=0)

    def _sparse(self, method: Method, rule, params, density, seed):
        """First weights and transform of a method that prunes while it trains."""
        n = self.steps
        when = {"every": max(n // 40, 1), "start": n // 10, "stop": 3 * n // 4}
        share = bb.erk if method.erk else lambda d: d
        if not method.random_start:
            ramp = bb.ramp(density, n // 10, n // 2, power=3)
            tx = bb.transform(self.units, rule, density=share(ramp), k_min=0, **when)
            return params, optax.chain(optax.adam(RATE), tx)
        topology = bb.rules.random(seed=seed)
        params, masks = bb.prune(params, self.units, topology, share(density), k_min=0)
        tx = bb.wrap(
            optax.adam(RATE),
            self.units,
            rule,
            density=share(density),
            masks=masks,
            k_min=0,
            **when,
        )
        return params, tx

    def _fit(self, params, tx, order, rule):
        """Trains over the batches of a seed."""
        needs = () if rule is None else rule.needs
        activity = rule is not None and rule.reads_activity

        def step(carry, index):
            params, state = carry
            x, y = self.x[index], self.y[index]
            extra = {}
            if activity:
                fn = bb.observe(loss, self.units, needs=needs)
                grads, seen = jax.grad(fn, has_aux=True)(params, x, y)
                extra["activity"] = seen
            else:
                grads = jax.grad(loss)(params, x, y)
            updates, state = tx.update(grads, state, params, **extra)
            return (optax.apply_updates(params, updates), state), None

        tx = optax.with_extra_args_support(tx)
        (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), order)
        return params, state

    def _accuracy(self, params) -> jax.Array:
        x, y = self.test
        return 100 * jnp.mean(jnp.argmax(logits(params, x), -1) == y)

    # After training ----------------------------------------------------------------
    def once(
        self, method: Method, dense: Params, densities: Sequence[float]
    ) -> dict[str, Any]:
        """Prunes the dense nets once: accuracy and density, (densities, seeds) each."""
        rule = method.make(self.steps)
        some = [(self.x[:CALIBRATION], self.y[:CALIBRATION])]

        @jax.jit
        def prune(params, stats, density):
            after, masks = bb.prune(
                params, self.units, rule, density, stats=stats, k_min=0
            )
            kept = sum(jnp.sum(m) for m in masks.values())
            size = sum(m.size for m in masks.values())
            return self._accuracy(after), kept / size

        results = np.zeros((2, len(densities), len(self.seeds)))
        for s in range(len(self.seeds)):
            params = jax.tree.map(lambda x, s=s: x[s], dense)
            stats = None
            if rule.needs:
                stats = bb.calibrate(loss, self.units, params, some, needs=rule.needs)
            for d, density in enumerate(densities):
                results[:, d, s] = prune(params, stats, jnp.float32(density))
        return {"accuracy": results[0], "density": results[1]}
