"""Where units are, read off the user's own function: no model edit, no hook.

`trace` turns a function of `(params, *args)` into a jaxpr without running it, follows
every parameter to the products that use it (`bbjax.tracing.flow`) and returns what it
found as `Units`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from bbjax.model.groups import Graph, UnitSet
from bbjax.model.units import Units
from bbjax.tracing import jaxprs
from bbjax.tracing.axes.extents import Dims
from bbjax.tracing.axes.program import Program, argument, follow
from bbjax.tracing.call import Prepared, prepare
from bbjax.tracing.flow import kernels as flow_kernels
from bbjax.tracing.flow.values import DATA, leaf, plain
from bbjax.tracing.flow.walk import Flow, walk
from bbjax.tracing.graph import groups, layers, sets, uses
from bbjax.tracing.graph.scans import scans_of_groups


def trace(fn: Callable[..., Any], params: Any, *args: Any, **kwargs: Any) -> Units:
    """Finds the kernels of a function and what their axes mean. Spends no FLOP.

    Args:
      fn: function of `(params, *args, **kwargs)`, typically the loss. It may use
        `jit`, `remat`, `vmap`, `scan`, `cond` and any library on top of JAX.
      params: pytree of arrays or `jax.ShapeDtypeStruct`s, or an `nnx.Module`.
      *args: further arguments, arrays or `jax.ShapeDtypeStruct`s; leaves that are
        neither (flags, functions) are passed on as they are.
      **kwargs: likewise.

    Returns:
      The kernels, in order of first use. `str(units)` is a readable table, with every
      parameter that reaches a product in a way that cannot be measured, and why.

    Raises:
      TypeError: `fn` is not callable.
      ValueError: `params` has no arrays.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> def loss(params, x):
      ...     hidden = jax.nn.relu(x @ params["up"])
      ...     return jnp.mean((hidden @ params["down"]) ** 2)
      >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
      >>> units = trace(loss, params, jnp.ones((5, 3)))
      >>> units.paths, units["up"].nonlinearity, units["down"].reads
      (('up', 'down'), 'relu', ('up',))
    """
    return followed(prepare(fn, params, args, kwargs)).units


class Followed(NamedTuple):
    """All that a trace finds out.

    Attributes:
      units: what the user sees of it.
      program: dims of all arrays.
      numbers: of the group of every whole factor.
      scans: over parameters that every array of a group is inside of, by whole factor.
    """

    units: Units
    program: Program
    numbers: dict[int, int]
    scans: Mapping[int, Dims]


def followed(prepared: Prepared) -> Followed:
    """Kernels, groups and sets of units of a prepared function."""
    flow = walked(prepared)
    found = _kernels(prepared, flow)
    program = program_of(prepared)
    number = {path: leaf for leaf, path in enumerate(prepared.paths)}
    kernels = {number[kernel.path]: kernel for kernel in found.kernels}
    used = uses.follow(program, flow, kernels)
    scans = scans_of_groups(program)
    made = sets.sets(program, used, prepared.paths, kernels, scans)
    full = tuple(sets.with_graph(kernels, made, used, program, prepared.paths))
    units = Units(full, found.problems, others=found.others)
    return _with_groups(prepared, program, units, scans, made)


def grouped(prepared: Prepared, units: Units) -> Followed:
    """Groups of a prepared function whose kernels are known."""
    program = program_of(prepared)
    return _with_groups(prepared, program, units, scans_of_groups(program), ())


def program_of(prepared: Prepared) -> Program:
    """A prepared function with the dims of all its arrays."""
    return follow(prepared.jaxpr, prepared.paths, prepared.results(), prepared.others)


def _with_groups(
    prepared: Prepared,
    program: Program,
    units: Units,
    scans: Mapping[int, Dims],
    made: tuple[UnitSet, ...],
) -> Followed:
    graph, numbers = groups.graph(program, prepared.paths, units.kernels, scans)
    note, found = _note(graph, prepared), layers.stacks(program, prepared.paths)
    graph = dataclasses.replace(graph, sets=made, note=note, stacks=found)
    return Followed(dataclasses.replace(units, graph=graph), program, numbers, scans)


def _note(graph: Graph, prepared: Prepared) -> str:
    """What helps where arguments with one entry per unit (statistics) fix a group."""
    count = len(prepared.paths)
    vectors = {
        argument(path): path
        for path, array in zip(prepared.others, prepared.arrays[count:], strict=True)
        if len([n for n in jnp.shape(array) if n > 1]) == 1
    }
    hidden = [g.fixed for g in graph if g.having("makes") and g.having("reads")]
    found = [vectors[why] for why in hidden if why in vectors]
    if not found:
        return ""
    tree = found[0].split("/")[0]
    if not tree.startswith("args["):
        given = f"*args, {tree}=both[1]"
    elif tree == "args[0]":
        given = "both[1], *args"
    else:
        number = tree[len("args[") : -1]
        given = f"*args[:{number}], both[1], *args[{number}:]"
    return (
        f"Units with entries in arguments ({found[0]}) can shrink if these are "
        f"parameters, too:\nbb.trace(lambda both, *args: fn(both[0], {given}), "
        f"(params, {tree}), ...)"
    )


def analyse(prepared: Prepared, *, terms: bool = False) -> flow_kernels.Traced:
    """Kernels, problems and taps of a prepared function, without the unit graph.

    With `terms`, outputs are measured before they meet units of other kernels.
    """
    return _kernels(prepared, walked(prepared), terms=terms)


def walked(prepared: Prepared) -> Flow:
    """The nodes of a prepared function."""
    jaxpr, _ = jaxprs.opened(prepared.jaxpr)
    count = len(prepared.paths)
    avals = [v.aval for v in jaxpr.invars]
    inputs = [leaf(i, a.shape) for i, a in enumerate(avals[:count])]
    inputs += [plain(a.shape, frozenset({DATA})) for a in avals[count:]]
    return walk(prepared.jaxpr, inputs)


def _kernels(
    prepared: Prepared, flow: Flow, *, terms: bool = False
) -> flow_kernels.Traced:
    jaxpr, _ = jaxprs.opened(prepared.jaxpr)
    avals = [v.aval for v in jaxpr.invars[: len(prepared.paths)]]
    shapes = [tuple(a.shape) for a in avals]
    return flow_kernels.find(
        flow,
        prepared.paths,
        shapes,
        [str(a.dtype) for a in avals],
        terms=terms,
    )
