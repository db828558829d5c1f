"""A shrunk model that was saved is loaded by one call in a fresh process."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bbjax as bb
from tests.support.files import loaded, saved

ROOT = Path(__file__).resolve().parents[2]

# Each defines `like`, the model before it was shrunk, and `apply(params, x)`.
MODELS = {
    "nnx": """
from flax import nnx

class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.deep = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x), use_running_average=True))
        return self.head(jnp.mean(nnx.relu(self.deep(x)), axis=(1, 2)))

like = nnx.eval_shape(Net) if ABSTRACT else Net()
x = jnp.linspace(-1, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3)

def apply(net, x):
    return net(x)
""",
    "linen": """
import flax.linen as nn

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.DenseGeneral((4, 2))(x.mean((1, 2))))
        return nn.DenseGeneral(3, axis=(-2, -1))(x)

x = jnp.linspace(-1, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3)
like = (jax.eval_shape if ABSTRACT else lambda f, *a: f(*a))(
    Net().init, jax.random.key(0), x
)

@bb.linen.resized
def apply(variables, x):
    return Net().apply(variables, x)
""",
    "equinox": """
import equinox as eqx

make = lambda: eqx.nn.MLP(4, 3, 8, 2, key=jax.random.key(0))
like = eqx.filter_eval_shape(make) if ABSTRACT else make()
x = jnp.linspace(-1, 1, 20).reshape(5, 4)

def apply(net, x):
    return jax.vmap(net)(x)
""",
}
HEAD = """
import jax
import jax.numpy as jnp
import numpy as np
import bbjax as bb
"""
LOAD = """
found = bb.load(FILE, like=like, shrunk=True)
np.testing.assert_allclose(apply(found.params, x), np.load(RIGHT), atol=1e-6)
"""


def shrunk(source, abstract=False):
    names = {"ABSTRACT": abstract}
    exec(HEAD + source, names)
    like, apply, x = (names[name] for name in ("like", "apply", "x"))
    units = bb.trace(apply, like, x)
    masks = bb.unitwise.cut(units, bb.unitwise.group_magnitude(units, like), 0.5)
    small = bb.shrink(apply, like, masks, x)
    assert small.report.params[1] < small.report.params[0]
    return small, apply, x


@pytest.mark.long
@pytest.mark.usefixtures("lenient")
def test_a_fresh_process_loads_shrunk_models_by_one_call_each(tmp_path):
    program = HEAD
    for name, source in MODELS.items():
        small, apply, x = shrunk(source)
        file, right = tmp_path / name, tmp_path / f"{name}.npy"
        bb.save(file, small.params)
        np.save(right, apply(small.params, x))
        program += f"FILE, RIGHT = {str(file)!r}, {str(right)!r}\n"
        program += f"ABSTRACT = True\n{source}{LOAD}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("lenient")
def test_layers_of_nnx_have_their_smaller_sizes():
    small, _, _ = shrunk(MODELS["nnx"])
    like = type(small.params)()
    net = loaded(saved(small.params), like, shrunk=True).params
    assert (net.conv.out_features, net.norm.num_features) == (4, 4)
    assert (net.deep.in_features, net.deep.feature_group_count) == (4, 4)
    assert net.head.in_features == 4
    assert like.conv.out_features == 8  # is not changed itself
    mine, its = nnx.state(small.params), nnx.state(net)
    assert jax.tree.map(np.shape, mine) == jax.tree.map(np.shape, its)


def test_a_smaller_model_is_refused_with_what_to_do_unless_it_is_said():
    data, like = saved({"w": np.ones((2, 3))}), {"w": np.ones((2, 4))}
    with pytest.raises(ValueError, match=r"from; pass shrunk=True for a model of bb"):
        loaded(data, like)
    assert loaded(data, like, shrunk=True).params["w"].shape == (2, 3)
    with pytest.raises(ValueError, match="expected like= with shrunk=True, got None"):
        loaded(data, shrunk=True)


WRONG = {
    "larger": np.ones((2, 2)),
    "other axes": np.ones(6),
    "another dtype": np.ones((2, 4), np.float32),
    "a number": 1.0,
    "a key": jax.random.key(0),
    "narrowed": jax.ShapeDtypeStruct((2, 4), np.float64),
}


@pytest.mark.parametrize("leaf", WRONG.values(), ids=WRONG)
def test_what_no_shrinking_makes_is_refused(leaf):
    data = saved({"w": np.ones((2, 3)), "b": jnp.ones(3)})
    message = "like these or smaller ones, got 1 difference; .*\n  w: float64 .2, 3. in"
    with pytest.raises(ValueError, match=message):
        loaded(data, {"w": leaf, "b": jnp.ones(4)}, shrunk=True)
