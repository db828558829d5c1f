"""The activity of output units, measured on the result of the function.

`bb.calibrate` measures a last layer at its raw output. That is no activity of a class:
one that is never predicted may have a large negative output. Here the activity is taken
from the result of the function, after `outputs` (`jax.nn.softmax` for logits):

    mean |outputs(fn(params, *args))|      over samples and positions that are real

The batches are read once, together with the calibration. Shapes: activity
`(..., units)`, its mean `(units,)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.activity.statistics import Activity
from bbjax.model.kernel import Kernel
from bbjax.tracing.call import call


@dataclasses.dataclass
class OutputMeter:
    """Adds up the activity of the output units of one kernel.

    Attributes:
      kernel: the kernel.
      measure: of `(params, *args)`, sums of a batch and how many entries they are of.
      params: the parameters.
      total: sums so far, float64.
      count: entries so far.
      programs: compiled, one for each kind of batch.
    """

    kernel: Kernel
    measure: Callable[..., tuple[jax.Array, jax.Array]]
    params: Any
    total: Any = 0.0
    count: float = 0.0
    programs: dict[Hashable, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        kernels: Sequence[Kernel],
        fn: Callable[..., Any],
        params: Any,
        outputs: Callable[[Any], Any],
        where: Any,
    ) -> OutputMeter:
        """A meter of the last kernel of a function.

        Args:
          kernels: the kernels that make outputs.
          fn: the function of `(params, *args)`.
          params: its parameters.
          outputs: from its result to the activity of the output units.
          where: padding mask over leading axes of the activity, or a function of the
            arguments that gives it, or None.

        Raises:
          ValueError: several kernels, or one whose units are not one plain axis.
        """
        last = kernels[-1]
        if len(kernels) > 1 or last.stack or len(last.out_units) != 1:
            shapes = [(k.path, k.per_unit_shape("outputs")) for k in kernels]
            raise ValueError(
                f"expected one kernel that makes outputs, of one axis, got {shapes}; "
                "select the one whose units may be removed, beside the hidden ones"
            )

        def measure(params, *args):
            mask = where(*args) if callable(where) else where
            return _sums(last, outputs(fn(params, *args)), mask)

        return cls(last, measure, params)

    def passing(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, unchanged; each is measured after its consumer has used it."""
        for batch in batches:
            yield batch
            self.add(batch)

    def add(self, batch: tuple[Any, ...]) -> None:
        """Runs one batch, compiled once per kind of batch."""
        this = call(self.measure, self.params, batch, {})
        if this.key not in self.programs:
            self.programs[this.key] = this, jax.jit(this.fn)
        run = self.programs[this.key][1]
        total, count = run(*this.arrays)[:2]  # what follows is state of the model
        self.total = self.total + np.asarray(total, np.float64)
        self.count += float(count)

    def instead_of(self, stats: dict[str, Activity]) -> dict[str, Activity]:
        """The kernel's activity with this mean in the place of that of raw outputs."""
        sides = stats[self.kernel.path]
        mean = jnp.asarray(self.total / max(self.count, 1.0), jnp.float32)
        result = dataclasses.replace(sides.outputs, mean_abs=mean)
        return {self.kernel.path: sides._replace(outputs=result)}


def _sums(kernel: Kernel, result: Any, mask: Any) -> tuple[jax.Array, jax.Array]:
    (units,) = kernel.out_units
    if not hasattr(result, "shape") or result.shape[-1:] != (units,):
        got = getattr(result, "shape", type(result).__name__)
        raise ValueError(
            f"expected the activity of the {units} output units of {kernel.path!r} on "
            f"the last axis, got {got}; let fn return it, or pass outputs=, from the "
            "result of fn to that activity"
        )
    size, rest = jnp.abs(result.astype(jnp.float32)), result.shape[:-1]
    real = jnp.ones(rest, jnp.float32)
    if mask is not None:
        real = jnp.broadcast_to(_wide(jnp.asarray(mask), rest), rest)
    total = jnp.sum(size * real[..., None], axis=tuple(range(len(rest))))
    return total, jnp.sum(real)


def _wide(mask: jax.Array, rest: tuple[int, ...]) -> jax.Array:
    """A padding mask with the axes of the output's entries."""
    fits = mask.ndim <= len(rest) and all(
        m in (1, n) for m, n in zip(mask.shape, rest, strict=False)
    )
    if not fits:
        raise ValueError(
            f"expected `where` to match the leading axes {rest} of the outputs, got "
            f"shape {mask.shape}; pass one that fits the result of fn, too"
        )
    wide = jnp.reshape(mask, mask.shape + (1,) * (len(rest) - mask.ndim))
    return wide.astype(jnp.float32)
