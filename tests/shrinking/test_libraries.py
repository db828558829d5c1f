"""Smaller modules of NNX, linen and Equinox: ready to call, with new sizes."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bbjax as bb
from bbjax.shrinking.unitwise.groups import free_groups
from tests.support.smaller import close, masked, same

pytestmark = pytest.mark.usefixtures("lenient")

IMAGE = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 3)), jnp.float32)
SEQUENCE = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, 8)), jnp.float32)


def halved(fn, params, *args):
    units = bb.trace(fn, params, *args)
    masks = bb.unitwise.cut(units, bb.unitwise.group_magnitude(units, params), 0.5)
    return masks, bb.shrink(fn, params, masks, *args)


class Net(nnx.Module):
    """A layer of every kind that has units."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.deep = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
        self.up = nnx.ConvTranspose(8, 6, (2, 2), strides=(2, 2), rngs=rngs)
        self.general = nnx.LinearGeneral(6, (4, 2), rngs=rngs)
        self.back = nnx.LinearGeneral((4, 2), 10, axis=(-2, -1), rngs=rngs)
        self.head = nnx.Linear(10, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x), use_running_average=True))
        x = nnx.relu(self.up(nnx.relu(self.deep(x))))
        x = nnx.relu(self.general(jnp.mean(x, axis=(1, 2))))
        return self.head(nnx.relu(self.back(x)))


def call(module, x):
    return module(x)


@pytest.mark.long
def test_an_nnx_module_is_rebuilt_ready_to_call():
    net = Net()
    masks, small = halved(call, net, IMAGE)
    new = small.params
    assert isinstance(new, Net) and net.conv.out_features == 8
    assert new.conv.kernel.shape == (3, 3, 3, 4)
    assert (new.conv.out_features, new.norm.num_features) == (4, 4)
    assert new.conv.kernel_shape == (3, 3, 3, 4)
    assert (new.deep.in_features, new.deep.feature_group_count) == (4, 4)
    assert (new.up.in_features, new.up.out_features) == (4, 3)
    assert (new.general.out_features, new.back.in_features) == ((2, 1), (2, 1))
    assert (new.head.in_features, new.head.out_features) == (5, 3)
    assert new.norm.mean.shape == (4,)
    same(call, net, masks, small, IMAGE)
    close(new(IMAGE), small.fn(new, IMAGE))


