"""XOR of two signs, with margins, and the paper's net.

    x_i = s_i u_i,   s_i = +-1,   u_i uniform in [0.2, 1]        y = 1 iff s_1 != s_2

Sizes vary so that hidden units have graded on-rates; the margin lets every net reach
100 %. The budgeted kernel is the second, `layer_1/kernel` (64, 128), on its rows: the
64 units of the first hidden layer have a limited audience among 128 (SP-out on W2).
"""

import jax
import jax.numpy as jnp

from benchmarks.claims.common.net import Task

KERNEL, FAN, UNITS = "layer_1/kernel", 128, 64
LEAST, MOST = 0.2, 1.0


def sample(key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """Points (n, 2) and labels (n,)."""
    signs, sizes = jax.random.split(key)
    s = jax.random.rademacher(signs, (n, 2), jnp.float32)
    u = jax.random.uniform(sizes, (n, 2), minval=LEAST, maxval=MOST)
    return s * u, (s[:, 0] != s[:, 1]).astype(jnp.float32)


TASK = Task((2, UNITS, FAN, 1), sample)
