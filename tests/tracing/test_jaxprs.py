"""Reading jaxprs as different releases of JAX write them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jax import lax

from bbjax.tracing import jaxprs


def scan_equation():
    def step(carry, x):
        return [carry[0] + x, carry[1] * 2.0], x * jnp.ones(3)[0]

    def run(a, b, xs):
        return lax.scan(step, [a, b], xs)

    jaxpr, _ = jaxprs.opened(jax.make_jaxpr(run)(1.0, 2.0, jnp.ones(5)))
    return next(e for e in jaxpr.eqns if e.primitive.name == "scan")


def test_counts_of_a_scan():
    eqn = scan_equation()
    held, carried = jaxprs.scan_counts(eqn)
    assert carried == 2 and held + carried + 1 == len(eqn.invars)


def test_counts_of_a_scan_in_groups():
    groups = SimpleNamespace(unpack=lambda: ([None] * 3, [None] * 2, [None]))
    eqn = SimpleNamespace(params={"ft_in": groups})
    assert jaxprs.scan_counts(eqn) == (3, 2)


def test_a_segment_computes_what_the_equations_do():
    jaxpr, _ = jaxprs.opened(jax.make_jaxpr(lambda x: jnp.sin(x) * 2.0)(1.0))
    first = jaxpr.eqns[0]
    (value,) = jaxprs.segment(jaxpr, jaxpr.invars, first.outvars, [first])(0.5)
    assert value == jnp.sin(0.5)