@pytest.mark.long
def test_attention_of_nnx_loses_heads():
    class Block(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.attend = nnx.MultiHeadAttention(
                num_heads=4, in_features=8, decode=False, rngs=rngs
            )

        def __call__(self, x):
            return x + self.attend(x)

    block = Block()
    units = bb.trace(call, block, SEQUENCE)
    (heads,) = (
        name
        for name, group in free_groups(units).items()
        if len(group.having("makes")) == 3
    )
    masks = bb.unitwise.cut(units, {heads: np.arange(4.0)}, 0.5)
    small = bb.shrink(call, block, masks, SEQUENCE)
    assert small.params.attend.num_heads == 2
    assert small.params.attend.out.kernel.shape == (2, 2, 8)
    same(call, block, masks, small, SEQUENCE)


class Linen(nn.Module):
    """Convolutions, attention, an embedding of class labels, dense layers."""

    features: int = 8

    @nn.compact
    def __call__(self, x, label):
        x = nn.relu(nn.Conv(self.features, (3, 3), name="conv")(x))
        x = nn.BatchNorm(use_running_average=True, name="norm")(x)
        x = nn.Conv(8, (3, 3), feature_group_count=x.shape[-1], name="deep")(nn.relu(x))
        x = nn.relu(nn.ConvTranspose(6, (2, 2), strides=(2, 2), name="up")(x))
        x = jnp.mean(x, axis=(1, 2)) + nn.Embed(5, 6, name="label")(label)
        x = nn.relu(nn.DenseGeneral((4, 2), name="general")(x))
        x = nn.relu(nn.DenseGeneral(10, axis=(-2, -1), name="back")(x))
        return nn.Dense(3, name="head")(x)


@pytest.mark.long
def test_a_linen_model_takes_smaller_parameters_and_lists_its_features():
    module, label = Linen(), jnp.array([1, 4])
    variables = module.init(jax.random.key(0), IMAGE, label)
    masks, small = halved(module.apply, variables, IMAGE, label)
    same(module.apply, variables, masks, small, IMAGE, label)
    features = bb.linen.features(small)
    assert features == {
        "params/conv": 4,
        "params/deep": 4,
        "params/up": 3,
        "params/general": (2, 1),
        "params/back": 5,
        "params/head": 3,
    }
    assert small.params["batch_stats"]["norm"]["mean"].shape == (4,)
    assert small.params["params"]["label"]["embedding"].shape == (5, 3)
    with pytest.raises(Exception, match="ScopeParamShapeError|given initializer"):
        module.apply(small.params, IMAGE, label)


@pytest.mark.long
def test_a_linen_module_with_new_features_takes_the_parameters():
    class Mlp(nn.Module):
        features: tuple[int, ...] = (12, 6, 2)

        @nn.compact
        def __call__(self, x):
            for n in self.features[:-1]:
                x = nn.relu(nn.Dense(n)(x))
            return nn.Dense(self.features[-1])(x)

    module = Mlp()
    variables = module.init(jax.random.key(0), SEQUENCE)
    masks, small = halved(module.apply, variables, SEQUENCE)
    found = bb.linen.features(small)
    new = Mlp(tuple(found[f"params/Dense_{i}"] for i in range(3)))
    assert new.features == (6, 3, 2)
    close(
        module.apply(masked(variables, masks), SEQUENCE),
        new.apply(small.params, SEQUENCE),
    )


@pytest.mark.long
def test_linen_attention_and_stacked_layers_lose_units():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            x = x + nn.MultiHeadDotProductAttention(4, name="attend")(x)
            return x + nn.Dense(8, name="down")(
                nn.gelu(nn.Dense(16, name="up")(x))
            ), None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            stack = nn.scan(Block, {"params": 0}, split_rngs={"params": True}, length=3)
            return stack(name="layers")(x, None)[0]

    module = Model()
    variables = module.init(jax.random.key(0), SEQUENCE)
    masks, small = halved(module.apply, variables, SEQUENCE)
    layers = small.params["params"]["layers"]
    assert layers["up"]["kernel"].shape == (3, 8, 8)
    assert layers["attend"]["out"]["kernel"].shape[1] == 2
    same(module.apply, variables, masks, small, SEQUENCE)


class Gated(nn.Module):
    """Parameters that the module makes itself, as in Gemma."""

    hidden: int = 6
    heads: int = 0

    def setup(self):
        init = nn.initializers.normal(1.0)
        self.up = self.param("up", init, (2, 8, self.hidden))
        self.down = self.param("down", init, (self.hidden, 8))

    def __call__(self, x):
        gate, up = jnp.einsum("btd,gdf->gbtf", x, self.up)
        h = nn.silu(gate) * up
        if self.heads:
            h = h.reshape(*h.shape[:-1], self.heads, -1).reshape(*h.shape[:-1], -1)
        return h @ self.down


@pytest.mark.long
def test_parameters_that_a_linen_module_makes_itself_shrink():
    module = Gated()
    variables = module.init(jax.random.key(0), SEQUENCE)
    masks, small = halved(module.apply, variables, SEQUENCE)
    assert small.params["params"]["up"].shape == (2, 8, 3)
    same(module.apply, variables, masks, small, SEQUENCE)
    new = Gated(hidden=3)
    close(new.apply(small.params, SEQUENCE), small.fn(small.params, SEQUENCE))
    assert vars(module).keys() == vars(Gated()).keys()


def test_a_number_that_a_linen_module_uses_itself_keeps_its_units():
    module = Gated(heads=3)
    variables = module.init(jax.random.key(0), SEQUENCE)
    masks, small = halved(module.apply, variables, SEQUENCE)
    whys = [change.why for change in small.report.changes if change.idle]
    assert whys and small.params["params"]["up"].shape == (2, 8, 3)
    assert all("reshape" in why for why in whys)
    same(module.apply, variables, masks, small, SEQUENCE)


@pytest.mark.long
def test_recurrent_cells_of_linen_lose_units():
    kinds = (nn.SimpleCell, nn.OptimizedLSTMCell, nn.GRUCell)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            made = [nn.RNN(kind(4))(x) for kind in kinds]
            grid = nn.RNN(nn.ConvLSTMCell(4, (2,)))(x[..., None])
            made.append(grid.mean(2))
            return sum(nn.Dense(3)(y) for y in made)

    module = Model()
    shapes = jax.eval_shape(module.init, jax.random.key(0), SEQUENCE)
    rng = np.random.default_rng(2)
    variables = jax.tree.map(
        lambda a: jnp.asarray(rng.standard_normal(a.shape), a.dtype), shapes
    )
    masks, small = halved(module.apply, variables, SEQUENCE)
    heads = [f"Dense_{i}" for i in range(4)]
    assert {small.params["params"][h]["kernel"].shape for h in heads} == {(2, 3)}
    close(
        jax.jit(module.apply)(masked(variables, masks), SEQUENCE),
        jax.jit(small.fn)(small.params, SEQUENCE),
    )


@pytest.mark.long
def test_recurrent_cells_of_nnx_are_rebuilt_ready_to_call():
    kinds = (nnx.LSTMCell, nnx.GRUCell)

    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            made = [nnx.RNN(kind(8, 4, rngs=rngs), rngs=rngs) for kind in kinds]
            self.rnns = nnx.List(made)
            self.heads = nnx.List([nnx.Linear(4, 3, rngs=rngs) for _ in kinds])

        def __call__(self, x):
            pairs = zip(self.rnns, self.heads, strict=True)
            return sum(head(rnn(x)) for rnn, head in pairs)

    model = Model()
    masks, small = halved(call, model, SEQUENCE)
    sizes = {(r.cell.in_features, r.cell.hidden_features) for r in small.params.rnns}
    assert sizes == {(8, 2)}
    close(nnx.jit(call)(masked(model, masks), SEQUENCE), small.params(SEQUENCE))


@pytest.mark.long
def test_group_norms_lose_whole_groups():
    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.conv = nnx.Conv(3, 16, (3, 3), rngs=rngs)
            self.norm = nnx.GroupNorm(16, num_groups=4, rngs=rngs)
            self.head = nnx.Linear(16, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))

    model = Model()
    masks, small = halved(call, model, IMAGE)
    assert small.params.norm.num_groups == 2 and small.params.norm.scale.shape == (8,)
    same(call, model, masks, small, IMAGE)
    close(small.params(IMAGE), small.fn(small.params, IMAGE))


