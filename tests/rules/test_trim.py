"""TRIM: the whole rule in numpy, cosines never lower, exact budgets, bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bbjax as bb
from bbjax.rules import trim
from tests.support.contract import compilations
from tests.support.correlated import data
from tests.support.runs import candidates, dense

MEASURES = ("layer", "units")


def case(n=24, units=8, needy=3):
    """Units of unlike needs: some have a few large weights, some equal ones."""
    gram, w = data(n, units)
    w[:, :needy] *= np.exp(-0.4 * np.arange(n))[:, None]
    return gram, (w * np.exp(np.random.normal(size=units))).astype(np.float32)


def look(kernel, w, gram, budget, **rest):
    seen = candidates(kernel, jnp.asarray(w), budget, **rest)
    gram = jnp.asarray(gram, jnp.float32)
    square = jnp.diagonal(gram, axis1=-2, axis2=-1)
    read = {"inputs.gram": gram, "inputs.mean_square": square}
    return dataclasses.replace(seen, statistics={**seen.statistics, **read})


def pruned(rule, w, gram, budget, **rest):
    return np.asarray(rule.select(look(dense(*w.shape), w, gram, budget, **rest)))


# In numpy, from the formulas ----------------------------------------------------------
def cosine(a, b, gram):
    """Of two outputs per column, as `(products, squares, squares)`."""
    pairs = ((a, b), (a, a), (b, b))
    return [np.einsum("io,ij,jo->o", p, gram, q, dtype=np.float64) for p, q in pairs]


def ratio(parts):
    product, first, second = parts
    some = (first > 0) & (second > 0)
    cosines = product / np.sqrt(np.where(some, first * second, 1))
    return np.where(some, cosines, (first == 0) & (second == 0))


def degrees(real, budget, least, fan):
    """One edge at a time, to the unit whose next edge comes at the lowest level."""
    count = np.full(len(real), least)
    while count.sum() < budget:
        level = np.where(count < fan, count + 1 - real, np.inf)
        count[np.argmin(level)] += 1
    return count


class Oracle:
    """TRIM of one kernel in float64."""

    def __init__(self, w, gram, score, budget, measure, k_min=1):
        self.w, self.gram, self.budget = w.astype(np.float64), gram, budget
        self.rank = np.argsort(np.argsort(-score, axis=0, kind="stable"), axis=0)
        self.target, self.measure, self.k_min = 1 - budget / w.size, measure, k_min

    def mask(self, sparsity):
        fan = len(self.w)
        real = fan * (self.target - sparsity)
        return self.rank < degrees(real, self.budget, self.k_min, fan)

    def outcome(self, sparsity):
        """Cosines of the units, and the measure."""
        parts = cosine(self.w * self.mask(sparsity), self.w, self.gram)
        cosines = ratio(parts)
        whole = ratio([part.sum() for part in parts])
        return cosines, whole if self.measure == "layer" else cosines.mean()

    def with_rate(self, rate, rounds):
        sparsity = np.full(self.w.shape[1], self.target)
        cosines, best = self.outcome(sparsity)
        found = best, sparsity
        for _ in range(rounds):
            q = (cosines - cosines.min()) / (cosines.max() - cosines.min() + 1e-6)
            sparsity = np.clip(sparsity + rate * 2 * (q - q.mean()), 0, 0.95)
            sparsity = sparsity - sparsity.mean() + self.target
            cosines, measured = self.outcome(sparsity)
            if measured > found[0]:
                found = measured, sparsity
        return found

    def best(self, rounds=10):
        equal = np.full(self.w.shape[1], self.target)
        level = self.outcome(equal)[1]
        best = level, equal
        for rates in ([0.01, 0.02, 0.04, 0.08, 0.12, 0.16], [-0.01, -0.02, -0.04]):
            if best[0] > level:
                break
            last = -np.inf
            for rate in rates:
                found = self.with_rate(rate, rounds)
                best = found if found[0] > best[0] else best
                if not found[0] > last:
                    break
                last = found[0]
        return best[1]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("density", [0.2, 0.4, 0.7])
@pytest.mark.parametrize("score", ["wanda", "magnitude"])
def test_masks_are_those_of_numpy(score, density, measure):
    gram, w = case()
    budget = round(density * w.size)
    size = np.abs(w) * (np.sqrt(np.diag(gram))[:, None] if score == "wanda" else 1)
    oracle = Oracle(w, gram, size, budget, measure)
    sparsity = oracle.best()
    mask = pruned(trim(score, measure=measure), w, gram, budget)
    np.testing.assert_array_equal(mask, oracle.mask(sparsity))
    assert np.ptp(mask.sum(0)) > 1 and np.ptp(sparsity) > 0.01


@pytest.mark.long
@pytest.mark.parametrize("rounds", [1, 3])
def test_rounds_are_those_of_numpy(rounds):
    gram, w = case()
    score = np.abs(w) * np.sqrt(np.diag(gram))[:, None]
    oracle = Oracle(w, gram, score, 77, "units", k_min=0)
    mask = pruned(trim(measure="units", rounds=rounds), w, gram, 77, k_min=0)
    np.testing.assert_array_equal(mask, oracle.mask(oracle.best(rounds)))


@pytest.mark.long
def test_negative_rates_are_tried_where_others_do_not_help():
    """Large units have the higher cosines, and the cosine of the layer is theirs."""
    w = np.full((24, 8), 0.1, np.float32)
    w[:, :4] = 10 * np.exp(-0.1 * np.arange(24))[:, None] * np.linspace(1, 1.3, 4)
    gram = np.eye(24, dtype=np.float32)
    oracle = Oracle(w, gram, np.abs(w), 64, "layer")
    mask = pruned(trim("magnitude"), w, gram, 64)
    np.testing.assert_array_equal(mask, oracle.mask(oracle.best()))
    assert mask[:, :4].sum(0).min() > 8 > mask[:, 4:].sum(0).max()
    mean = pruned(trim("magnitude", measure="units"), w, gram, 64)
    assert mean[:, :4].sum(0).max() < mean[:, 4:].sum(0).min()


@pytest.mark.long
def test_negative_rates_are_left_out_where_others_help_at_all():
    """As published, even if they would help more."""
    rng = np.random.default_rng(1)
    w = rng.normal(size=(24, 8))
    w = w * np.exp(-rng.uniform(0, 0.4, 8) * np.arange(24)[:, None])
    w = w * np.exp(2 * rng.normal(size=8))
    w, gram = w.astype(np.float32), np.eye(24, dtype=np.float32)
    oracle = Oracle(w, gram, np.abs(w), 64, "layer")
    best = oracle.best()
    level, found = (oracle.outcome(s)[1] for s in (oracle.target + 0 * w[0], best))
    assert level < found < oracle.with_rate(-0.01, 10)[0]
    mask = pruned(trim("magnitude"), w, gram, 64)
    np.testing.assert_array_equal(mask, oracle.mask(best))


# Invariants ---------------------------------------------------------------------------
@pytest.mark.long
@given(
    seed=st.integers(0, 2**31),
    density=st.floats(0.15, 1),
    k_min=st.integers(0, 2),
    measure=st.sampled_from(MEASURES),
)
def test_budgets_are_exact_and_cosines_never_lower(seed, density, k_min, measure):
    rng = np.random.default_rng(seed)
    x = (
        rng.normal(size=(40, 4))
        @ rng.normal(size=(4, 16))
        * np.exp(rng.normal(size=16))
    )
    gram = (x.T @ x / 40 + 0.1 * np.eye(16)).astype(np.float32)
    w = (rng.normal(size=(16, 6)) * np.exp(2 * rng.normal(size=6))).astype(np.float32)
    budget = max(round(density * w.size), k_min * 6)
    mask = pruned(trim(measure=measure), w, gram, budget, k_min=k_min)
    assert mask.sum() == budget and mask.sum(0).min() >= k_min
    level = np.asarray(
        bb.rules.wanda().select(look(dense(16, 6), w, gram, budget, k_min=k_min))
    )
    measured = []
    for kept in (mask, level):
        parts = cosine(w * kept, w, gram)
        whole = [part.sum() for part in parts]
        measured.append(ratio(whole if measure == "layer" else parts).mean())
    assert measured[0] >= measured[1] - 1e-6


STACKED = bb.Kernel("w", (24, 3, 8), fan_in=(0,), stack=(1,), fan_out=(2,))


@pytest.mark.long
def test_slices_do_not_meet():
    grams, ws = zip(*(case(needy=needy) for needy in (0, 3, 6)), strict=True)
    gram, w, budget = np.stack(grams), np.stack(ws, axis=1), np.array([40, 77, 120])
    mask = np.asarray(trim().select(look(STACKED, w, gram, jnp.asarray(budget))))
    for at in range(3):
        alone = pruned(trim(), w[:, at], gram[at], int(budget[at]))
        np.testing.assert_array_equal(mask[:, at], alone)


@pytest.mark.long
def test_permuting_units_permutes_masks():
    gram, w = case()
    order = np.random.permutation(8)
    mask = pruned(trim(), w, gram, 80)
    np.testing.assert_array_equal(pruned(trim(), w[:, order], gram, 80), mask[:, order])


@pytest.mark.long
@pytest.mark.parametrize("measure", MEASURES)
def test_units_without_output(measure):
    """One that computes 0 loses nothing, one that computes 0 when pruned loses all."""
    gram, w = case()
    gram[:8], gram[:, :8] = 0, 0
    w[8:, 7] = 0
    w[:8, 6] = 9
    oracle = Oracle(w, gram, np.abs(w), 48, measure)
    cosines, _ = oracle.outcome(np.full(8, oracle.target))
    assert cosines[7] == 1 and cosines[6] == 0
    mask = pruned(trim("magnitude", measure=measure), w, gram, 48)
    np.testing.assert_array_equal(mask, oracle.mask(oracle.best()))
    assert np.ptp(mask.sum(0)) > 1


@pytest.mark.long
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_do_not_stop_the_search(value):
    gram, w = case()
    w[5, 4] = value
    mask = pruned(trim(), w, gram, 80)
    assert mask.sum() == 80 and np.ptp(mask.sum(0)) > 1


@pytest.mark.long
def test_patterns_and_earlier_masks():
    gram, w = case()
    w[:, :4] = np.where(np.arange(24) % 4 == 0, 1, 0.01)[:, None]  # one is enough
    w[:, 4:] = np.sign(w[:, 4:])
    seen = look(dense(24, 8), w, gram, 96, pattern=bb.n_m(2, 4))
    mask = np.asarray(trim().select(seen))
    held = mask.reshape(6, 4, 8).sum(1)
    assert mask.sum() == 96 and (np.ptp(held, axis=0) == 0).all()
    assert held[0, :4].max() < held[0, 4:].min()
    first = np.random.uniform(size=w.shape) < 0.7
    seen = look(dense(24, 8), w, gram, 80, mask=jnp.asarray(first), regrow=False)
    left = np.asarray(trim().select(seen))
    assert left.sum() == 80 and not (left & ~first).any()


@pytest.mark.long
def test_bfloat16_is_computed_in_float32():
    gram, w = case()
    half = jnp.asarray(w, jnp.bfloat16)
    wanted = pruned(trim(), np.asarray(half.astype(jnp.float32)), gram, 80)
    np.testing.assert_array_equal(pruned(trim(), half, gram, 80), wanted)


@pytest.mark.long
@pytest.mark.parametrize(
    "kind, spec", [("Auto", jax.P("x", None)), ("Explicit", jax.P(None, "x"))]
)
def test_sharded_weights(kind, spec):
    gram, w = case()
    rule = trim(rounds=2)
    mask = pruned(rule, w, gram, 80)
    kinds = (getattr(jax.sharding.AxisType, kind),)
    mesh = jax.make_mesh((2,), ("x",), axis_types=kinds, devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        there = jax.device_put(w, jax.NamedSharding(mesh, spec))
        edges = jnp.ones_like(there, bool)
        found = rule.select(look(dense(24, 8), there, gram, 80, mask=edges))
        np.testing.assert_array_equal(found, mask)
        assert kind == "Auto" or jax.typeof(found).sharding.spec == spec


@pytest.mark.long
def test_a_second_kernel_of_the_shape_is_not_compiled():
    gram, w = case()
    pruned(trim(rounds=2), w, gram, 80)
    seen = look(dense(24, 8), w[::-1].copy(), gram, 70)
    with compilations() as made:
        trim(rounds=2).select(seen)
    assert made.count == 0


@pytest.mark.long
def test_before_and_after_pruning_of_a_model():
    """Units of unlike needs: outputs are closer than by equal degrees."""

    def fn(params, x):
        h = x + jax.nn.relu(x @ params["up"] + params["bias"][None]) @ params["down"]
        return h * jax.lax.rsqrt(jnp.mean(jnp.square(h), -1, keepdims=True) + 1e-6)

    up = np.random.normal(size=(16, 32))
    up[:, ::2] *= np.exp(-0.5 * np.arange(16))[:, None]
    params = {
        "up": jnp.asarray(up, jnp.float32),
        "bias": jnp.zeros(32),
        "down": jnp.asarray(np.random.normal(size=(32, 16)), jnp.float32),
    }
    x = jnp.asarray(np.random.normal(size=(400, 16)), jnp.float32)
    units, rule = bb.trace(fn, params, x).select("up"), trim()
    assert rule.needs == ("inputs.mean_square", "inputs.gram")
    stats = bb.calibrate(fn, units, params, [(x,)], needs=rule.needs)
    raw = {}
    for one in (rule, bb.rules.wanda()):
        new, masks = bb.prune(params, units, one, density=0.3, stats=stats)
        assert int(masks["up"].sum()) == round(0.3 * 16 * 32)
        raw[one.name] = x @ new["up"], masks["up"].sum(0)
    true = x @ params["up"]
    cosines = [
        float(jnp.vdot(got, true) / jnp.linalg.norm(got) / jnp.linalg.norm(true))
        for got, _ in raw.values()
    ]
    assert cosines[0] > cosines[1]
    count = raw["trim"][1]
    assert count[::2].mean() < count[1::2].mean()  # few of their edges carry all


# Bad input ----------------------------------------------------------------------------
def test_bad_settings():
    with pytest.raises(ValueError, match='expected score "magnitude" or .* got "?.obs'):
        trim("obs")
    with pytest.raises(ValueError, match='expected measure "layer" or "units", got 1'):
        trim(measure=1)
    with pytest.raises(ValueError, match="rounds: expected an int >= 1, got 0"):
        trim(rounds=0)
    with pytest.raises(TypeError, match="rounds: expected an int >= 1, got 2.5"):
        trim(rounds=2.5)


@pytest.mark.long
def test_kernels_that_it_cannot_prune():
    gram, w = case()
    with pytest.raises(ValueError, match="expected actuator 'in' for 'w', got 'out'"):
        trim().select(look(dense(24, 8), w, gram, 80, actuators=("out",)))
    kernel = bb.Kernel("w", (3, 24, 8), fan_in=(1,), fan_out=(2,), spatial=(0,))
    with pytest.raises(ValueError, match=r"rule 'trim', got 'w' with window \(3,\)"):
        trim().select(look(kernel, np.ones((3, 24, 8), np.float32), gram, 80))
