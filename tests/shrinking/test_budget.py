"""Budgets of parameters, operations and bytes: counted on models that really shrank."""

from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import bbjax as bb
from bbjax.shrinking import costs
from bbjax.shrinking.model import TracedModel
from bbjax.shrinking.unitwise import formulas
from bbjax.tracing.call import prepare
from tests.support import zoo, zoo_shrink
from tests.support.smaller import drawn

HARD = {model.name: model for model in zoo_shrink.HARD}
KINDS = ("params", "flops", "bytes")


def counted(fn, params, masks, *args):
    """What is left of each kind after shrinking, and what there was."""
    report = bb.shrink(fn, params, masks, *args).report
    return {kind: getattr(report, kind) for kind in KINDS}


def numbers_kept(units, masks):
    """How many units of every group the masks leave, in the first layer."""
    found = {}
    for group in units.graph:
        cut = [m for m in group.members if m.path in masks and not group.fixed]
        left = np.ones((*group.layers, group.size), bool)
        for member in cut:
            mask = np.moveaxis(
                masks[member.path],
                (*member.stack, member.axis),
                range(len(group.layers) + 1),
            )
            seen = mask.reshape(*mask.shape[: len(group.layers) + 1], -1).any(-1)
            for unit in range(group.size):
                left[..., unit] &= seen[..., member.units == unit].any(-1)
        if not group.fixed:
            counts = left.sum(-1)
            assert (counts == counts.flat[0]).all()
            found[group.name] = int(counts.flat[0])
    return found


def next_of_shares(sizes, now):
    """The numbers of units at the next share at which one changes, by trying all."""
    shares = sorted(
        {Fraction(2 * n - 1, 2 * m) for m in sizes.values() for n in range(1, m + 1)}
    )
    for share in shares:
        found = {k: max(int(share * m + Fraction(1, 2)), 1) for k, m in sizes.items()}
        if any(found[k] > now[k] for k in sizes):
            return found
    return None


def next_of_all(scores, now):
    """One unit more: the best of those that are cut."""
    each = {
        name: np.sort(s.reshape(-1, s.shape[-1]), axis=-1)[:, ::-1].mean(0)
        for name, s in scores.items()
    }
    left = {name: v[now[name]] for name, v in each.items() if now[name] < len(v)}
    if not left:
        return None
    best = max(left, key=left.get)
    return now | {best: now[best] + 1}


CASES = [
    ("group", ("flops",)),
    ("global", ("params",)),
    ("group", ("bytes", "flops")),
    ("global", ("flops",)),
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("scope", "kinds"), CASES)
@pytest.mark.parametrize("name", sorted(HARD))
def test_the_smaller_model_is_within_and_one_step_more_is_not(name, scope, kinds):
    model = HARD[name]
    params = model.made()
    units = bb.trace(model.fn, params, *model.args)
    scores = bb.unitwise.group_magnitude(units, params)
    costs = bb.unitwise.costs(model.fn, units, params, *model.args)
    free = {n: s for n, s in scores.items() if n not in costs.whole}
    least = costs.at(dict.fromkeys(free, 1))
    budget = {k: (1 + least[k] / costs.at()[k]) / 2 for k in kinds}
    masks = bb.unitwise.cut(units, scores, budget=budget, costs=costs, scope=scope)
    found = counted(model.fn, params, masks, *model.args)
    for kind, share in budget.items():
        assert found[kind][1] / found[kind][0] <= share
    now = {n: k for n, k in numbers_kept(units, masks).items() if n in free}
    assert {k: after for k, (_, after) in found.items()} == costs.at(now)
    sizes = {n: s.shape[-1] for n, s in free.items()}
    more = next_of_all(free, now) if scope == "global" else next_of_shares(sizes, now)
    assert more is not None
    density = {n: more[n] / sizes[n] for n in free}
    masks = bb.unitwise.cut(units, free, density)
    assert numbers_kept(units, masks) == numbers_kept(units, {}) | more
    found = counted(model.fn, params, masks, *model.args)
    refused = any(
        c.idle for c in bb.shrink(model.fn, params, masks, *model.args).report.changes
    )
    over = [found[k][1] / found[k][0] > share for k, share in budget.items()]
    assert any(over) or refused
    assert any(costs.at(more)[k] / costs.at()[k] > s for k, s in budget.items())


