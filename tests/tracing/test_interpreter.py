"""What calls say of their bodies is enough to evaluate them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bbjax.tracing import interpreter, jaxprs
from bbjax.tracing.interpreter import Body, NestedCall


class Evaluation(interpreter.Interpreter[Any, None]):
    """Evaluates a jaxpr from what `call_of` says alone."""

    def constant(self, value, var, at):
        return value

    def step(self, eqn, index, ins, at):
        outs = eqn.primitive.bind(*ins, **eqn.params)
        return list(outs) if eqn.primitive.multiple_results else [outs]

    def call(self, call, eqn, index, ins, at):
        if call.kind in ("inline", "custom"):
            return self.round(call.bodies[0], ins, [], 0)
        if call.kind == "cond":
            return self.round(call.bodies[int(ins[0])], ins, [], 0)
        if call.kind == "while":
            return self.loop(call, ins)
        return self.scan(call, ins, eqn.params["reverse"])

    def round(self, body: Body, ins: Sequence[Any], state: Sequence[Any], n: int):
        """Results of a body in one round."""
        state = iter(state)
        args = []
        for operand, way in body.entries:
            if way == "carried":
                args.append(next(state))
            else:
                args.append(ins[operand][n] if way == "sliced" else ins[operand])
        return self.body(body.jaxpr, body.consts, args, None)

    def first(self, body: Body, ins: Sequence[Any]) -> list[Any]:
        return [ins[operand] for operand, way in body.entries if way == "carried"]

    def next(self, body: Body, outs: Sequence[Any]) -> list[Any]:
        return [outs[result] for _, result in body.feeds]

    def loop(self, call: NestedCall, ins: Sequence[Any]):
        condition, body = call.bodies
        state = self.first(body, ins)
        while self.round(condition, ins, state, 0)[0]:
            state = self.next(body, self.round(body, ins, state, 0))
        return state

    def scan(self, call: NestedCall, ins: Sequence[Any], reverse: bool):
        (body,) = call.bodies
        state, rows = self.first(body, ins), []
        order = range(call.rounds)
        for n in reversed(order) if reverse else order:
            outs = self.round(body, ins, state, n)
            state = self.next(body, outs)
            rows.append(outs[call.stacked :])
        rows = rows[::-1] if reverse else rows
        return [*state, *(jnp.stack(column) for column in zip(*rows, strict=True))]


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (g,))


def looped(x, w):
    def unfinished(state):
        return (state[0] < 3) & (w.sum() < 1e9)

    def step(state):
        return state[0] + 1, jnp.tanh(state[1] @ w) + x

    return lax.while_loop(unfinished, step, (0, x))[1]


def scanned(x, w, reverse=False):
    def step(carry, pair):
        row, scale = pair
        carry = (carry[0] @ w + row, carry[1] + 1)
        return carry, (carry[0] * scale, carry[1])

    first = (jnp.zeros(3), 0)
    return lax.scan(step, first, (x, jnp.arange(4.0)), reverse=reverse)


FUNCTIONS = {
    "jit": lambda x, w: jax.jit(lambda a: jax.nn.relu(a @ w))(x),
    "remat": lambda x, w: jax.checkpoint(lambda a: jnp.sin(a @ w))(x),
    "custom_jvp": lambda x, w: jax.nn.relu(jax.nn.silu(x @ w)),
    "custom_vjp": lambda x, w: doubled(x @ w),
    "cond": lambda x, w: lax.cond(x[0, 0] > 0, lambda a: a @ w, lambda a: -a, x),
    "switch": lambda x, w: [
        lax.switch(i, [lambda a: a @ w, lambda a: a, jnp.cos], x) for i in range(3)
    ],
    "while": looped,
    "scan": scanned,
    "reversed scan": lambda x, w: scanned(x, w, reverse=True),
    "nested": lambda x, w: jax.jit(lambda a: scanned(looped(a, w), w))(x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_evaluated_by_its_calls_gives_its_results(name):
    x = jax.random.normal(jax.random.key(0), (4, 3))
    w = jax.random.normal(jax.random.key(1), (3, 3))
    function = FUNCTIONS[name]
    jaxpr, consts = jaxprs.opened(jax.make_jaxpr(function)(x, w))
    found = Evaluation().body(jaxpr, consts, [x, w], None)
    for one, two in zip(found, jax.tree.leaves(function(x, w)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_the_function_of_a_scatter_is_no_body():
    x = jnp.zeros(4)
    jaxpr = jax.make_jaxpr(lambda a: a.at[1].add(2.0))(x)
    eqns = jaxprs.opened(jaxpr)[0].eqns
    assert any(eqn.primitive.name == "scatter-add" for eqn in eqns)
    assert all(interpreter.call_of(eqn) is None for eqn in eqns)


def test_a_body_whose_operands_are_not_known_is_opaque():
    def solve(x, w):
        return lax.custom_linear_solve(
            lambda b: w @ b, x, lambda mv, b: b, transpose_solve=lambda mv, b: b
        )

    jaxpr = jax.make_jaxpr(solve)(jnp.ones(3), jnp.eye(3))
    calls = [interpreter.call_of(eqn) for eqn in jaxprs.opened(jaxpr)[0].eqns]
    assert [c.kind for c in calls if c is not None] == ["opaque"]
