"""Reports on small models: trained, or with masks and on-rates set by hand."""

import functools

import jax.numpy as jnp
import numpy as np

import bbjax as bb
from bbjax.oneshot.sensitivity import Row, Sensitivity
from tests.support.contract import CASES, shared, train
from tests.support.runs import dense, packed, select

KERNEL = dense(6, 4)
UNITS = bb.Units((KERNEL,))
MASK = np.array(
    [
        [1, 1, 0, 0],
        [1, 0, 0, 0],
        [1, 1, 0, 1],
        [0, 0, 0, 0],
        [1, 0, 0, 1],
        [1, 0, 0, 0],
    ],
    bool,
)


@functools.cache
def trained(case, rule="log_odds", steps=5):
    """The state of a chain after some updates, and the parameters."""
    tx, update = shared(rule, case)
    params = CASES[case].params()
    return train(update, CASES[case], params, tx.init(params), range(steps))


def reported(case, rule="log_odds", **more):
    params, state = trained(case, rule)
    return bb.report(state, CASES[case].units, params=params, **more)


def by_hand(degree, rate, layers=1):
    """A report on units of these degrees and on-rates, with a fan of 20."""
    units = len(degree) // layers
    kernel = bb.Kernel("w", (layers, 20, units), stack=(0,), fan_in=(1,), fan_out=(2,))
    if layers == 1:
        kernel = dense(20, units)
    tx = bb.transform(select(kernel), density=0.9)
    state = tx.init({"w": jnp.zeros(kernel.shape)})
    degree = np.reshape(degree, (layers, units))
    mask = (np.arange(20)[:, None] < degree[:, None]).reshape(kernel.shape)
    means = dict(state.bb_means["w"])
    shape = kernel.per_unit_shape("outputs")
    means["outputs.on_rate"] = jnp.reshape(jnp.asarray(rate, jnp.float32), shape)
    means["outputs.weight"] = jnp.ones(shape)
    held = {"bb_masks": {"w": packed(kernel, mask)}, "bb_means": {"w": means}}
    return bb.report(state._replace(**held))


def losses(*shape, groups=("layers/up", "layers/down"), densities=(0.8, 0.5, 0.2)):
    """A sensitivity analysis: rows rise by their number, some fall at first."""
    rows = []
    for group in groups:
        for at in np.ndindex(shape):
            n = len(rows)
            rise = [(n + 1) * (1 - d) ** 2 - 0.1 * (n % 3) * d for d in densities]
            part = (group, int(np.ravel_multi_index(at, shape)) if shape else 0, 60)
            rows.append(Row(group, at, 60, 2.0 + np.array(rise), (part,)))
    return Sensitivity(2.0, densities, tuple(rows))