@pytest.mark.long
@pytest.mark.parametrize("by", ["size", "number"])
def test_group_norms_of_linen_lose_groups_of_a_given_size(by):
    groups = (
        {"num_groups": None, "group_size": 4} if by == "size" else {"num_groups": 4}
    )

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.GroupNorm(**groups)(nn.Conv(16, (3, 3), name="conv")(x))
            return nn.Dense(3)(nn.relu(x).mean((1, 2)))

    module = Model()
    variables = module.init(jax.random.key(0), IMAGE)
    masks, small = halved(module.apply, variables, IMAGE)
    left = small.params["params"]["conv"]["kernel"].shape[-1]
    assert left == (8 if by == "size" else 16)
    assert by == "size" or "reshape gives shape" in small.report.changes[0].why
    same(module.apply, variables, masks, small, IMAGE)


@pytest.mark.long
def test_an_equinox_module_takes_smaller_arrays():
    mlp = eqx.nn.MLP(8, 3, 12, 2, key=jax.random.key(0))

    def fn(mlp, x):
        return jax.vmap(jax.vmap(mlp))(x)

    masks, small = halved(fn, mlp, SEQUENCE)
    assert small.params.layers[0].weight.shape == (6, 8)
    same(fn, mlp, masks, small, SEQUENCE)