# Costs ---------------------------------------------------------------------------
def gated(p, x):
    """A gated MLP behind a norm, twice on one residual stream."""
    x = x @ p["in"]
    for layer in (p["one"], p["two"]):
        h = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)
        h = h * layer["scale"][None]
        x = x + (jax.nn.silu(h @ layer["gate"]) * (h @ layer["up"])) @ layer["down"]
    return x @ p["out"]


def layer(n):
    return drawn(scale=(6,), gate=(6, n), up=(6, n), down=(n, 6))


GATED = {"one": layer(7), "two": layer(5), **drawn(**{"in": (3, 6), "out": (6, 2)})}
X = jnp.asarray(np.random.default_rng(1).standard_normal((4, 3)), jnp.float32)
UNITS = bb.trace(gated, GATED, X)
COSTS = bb.unitwise.costs(gated, UNITS, GATED, X)


@given(st.integers(1, 7), st.integers(1, 5))
def test_costs_are_polynomials_in_the_numbers_of_units(one, two):
    hidden = one + two
    params = 3 * 6 + 6 * 2 + 2 * 6 + hidden * 3 * 6
    flops = 2 * 4 * (3 * 6 + 6 * 2 + hidden * 3 * 6)
    found = COSTS.at({"one/gate[1]": one, "two/gate[1]": two})
    assert found == {"params": params, "flops": flops, "bytes": 4 * params}


def test_bytes_are_those_of_each_dtype():
    params = {
        "up": jnp.ones((3, 8), jnp.bfloat16),
        "b": jnp.ones(8, jnp.float32),
        "down": jnp.ones((8, 2), jnp.bfloat16),
    }

    def net(p, x):
        h = jax.nn.relu((x @ p["up"]).astype(jnp.float32) + p["b"][None])
        return h.astype(jnp.bfloat16) @ p["down"]

    x = jnp.ones((5, 3), jnp.bfloat16)
    units = bb.trace(net, params, x)
    costs = bb.unitwise.costs(net, units, params, x)
    assert costs.at({"up[1]": 5})["bytes"] == 2 * 5 * (3 + 2) + 4 * 5
    scores = {"up[1]": np.arange(8.0)}
    masks = bb.unitwise.cut(units, scores, budget={"bytes": 0.5}, costs=costs)
    assert masks["b"].tolist() == [False] * 4 + [True] * 4


def test_a_branch_costs_as_much_as_the_larger_one():
    def net(p, x):
        def one(x):
            return jnp.tanh(x @ p["a"]) @ p["b"]

        def two(x):
            return jnp.tanh(x @ p["c"]) @ p["d"]

        return jax.lax.cond(jnp.sum(x) > 0, one, two, x)

    params = drawn(a=(3, 6), b=(6, 3), c=(3, 4), d=(4, 3))
    units = bb.trace(net, params, X)
    costs = bb.unitwise.costs(net, units, params, X)
    for one, two in ((6, 4), (2, 4), (4, 4), (1, 1)):
        found = costs.at({"a[1]": one, "c[1]": two})
        assert found["flops"] == 2 * 4 * 6 * max(one, two)
        masks = bb.unitwise.cut(
            units,
            {"a[1]": np.ones(6), "c[1]": np.ones(4)},
            {"a[1]": one / 6, "c[1]": two / 4},
        )
        after = counted(net, params, masks, X)
        assert {kind: n for kind, (_, n) in after.items()} == found


@pytest.mark.sampled(10)
@pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.name)
def test_whole_models_cost_what_the_program_costs(case, request):
    if case.lenient:
        request.getfixturevalue("lenient")
    model = case.make()
    prepared = prepare(model.fn, model.params, model.args, {})
    traced = TracedModel.of(prepared, model.params, {})
    extents, frame = traced.program.extents, traced.program.top
    found = formulas.flops(extents, frame)
    sizes = {factor: extents.size((factor,)) for factor in found.factors()}
    assert found.at(sizes) == costs.flops(prepared.jaxpr)


