"""Follows tracks through a walked function, in one pass over its nodes.

Each node has the operation that made it: elementwise ones are in `combine`, products in
`products`, moves in `tracks`; `seen` lists what is recorded. An operation that is not
followed is recorded as a use that is not known. That errs on the safe side: a unit that
could be removed stays, and no unit is removed that is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bbjax.model.kernel import Kernel
from bbjax.tracing.flow import zeros
from bbjax.tracing.flow.combine import elementwise
from bbjax.tracing.flow.products import product
from bbjax.tracing.flow.seen import Seen, TrackStep, living
from bbjax.tracing.flow.tracks import (
    NEVER,
    Info,
    Source,
    Track,
    Zeros,
    moved,
    of_leaf,
    sourced,
)
from bbjax.tracing.flow.values import Axis, extent
from bbjax.tracing.flow.walk import Flow, Made
from bbjax.tracing.primitives import (
    ACROSS,
    ELEMENTWISE,
    RANDOM,
    RESHAPING,
    SUMMARIES,
    ZERO_KEEPING,
)

NOTHING = Info()


def follow(
    flow: Flow, kernels: dict[int, Kernel], shapes: Sequence[tuple[int, ...]]
) -> Seen:
    """Records which kernels read the units of every kernel, and what else uses them.

    Args:
      flow: what `walk` recorded.
      kernels: the kernel of each use that has one.
      shapes: shape of each parameter.
    """
    seen = Seen(living(flow), kernels, shapes)
    follower = _TrackPass(flow, seen, dict(zip(flow.use_nodes, flow.uses, strict=True)))
    for node, made in enumerate(flow.made):
        follower.infos.append(follower.made(node, made))
    for node in flow.outputs:
        info = follower.infos[node]
        if not info.running:
            seen.leak(node, info.units, "the function returns them")
        if flow.values[node].deps:
            seen.spoil(node, info.params, "acts on what the function returns, too")
    for node in flow.escapes:
        units = follower.infos[node].units
        seen.leak(node, units, "a scan carries them to its next step")
    for node, name in flow.watched.items():
        seen.leak(node, follower.infos[node].units, f"{name} depends on them")
    return seen


class _TrackPass:
    """The pass: `infos` grows by one per node."""

    def __init__(self, flow: Flow, seen: Seen, uses: dict[int, Any]):
        self.flow, self.seen, self.uses = flow, seen, uses
        self.infos: list[Info] = []

    def made(self, node: int, made: Made) -> Info:
        """What is known of a node, by how it was made."""
        if made.how == "given":
            return self.given(node, made)
        if made.how == "copy" and self.same_shape(node, made):
            return self.infos[made.sources[0]]
        if made.how == "slice":
            return self.slice(node, made)
        if made.how == "held":
            return self.held(node, made)
        if made.how in ("copy", "border"):
            return self.border(node, made)
        step = TrackStep(
            node,
            made.eqn.primitive.name,
            made.eqn,
            tuple(getattr(made.eqn.outvars[made.at].aval, "shape", ())),
            [self.flow.values[s] for s in made.sources],
            [self.infos[s] for s in made.sources],
            self.seen,
        )
        if made.how == "product":
            own = self.flow.values[node].axes
            return product(step, self.uses.get(node), own)
        return _operation(step, made.at)

    def given(self, node: int, made: Made) -> Info:
        """A parameter, an argument or a constant."""
        value = self.flow.values[node]
        if value.weight is not None:
            leaf = value.weight
            source = ("w", leaf)
            track = of_leaf(leaf, self.seen.shapes[leaf])
            return Info({source: track}, zeros=zeros.of(source))
        number = _number(made.literal)
        return Info(number=number, zeros=zeros.ALWAYS if number == 0 else NEVER)

    def same_shape(self, node: int, made: Made) -> bool:
        """Whether a copy can have the tracks of its source."""
        shape = self.flow.values[node].shape
        return len(made.sources) == 1 and all(
            not t.axes or tuple(extent(a) for a in t.axes) == shape
            for t in self.infos[made.sources[0]].tracks.values()
        )

    def border(self, node: int, made: Made) -> Info:
        """Where units and parameters are lost."""
        name = made.eqn.primitive.name if made.eqn is not None else "a call"
        loose = frozenset[int]()
        for source in made.sources:
            info = self.infos[source]
            self.seen.leak(node, info.units, f"they pass the border of {name}")
            if self.flow.values[source].deps:
                self.seen.spoil(node, info.params, f"crosses the border of {name}, too")
            loose |= info.leaves
        return Info(loose=loose)

    def held(self, node: int, made: Made) -> Info:
        """A value that the body of a scan or a branch sees as it is."""
        info = self.infos[made.sources[0]]
        if info.units:
            return self.border(node, made)
        return info

    def slice(self, node: int, made: Made) -> Info:
        """One iteration's slice of a stacked value."""
        info = self.infos[made.sources[0]]
        if info.units:
            return self.border(node, made)
        scope = self.flow.places[node][0]
        tracks: dict[Source, Track] = {}
        for source, track in info.tracks.items():
            lead, *rest = track.axes
            pieces = [p for p in lead if p.size > 1]
            if len({p.source for p in pieces}) > 1:
                continue
            over = ((scope, lead),) if sourced([lead]) > 1 else ()
            scans = (*track.scans, *over)
            tracks[source] = track._replace(axes=tuple(rest), scans=scans)
        lost = set(info.tracks) - set(tracks)
        zero = zeros.without(info.zeros, lost)
        return Info(tracks, info.loose | {w for _, w in lost}, zero)


