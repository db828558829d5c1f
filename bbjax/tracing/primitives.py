"""Sets of JAX's primitives, by what they do.

Does an operation act entry by entry? Is it linear? Does it leave 0 at 0? Does it only
move entries? A primitive that is in no set is one about which nothing is known. How a
primitive moves axes is in tables by name beside each analysis: `flow/transfer` (where
units are measured) and `axes/moves` (which axes carry the same units).
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Calls: the body sees the operands, and the results are the body's own. ------------
REMAT = _names("remat remat2 checkpoint")
TRANSPARENT = REMAT | _names("jit pjit closed_call core_call core_closed_call")
CUSTOM = _names(
    "custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr custom_lin"
)  # functions with a derivative of their own
INLINE = TRANSPARENT | CUSTOM

# Products. -------------------------------------------------------------------------
RAGGED = _names("ragged_dot ragged_dot_general")  # rows in groups, a matrix for each
CONTRACTIONS = RAGGED | _names("dot_general conv_general_dilated")

# Entry by entry. -------------------------------------------------------------------
IDENTITY = _names("optimization_barrier copy copy_p device_put")
LINEAR_UNARY = IDENTITY | _names(
    "neg convert_element_type reduce_precision stop_gradient real name "
    "sharding_constraint mesh_cast reshard pvary pcast layout_constraint "
    "preferred_element_type"
)
# Unary operations that leave 0 at 0: a masked weight stays masked through them.
ZERO_PRESERVING = LINEAR_UNARY | _names(
    "abs sign tanh sin tan asin atan sinh asinh atanh sqrt cbrt square integer_pow erf "
    "erf_inv expm1 log1p round floor ceil clamp is_finite"
)
UNARY = ZERO_PRESERVING | _names(
    "exp exp2 log logistic cos acos cosh acosh rsqrt erfc lgamma digamma not imag conj "
    "population_count clz bessel_i0e bessel_i1e bitcast_convert_type"
)
FACTORS = _names("mul div and")  # 0 times anything is 0
MUL_LIKE = FACTORS | _names("pow rem atan2 select_n igamma igammac")
SUMS = _names("add add_any")
ADD_LIKE = SUMS | _names(
    "sub max min or xor nextafter complex eq ne gt ge lt le eq_to lt_to le_to "
    "shift_left shift_right_logical shift_right_arithmetic"
)
ELEMENTWISE = UNARY | MUL_LIKE | ADD_LIKE
# What makes the next value of a running statistic from the one before.
BLENDING = _names(
    "add sub mul div convert_element_type copy copy_p select_n stop_gradient "
    "sharding_constraint"
)

# Operations that move entries. -----------------------------------------------------
RESHAPING = _names("transpose broadcast_in_dim reshape expand_dims squeeze")
# Moved, spread or cast: a parameter is still itself.
SHAPING = RESHAPING | _names(
    "convert_element_type copy copy_p stop_gradient sharding_constraint reshard "
    "mesh_cast"
)
# Every entry of the result is an entry of the operand with the same units.
PICKING = SHAPING | _names(
    "slice split unstack dynamic_slice rev tile "
    "reduce_max reduce_min reduce_and reduce_or"
)
JOINING = _names("concatenate stack pad dynamic_update_slice")
# Entries are picked by data: what is picked from a parameter is still a part of it.
CHOOSING = _names("gather dynamic_slice")

# Operations along axes. ------------------------------------------------------------
REDUCING = _names(
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin"
)
SUMMARIES = _names("reduce_sum reduce_max reduce_min")
CUMULATIVE = _names("cumsum cumprod cummax cummin cumlogsumexp")
WINDOWED = _names("reduce_window_sum reduce_window_max reduce_window_min")
# Reductions over named axes; `vmap` makes them axes of the array, given by number.
ACROSS = _names("psum psum2 psum_invariant pmax pmin")
# Moves and reductions that make 0 of zeros.
ZERO_KEEPING = (
    RESHAPING
    | SUMMARIES
    | WINDOWED
    | ACROSS
    | _names("slice dynamic_slice rev split unstack cumsum cummax cummin")
)

# Random numbers. -------------------------------------------------------------------
RANDOM = _names(
    "random_bits random_seed random_wrap random_unwrap random_fold_in random_split "
    "threefry2x32 rng_bit_generator rng_uniform random_clone random_gamma"
)
