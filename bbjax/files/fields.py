"""Checks JSON from files: every field is there, is known, and is of its kind.

A file may say anything. These checks name the field and what it holds, shortened, and
they come before any value is used.
"""

from __future__ import annotations

import collections
import json
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxlevel = 120, 3
UINT32 = 2**32


class Field(NamedTuple):
    """A field of a JSON object.

    Attributes:
      words: what it holds.
      fits: whether a value is that.
      needed: whether it must be there.
    """

    words: str
    fits: Callable[[Any], bool]
    needed: bool = True

    @property
    def optional(self) -> Field:
        """The same, which may be missing."""
        return self._replace(needed=False)


def of_kind(words: str, *kinds: type) -> Field:
    """A field of some kinds; `True` is no number here."""
    return Field(words, lambda value: type(value) in kinds)


def list_of(field: Field, words: str) -> Field:
    """A field with a list."""
    return Field(words, lambda v: type(v) is list and all(map(field.fits, v)))


TEXT = of_kind("a string", str)
SIZE = Field("a whole number from 0", lambda value: type(value) is int and value >= 0)
SIZES = list_of(SIZE, "a list of whole numbers from 0")
TRUTH = of_kind("true or false", bool)
CHECKSUM = Field("a CRC-32", lambda value: SIZE.fits(value) and value < UINT32)
LIST = of_kind("a list", list)


def check(found: Any, fields: Mapping[str, Field], of: str) -> None:
    """Refuses an object with missing, unknown or wrong fields.

    Args:
      found: what stands in a file.
      fields: all fields that the object may have, by name.
      of: a name for the object, for messages.

    Raises:
      ValueError: if so; the message names the field.

    Example:
      >>> check({"version": True}, {"version": SIZE}, "its header")
      Traceback (most recent call last):
      ValueError: its header has True as 'version', not a whole number from 0
    """
    if not isinstance(found, dict):
        raise ValueError(f"{of} is {short(found)}, no object with fields")
    if missing := [n for n, f in fields.items() if f.needed and n not in found]:
        raise ValueError(f"{of} has no {missing[0]!r}")
    if others := [name for name in found if name not in fields]:
        raise ValueError(f"{of} has the unknown field {short(others[0])}")
    for name, value in found.items():
        if not fields[name].fits(value):
            words = fields[name].words
            raise ValueError(f"{of} has {short(value)} as {name!r}, not {words}")


def short(value: Any) -> str:
    """A value as Python shows it, shortened."""
    return _SHORT.repr(value)


def entry_name(entry: Any) -> str:
    """A name for what should be an entry, with its path if it has one."""
    path = entry.get("path") if isinstance(entry, dict) else None
    return "an entry" if path is None else f"the entry of {short(path)}"


def parsed(text: str | bytes) -> Any:
    """The content of a JSON text, in which no object has a key twice.

    Raises:
      ValueError: no JSON, a number that is not finite, or a key that occurs twice.
      RecursionError: nested too deep.
    """
    return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = collections.Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {short(twice)} occurs twice in one object")
    return found
