"""What a layer says and how much of it arrives: codes, channels, mutual information.

A code Z (n samples of the units of a layer) goes through a kernel W to the next layer's
pre-activation, with noise so that information is finite:

    Y = Z W + noise,      noise ~ N(0, sigma^2 I)

I(Z; Y) is estimated from n samples z_1 .. z_n without assuming anything of Z or the
bound tr(W' S W) / (2 sigma^2): the channel p(y | z) is known, so with y_i drawn from it

    lower   mean_i log p(y_i | z_i) - log (1/n) sum_j p(y_i | z_j)
    upper   the same with the sum over j != i and 1 / (n - 1)

bound the information of the distribution that the samples came from, in expectation,
from below and from above (Poole et al. 2019, with a known channel). The lower one
cannot exceed log n. Their mean is reported; half of their distance is the most it is
biased by.
"""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.claims.common import net

SAMPLES, PER_UNIT = 1024, 512


def code(z: jax.Array) -> dict[str, jax.Array]:
    """Entropy, correlation and dimension of a code (n, units)."""
    a = jnp.clip(net.on_rates(z), 1e-7, 1 - 1e-7)
    entropy = -(a * jnp.log2(a) + (1 - a) * jnp.log2(1 - a))
    centered = z - z.mean(0)
    covariance = centered.T @ centered / len(z)
    sd = jnp.sqrt(jnp.diag(covariance))
    alive = sd > 1e-6
    pairs = (alive[:, None] & alive[None]) & ~jnp.eye(len(sd), dtype=bool)
    scale = jnp.where(pairs, sd[:, None] * sd[None], 1.0)
    correlation = jnp.abs(covariance / scale)
    return {
        "entropy": entropy.mean(),
        "correlation": jnp.sum(jnp.where(pairs, correlation, 0.0)) / pairs.sum(),
        "dimension": jnp.trace(covariance) ** 2 / jnp.sum(covariance**2),
        "alive": alive.sum(),
    }


def channel(
    key: jax.Array, z: jax.Array, kernel: jax.Array, sigma: Any
) -> dict[str, jax.Array]:
    """Traffic, power and information of a layer's code through a kernel."""
    means = z @ kernel
    centered = means - means.mean(0)
    degree = jnp.sum(kernel != 0, axis=1).astype(jnp.float32)
    low, high = information(key, means, sigma)
    return {
        "traffic": jnp.sum(net.on_rates(z) * degree),
        "power": jnp.sum(centered**2) / len(z),
        "low": low,
        "high": high,
    }


def per_unit(
    key: jax.Array, z: jax.Array, kernel: jax.Array, sigma: Any
) -> dict[str, jax.Array]:
    """The same of every unit by itself, (units,): the others' part is taken away.

    What a unit alone sends is one number, its row's norm times its activity, in noise.
    The others tell much of it where units are correlated; that is not accounted for.
    """
    z = z[:PER_UNIT]
    rate = net.on_rates(z)
    degree = jnp.sum(kernel != 0, axis=1).astype(jnp.float32)
    norm = jnp.linalg.norm(kernel, axis=1)

    def one(column: jax.Array) -> jax.Array:
        low, high = information(key, column[:, None], sigma)
        return (low + high) / 2

    return {
        "rate": rate,
        "degree": degree,
        "traffic": rate * degree,
        "power": norm**2 * z.var(0),
        "information": jax.lax.map(one, (z * norm).T, batch_size=16),
    }


def information(
    key: jax.Array, means: jax.Array, sigma: Any
) -> tuple[jax.Array, jax.Array]:
    """Lower and upper estimate of I, in nats, from means (n, outputs) of Y given Z."""
    n = len(means)
    noise = jax.random.normal(key, means.shape)
    x = means / sigma
    y = x + noise
    distance = (
        jnp.sum(y**2, 1)[:, None] + jnp.sum(x**2, 1)[None] - 2 * y @ x.T
    )  # of y_i from the mean of sample j
    log_p = -distance / 2
    own = -jnp.sum(noise**2, 1) / 2
    log_p = jnp.fill_diagonal(log_p, own, inplace=False)
    everyone = jax.nn.logsumexp(log_p, axis=1)
    others = jax.nn.logsumexp(jnp.fill_diagonal(log_p, -jnp.inf, inplace=False), axis=1)
    low = jnp.mean(own - everyone) + jnp.log(n)
    high = jnp.mean(own - others) + jnp.log(n - 1.0)
    return low, high
