"""A run that is saved on some devices and goes on on others, also in a fresh process.

As a program, `python -m tests.support.resumed FOLDER DEVICES` restores the run that
`save` saved, on as many devices as the process is given, and writes how it ends.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

import bbjax as bb
from tests.support.lattice import STEPS, Placed, exact, inputs

HALF = STEPS // 2
ROOT = Path(__file__).resolve().parents[2]


def _train(placed, step, params, state, numbers):
    with placed.set():
        for n in numbers:
            params, state = step(params, state, placed.batch(inputs(n)))
    return params, state


def save(folder, layout, devices=8):
    """Trains the first half on some devices, and saves it."""
    placed = Placed("mlp", layout, "Auto", devices)
    step, state = placed.start(exact(placed.units))
    half = _train(placed, step, placed.params, state, range(HALF))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, half)
    return jax.device_get(half)


def resume(folder, layout, devices):
    """The saved half as it is restored on some devices, and the end of the run."""
    placed = Placed("mlp", layout, "Auto", devices)
    step, fresh = placed.start(exact(placed.units))
    target = bb.restore_target((placed.params, fresh), placed.mesh)
    with ocp.StandardCheckpointer() as checkpointer:
        half = checkpointer.restore(folder, target)
    before = jax.device_get(half)
    return before, _train(placed, step, *half, range(HALF, STEPS))


def in_a_process(folder, layout, devices):
    """Leaves of the restored half, then of the end, from a process of so many devices.

    It has no other devices: those that saved the run are out of its reach.
    """
    flags = os.environ["XLA_FLAGS"].split()
    count = "--xla_force_host_platform_device_count"
    flags = [flag for flag in flags if not flag.startswith(count)]
    flags += [f"{count}={devices}"]
    command = [sys.executable, "-m", "tests.support.resumed", str(folder), layout]
    subprocess.run(
        [*command, str(devices)],
        check=True,
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": " ".join(flags)},
    )
    with np.load(_results(folder, devices)) as arrays:
        return list(arrays.values())


def _results(folder, devices):
    return Path(f"{folder}_on_{devices}.npz")


def _main(folder, layout, devices):
    assert jax.device_count() == devices
    before, end = resume(folder, layout, devices)
    np.savez(_results(folder, devices), *jax.tree.leaves(jax.device_get((before, end))))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
