"""What is installed, and where to begin: `python -m bbjax`."""

from __future__ import annotations

import importlib.metadata

import jax

from bbjax import __version__

LIBRARIES = ("jax", "flax", "optax")
BEGIN = """\
First steps:
  units = bb.trace(loss_fn, params, batch)         which kernels there are
  tx = optax.chain(optimizer, bb.transform(units, density=0.25))
  loss, grads, activity = bb.value_and_grad(loss_fn, units)(params, batch)
  updates, state = tx.update(grads, state, params, activity=activity)

More:
  python -m bbjax.demo      rules compared on real data (pip install "bbjax[demo]")
  python -c "import bbjax; help(bbjax)"
"""


def about() -> str:
    """Versions, devices and first steps.

    Example:
      >>> print(about().splitlines()[0].split()[0])
      bbjax
    """
    versions = [f"bbjax {__version__}"]
    versions += [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES]
    devices = jax.devices()
    kinds = f"{len(devices)} x {devices[0].device_kind} ({jax.default_backend()})"
    return f"{', '.join(versions)}\ndevices: {kinds}\n\n{BEGIN}"


if __name__ == "__main__":
    print(about(), end="")
