"""Checks of numbers and functions that users pass: their kind and their range.

All arguments of the library are checked here, so that the same is refused everywhere:
text, bools in the place of numbers, NaN, numbers that float32 cannot tell from one
outside of the range, and functions that were not called.
"""

from __future__ import annotations

import inspect
import math
import numbers
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

INT32 = 2**31 - 1  # counts are int32 in compiled programs
_KINDS = (jnp.integer, jnp.floating)


def are_numbers(value: Any) -> bool:
    """Whether a value is a real number, or an array of them: no bool, no text.

    Example:
      >>> are_numbers(0.5), are_numbers("0.5"), are_numbers(True), are_numbers([1, 2])
      (True, False, False, True)
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return True
    dtype = getattr(value, "dtype", None)
    dtype = np.asarray(value).dtype if dtype is None else dtype
    return any(jnp.issubdtype(dtype, kind) for kind in _KINDS)


def check_flag(name: str, value: Any) -> bool:
    """The value as a Python bool, or an error that names the argument.

    Args:
      name: of the argument.
      value: what was passed.

    Raises:
      TypeError: neither True nor False (a traced value is none: it has to be static).

    Example:
      >>> check_flag("regrow", True)
      True
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(
            f"expected {name} to be True or False, got {value!r}; pass a bool"
        )
    return bool(value)


def check_seed(seed: Any) -> Any:
    """A seed as an int, or the tracer that it is.

    Raises:
      TypeError: no int.
      ValueError: one of more than 32 bits.

    Example:
      >>> check_seed(7)
      7
    """
    if isinstance(seed, jax.core.Tracer):
        return seed
    remedy = "it starts the random numbers"
    return check_int("seed", seed, -(2**31), 2**32 - 1, remedy)


def check_called(name: str, fn: Callable[..., Any], of: str, example: str) -> None:
    """Raises an error for a function that cannot be called with one argument.

    Most often that is a factory, in the place of the function that it makes.

    Args:
      name: of the argument that the function was passed as.
      fn: what was passed.
      of: what the function should be of, in words.
      example: a call of a factory.

    Raises:
      TypeError: it takes other arguments.

    Example:
      >>> check_called("density", lambda step: 0.5, "the step", "bb.ramp(0.5, 0, 100)")
    """
    try:
        signature = inspect.signature(fn)
    except ValueError:  # some built-in functions have none
        return
    try:
        signature.bind(None)
    except TypeError:
        called = getattr(fn, "__name__", repr(fn))
        given = ", ".join(signature.parameters)
        raise TypeError(
            f"expected {name} to be a function of {of}, got {called}({given}); call a "
            f"factory first, e.g. {example}"
        ) from None


def check_int(name: str, value: Any, least: int, most: int, remedy: str) -> int:
    """The value as a Python int, or an error that names the argument.

    Args:
      name: of the argument.
      value: what was passed.
      least: smallest value allowed.
      most: largest value allowed; `INT32` is not mentioned.
      remedy: ends the message: what the argument is, or what to do.

    Raises:
      TypeError: no int (a traced value is none: it has to be static; nor is a bool).
      ValueError: outside [least, most].

    Example:
      >>> check_int("k_min", 2, 0, 8, "")
      2
    """
    where = f">= {least}" if most == INT32 else f"in [{least}, {most}]"
    message = f"{name}: expected an int {where}, got {value!r}; {remedy}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(message) from None
    if not least <= number <= most:
        raise ValueError(message)
    return number


def check_number(name: str, value: Any, inside: str, remedy: str) -> Any:
    """The value as a float, or an error that names the argument.

    Args:
      name: of the argument.
      value: what was passed. A traced value is returned as it is, unchecked.
      inside: the interval allowed, as in "[0, 1)" or "(0, inf)"; an end at "inf" is
        always open, so that only finite numbers are inside. The float32 of the value,
        which compiled programs compute with, has to be inside as well.
      remedy: ends the message: what the argument is, or what to do.

    Raises:
      TypeError: no number.
      ValueError: outside the interval, or NaN.

    Example:
      >>> check_number("ema", 0.99, "[0, 1)", "it is a decay")
      0.99
    """
    if isinstance(value, jax.core.Tracer):
        return value
    if not are_numbers(value) or np.ndim(value):
        raise TypeError(f"expected {name} to be a number, got {value!r}; {remedy}")
    number = float(value)
    low, high = (float(end) for end in inside[1:-1].split(","))
    digits = ""
    if _is_inside(number, low, high, inside):
        rounded, low, high = map(_as_float32, (number, low, high))
        if _is_inside(rounded, low, high, inside):
            return number
        digits = f", in float32 {rounded}"
    raise ValueError(f"expected {name} in {inside}, got {value!r}{digits}; {remedy}")


def _as_float32(number: float) -> float:
    """The number that compiled programs compute with."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(number))


def _is_inside(number: float, low: float, high: float, inside: str) -> bool:
    above = number >= low if inside[0] == "[" else number > low
    below = number <= high if inside[-1] == "]" else number < high
    return above and below and math.isfinite(number)
