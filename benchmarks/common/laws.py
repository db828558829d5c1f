"""Laws that only benchmarks use."""

import jax
import jax.numpy as jnp

import bbjax as bb


def standardized() -> bb.laws.Law:
    """Degrees linear in log-odds, with a standard deviation that equals their mean.

        degree = c + L mean_degree / max(std(L), 0.1),   L = log((1 - a) / a)

    The default of the library until it had an absolute slope, and what the claims were
    measured with. It has no scale: however alike on-rates are, their differences become
    degrees between the floor and several times the mean, and sampling noise with them.
    """

    def profile(on_rate: jax.Array, mean_degree: jax.Array) -> jax.Array:
        a = jnp.round(bb.laws.clean_rate(on_rate) * 2.0**20) / 2.0**20
        a = jnp.clip(a, 1e-2, 1 - 1e-2)
        odds = jnp.log((1 - a) / a)
        # Rounded, so that the order of the units does not decide the last bits.
        spread = jnp.maximum(jnp.round(jnp.std(odds, axis=-1) * 1024) / 1024, 0.1)
        mean = jnp.asarray(mean_degree).astype(jnp.float32)
        slope = jnp.broadcast_to(mean, odds.shape[:-1]) / spread
        return odds * slope[..., None]

    return bb.laws.Law("standardized", profile, "shift")
