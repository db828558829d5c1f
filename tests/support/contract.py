"""The table of the contract suite: rules, models, and the steps that tests share.

A new rule is one row of `RULES` and at once meets every check of `test_contract_*`.
Gradients and activity of a case are one compiled function that all rules share, so that
a check costs one compilation of `tx.update` and equalities are those of the library.
"""

import contextlib
import dataclasses
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb
from bbjax.activity.statistics import PER_UNIT

EVERY, START, DENSITY = 2, 1, 0.4
NONE: Mapping[str, Any] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Row:
    """One rule.

    Attributes:
      make: its factory.
      hyper: its numbers that may be traced, with a value each to try and to compare.
      by_place: whether units are told apart by where they stand (random noise).
      budget: what is exact: the edges of every slice (`"edges"`), of all kernels
        together (`"pool"`), whole units (`"units"`), edges in groups (`"groups"`), or
        nothing, where the density is an outcome (`"free"`).
      options: arguments of `bb.transform` that go with it.
      without: models that it cannot prune: both sides of one kernel budgeted, or axes
        that are no multiple of a group.
      scratch: arrays of scratch memory that it may take on top of the others.
      core: whether it meets every check by default; of the others some checks, which
        depend on the transform more than on the rule, are among the slow ones.
    """

    make: Callable[..., bb.rules.Rule]
    hyper: Mapping[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    by_place: bool = False
    budget: str = "edges"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    without: tuple[str, ...] = ()
    scratch: float = 0.0
    core: bool = False

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the models that it can prune."""
        return tuple(c for c in CASES if c not in self.without)


RULES = {
    "log_odds": Row(bb.rules.budgeted_broadcast, core=True),
    "law_alone": Row(
        lambda spread=0.4: bb.rules.budgeted_broadcast(spread=spread, competition=0),
        {"spread": (0.4, -0.2)},
    ),
    "competition": Row(
        lambda competition=0.5: bb.rules.budgeted_broadcast(
            competition=competition, score="wanda"
        ),
        {"competition": (0.5, 1.0)},
    ),
    "broadcast_global": Row(
        lambda: bb.rules.budgeted_broadcast(scope="global"), budget="pool", scratch=3.5
    ),
    "threshold": Row(lambda: bb.rules.budgeted_broadcast(law=bb.laws.threshold())),
    "beta": Row(
        lambda beta=0.7: bb.rules.budgeted_broadcast(beta=beta), {"beta": (0.7, 0.05)}
    ),
    "hysteresis": Row(bb.rules.budgeted_broadcast, options={"hysteresis": 0.2}),
    "magnitude": Row(bb.rules.magnitude),
    "activity_only": Row(bb.rules.activity_only),
    "random": Row(bb.rules.random, by_place=True, scratch=1.5, core=True),
    "pattern": Row(
        bb.rules.budgeted_broadcast,
        budget="groups",
        options={"pattern": bb.n_m(2, 4)},
        without=("both", "stack"),
        scratch=1.5,
    ),
    "layer": Row(lambda: bb.rules.magnitude(scope="layer"), scratch=1.0),
    "scaled": Row(
        lambda: bb.rules.magnitude(scope="layer", score="scaled"), scratch=1.5
    ),
    "global": Row(
        lambda: bb.rules.magnitude(scope="global"), budget="pool", scratch=3.0
    ),
    "priced": Row(
        lambda price=1.0: bb.rules.priced(price=price),
        {"price": (1.0, 8.0)},
        scratch=1.5,
    ),
    "priced_global": Row(
        lambda: bb.rules.priced(scope="global"), budget="pool", scratch=3.5
    ),
    "rigl": Row(
        lambda drop=0.3: bb.rules.rigl(drop=drop, anneal=6),
        {"drop": (0.3, 0.6)},
        scratch=2.5,
    ),
    "set": Row(bb.rules.set_, by_place=True, scratch=5.5),
    "srigl": Row(
        lambda gamma=0.3: bb.rules.srigl(gamma=gamma),
        {"gamma": (0.3, 0.9)},
        without=("both",),
        scratch=4.0,
    ),
    "snip": Row(bb.rules.snip, budget="pool", scratch=3.5),
    "wanda": Row(bb.rules.wanda),
    "ria": Row(
        lambda exponent=0.5: bb.rules.ria(exponent=exponent), {"exponent": (0.5, 2.0)}
    ),
    "activation_topk": Row(bb.rules.activation_topk, budget="units", without=("both",)),
    "apoz": Row(bb.rules.apoz, budget="free"),
    "fine_units": Row(
        lambda: bb.rules.fine_pruning(include_output=True),
        budget="units",
        without=("both",),
    ),
    "fine_weights": Row(lambda: bb.rules.fine_pruning(by="weights"), scratch=1.0),
    "local_threshold": Row(lambda: bb.rules.threshold(1.5), budget="free"),
    "traffic": Row(
        lambda traffic=0.4: bb.rules.threshold(traffic=traffic, fraction=0.5),
        {"traffic": (0.4, 0.2)},
        budget="free",
    ),
    "three_zone": Row(
        lambda: bb.rules.unbudgeted(bb.laws.three_zone(low=0.2, high=0.3)),
        budget="free",
    ),
}
# Rules that `bb.transform` refuses; their models budget incoming edges alone.
ONE_SHOT = {
    "grasp": Row(bb.rules.grasp, budget="pool"),
    "synflow": Row(bb.rules.synflow, budget="pool"),
    "sparsegpt": Row(bb.rules.sparsegpt),
    "sparsegpt_blend": Row(
        lambda: bb.rules.sparsegpt(law=bb.laws.log_odds(), competition=0.5)
    ),
    "trim": Row(bb.rules.trim),
    "trim_ria": Row(lambda: bb.rules.trim("ria", measure="units")),
    "calibrated": Row(lambda: bb.rules.budgeted_broadcast(spread="calibrated")),
    "nnrelief": Row(lambda: bb.rules.nnrelief(alpha=0.5), budget="free"),
}
CORE = tuple(name for name, row in RULES.items() if row.core)


def pairs(*, brief: bool = False) -> Any:
    """Every rule with every model it can prune, as a parametrization.

    Rules beyond the core meet the other models than the MLP among the slow tests. Where
    the check is `brief`, because it depends on the transform more than on the rule,
    they meet the MLP alone, and there.
    """
    return pytest.mark.parametrize(
        "rule, case",
        [
            pytest.param(r, c, marks=() if _quick(r, c, brief) else pytest.mark.slow)
            for r, row in RULES.items()
            for c in row.cases
            if row.core or c == "mlp" or not brief
        ],
    )


def _quick(rule: str, case: str, brief: bool) -> bool:
    return RULES[rule].core or (case == "mlp" and not brief)


def mostly_slow() -> Any:
    """Every rule as a parametrization, those beyond the core among the slow tests."""
    return pytest.mark.parametrize(
        "rule",
        [
            pytest.param(r, marks=() if row.core else pytest.mark.slow)
            for r, row in RULES.items()
        ],
    )


def needs_activity(row: Row) -> bool:
    return any(need != "grads" for need in row.make().needs)


# Cases ---------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A model, and which of its kernels are budgeted."""

    shapes: Mapping[str, tuple[int, ...]]
    apply: Callable[[Any, jax.Array], jax.Array]
    batch_shape: tuple[int, ...]
    selection: tuple[tuple[str, str], ...]

    def params(self, seed: int = 0, dtype: Any = np.float32) -> dict[str, jax.Array]:
        """Gaussian weights with a bias towards units of unlike on-rates."""
        rng = np.random.default_rng(seed)
        made = {}
        for name, shape in self.shapes.items():
            fan = max(int(np.prod(shape[:-1])), 1)
            made[name] = jnp.asarray(rng.normal(size=shape) / np.sqrt(fan), dtype)
        return made

    def batch(self, n: int, dtype: Any = np.float32) -> jax.Array:
        rng = np.random.default_rng(1000 + n)
        return jnp.asarray(rng.normal(size=self.batch_shape), dtype)

    def loss(self, params: Any, x: jax.Array) -> jax.Array:
        out = self.apply(params, x).astype(jnp.float32)
        return jnp.mean(jnp.square(out - 1.0))

    @functools.cached_property
    def units(self) -> bb.Units:
        traced = bb.trace(self.loss, self.params(), self.batch(0))
        first, *rest = (traced.select(f"^{p}$", a) for p, a in self.selection)
        return sum(rest, first)

    @functools.cached_property
    def gradient(self) -> Callable[..., tuple[Any, Any]]:
        """`(params, batch) -> (gradients, activity)`, compiled."""
        observed = bb.observe(self.loss, self.units, needs=PER_UNIT)

        @jax.jit
        def gradient(params, x):
            (_, activity), grads = jax.value_and_grad(observed, has_aux=True)(params, x)
            return grads, activity

        return gradient


def _mlp(p, x):
    h = jax.nn.relu(x @ p["up"] + p["bias"].reshape(1, -1))
    return h @ p["down"]


def _both(p, x):
    h = jax.nn.relu(x @ p["first"])
    return jax.nn.relu(h @ p["middle"]) @ p["last"]


def _conv(p, x):
    dims = jax.lax.conv_dimension_numbers(
        x.shape, p["conv"].shape, ("NHWC", "HWIO", "NHWC")
    )
    h = jax.lax.conv_general_dilated(
        x, p["conv"], (1, 1), "SAME", dimension_numbers=dims
    )
    return jnp.mean(jax.nn.relu(h), axis=(1, 2)) @ p["head"]


def _stack(p, x):
    def layer(h, w):
        return h + jax.nn.relu(h @ w["up"]) @ w["down"], None

    return jax.lax.scan(layer, x, {"up": p["up"], "down": p["down"]})[0]


CASES = {
    "mlp": Case(
        {"up": (12, 24), "bias": (24,), "down": (24, 8)},
        _mlp,
        (32, 12),
        (("up", "in"), ("down", "out")),
    ),
    "both": Case(
        {"first": (6, 16), "middle": (16, 12), "last": (12, 4)},
        _both,
        (32, 6),
        (("middle", "in"), ("middle", "out")),
    ),
    "conv": Case(
        {"conv": (3, 3, 4, 10), "head": (10, 3)},
        _conv,
        (4, 5, 5, 4),
        (("conv", "in"),),
    ),
    "stack": Case(
        {"up": (3, 6, 10), "down": (3, 10, 6)},
        _stack,
        (32, 6),
        (("up", "in"), ("down", "out")),
    ),
}
MLP = CASES["mlp"]


# Training ------------------------------------------------------------------------
def pruner(row: Row, case: Case = MLP, hyper: Mapping[str, Any] = NONE, **changes: Any):
    """`bb.transform` of a row, with refreshes at updates 1, 3, 5, ..."""
    settings = {"density": DENSITY, "every": EVERY, "start": START} | changes
    if row.budget == "free":
        del settings["density"]
    elif row.budget == "groups":  # as an array it may be another one than the pattern's
        settings["density"] = jnp.asarray(settings["density"], jnp.float32)
    settings |= row.options
    return bb.transform(case.units, row.make(**hyper), **settings)


def chain(row: Row, case: Case = MLP, **changes: Any):
    """Momentum, then the pruner: runs under strict promotion."""
    return optax.chain(optax.sgd(0.1, momentum=0.9), pruner(row, case, **changes))


def jitted(tx: Any) -> Callable[..., Any]:
    """`tx.update` as a compiled function of four positional arguments."""
    return jax.jit(eager(tx))


def eager(tx: Any) -> Callable[..., Any]:
    """`tx.update` of gradients, state, parameters and activity."""
    return lambda g, s, p, a: tx.update(g, s, p, activity=a, grads=g)


@functools.cache
def shared(rule: str, case: str) -> tuple[Any, Callable[..., Any]]:
    """The chain of a row and case with its compiled update, made once."""
    tx = chain(RULES[rule], CASES[case])
    return tx, jitted(tx)


def train(
    update: Callable[..., Any],
    case: Case,
    params: Any,
    state: Any,
    steps: range,
    each: Callable[[int, Any, Any], None] | None = None,
) -> tuple[Any, Any]:
    """Trains over the numbered batches; `each(n, params, state)` after every update."""
    dtype = jax.tree.leaves(params)[0].dtype
    for n in steps:
        grads, activity = case.gradient(params, case.batch(n, dtype))
        updates, state = update(grads, state, params, activity)
        params = optax.apply_updates(params, updates)
        if each is not None:
            each(n, params, state)
    return params, state


# Counting compilations -----------------------------------------------------------
@dataclasses.dataclass
class Compilations:
    """How many programs were handed to the compiler."""

    count: int = 0


_watched: list[Compilations] = []


def _on_event(name: str, seconds: float, **about: Any) -> None:
    if name == "/jax/core/compile/backend_compile_duration":
        for watched in _watched:
            watched.count += 1


jax.monitoring.register_event_duration_secs_listener(_on_event)


@contextlib.contextmanager
def compilations() -> Iterator[Compilations]:
    """Counts the compilations inside the block."""
    watched = Compilations()
    _watched.append(watched)
    try:
        yield watched
    finally:
        _watched.remove(watched)


# Comparing -----------------------------------------------------------------------
def same(first: Any, second: Any) -> None:
    """The same tree with the same shapes, dtypes and values."""
    chex.assert_trees_all_equal_shapes_and_dtypes(first, second)
    chex.assert_trees_all_equal(first, second)


same_kinds = chex.assert_trees_all_equal_shapes_and_dtypes


def check_exact(case: Case, state: Any, rule: str, density: float = DENSITY) -> None:
    """What the budget of a rule promises, of every stack slice of every kernel."""
    row, kept = (RULES | ONE_SHOT)[rule], {}
    for path, mask in bb.masks(state).items():
        kernel = case.units[path]
        slices = int(np.prod(kernel.stack_shape))
        window = int(np.prod([kernel.shape[a] for a in kernel.spatial]))
        kept[path] = np.asarray(mask).reshape(slices, -1).sum(1) / window
    kernels = {path: case.units[path] for path in kept}
    if row.budget == "pool":
        edges = sum(k.edge_count * kept[p].size for p, k in kernels.items())
        assert sum(n.sum() for n in kept.values()) == round(density * edges)
        return
    for path, kernel in kernels.items():
        budget = round(density * kernel.edge_count)
        (actuator, *_) = case.units.budgeted[path]
        step = 1
        if row.budget == "units":
            step = kernel.fan(actuator)
        if row.budget == "groups":  # and every unit has one edge of each group
            step = kernel.fan(actuator) // 4
            budget = max(budget, kernel.unit_count(actuator) * step)
        if row.budget == "free":
            assert (kept[path] > 0).all()
            continue
        np.testing.assert_array_equal(kept[path], (budget + step // 2) // step * step)


def check_zeros(params: Any, state: Any, rule: str) -> None:
    """Pruned entries are exactly 0, and some are pruned."""
    row = RULES[rule]
    for path, mask in bb.masks(state).items():
        mask = np.asarray(mask)
        assert not mask.all() or row.budget in ("free", "pool"), path
        np.testing.assert_array_equal(np.asarray(params[path])[~mask], 0)
        if row.make().revive == "dormant":  # else what has just come is 0 too
            assert np.asarray(params[path])[mask].all(), path
    assert not all(np.asarray(m).all() for m in bb.masks(state).values())
