"""Training every method on the same seeds and batches, all lanes in one program.

A lane is one seed at one density; lanes are batched with `vmap`, so that a method is
compiled once for all of them. A seed fixes the first weights, the training samples and
their order, the same for every method: differences between methods are paired.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bbjax as bb
from bbjax.demo.data import batches
from benchmarks.rules.data import Task
from benchmarks.rules.methods import Method

CALIBRATION, CHUNK = 1000, 1000
SELECTED = "hidden"
# 10 rounds for the 100 of SynFlow's paper: they are unrolled into the program.
ROUNDS = 10

Params = dict[str, Any]
Lane = dict[str, jax.Array]
Data = dict[str, jax.Array]


def init(seed: jax.Array, task: Task) -> Params:
    """First weights of the net: He normal, no bias."""
    sizes = task.sizes
    *keys, last = jax.random.split(jax.random.key(seed), len(sizes))
    layers: Params = {}
    for i, key in enumerate(keys):
        name = f"hidden_{i}" if i < len(sizes) - 2 else "out"
        scale = (2 / sizes[i]) ** 0.5
        kernel = jax.random.normal(key, (sizes[i], sizes[i + 1])) * scale
        layers[name] = {"kernel": kernel, "bias": jnp.zeros(sizes[i + 1])}
    if task.embedding is not None:
        layers["embedding"] = {"table": jax.random.normal(last, task.embedding)}
    return layers


class Bench:
    """One task: trains methods on its seeds and tests them."""

    def __init__(self, task: Task) -> None:
        """Puts the samples on the device and traces the net."""
        self.task = task
        names = ("train_x", "train_y", "test_x", "test_y")
        self.data: Data = {name: jnp.asarray(getattr(task, name)) for name in names}
        some = task.batch
        x, y = self.data["train_x"][:some], self.data["train_y"][:some]
        self.traced = bb.trace(self.loss, init(jnp.int32(0), task), x, y)
        self.kept: dict[Any, tuple[Params, Any]] = {}

    # The net ---------------------------------------------------------------------
    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        """Hidden layers, then the output layer."""
        if self.task.embedding is not None:
            rows = params["embedding"]["table"][x.astype(jnp.int32)]
            x = rows.reshape(len(x), -1)
        curve = jax.nn.gelu if self.task.smooth else jax.nn.relu
        for i in range(len(self.task.sizes) - 2):
            layer = params[f"hidden_{i}"]
            x = curve(x @ layer["kernel"] + layer["bias"])
        return x @ params["out"]["kernel"] + params["out"]["bias"]

    def loss(self, params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        """Mean cross-entropy."""
        logits = self.logits(params, x)
        scores = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.mean(scores)

    def units(self, method: Method) -> bb.Units:
        """The hidden layers, with the side that the method limits."""
        return self.traced.select(SELECTED, actuator=method.actuator)

    # Lanes -----------------------------------------------------------------------
    def lanes(self, seeds: Sequence[int], steps: int) -> Lane:
        """What is a seed's own, one row for each."""
        rows: list[Lane] = []
        for seed in seeds:
            samples, known = self.task.samples(seed)
            order = batches(seed, steps, len(samples), self.task.batch)
            rows.append(
                {
                    "seed": np.int32(seed),
                    "order": samples[order].astype(np.int32),
                    "calibration": samples[:CALIBRATION].astype(np.int32),
                    "known": known,
                }
            )
        return jax.tree.map(lambda *parts: jnp.asarray(np.stack(parts)), *rows)

    def run(
        self,
        method: Method,
        densities: Sequence[float],
        seeds: Sequence[int],
        *,
        steps: int,
        k_min: int,
    ) -> dict[str, np.ndarray]:
        """Metrics by name, and the density got as "kept": (densities, seeds) each."""
        lanes, shares = self.lanes(seeds, steps), jnp.asarray(densities, jnp.float32)
        if method.when == "after":
            return self._once(method, shares, seeds, lanes, steps, k_min)

        @jax.jit
        def program(data, shares, lanes):
            def one(density, lane):
                return self._lane(method, data, density, lane, steps, k_min)

            by_seed = jax.vmap(one, (None, 0))
            return jax.vmap(by_seed, (0, None))(shares, lanes)

        return jax.tree.map(np.asarray, program(self.data, shares, lanes))

    def dense(self, seeds: Sequence[int], steps: int) -> tuple[Params, Any]:
        """The dense net of every seed, and its metrics."""
        key = (tuple(seeds), steps)
        if key not in self.kept:

            @jax.jit
            def program(data, lanes):
                def one(lane):
                    params = init(lane["seed"], self.task)
                    tx = optax.adam(self.task.rate)
                    params, _ = self.fit(data, params, tx, lane["order"])
                    return params, self.measure(data, params, lane)

                return jax.vmap(one)(lanes)

            params, found = program(self.data, self.lanes(seeds, steps))
            self.kept = {key: (params, jax.tree.map(np.asarray, found))}
        return self.kept[key]

    def measure(self, data: Data, params: Params, lane: Lane) -> dict[str, jax.Array]:
        # In parts: the hidden units of all lanes at once would fill the memory.
        logits = jax.lax.map(
            lambda x: self.logits(params, x[None])[0], data["test_x"], batch_size=CHUNK
        )
        return self.task.measure(logits, data["test_y"], lane["known"])

    # While training, or before ---------------------------------------------------
    def _lane(self, method: Method, data, density, lane, steps, k_min):
        params, adam = init(lane["seed"], self.task), optax.adam(self.task.rate)
        rule = method.make(steps)
        if method.when == "init":
            params, masks = self._first(
                method, rule, data, params, density, lane, k_min
            )
            tx, reads = optax.chain(adam, bb.hold(masks)), None
        else:
            params, tx = self._sparse(
                method, rule, params, density, lane["seed"], steps, k_min
            )
            reads = (rule, self.units(method)) if rule.reads_activity else None
        params, state = self.fit(data, params, tx, lane["order"], reads)
        kept = share_kept(bb.masks(state))
        return self.measure(data, params, lane) | {"kept": kept}

    def _first(self, method: Method, rule, data, params, density, lane, k_min):
        """At initialisation, from one pass over some samples."""
        units = self.units(method)
        x, y = (data[name][lane["calibration"]] for name in ("train_x", "train_y"))
        if method.driver is not None:
            return method.driver(
                self.logits, params, units, density, x[:1], rounds=ROUNDS, k_min=k_min
            )
        grads = method.grads(self.loss, params, x, y)
        return bb.prune(params, units, rule, density, grads=grads, k_min=k_min)

    def _sparse(self, method: Method, rule, params, density, seed, n, k_min):
        """First weights and transform of a method that prunes while it trains."""
        when = {"every": max(n // 40, 1), "start": n // 10, "stop": 3 * n // 4}
        share = bb.erk if method.erk else lambda d: d
        units, adam = self.units(method), optax.adam(self.task.rate)
        if not method.random_start:
            ramp = bb.ramp(density, n // 10, n // 2, power=3)
            tx = bb.transform(units, rule, density=share(ramp), k_min=k_min, **when)
            return params, optax.chain(adam, tx)
        topology = bb.rules.random(seed=seed)
        params, masks = bb.prune(params, units, topology, share(density), k_min=k_min)
        given = {"density": share(density), "masks": masks, "k_min": k_min}
        return params, bb.wrap(adam, units, rule, **given, **when)

    def fit(self, data, params, tx, order, reads=None):
        """Trains over the batches of a seed."""
        tx = optax.with_extra_args_support(tx)

        def step(carry, index):
            params, state = carry
            x, y = data["train_x"][index], data["train_y"][index]
            extra = {}
            if reads is None:
                grads = jax.grad(self.loss)(params, x, y)
            else:
                rule, units = reads
                fn = bb.observe(self.loss, units, needs=rule.needs)
                grads, extra["activity"] = jax.grad(fn, has_aux=True)(params, x, y)
            updates, state = tx.update(grads, state, params, **extra)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), order)
        return params, state

    # After training ----------------------------------------------------------------
    def _once(self, method: Method, shares, seeds, lanes, steps, k_min):
        """Prunes the dense net of every seed once, by some samples."""
        units, rule = self.units(method), method.make(steps)
        dense, _ = self.dense(seeds, steps)

        def one(data, shares, lane, params):
            x, y = (data[n][lane["calibration"]] for n in ("train_x", "train_y"))
            stats = None
            if rule.needs:
                fn = bb.observe(self.loss, units, needs=rule.needs)
                stats = fn(params, x, y)[1]

            def at(density):
                after, masks = bb.prune(
                    params, units, rule, density, stats=stats, k_min=k_min
                )
                kept = share_kept({path: masks[path] for path in units.budgeted})
                return self.measure(data, after, lane) | {"kept": kept}

            return jax.vmap(at)(shares)

        program = jax.jit(jax.vmap(one, (None, None, 0, 0), out_axes=1))
        found = program(self.data, shares, lanes, dense)
        return jax.tree.map(np.asarray, found)


def share_kept(masks: dict[str, jax.Array]) -> jax.Array:
    """Kept share of all edges together."""
    kept = sum(jnp.sum(mask) for mask in masks.values())
    return kept / sum(mask.size for mask in masks.values())
