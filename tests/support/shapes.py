"""Checks arrays against the signatures they are passed through, while tests run.

jaxtyping's import hook wraps every function of a package in a type checker. This one
checks what the annotations say of arrays: dtype, number of axes, and that axes of one
name have one size. Other arguments are left to mypy, and to the functions themselves:
tests pass wrong ones to see the errors. A test that passes a wrong array for that
purpose takes the `unchecked` fixture.
"""

from collections.abc import Callable
from typing import Any, get_args, get_origin

import jaxtyping
from beartype import BeartypeConf, beartype

PACKAGES = [
    f"bbjax.{name}" for name in ("arrays", "budgets", "attention", "rules", "activity")
]
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float


def check() -> None:
    """Checks the packages above, if they are imported from now on."""
    jaxtyping.install_import_hook(PACKAGES, f"{__name__}.arrays_only")


def arrays_only(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose annotations of arrays are checked at every call."""
    fn.__annotations__ = {
        name: hint if _speaks_of_arrays(hint) else Any
        for name, hint in fn.__annotations__.items()
    }
    return _check(fn)


def _speaks_of_arrays(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    if hasattr(get_origin(hint), "_fields"):  # generic named tuples it cannot check
        return False
    return any(map(_speaks_of_arrays, get_args(hint)))
