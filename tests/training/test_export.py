"""A pruned model leaves: as a file, a sparse matrix, a program without Python.

Each way out is taken with one small pruned model of each kind, and what arrives gives
the outputs that the model gave.
"""

import io

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx
from jax import export
from jax.experimental import sparse

import bbjax as bb

pytestmark = pytest.mark.usefixtures("lenient")
DENSITY = 0.25
X = jnp.asarray(np.random.default_rng(0).standard_normal((6, 8)), jnp.float32)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="down")(nn.relu(nn.Dense(16, name="up")(x)))


class Nnx(nnx.Module):
    """Two layers share a kernel; dropout has random counters of its own."""

    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.up = nnx.Linear(8, 8, rngs=rngs)
        self.again = nnx.Linear(8, 8, use_bias=False, rngs=rngs)
        self.again.kernel = self.up.kernel
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=seed))

    def __call__(self, x):
        return self.drop(self.again(nnx.relu(self.up(x))))


def pruned(params, fn):
    """The hidden kernel pruned by magnitude: `(params, masks, units)`."""
    units = bb.trace(lambda params, x: fn(params, x).sum(), params, X).select("up|rs/0")
    return *bb.prune(params, units, bb.rules.magnitude(), DENSITY), units


def through_file(params, masks, units, like, **options):
    file = io.BytesIO()
    bb.save(file, params, masks, units, **options)
    file.seek(0)
    return bb.load(file, like, units)


def same(mine, theirs):
    np.testing.assert_array_equal(mine, theirs, strict=True)


def linen():
    params = Linen().init(jax.random.key(0), X)["params"]
    return pruned(params, lambda params, x: Linen().apply({"params": params}, x))


# Files ---------------------------------------------------------------------------
@pytest.mark.long
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "dense"])
def test_linen_parameters(packed):
    params, masks, units = linen()
    abstract = jax.eval_shape(Linen().init, jax.random.key(0), X)["params"]
    back = through_file(params, masks, units, abstract, packed=packed)
    assert jax.tree.structure(back.params) == jax.tree.structure(abstract)
    kernel = np.asarray(back.params["up"]["kernel"])
    assert np.count_nonzero(kernel) == DENSITY * kernel.size
    same(back.masks["up/kernel"], kernel != 0)
    apply = jax.jit(lambda params: Linen().apply({"params": params}, X))
    same(apply(back.params), apply(params))


def test_a_file_of_dense_weights_is_a_linen_model_for_other_readers():
    params, masks, _ = linen()
    file = io.BytesIO()
    bb.save(file, params, masks, packed=False)
    tensors = safetensors.numpy.load(file.getvalue())
    hidden = np.maximum(np.asarray(X) @ tensors["up/kernel"] + tensors["up/bias"], 0)
    mine = hidden @ tensors["down/kernel"] + tensors["down/bias"]
    np.testing.assert_allclose(mine, Linen().apply({"params": params}, X), 1e-5, 1e-6)


def nnx_model():
    model = Nnx(0)
    mask = np.arange(64).reshape(8, 8) % 4 == 0
    model.up.kernel[...] = jnp.where(mask, model.up.kernel[...], 0.0)
    return model, {"again/kernel": mask}  # the first of its two names


@pytest.mark.parametrize("abstract", [False, True])
def test_nnx_module(abstract):
    model, masks = nnx_model()
    like = nnx.eval_shape(lambda: Nnx(1)) if abstract else Nnx(1)
    back = through_file(model, masks, None, like).params
    assert isinstance(back, Nnx) and back is not like
    assert back.again.kernel is back.up.kernel
    same(back.up.kernel[...], model.up.kernel[...])
    same(back(X), model(X))  # with dropout: random keys and counters came along
    same(back(X), model(X))


@pytest.mark.long
def test_nnx_state():
    model, _ = nnx_model()
    state = nnx.state(model)
    back = through_file(state, None, None, nnx.state(Nnx(1))).params
    fresh = Nnx(1)
    nnx.update(fresh, back)
    same(fresh(X), model(X))


@pytest.mark.long
def test_equinox_module():
    model = eqx.nn.MLP(8, 3, 16, 1, key=jax.random.key(0))
    arrays, rest = eqx.partition(model, eqx.is_array)
    arrays, masks, units = pruned(
        arrays, lambda p, x: jax.vmap(eqx.combine(p, rest))(x)
    )
    (path,) = masks
    model = eqx.combine(arrays, rest)
    like = eqx.nn.MLP(8, 3, 16, 1, key=jax.random.key(1))
    back = through_file(model, masks, units, like)
    assert jax.tree.structure(back.params) == jax.tree.structure(model)
    same(jax.vmap(back.params)(X), jax.vmap(model)(X))
    same(back.masks[path], np.asarray(model.layers[0].weight) != 0)
    loaded = through_file(model, masks, units, eqx.filter(like, eqx.is_array)).params
    same(jax.vmap(eqx.combine(loaded, rest))(X), jax.vmap(model)(X))


@pytest.mark.long
def test_a_file_starts_training_under_its_masks():
    params, masks, units = linen()
    back = through_file(params, masks, units, params)
    tx = optax.chain(optax.adam(0.1), bb.hold(back.masks))
    grads = jax.tree.map(jnp.ones_like, back.params)
    updates, _ = tx.update(grads, tx.init(back.params), back.params)
    kernel = optax.apply_updates(back.params, updates)["up"]["kernel"]
    same(np.asarray(kernel) != 0, back.masks["up/kernel"])


# Sparse matrices -----------------------------------------------------------------
@pytest.mark.long
def test_bcoo_holds_what_was_kept():
    params, masks, _ = linen()
    kernel = params["up"]["kernel"]
    matrix = sparse.BCOO.fromdense(kernel)
    assert matrix.nse == int(masks["up/kernel"].sum()) == DENSITY * kernel.size
    same(matrix.todense(), kernel)
    mine = jax.jit(lambda x, matrix: x @ matrix)(X, matrix)
    np.testing.assert_allclose(mine, np.asarray(X) @ np.asarray(kernel), 1e-5, 1e-6)
    # Index and value per weight: larger than dense from density 1 / 3 on.
    assert matrix.indices.nbytes + matrix.data.nbytes == 3 * matrix.nse * 4


@pytest.mark.long
def test_bcoo_comes_back_from_a_file():
    matrix = sparse.BCOO.fromdense(linen()[0]["up"]["kernel"])
    back = through_file({"up": matrix}, None, None, {"up": matrix}).params["up"]
    assert isinstance(back, sparse.BCOO)
    same(back.todense(), matrix.todense())


# Programs ------------------------------------------------------------------------
def exported(fn, *shapes):
    return export.deserialize(export.export(jax.jit(fn))(*shapes).serialize())


@pytest.mark.long
def test_stablehlo_with_the_weights_inside():
    params, _, _ = linen()
    model = lambda x: Linen().apply({"params": params}, x)  # noqa: E731
    program = exported(model, jax.ShapeDtypeStruct(X.shape, X.dtype))
    same(program.call(X), jax.jit(model)(X))
    assert "stablehlo.dot_general" in program.mlir_module()


@pytest.mark.long
def test_stablehlo_for_any_batch_takes_the_weights_of_a_file():
    params, masks, units = linen()
    model = lambda params, x: Linen().apply({"params": params}, x)  # noqa: E731
    (batch,) = export.symbolic_shape("batch")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    program = exported(model, shapes, jax.ShapeDtypeStruct((batch, 8), X.dtype))
    back = through_file(params, masks, units, params).params
    for rows in (X, X[:2]):
        same(program.call(back, rows), jax.jit(model)(params, rows))
