"""Programs that write one file again and again, to be killed while they do.

    python -m tests.support.killed KIND FILE

Each prints a number once the file with this number is written. What the files must hold
is computed here as well, so that a test can compare.
"""

import sys
from pathlib import Path

import numpy as np

import bbjax as bb
from tests.support.files import MASKS, UNITS

SIZE = (512, 1024)
STEPS = 60  # of training
EVERY = 4  # steps between two saves


def params(number):
    return {"w": np.full(SIZE, number, np.float32), "b": np.full(3, number)}


def masks(number):
    rng = np.random.default_rng(number)
    return {"w": rng.random((2048, 2048)) < 0.5, "b": rng.random(9) < 0.5}


def report(number):
    return bb.report(MASKS, UNITS, title=f"report {number} " + "of many " * 9999)


def right(kind, path):
    """The number of the file, which holds exactly what belongs to it."""
    if kind == "save":
        found = bb.load(path)
        number = found.extra["number"]
        mine, its = params(number), found.params
    elif kind == "save_masks":
        mine = its = bb.load_masks(path)
        number = int(np.packbits(its["n"], bitorder="little").view(np.int64)[0])
        mine = masks(number)
    else:
        text = path.read_text(encoding="utf-8")
        number = int(text.split("<title>report ")[1].split()[0])
        assert text == report(number).html()
        return number
    for name, array in mine.items():
        np.testing.assert_array_equal(its[name], array)
    return number


def write(kind, path, number):
    if kind == "save":
        bb.save(path, params(number), extra={"number": number})
    elif kind == "save_masks":
        bits = np.frombuffer(np.int64(number).tobytes(), np.uint8)
        name = np.unpackbits(bits, bitorder="little").astype(bool)
        bb.save_masks(path, {**masks(number), "n": name})
    else:
        report(number).save(path)


# Training ------------------------------------------------------------------------
def training():
    """A state to begin with, and a step."""
    import jax
    import jax.numpy as jnp
    import optax

    def loss_fn(params, x):
        return jnp.mean((jax.nn.relu(x @ params["up"]) @ params["down"] - 1.0) ** 2)

    keys = jax.random.split(jax.random.key(0), 2)
    weights = {
        "up": jax.random.normal(keys[0], (16, 64)),
        "down": jax.random.normal(keys[1], (64, 4)),
    }
    x = jnp.linspace(-1.0, 1.0, 512).reshape(32, 16)
    units = bb.trace(loss_fn, weights, x).select("up", actuator="in")
    prune = bb.transform(units, density=0.3, start=5, every=7)
    tx = optax.chain(optax.adam(1e-2), prune)

    @jax.jit
    def step(state):
        _, grads, activity = bb.value_and_grad(loss_fn, units)(state["params"], x)
        updates, opt_state = tx.update(
            grads, state["opt"], state["params"], activity=activity
        )
        return {
            "params": optax.apply_updates(state["params"], updates),
            "opt": opt_state,
        }

    return {"params": weights, "opt": tx.init(weights)}, step


def train(path):
    """Trains on from the file, if there is one, and saves; compares in the end."""
    import jax

    start, step = training()
    state, done = start, 0
    step(start)  # compiled before the first number is printed
    if path.exists():
        found = bb.load(path, like=start)
        state, done = found.params, found.extra["step"]
    print(done, flush=True)
    while done < STEPS:
        for _ in range(EVERY):
            state = step(state)
        done += EVERY
        bb.save(path, state, extra={"step": done})
        print(done, flush=True)
    for _ in range(STEPS):
        start = step(start)
    for mine, its in zip(jax.tree.leaves(start), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(mine, its)
    print("as without a stop", flush=True)


def main(kind, path):
    if kind == "training":
        train(path)
        return
    write(kind, path, 0)
    number = 0
    while True:
        print(number, flush=True)
        number += 1
        write(kind, path, number)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
