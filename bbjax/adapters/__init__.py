"""Adapters: one file for each framework. The rest of the library uses no Flax.

    linen         Flax linen: functions of modules, and modules of other sizes
    nnx           Flax NNX: modules in trees of parameters

A program that holds objects of a framework has imported the framework. So `loaded`
gives an adapter only then: importing bbjax does not import Flax.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

_FRAMEWORKS = {"linen": "flax.linen", "nnx": "flax.nnx"}


def loaded(name: str) -> Any:
    """The adapter of a framework that is imported already, else None.

    Args:
      name: of the adapter, `"linen"` or `"nnx"`.

    Example:
      >>> from flax import nnx
      >>> loaded("nnx").__name__
      'bbjax.adapters.nnx'
    """
    if _FRAMEWORKS[name] not in sys.modules:
        return None
    return importlib.import_module(f"{__name__}.{name}")


def boxes() -> tuple[type, ...]:
    """Kinds of tree node that hold one array and metadata about it.

    NNX keeps arrays in variables; linen may box them with the names of mesh axes.
    """
    nnx, meta = map(sys.modules.get, ("flax.nnx", "flax.core.meta"))
    kinds = [] if nnx is None else [nnx.Variable]
    return tuple(kinds if meta is None else [*kinds, meta.Partitioned])