def test_loops_and_calls_that_are_not_followed_count_as_they_do_in_the_report():
    @jax.custom_vjp
    def own(x, w):
        return jnp.tanh(x @ w)

    own.defvjp(lambda x, w: (own(x, w), None), lambda _, g: (g, None))

    def net(p, x):
        x = jax.nn.relu(x @ p["up"]) @ p["down"]
        x = jax.lax.while_loop(
            lambda x: jnp.sum(x) > 9, lambda x: jnp.tanh(x @ p["own"]), x
        )
        return own(x, p["own"])

    params = drawn(up=(3, 6), down=(6, 3), own=(3, 3))
    units = bb.trace(net, params, X)
    found = bb.unitwise.costs(net, units, params, X)
    masks = bb.unitwise.cut(units, {"up[1]": np.arange(6.0)}, 0.5)
    after = counted(net, params, masks, X)
    assert {kind: n for kind, (n, _) in after.items()} == found.at()
    assert {kind: n for kind, (_, n) in after.items()} == found.at({"up[1]": 3})
    assert found.at()["flops"] == 2 * 4 * 3 * (6 + 6 + 3 + 3)


def stacked(p, x):
    def layer(x, p):
        return x + jnp.tanh(x @ p["up"]) @ p["down"], None

    return jax.lax.scan(jax.checkpoint(layer), x, p)[0]


def test_layers_of_a_scan_keep_as_many_units():
    params = drawn(up=(5, 3, 8), down=(5, 8, 3))
    units = bb.trace(stacked, params, X)
    costs = bb.unitwise.costs(stacked, units, params, X)
    assert costs.at({"up[2]": 3}) == {
        "params": 5 * 3 * 6,
        "flops": 5 * 3 * 2 * 4 * 6,
        "bytes": 4 * 5 * 3 * 6,
    }
    scores = bb.unitwise.group_magnitude(units, params)
    for scope in ("group", "global"):
        masks = bb.unitwise.cut(
            units, scores, budget={"flops": 0.6}, costs=costs, scope=scope
        )
        assert masks["up"].any(axis=1).sum(axis=-1).tolist() == [4] * 5
        assert counted(stacked, params, masks, X)["flops"] == (1920, 960)


# Numbers of units ------------------------------------------------------------------
SCORES = {"one/gate[1]": np.arange(7.0), "two/gate[1]": np.arange(5.0)}


def kept(**settings):
    masks = bb.unitwise.cut(UNITS, SCORES, costs=COSTS, **settings)
    return tuple(int(masks[f"{n}/up"].any(axis=0).sum()) for n in ("one", "two"))


def test_a_whole_budget_keeps_all():
    for scope in ("group", "global"):
        assert kept(budget={"flops": 1.0, "params": 1, "bytes": 1}, scope=scope) == (
            7,
            5,
        )


def test_numbers_of_units_are_multiples_within_the_budget():
    budget = {"params": (42 + 8 * 18) / 258}  # as much as 8 hidden units leave
    assert kept(budget=budget) == (5, 3)
    assert kept(budget=budget, multiple_of=2) == (4, 4)
    assert kept(budget=budget, multiple_of=4) == (4, 4)
    assert kept(budget=budget, multiple_of={"two/gate[1]": 5}) == (3, 5)


def test_all_of_several_budgets_hold():
    flops, params = 240 + 144 * 5, 42 + 18 * 9
    both = {"flops": flops / (240 + 144 * 12), "params": params / (42 + 18 * 12)}
    assert sum(kept(budget=both, scope="global")) == 5
    assert sum(kept(budget={"params": both["params"]}, scope="global")) == 9


@given(st.floats(0.4, 1.0), st.sampled_from(["group", "global"]))
def test_more_budget_never_keeps_fewer_units(share, scope):
    one = kept(budget={"flops": share}, scope=scope)
    two = kept(budget={"flops": min(share + 0.1, 1.0)}, scope=scope)
    assert all(a <= b for a, b in zip(one, two, strict=True))


def test_groups_without_scores_count_whole():
    scores = {"two/gate[1]": np.arange(5.0)}
    budget = {"flops": (240 + 144 * 9) / (240 + 144 * 12)}
    masks = bb.unitwise.cut(UNITS, scores, budget=budget, costs=COSTS)
    assert masks["two/up"].any(axis=0).sum() == 2 and "one/up" not in masks


