"""Random programs: units of closed kernels can be removed, whatever a function does.

A program is a list of operations on arrays of one shape, each reading results before
it. Kernels and parameters are used several times, units are added, gated, turned and
mixed; the trace has to be right about all of it. Two properties:

    units without readers may have any value     other weights, same result
    sweeping masks changes no result             forward and backward
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax import graph
from tests.support.zoo_case import relu

BATCH, TIME, UNITS = 3, 2, 4
X = jax.random.normal(jax.random.key(81), (BATCH, TIME, UNITS))
FLAT = (BATCH, TIME * UNITS)
SHAPES = {
    "kernel": (UNITS, UNITS),
    "gate": (UNITS, UNITS),
    "bias": (UNITS,),
    "scale": (UNITS,),
    "wide": (TIME * UNITS, UNITS),
    "time": (TIME, TIME),
    "table": (TIME, UNITS),
    "heads": (2, 2, UNITS),
}


def lift(b):
    return b[None, None]


def centred(x, axis):
    x = x - jnp.mean(x, axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis, keepdims=True) + 0.1)


def attended(a, b):
    scores = jax.nn.softmax(jnp.einsum("btd,bsd->bts", a, a))
    return jnp.einsum("bts,bsd->btd", scores, b)


# From parameters and two earlier results to a new one.
OPERATIONS = {
    "dense": lambda p, a, b: a @ p["kernel"],
    "bias": lambda p, a, b: a + lift(p["bias"]),
    "scale": lambda p, a, b: a * lift(p["scale"]),
    "unit": lambda p, a, b: a * lift(p["scale"] / jnp.sum(p["scale"] ** 2 + 0.1)),
    "relu": lambda p, a, b: relu(a),
    "sigmoid": lambda p, a, b: jax.nn.sigmoid(a),
    "add": lambda p, a, b: a + b,
    "mul": lambda p, a, b: a * b,
    "where": lambda p, a, b: jnp.where(a > 0, a, b),
    "gate": lambda p, a, b: jax.nn.silu(a @ p["gate"]) * (b @ p["kernel"]),
    "layer_norm": lambda p, a, b: centred(a, 2) * lift(p["scale"]),
    "batch_norm": lambda p, a, b: centred(a, (0, 1)) * lift(p["scale"]),
    "flatten": lambda p, a, b: jnp.broadcast_to(
        (a.reshape(FLAT) @ p["wide"])[:, None], a.shape
    ),
    "time": lambda p, a, b: jnp.einsum("btd,ts->bsd", a, p["time"]),
    "table": lambda p, a, b: a + p["table"][None],
    "heads": lambda p, a, b: jnp.einsum(
        "btkh,hkd->btd", a.reshape(BATCH, TIME, 2, 2), p["heads"]
    ),
    "attend": lambda p, a, b: attended(a, b),
    "swap": lambda p, a, b: a.reshape(-1, 2, 2).swapaxes(1, 2).reshape(a.shape),
    "reverse": lambda p, a, b: a[:, ::-1, ::-1],
    "shift": lambda p, a, b: jnp.concatenate([a[:, 1:], b[:, :1]], 1),
    "input": lambda p, a, b: a + X,
    "masked": lambda p, a, b: jnp.where(X > 0, a, 0.0),
    "normalised": lambda p, a, b: a @ (p["kernel"] - jnp.mean(p["kernel"])),
    "lookup": lambda p, a, b: p["kernel"][jnp.argmax(a, -1)],
}
COMMON = ("dense", "bias", "relu", "add", "flatten")  # half of all steps


def drawn(seed):
    """A program, and a generator for the rest.

    Most steps have parameters of their own, some share those of set 0.
    """
    rng = np.random.default_rng(seed)
    names = sorted(OPERATIONS)
    program = []
    for step in range(rng.integers(3, 9)):
        name = rng.choice(COMMON if rng.random() < 0.5 else names)
        first, second = rng.geometric(0.6, 2) - 1
        owner = 0 if rng.random() < 0.1 else step
        program.append((str(name), int(first), int(second), owner))
    return program, rng


def run(program, params):
    results = [X]
    for name, first, second, owner in program:
        p = {n: params[f"{n}/{owner}"] for n in SHAPES}
        a, b = (results[max(0, len(results) - 1 - i)] for i in (first, second))
        results.append(OPERATIONS[name](p, a, b))
    return results[-1] @ params["kernel/9"]


def parameters(rng):
    every = {f"{n}/{i}": rng.normal(size=SHAPES[n]) for n in SHAPES for i in range(10)}
    return {n: jnp.asarray(v / 2, jnp.float32) for n, v in every.items()}


def assert_same(program, one, other):
    a, b = run(program, one), run(program, other)
    size = 1 + np.abs(b).max()
    np.testing.assert_allclose(
        a / size, b / size, rtol=1e-4, atol=1e-5, err_msg=str(program)
    )


@pytest.mark.long
def test_units_without_readers_may_have_any_value():
    removed = 0
    for seed in range(300):
        program, rng = drawn(seed)
        params, other = parameters(rng), parameters(rng)
        units = bb.trace(lambda p, program=program: run(program, p), params)
        for kernel in units.kernels:
            if kernel.closed:
                removed += 1
                masks, changed = removal(units, kernel, params, other, rng)
                assert_same(program, {**params, **changed}, masked(params, masks))
    assert removed > 100


def removal(units, kernel, params, other, rng):
    """Masks of a removal, and other weights of the removed units."""
    group = (kernel.path, *kernel.stream)
    kept = rng.random(UNITS) < 0.5
    keep = {n: kept.reshape(units[n].out_units) for n in group}
    _, masks = graph.remove_units(params, units, keep)
    readers = {r for n in group for r, _ in graph.consumers(units)[n]}
    apart = all(made.apart for n in group for made, _ in units.graph.made_by(n))
    return masks, {
        n: jnp.where(mask, params[n], other[n] if apart and n not in readers else 0)
        for n, mask in masks.items()
    }


@pytest.mark.long
@pytest.mark.parametrize("forward", [False, True])
def test_a_sweep_changes_no_result(forward):
    cut = 0
    for seed in range(300, 400):
        program, rng = drawn(seed)
        params = parameters(rng)
        units = bb.trace(lambda p, program=program: run(program, p), params)
        masks = {n: rng.random(v.shape) < 0.25 for n, v in params.items()}
        swept = graph.sweep(units, masks, forward=forward)
        assert_same(program, masked(params, swept), masked(params, masks))
        cut += sum(int(np.sum(m)) - int(np.sum(swept[n])) for n, m in masks.items())
    assert cut > 50


def masked(params, masks):
    return {n: jnp.where(masks.get(n, True), v, 0) for n, v in params.items()}
