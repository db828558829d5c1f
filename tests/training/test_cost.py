"""What a step costs, read off the compiled program: no clock is asked.

A step without a refresh copies no weights, masks or dormant weights, and reads packed
bits without writing them out; a refresh works through one kernel after the other in the
scratch of one, without sorting; measuring activity takes a few operations for each
activation. The model is a stack of blocks, both kernels of each budgeted.
"""

import functools
import re

import jax
import jax.numpy as jnp
import optax
import pytest

import bbjax as bb
from tests.support import hlo

MODEL, HIDDEN, TOKENS = 128, 512, 64
pytestmark = pytest.mark.usefixtures("lenient")  # for Adam
EDGES = MODEL * HIDDEN  # of one kernel
WEIGHTS = 4 * EDGES  # bytes of one kernel

SORTS = r" (?:sort|topk)\(|custom_call_target=\"[^\"]*[Tt]op_?[Kk]"


def loss(params, x):
    for layer in params.values():
        x = x + jax.nn.relu(x @ layer["up"]) @ layer["down"]
    return jnp.mean(jnp.square(x))


@functools.cache
def compiled(kind, layers=1, rule=None, regrow=True):
    """A step with donated parameters and state: "dense", "observe" or "pruned"."""
    like = jax.ShapeDtypeStruct
    layer = {"up": (MODEL, HIDDEN), "down": (HIDDEN, MODEL)}
    params = {
        f"layer_{i}": {name: like(shape, jnp.float32) for name, shape in layer.items()}
        for i in range(layers)
    }
    x = like((TOKENS, MODEL), jnp.float32)
    traced = bb.trace(loss, params, x)
    units = traced.select("up", "in") + traced.select("down", "out")
    tx = optax.adam(0.1)
    if kind == "pruned":
        tx = optax.chain(tx, bb.transform(units, rule, density=0.3, regrow=regrow))
    tx = optax.with_extra_args_support(tx)
    needs = () if rule is None else rule.needs
    fn = loss if kind == "dense" else bb.observe(loss, units, needs=needs)

    def step(params, state, x):
        out, grads = jax.value_and_grad(fn, has_aux=kind != "dense")(params, x)
        activity = None if kind == "dense" else out[1]
        given = {"activity": activity} if kind == "pruned" else {}
        updates, state = tx.update(grads, state, params, **given)
        rates = jax.tree.leaves(activity) if kind == "observe" else []
        return optax.apply_updates(params, updates), state, rates

    state = jax.eval_shape(tx.init, params)
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, x).compile()


def plain(step):
    """What a step without a refresh runs: the program outside of its loops."""
    text = step.as_text()
    (entry,) = [part for part in hlo.computations(text).values() if "ENTRY" in part]
    return entry


def written(text, *ops):
    """Bytes of each array that operations of some kinds write."""
    types = re.findall(rf"= (\w+\[[\d,]*\])\S* (?:{'|'.join(ops)})\(", text)
    return sorted(hlo.sizes(" ".join(types)))


def scratch(step):
    return step.memory_analysis().temp_size_in_bytes


def flops(step):
    return step.cost_analysis()["flops"]


rules = pytest.mark.parametrize(
    "rule",
    [
        pytest.param(None, id="default"),
        pytest.param(bb.rules.priced(), id="priced"),
        pytest.param(bb.rules.magnitude(), id="magnitude", marks=pytest.mark.slow),
        pytest.param(bb.rules.random(), id="random", marks=pytest.mark.slow),
    ],
)


@pytest.mark.long
@rules
def test_a_refresh_works_in_the_scratch_of_one_kernel(rule):
    def added(layers):
        pruned = scratch(compiled("pruned", layers, rule))
        return pruned - scratch(compiled("dense", layers))

    few, many = added(1), added(3)
    # What is left is a bit for each edge that comes back, and a few numbers per unit.
    assert many - few <= 4 * (EDGES // 8 + 16 * 4 * HIDDEN)
    assert few <= 4 * WEIGHTS


@pytest.mark.long
@pytest.mark.parametrize("regrow", [True, False])
def test_a_plain_step_copies_nothing(regrow):
    step, dense = compiled("pruned", regrow=regrow), compiled("dense")
    masks = EDGES // 8
    ours, theirs = (
        [size for size in written(plain(made), "copy") if size >= masks]
        for made in (step, dense)
    )
    # Bits of what comes back begin as zeros, which equal kernels share until then.
    assert [size for size in ours if size > masks] == theirs
    assert ours.count(masks) <= (2 if regrow else 0)
    # Parameters and state are written where they were: nothing is held twice.
    memory = step.memory_analysis()
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 1024


@pytest.mark.long
def test_a_plain_step_does_not_unpack_masks_in_memory():
    assert not re.findall(
        rf"pred\[{MODEL},{HIDDEN}\]|pred\[{HIDDEN},{MODEL}\]", plain(compiled("pruned"))
    )


def test_a_plain_step_counts_no_weights():
    """Pruned weights that are not 0 are counted beside a refresh, in the same loop."""
    text = compiled("pruned").as_text()
    counted = re.findall(r"popcnt\(.*op_name=\"([^\"]*)\"", text)
    assert counted and all("while/body" in name for name in counted)


@pytest.mark.long
@rules
def test_a_refresh_does_not_sort(rule):
    assert not re.findall(SORTS, compiled("pruned", rule=rule).as_text())


@pytest.mark.long
def test_sorting_would_be_found():
    def sorts(seen):
        return bb.top_k_mask(seen.magnitude, 3, axis=0, method="top_k")

    text = compiled("pruned", rule=bb.rules.Rule("sorts", sorts)).as_text()
    assert re.findall(SORTS, text)


@pytest.mark.long
def test_activity_costs_little_per_activation():
    activations = TOKENS * 2 * (MODEL + HIDDEN)  # of both sides of both kernels
    added = flops(compiled("observe")) - flops(compiled("dense"))
    assert 0 < added <= 8 * activations
    assert flops(compiled("observe")) <= 1.03 * flops(compiled("dense"))
    # No activation is kept for it beyond what gradients need.
    assert (
        scratch(compiled("observe")) < scratch(compiled("dense")) + 4 * TOKENS * HIDDEN
    )
