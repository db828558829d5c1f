"""Prune and train in turn; the same counts for another rule; names of masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb
from bbjax.oneshot.nnrelief.rounds import (
    densities_of,
    fingerprint,
    relief_rounds,
    relieve_and_train,
)
from bbjax.oneshot.prune import apply_masks, prune
from bbjax.training.transform import hold
from tests.support.zoo_case import normal, weights

relu = jax.nn.relu


def net(params, x):
    return relu(x @ params["a"] + params["bias"][None]) @ params["b"]


@pytest.fixture
def job():
    params = weights(a=(8, 9), b=(9, 3)) | {"bias": jnp.full(9, 0.3)}
    x = normal(2, 30, 8)
    return net, params, bb.trace(net, params, x), [(x,)]


class Trainer:
    """A few steps towards a fixed teacher; remembers where each round began."""

    def __init__(self):
        self.starts = []
        self.x, self.y = normal(6, 20, 8), normal(7, 20, 3)

    def __call__(self, params, masks):
        self.starts.append((params, masks))
        tx = optax.chain(optax.sgd(0.01), hold(masks))
        state = tx.init(params)

        def loss(p):
            return jnp.mean((net(p, self.x) - self.y) ** 2)

        for _ in range(2):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
        return params


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


@pytest.mark.long
def test_fine_tuning_goes_on_from_the_pruned_net(job):
    train, made = Trainer(), []
    for done in relief_rounds(*job, train, iterations=3, alpha_dense=0.9):
        made.append(done)
    before = [job[1], *(done.params for done in made)]
    for (start, masks), net_before, done in zip(
        train.starts, before[:-1], made, strict=True
    ):
        assert same(start, apply_masks(net_before, masks)) and masks is done.masks
        assert not same(start, done.params)
    assert [done.number for done in made] == [1, 2, 3]


@pytest.mark.long
def test_rewinding_trains_from_the_first_parameters_under_the_mask(job):
    first = jax.tree.map(lambda p: p + 1.0, job[1])
    train = Trainer()
    result = relieve_and_train(*job, train, iterations=2, rewind=first, alpha_dense=0.9)
    for start, masks in train.starts:
        assert same(start, apply_masks(first, masks))
        assert "bias" in masks
    assert all((result.masks[p] <= m).all() for p, m in train.starts[0][1].items())


@pytest.mark.long
def test_history_has_density_score_and_a_name_of_the_masks(job):
    scores = iter([0.5, 0.25, 0.75])
    params, masks, history = relieve_and_train(
        *job, Trainer(), iterations=3, score=lambda p: next(scores), alpha_dense=0.9
    )
    assert [line.score for line in history] == [0.5, 0.25, 0.75]
    densities = [line.density for line in history]
    assert densities == sorted(densities, reverse=True) and densities[-1] < 1
    assert history[-1].density == (masks["a"].sum() + masks["b"].sum()) / 99
    assert history[-1].fingerprint == fingerprint(masks)
    assert all(
        (np.asarray(params[p])[~np.asarray(m)] == 0).all() for p, m in masks.items()
    )


@pytest.mark.long
def test_a_round_is_made_when_it_is_asked_for(job):
    train = Trainer()
    rounds = relief_rounds(*job, train, iterations=5)
    assert not train.starts
    next(rounds)
    assert len(train.starts) == 1


def test_training_that_forgets_the_masks_is_refused(job):
    with pytest.raises(ValueError, match=r"0 where the masks prune, got others at \["):
        relieve_and_train(
            *job,
            lambda params, masks: jax.tree.map(lambda p: p + 1.0, params),
            iterations=1,
            alpha_dense=0.8,
        )


def test_refusals(job):
    with pytest.raises(TypeError, match="expected train to be a function"):
        relief_rounds(*job, None, iterations=1)
    with pytest.raises(ValueError, match="iterations: expected an int in"):
        relief_rounds(*job, Trainer(), iterations=0)
    with pytest.raises(TypeError, match="iterations: expected an int in"):
        relieve_and_train(*job, Trainer(), iterations=1.5)


# Names of masks ------------------------------------------------------------------
def test_fingerprint_tells_masks_apart_and_nothing_else():
    a, b = np.eye(3, dtype=bool), np.ones((1, 9), bool)
    name = fingerprint({"a": a, "b": b})
    assert name == fingerprint({"b": jnp.asarray(b), "a": jnp.asarray(a)})
    others = [
        {"a": b, "b": a},
        {"a": a},
        {"a": ~a, "b": b},
        {"a": a.reshape(-1), "b": b},
    ]
    assert len({name, *map(fingerprint, others)}) == 5


# The same counts for another rule ------------------------------------------------
@pytest.mark.long
def test_magnitude_to_the_same_number_of_edges_in_every_layer():
    conv = bb.Kernel("c", (3, 3, 4, 6), fan_in=(2,), fan_out=(3,), spatial=(0, 1))
    product = bb.Kernel("d", (7, 9), fan_in=(0,), fan_out=(1,))
    units = bb.Units((conv, product)).select(".")
    few = np.arange(24).reshape(4, 6) % 5 == 0
    masks = {
        "c": jnp.asarray(np.broadcast_to(few, conv.shape)),
        "d": jnp.arange(63).reshape(7, 9) % 3 == 1,
    }
    params = {k.path: normal(3, *k.shape) for k in units.kernels}
    layerwise = bb.rules.magnitude(scope="layer")
    _, control = prune(params, units, layerwise, densities_of(masks, units), k_min=0)
    for path, mask in masks.items():
        assert control[path].sum() == mask.sum() and (control[path] != mask).any()


@pytest.mark.parametrize("edges", [3, 7, 784 * 300, 2**24 + 1, 2**31 - 1])
def test_density_gives_back_the_count(edges):
    rng = np.random.default_rng(edges % 1000)
    counts = {1, edges, *map(int, rng.integers(1, edges, 500))}
    assert all(round(n / edges * edges) == n for n in counts)


@pytest.mark.long
def test_paths_are_taken_literally():
    kernels = (
        bb.Kernel("a.b", (2, 2), fan_in=(0,), fan_out=(1,)),
        bb.Kernel("axb", (2, 2), fan_in=(0,), fan_out=(1,)),
    )
    one, whole = np.array([[True, False], [False, False]]), np.ones((2, 2), bool)
    units = bb.Units(kernels).select(".")
    params = {"a.b": jnp.ones((2, 2)), "axb": jnp.ones((2, 2))}
    densities = densities_of({"a.b": one, "axb": whole, "bias": one}, units)
    _, masks = prune(params, units, bb.rules.magnitude(), densities, k_min=0)
    assert masks["a.b"].sum() == 1 and masks["axb"].all()


@pytest.mark.long
def test_masks_without_a_density():
    stacked = bb.Kernel("w", (2, 2, 2), stack=(0,), fan_in=(1,), fan_out=(2,))
    units = bb.Units((stacked,))
    uneven = np.ones((2, 2, 2), bool)
    uneven[0, 0] = False
    with pytest.raises(ValueError, match=r"every slice of 'w', got \[2, 4\]"):
        densities_of({"w": uneven}, units)
    with pytest.raises(ValueError, match=r"every slice of 'w', got \[0\]"):
        densities_of({"w": np.zeros((2, 2, 2), bool)}, units)
    with pytest.raises(ValueError, match=r"mask of shape \(2, 2, 2\) for 'w', got"):
        densities_of({"w": np.ones((2, 2), bool)}, units)
    with pytest.raises(ValueError, match=r"expected masks of kernels, got \['v'\]"):
        densities_of({"v": np.ones((2, 2), bool)}, units)
