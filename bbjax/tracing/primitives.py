"""One table of JAX's primitives: what is known of each, for every analysis.

A row says what a primitive does, its traits, where its result is 0, and how it moves
entries. A primitive that has no row is one about which nothing is known.

    does      call        its body sees the operands; the results are the body's own
              custom      a call with a derivative of its own
              product     sums products of entries of two operands
              unary       one operand, entry by entry
              factor      several, entry by entry, where one scales the others
              term        several, entry by entry, where each adds something
              move        moves, picks or sums entries of one operand
              join        puts entries of several operands side by side
              gather      picks entries by index
              across      sums over mesh axes, or over axes that `vmap` has named
              random      random numbers and their keys

    traits    remat       a call that is computed again
              ragged      rows in groups, a matrix for each
              identity    returns what it is given
              linear      in its operand
              sum         of its operands
              shape       moves, spreads or casts: a parameter is still itself
              reshape     only gives entries another shape
              pick        every entry of the result is one of the operand, or the
                          largest or smallest of some
              summary     of all entries along axes
              reduce      to an array without some axes
              zeros       of zeros, makes zeros
              scale       0 times anything is 0
              each        one result for each operand, made alike
              mixes       the result is no part of the operand, whatever its axes are
              blend       makes the next value of a running statistic
              choose      picks by data: what is picked of a parameter is a part of it
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from bbjax.tracing import moves
from bbjax.tracing.moves import Move, Params

Does = Literal[
    "call",
    "custom",
    "product",
    "unary",
    "factor",
    "term",
    "move",
    "join",
    "gather",
    "across",
    "random",
]
# The result is 0 where one operand of each group is.
ZeroIf = tuple[tuple[int, ...], ...]
Number = float | None  # the constant that an operand is, if known
ZeroRule = Callable[[Params, Sequence[Number]], ZeroIf | None]

ITSELF: ZeroIf = ((0,),)
EITHER: ZeroIf = ((0, 1),)
BOTH: ZeroIf = ((0,), (1,))


class Primitive(NamedTuple):
    """A row of the table.

    Attributes:
      does: see above.
      traits: see above.
      zero_if: where the result of an operation entry by entry is 0; a function, if
        that depends on settings or constants; None where nothing makes it 0.
      read: how it moves entries of its first operand.
      what: what it does to axes whose entries it mixes, for messages.
    """

    does: Does
    traits: frozenset[str] = frozenset()
    zero_if: ZeroIf | ZeroRule | None = None
    read: moves.Reader | None = None
    what: str = ""


TABLE: dict[str, Primitive] = {}


def _rows(
    names: str,
    does: Does,
    traits: str = "",
    zero_if: ZeroIf | ZeroRule | None = None,
    read: moves.Reader | None = None,
    what: str = "",
) -> None:
    row = Primitive(does, frozenset(traits.split()), zero_if, read, what)
    assert not TABLE.keys() & set(names.split()), names
    TABLE.update(dict.fromkeys(names.split(), row))


# Where a result is 0, if that depends on settings or constants. -------------------
def _power(params: Params, numbers: Sequence[Number]) -> ZeroIf | None:
    return ITSELF if params["y"] > 0 else None


def _by_positive(params: Params, numbers: Sequence[Number]) -> ZeroIf | None:
    """`0 ** y` and `0 % y` are 0 for y > 0."""
    return ITSELF if numbers[1] is not None and numbers[1] > 0 else None


def _between(params: Params, numbers: Sequence[Number]) -> ZeroIf | None:
    low, _, high = numbers
    inside = low is not None and high is not None and low <= 0 <= high
    return ((1,),) if inside else None


def _bounded(sign: int) -> ZeroRule:
    """`max(x, c)` with c <= 0 and `min(x, c)` with c >= 0 leave 0 at 0."""

    def rule(params: Params, numbers: Sequence[Number]) -> ZeroIf:
        for x, bound in enumerate(reversed(numbers)):
            if bound is not None and sign * bound >= 0:
                return ((x,),)
        return BOTH

    return rule


def _chosen(params: Params, numbers: Sequence[Number]) -> ZeroIf:
    return tuple((i,) for i in range(1, len(numbers)))


# Calls and products. --------------------------------------------------------------
_rows("remat remat2 checkpoint", "call", "remat")
_rows("jit pjit closed_call core_call core_closed_call", "call")
_rows("custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr custom_lin", "custom")
_rows("dot_general conv_general_dilated", "product")
_rows("ragged_dot ragged_dot_general", "product", "ragged")

# Entry by entry. ------------------------------------------------------------------
_rows("optimization_barrier device_put", "unary", "identity linear", ITSELF)
_rows("copy copy_p", "unary", "identity linear shape blend", ITSELF)
_rows("convert_element_type", "unary", "linear shape blend", ITSELF)
_rows("stop_gradient sharding_constraint", "unary", "linear shape blend", ITSELF)
_rows("reshard mesh_cast", "unary", "linear shape", ITSELF)
_rows(
    "neg reduce_precision real name pvary pcast layout_constraint "
    "preferred_element_type",
    "unary",
    "linear",
    ITSELF,
)
_rows(
    "abs sign tanh sin tan asin atan sinh asinh atanh sqrt cbrt square erf erf_inv "
    "expm1 log1p round floor ceil imag conj population_count bessel_i1e",
    "unary",
    "",
    ITSELF,
)
_rows("integer_pow", "unary", "", _power)
_rows("clamp", "unary", "", _between)
_rows(
    "exp exp2 log logistic cos acos cosh acosh rsqrt erfc lgamma digamma not is_finite "
    "clz bessel_i0e bitcast_convert_type",
    "unary",
)
_rows("mul", "factor", "scale blend", EITHER)
_rows("and", "factor", "scale", EITHER)
_rows("div", "factor", "scale blend", ITSELF)
_rows("pow rem", "factor", "", _by_positive)
_rows("select_n", "factor", "blend", _chosen)
_rows("atan2 igamma igammac", "factor")
_rows("add", "term", "sum blend", BOTH)
_rows("add_any", "term", "sum", BOTH)
_rows("sub", "term", "blend", BOTH)
_rows("complex or xor", "term", "", BOTH)
_rows("max", "term", "", _bounded(-1))
_rows("min", "term", "", _bounded(1))
_rows(
    "nextafter eq ne gt ge lt le eq_to lt_to le_to "
    "shift_left shift_right_logical shift_right_arithmetic",
    "term",
)

# Moves. ---------------------------------------------------------------------------
_SHAPES = "shape reshape pick zeros"
_RUNS, _ALONG = "runs over its units", "runs along its units"
_rows("transpose", "move", _SHAPES, read=moves.transposed)
_rows("broadcast_in_dim", "move", _SHAPES, read=moves.broadcast)
_rows("reshape", "move", _SHAPES, read=moves.reshaped)
_rows("squeeze", "move", _SHAPES, read=moves.squeezed)
_rows("expand_dims", "move", _SHAPES, read=moves.expanded)
_rows("slice", "move", "pick zeros", read=moves.sliced)
_rows("split", "move", "pick zeros", read=moves.split)
_rows("tile", "move", "pick", read=moves.tiled)
_rows("rev", "move", "pick zeros", read=moves.reversed_, what="turns them around")
_rows("unstack", "move", "pick zeros", None, moves.unstacked, "takes them one by one")
_rows(
    "dynamic_slice",
    "move",
    "pick zeros choose",
    None,
    moves.picked,
    "picks some of them",
)
_reducing = functools.partial(_rows, does="move", read=moves.reduced, what=_RUNS)
_reducing("reduce_sum", traits="reduce summary zeros mixes")
_reducing("reduce_max reduce_min", traits="reduce summary zeros mixes pick")
_reducing("reduce_and reduce_or", traits="reduce mixes pick")
_reducing("reduce_prod reduce_xor argmax argmin", traits="reduce mixes")
_reducing("psum psum2 psum_invariant pmax pmin", does="across", traits="zeros each")
_rows("cumsum cummax cummin", "move", "zeros mixes", None, moves.along, _ALONG)
_rows("cumprod cumlogsumexp", "move", "mixes", None, moves.along, _ALONG)
_rows("sort", "move", "mixes each", None, moves.along, _ALONG)
_rows("top_k", "move", "mixes", None, moves.along, "chooses among its units")
_rows(
    "reduce_window_sum reduce_window_max reduce_window_min",
    "move",
    "zeros mixes",
    None,
    moves.windowed,
    "slides a window along them",
)
_rows("pad", "join", "", None, moves.padded, "adds entries along them")
_rows("concatenate stack dynamic_update_slice", "join")
_rows("gather", "gather", "choose")

_rows(
    "random_bits random_seed random_wrap random_unwrap random_fold_in random_split "
    "threefry2x32 rng_bit_generator rng_uniform random_clone random_gamma",
    "random",
)


# Sets of names, by what the rows say. ---------------------------------------------
def _doing(*does: Does) -> frozenset[str]:
    return frozenset(name for name, row in TABLE.items() if row.does in does)


def _having(trait: str) -> frozenset[str]:
    return frozenset(name for name, row in TABLE.items() if trait in row.traits)


REMAT = _having("remat")
TRANSPARENT = _doing("call")
CUSTOM = _doing("custom")
CONTRACTIONS = _doing("product")
RAGGED = _having("ragged")
IDENTITY = _having("identity")
LINEAR_UNARY = _having("linear")
UNARY = _doing("unary")
FACTORS = _having("scale")
MUL_LIKE = _doing("factor")
SUMS = _having("sum")
ADD_LIKE = _doing("term")
ELEMENTWISE = UNARY | MUL_LIKE | ADD_LIKE
BLENDING = _having("blend")
RESHAPING = _having("reshape")
SHAPING = _having("shape")
PICKING = _having("pick") | SHAPING
JOINING = _doing("join")
CHOOSING = _having("choose")
MIXING = _having("mixes")
EACH = _having("each")
REDUCING = _having("reduce")
SUMMARIES = _having("summary")
ACROSS = _doing("across")
ZERO_KEEPING = _having("zeros")
RANDOM = _doing("random")


def zero_if(name: str, params: Params, numbers: Sequence[Number]) -> ZeroIf | None:
    """Which operands have to be 0 for a result of 0, entry by entry.

    Args:
      name: of the primitive.
      params: of the equation.
      numbers: the constant that each operand is, if known.

    Returns:
      Groups of operands: the result is 0 where one operand of every group is. `x * y`
      has one group of two, `x + y` two groups of one. None if nothing makes it 0.
    """
    row = TABLE.get(name)
    rule = None if row is None else row.zero_if
    return rule(params, numbers) if callable(rule) else rule


def moves_of(eqn: Any) -> list[Move] | None:
    """How an equation moves the entries of its first operand; None if it does not."""
    row = TABLE.get(eqn.primitive.name)
    if row is None or row.read is None or not eqn.invars:
        return None
    shape, *results = (
        tuple(getattr(v.aval, "shape", ())) for v in (eqn.invars[0], *eqn.outvars)
    )
    return row.read(eqn.params, shape, results)