def _number(literal: Any) -> float | None:
    """The value of a constant written in place, if it is a number."""
    if literal is None or np.shape(literal) != ():
        return None
    kind = getattr(literal, "dtype", np.asarray(literal).dtype)
    real = jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
    return float(literal) if real or kind == np.bool_ else None


# Operations ----------------------------------------------------------------------
def _operation(step: TrackStep, at: int) -> Info:
    """The result of an operation without a body, by its name."""
    if step.name == "optimization_barrier":
        return step.infos[at]
    if step.name in ELEMENTWISE and len(step.eqn.outvars) == 1:
        return elementwise(step)
    if step.name in RANDOM:
        for info in step.infos:
            step.leak(info.units, f"{step.name} depends on them")
        return NOTHING  # random values carry no units
    if step.name in ACROSS:
        step = step._replace(values=step.values[at : at + 1])
        return _moved(step._replace(infos=step.infos[at : at + 1]))
    return _moved(step)


def _moved(step: TrackStep) -> Info:
    """The result of an operation that moves, reduces or mixes the first operand."""
    for info in step.infos[1:]:
        step.leak(info.units, f"{step.name} depends on them")
    if not step.infos:
        return NOTHING
    x = step.infos[0]
    if step.name == "pad" and step.values[1].deps:
        step.leak(x.units, "pad joins them with another value")
    tracks: dict[Source, Track] = {}
    for source, track in x.tracks.items():
        axes: tuple[Axis, ...] | None = moved(step.eqn, track.axes, step.shape)
        if axes is not None:
            raw = track.raw and step.name in RESHAPING
            tracks[source] = track._replace(axes=axes, raw=raw)
    step.leak(set(x.units) - {n for _, n in tracks}, f"{step.name} mixes them")
    return Info(
        tracks=tracks,
        loose=_lost(step, tracks),
        zeros=_zeros(step, tracks),
        number=x.number if step.name in RESHAPING | {"slice"} else None,
        pooled=x.pooled or step.name in SUMMARIES,
        running=x.running,
    )


def _lost(step: TrackStep, tracks: dict[Source, Track]) -> frozenset[int]:
    """Parameters that the result depends on without a track."""
    tracked = {w for i in step.infos for w in i.params}
    lost = tracked - {w for kind, w in tracks if kind == "w"}
    if any(v.deps for v in step.values):
        step.spoil(lost, f"is mixed with data by {step.name}, too")
    return frozenset(lost).union(*(i.loose for i in step.infos))


def _zeros(step: TrackStep, tracks: dict[Source, Track]) -> Zeros:
    x = step.infos[0]
    if step.name == "pad":
        known = zeros.both(x.zeros, step.infos[1].zeros)
    else:
        known = x.zeros if step.name in ZERO_KEEPING else NEVER
    lost = set(x.tracks) - set(tracks)
    if any(kind == "u" for kind, _ in lost):  # companions lie as the units did
        return known if known == zeros.ALWAYS else NEVER
    return zeros.without(known, lost)
