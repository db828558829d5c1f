"""Checks of numbers that users pass: their kind and their range."""

from __future__ import annotations

import math
import operator
from typing import Any

import jax
import numpy as np

INT32 = 2**31 - 1  # counts are int32 in compiled programs


def check_int(name: str, value: Any, least: int, most: int, remedy: str) -> int:
    """The value as a Python int, or an error that names the argument.

    Args:
      name: of the argument.
      value: what was passed.
      least: smallest value allowed.
      most: largest value allowed; `INT32` is not mentioned.
      remedy: ends the message: what the argument is, or what to do.

    Raises:
      TypeError: no int (a traced value is none: it has to be static).
      ValueError: outside [least, most].

    Example:
      >>> check_int("k_min", 2, 0, 8, "")
      2
    """
    where = f">= {least}" if most == INT32 else f"in [{least}, {most}]"
    message = f"{name}: expected an int {where}, got {value!r}; {remedy}"
    try:
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
        always open, so that only finite numbers are inside.
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
    message = f"expected {name} in {inside}, got {value!r}; {remedy}"
    try:
        if np.ndim(value):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"expected {name} to be a number, got {value!r}; {remedy}"
        ) from None
    low, high = (float(end) for end in inside[1:-1].split(","))
    above = number >= low if inside[0] == "[" else number > low
    below = number <= high if inside[-1] == "]" else number < high
    if not (above and below and math.isfinite(number)):
        raise ValueError(message)
    return number
