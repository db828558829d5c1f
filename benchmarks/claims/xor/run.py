"""Trains the nets of C1 and fits lines; the README says why and how."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bbjax as bb
from bbjax import rules
from benchmarks.claims.common import net, train
from benchmarks.claims.common.methods import METHODS
from benchmarks.claims.xor import fits
from benchmarks.claims.xor.task import KERNEL, TASK, sample

SEEDS = 20
BETAS = (0.25, 0.5, 1.0, 2.0)
DENSITY = 0.2
STEPS, START, EVERY = 6000, 100, 50
TESTED = 4096


def run(seeds: int, small: bool) -> dict[str, Any]:
    """All nets of C1: on-rates and degrees when masks freeze and at the end."""
    steps = 600 if small else STEPS
    half, first = steps // 2, START + EVERY
    stops = {"live": None, "frozen": half, "early": first}
    nets = [(name, "live") for name in ("bb", "threshold", "layer")]
    nets += [("bb", "frozen"), ("bb", "early"), ("dense", "frozen")]
    seen: dict[str, Any] = {}
    for name, ending in nets:
        betas = BETAS if name == "bb" else BETAS[:1]
        # A look right after the first refresh, which is that of update START.
        looks = START + 1 if ending == "early" else half
        seen[f"{name}, {ending}"] = _nets(
            name, seeds, betas, steps, looks, stop=stops[ending]
        )
    fitted = {name: fits.fit(found) for name, found in seen.items()}
    return {
        "betas": BETAS,
        "density": DENSITY,
        "steps": steps,
        "freeze": {"frozen": half, "early": first},
        "nets": fitted,
        "units": {name: _first(found) for name, found in seen.items()},
        "verdicts": fits.verdicts(fitted, BETAS),
        "tables": fits.tables(fitted, BETAS),
        "caption": "Log-odds against degree with the fitted lines, while masks follow "
        "and after they were frozen; slope against beta; R2 of two laws",
    }


def _nets(name: str, seeds: int, betas: Any, steps: int, first: int, stop: Any):
    """Rates, degrees and accuracy at a first look and at the end.

    Arrays (betas, seeds, looks) in front.
    """
    method = METHODS[name]
    units = train.trace(TASK, (KERNEL, "out"))
    settings = {"density": DENSITY, "every": EVERY, "k_min": 1}
    settings |= {"start": START, "stop": stop}

    def lane(seed, beta):
        weights, order = train.keys(seed)
        adam, params = optax.adam(train.RATE), TASK.init(weights)
        if name == "bb":
            rule = rules.budgeted_broadcast(beta=beta)
            tx = optax.chain(adam, bb.transform(units, rule, **settings))
        else:
            tx, params = method.optimizer(adam, units, params, **settings)
        loop = train.Loop(TASK, units, tx, method.needs)

        def look(lane: train.Lane) -> dict[str, jax.Array]:
            x, y = sample(jax.random.fold_in(order, train.ELSEWHERE), TESTED)
            values = net.hidden(lane.params, x)
            return {
                "rate": net.on_rates(values[0]),
                "degree": _degrees(name, units, lane),
                "accuracy": 100 * net.right(net.logits(lane.params, x), y).mean(),
            }

        lane, early = loop.train(loop.start(params, order), first, first, look)
        late = loop.train(lane, steps - first, steps - first, look)[1]
        return jax.tree.map(lambda *seen: jnp.concatenate(seen), early, late)

    over = jax.vmap(lane, (0, None))
    return train.over_seeds(
        over, train.seeds_of(seeds), np.array(betas, np.float32), axes=(None, 0)
    )


def _degrees(name: str, units: bb.Units, lane: train.Lane) -> jax.Array:
    """Of a dense net, those that pruning it now by |w| over the layer would leave."""
    if name != "dense":
        return bb.degrees_of(lane.state)[KERNEL]
    rule = rules.magnitude(scope="layer")
    _, masks = bb.prune(lane.params, units, rule, density=DENSITY, k_min=1)
    return masks[KERNEL].sum(1)


def _first(found: dict[str, np.ndarray]) -> Any:
    """The units of the first seed, for the picture: (betas, looks, units)."""
    return {key: found[key][:, 0] for key in ("rate", "degree")}
