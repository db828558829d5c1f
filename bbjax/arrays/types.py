"""Types of arguments that many functions take."""

from jaxtyping import ArrayLike, Real

Number = Real[ArrayLike, ""]  # a number, a scalar array, or a traced one