def test_a_group_that_a_number_holds_counts_whole():
    """A reshape with the number of heads: dimensions of heads can go, heads cannot."""

    def net(p, x):
        h = jax.nn.relu(x @ p["up"]).reshape(4, 2, -1)
        return jax.nn.relu(jnp.einsum("bhk,hkm->bm", h, p["mid"])) @ p["down"]

    def written(p, x):
        h = jax.nn.relu(x @ p["up"]).reshape(4, 2, 6)
        return jax.nn.relu(jnp.einsum("bhk,hkm->bm", h, p["mid"])) @ p["down"]

    params = drawn(up=(3, 12), mid=(2, 6, 10), down=(10, 2))
    for fn, held in ((net, {"up[1]"}), (written, {"up[1]", "up[1]#2"})):
        units = bb.trace(fn, params, X)
        costs = bb.unitwise.costs(fn, units, params, X)
        assert set(costs.whole) == held
        assert all(name in str(costs) for name in costs.whole)
        scores = bb.unitwise.group_magnitude(units, params)
        masks = bb.unitwise.cut(units, scores, budget={"flops": 0.6}, costs=costs)
        before, after = counted(fn, params, masks, X)["flops"]
        assert 0.4 * before < after <= 0.6 * before


def test_numbers_that_the_function_refuses_leave_their_group_whole():
    """Half of the units is taken, another number is not."""

    def net(p, x):
        assert p["up"].shape[1] % 4 == 0
        return jax.nn.relu(jax.nn.relu(x @ p["up"]) @ p["mid"]) @ p["down"]

    params = drawn(up=(3, 8), mid=(8, 30), down=(30, 2))
    units = bb.trace(net, params, X)
    costs = bb.unitwise.costs(net, units, params, X)
    assert not costs.whole
    scores = bb.unitwise.group_magnitude(units, params)
    masks = bb.unitwise.cut(units, scores, budget={"flops": 0.6}, costs=costs)
    assert masks["up"].all() and not masks["down"].all()
    before, after = counted(net, params, masks, X)["flops"]
    assert 0.55 * before < after <= 0.6 * before
    masks = bb.unitwise.cut(
        units, scores, budget={"flops": 0.5}, costs=costs, multiple_of={"up[1]": 4}
    )
    assert masks["up"].any(axis=0).sum() == 4


def test_traces_do_not_grow_with_the_number_of_layers():
    counts = []
    for depth in (2, 8):
        traces = []

        def net(p, x, traces=traces):
            traces.append(None)
            for name in sorted(p):
                x = x + jax.nn.relu(x @ p[name]["up"]) @ p[name]["down"]
            return x

        params = {f"layer_{i}": drawn(up=(3, 6), down=(6, 3)) for i in range(depth)}
        units = bb.trace(net, params, X)
        traces.clear()
        costs = bb.unitwise.costs(net, units, params, X)
        scores = bb.unitwise.group_magnitude(units, params)
        bb.unitwise.cut(units, scores, budget={"flops": 0.7}, costs=costs)
        counts.append(len(traces))
    assert counts == [3, 3]


# Libraries -------------------------------------------------------------------------
def test_shapes_are_enough():
    shapes = jax.eval_shape(lambda: GATED)
    again = bb.unitwise.costs(gated, UNITS, shapes, jax.eval_shape(lambda: X))
    assert again.at({"one/gate[1]": 2}) == COSTS.at({"one/gate[1]": 2})


