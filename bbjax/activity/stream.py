"""Batches of arguments, and the program that every kind of batch is compiled to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled function from the arrays of a batch to its sums.

    It holds references to the arguments that are no arrays, since the key of a call may
    contain their identity alone. It holds no arrays, which are new at every call.

    Attributes:
      others: the arguments that are no arrays.
      run: the function of constants, arrays and a padding mask.
      consts: constants of the traced function.
    """

    others: tuple[Any, ...]
    run: Callable[..., Any]
    consts: Sequence[Any]

    def __call__(self, arrays: Sequence[Any], mask: Any) -> Any:
        """The sums of a batch."""
        return self.run(self.consts, arrays, mask)


def tuples(batches: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """The batches one by one, checked.

    Raises:
      TypeError: no iterable, or a batch that is not a tuple.

    Example:
      >>> list(tuples([(1,), (2,)]))
      [(1,), (2,)]
    """
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"expected an iterable of batches, got {type(batches).__name__}; pass a "
            "list or a generator of tuples of arguments"
        )
    for batch in batches:
        if not isinstance(batch, tuple):
            raise TypeError(
                f"expected a tuple of the arguments after params, got a batch of type "
                f"{type(batch).__name__}; wrap a single argument as (x,), and pass a "
                "list of such tuples"
            )
        yield batch
