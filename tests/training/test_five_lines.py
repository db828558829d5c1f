"""The five lines that the library promises, as they are written."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb


def loss_fn(params, batch):
    hidden = batch["x"] @ params["mlp"]["in"]
    hidden = hidden + jax.nn.relu(hidden @ params["mlp"]["up"]) @ params["mlp"]["down"]
    return jnp.mean((hidden @ params["head"] - batch["y"]) ** 2)


@pytest.mark.long
@pytest.mark.usefixtures("lenient")  # Adam's bias correction promotes
def test_five_lines(getkey):
    sizes = {"in": (6, 10), "up": (10, 25), "down": (25, 10)}
    params = {
        "mlp": {k: jax.random.normal(getkey(), s) / 4 for k, s in sizes.items()},
        "head": jax.random.normal(getkey(), (10, 2)) / 4,
    }
    x = jax.random.normal(getkey(), (32, 6))
    batch = {"x": x, "y": jnp.abs(x[:, :2])}

    # fmt: off
    units = bb.trace(loss_fn, params, batch).select("mlp/up", actuator="in")     # where: read off the jaxpr, no model edit # noqa: E501
    tx = optax.chain(optax.adamw(3e-4), bb.transform(units, density=0.7))        # last in the chain # noqa: E501

    @jax.jit
    def train_step(params, opt_state, batch):
        (loss, activity), grads = jax.value_and_grad(bb.observe(loss_fn, units), has_aux=True)(params, batch)  # noqa: E501
        updates, opt_state = tx.update(grads, opt_state, params, activity=activity)
        return optax.apply_updates(params, updates), opt_state, loss
    # fmt: on

    opt_state = tx.init(params)
    dense_loss = loss_fn(params, batch)
    losses = []
    for step in range(201):  # the last update refreshes, as update 100 did
        params, opt_state, loss = train_step(params, opt_state, batch)
        losses.append(loss)
        if step == 99:
            assert bb.masks(opt_state)["mlp/up"].all()  # nothing is pruned before
        if step >= 100:
            mask = np.asarray(bb.masks(opt_state)["mlp/up"])
            assert mask.sum() == round(0.7 * 10 * 25)
            np.testing.assert_array_equal(params["mlp"]["up"] != 0, mask)
    assert train_step._cache_size() == 1
    assert losses[-1] < 0.9 * dense_loss
    for dense in (params["mlp"]["in"], params["mlp"]["down"], params["head"]):
        assert (dense != 0).all()
    rates, degrees = bb.on_rates(opt_state), bb.degrees_of(opt_state)
    assert rates["mlp/up"].shape == degrees["mlp/up"].shape == (25,)
    # By default most of a degree is what the unit's weights win in the layer. Of the
    # rest, the balance, hardly an edge is left for ten inputs: no unit starves.
    size = np.abs(params["mlp"]["up"]).sum(0)
    assert np.corrcoef(degrees["mlp/up"], size)[0, 1] > 0.5
    assert int(degrees["mlp/up"].min()) >= 2