@pytest.mark.long
def test_linen_and_nnx_models_meet_their_budget(lenient):
    module = nn.Sequential([nn.Dense(12), nn.relu, nn.Dense(10), nn.relu, nn.Dense(2)])
    params = module.init(jax.random.key(0), X)
    rngs = nnx.Rngs(0)
    net = nnx.Sequential(
        nnx.Linear(3, 12, rngs=rngs),
        nnx.relu,
        nnx.Linear(12, 10, rngs=rngs),
        nnx.relu,
        nnx.Linear(10, 2, rngs=rngs),
    )
    for fn, model in ((module.apply, params), (lambda net, x: net(x), net)):
        units = bb.trace(fn, model, X)
        costs = bb.unitwise.costs(fn, units, model, X)
        scores = bb.unitwise.group_magnitude(units, model)
        budget = {"flops": 0.5, "params": 0.5}
        masks = bb.unitwise.cut(units, scores, budget=budget, costs=costs)
        found = counted(fn, model, masks, X)
        assert costs.at() == {kind: before for kind, (before, _) in found.items()}
        assert all(2 * found[k][1] <= found[k][0] for k in budget)
        assert 2 * found["flops"][1] > 0.7 * found["flops"][0]


# Errors ----------------------------------------------------------------------------
def test_a_budget_below_the_smallest_model_names_what_cannot_shrink():
    with pytest.raises(ValueError) as error:
        kept(budget={"flops": 0.2}, multiple_of={"one/gate[1]": 4})
    text = str(error.value)
    share = (240 + 144 * 5) / (240 + 144 * 12)
    assert f"got 0.2 of the flops: {share:.3g} of the flops remain with one" in text
    assert "(multiples: 4 of 'one/gate[1]')" in text
    assert "cannot shrink: in[1]: " in text and "out[1]: the function returns" in text
    scores = {"two/gate[1]": np.ones(5)}
    with pytest.raises(ValueError, match=r"one/gate\[1\]: no scores were given"):
        bb.unitwise.cut(UNITS, scores, budget={"params": 0.2}, costs=COSTS)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"budget": 0.5}, TypeError, "expected a budget by kind of cost, got 0.5"),
        (
            {"budget": {}},
            ValueError,
            r"some of \['params', 'flops', 'bytes'\], got \[\]",
        ),
        ({"budget": {"time": 0.5}}, ValueError, r"got \['time'\]; pass the share"),
        (
            {"budget": {"flops": 0.0}},
            ValueError,
            r"expected the budget of flops in \(0, 1\], got 0.0.*; it is the share of",
        ),
        (
            {"budget": {"flops": "half"}},
            TypeError,
            "expected the budget of flops to be a number, got 'half'",
        ),
        (
            {"density": 0.5},
            ValueError,
            "a density, a least score or a budget, got density=0.5, least=None and",
        ),
        ({"costs": None}, TypeError, "costs of the model with a budget, got NoneType"),
        ({"budget": None, "density": 0.5}, ValueError, "expected costs with a budget"),
        ({"scope": "all"}, ValueError, 'expected scope "group" or "global"'),
    ],
)
def test_bad_budgets_are_refused(change, error, text):
    given = {"budget": {"flops": 0.5}, "costs": COSTS} | change
    with pytest.raises(error, match=text):
        bb.unitwise.cut(UNITS, SCORES, **given)


def test_a_budget_needs_values():
    with pytest.raises(TypeError, match="shares of a budget with values, got a traced"):
        jax.jit(lambda share: kept(budget={"flops": share}))(0.5)


def test_costs_of_another_model_are_refused():
    params = GATED | {"two": layer(4)}
    units = bb.trace(gated, params, X)
    with pytest.raises(ValueError, match="expected the function that was traced, with"):
        bb.unitwise.costs(gated, units, GATED, X)
    with pytest.raises(
        ValueError, match=r"expected costs of the groups \['one/gate\[1"
    ):
        bb.unitwise.cut(units, {}, budget={"flops": 0.9}, costs=COSTS)
    with pytest.raises(
        TypeError, match="expected units as bb.trace makes them, got di"
    ):
        bb.unitwise.costs(gated, GATED, UNITS, X)


@pytest.mark.long
def test_numbers_of_units_are_checked():
    with pytest.raises(ValueError, match=r"one for 'one/gate' .*; they are \['one/ga"):
        COSTS.at({"one/gate": 2})
    with pytest.raises(ValueError, match=r"'one/gate\[1\]'.*in \[1, 7\], got 8"):
        COSTS.at({"one/gate[1]": 8})
    with pytest.raises(TypeError, match=r"'one/gate\[1\]'.* got 2.0"):
        COSTS.at({"one/gate[1]": 2.0})
