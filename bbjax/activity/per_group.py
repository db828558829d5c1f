"""Sums over the rows of each group: units of experts that share one array.

The rows of a ragged product (`lax.ragged_dot`) are sorted by group. With the group
sizes n_0, n_1, ... the rows of group g are those from n_0 + ... + n_(g-1) on, n_g of
them; rows behind the last group belong to none, and count for none. `Members` has the
sums of `bbjax.activity.per_unit.Over`, with the groups on a first axis: one group is
one stack slice of the kernel, on the entries that were routed to it.

Sums are products with the matrix of members, 0 and 1, exact for counts. A value that is
not finite makes NaN of its own unit in its own group.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

from bbjax.activity.per_unit import Over, real
from bbjax.tracing.flow.kernels import Rows


@dataclasses.dataclass(frozen=True)
class Members(Over):
    """The entries of each unit of each group, in an array whose rows are sorted.

    Attributes:
      rows: where the rows of the array are.
      sizes: number of rows of each group, int `(*prefix, groups)`.
    """

    rows: Rows
    sizes: Int[Array, "*prefix groups"]

    @functools.cached_property
    def members(self) -> Bool[Array, "*prefix groups rows"]:
        """Which rows are of which group."""
        ends = jnp.cumsum(self.sizes, axis=-1)[..., None]
        row = jnp.arange(self.shape[self.rows.axis], dtype=ends.dtype)
        return (row >= ends - self.sizes[..., None]) & (row < ends)

    @property
    def counted(self) -> Bool[Array, "*shape"]:
        """Entries that are no padding, of rows of some group."""
        some = jnp.any(self.members, axis=-2)
        axes = (*self.rows.prefix, self.rows.axis)
        order = sorted(range(len(axes)), key=lambda i: axes[i])
        rest = tuple(a for a in range(len(self.shape)) if a not in axes)
        some = jnp.expand_dims(jnp.transpose(some, order), rest)
        if self.valid is not None:
            some &= self.valid
        return jnp.broadcast_to(some, self.shape)

    def total(self, values: Num[Array, "*shape"]) -> Float[Array, " groups *units"]:
        """Sums of values, float32; NaN for those with one that is not finite."""
        broken = (~jnp.isfinite(values)).astype(jnp.float32)
        sums, bad = self.totals([values.astype(jnp.float32), broken])
        return jnp.where(bad > 0, jnp.nan, sums)

    def totals(
        self, arrays: Sequence[Num[Array, "*shape"]]
    ) -> list[Float[Array, " groups *units"]]:
        """Sums of what is finite in several arrays."""
        kept = [real(a, self.valid) for a in arrays]
        return [self._product(jnp.where(jnp.isfinite(a), a, 0.0)) for a in kept]

    def _product(
        self, values: Float[Array, "*shape"]
    ) -> Float[Array, " groups *units"]:
        names = list(range(len(self.shape)))
        group = len(names)
        own = [*self.rows.prefix, group, self.rows.axis]
        made = [group, *self.axes]
        return jnp.einsum(
            self.members.astype(jnp.float32),
            own,
            values,
            names,
            made,
            precision=lax.Precision.HIGHEST,
        )

    def peak(self, values: Num[Array, "*shape"]) -> Float[Array, " groups *units"]:
        """Maxima of values of at least 0."""
        values = real(values, self.valid).astype(jnp.float32)
        where = (*self.rows.prefix, self.rows.axis)
        shape = [n if a in where else 1 for a, n in enumerate(self.shape)]
        order = sorted(range(len(where)), key=lambda i: where[i])

        def of_one(member: Bool[Array, "*prefix rows"]) -> Float[Array, "*units"]:
            here = jnp.reshape(jnp.transpose(member, order), shape)
            return self.ordered(
                jnp.max(jnp.where(here, values, 0.0), axis=self.rest, initial=0.0)
            )

        return lax.map(of_one, jnp.moveaxis(self.members, -2, 0))

    def count(self) -> Float[Array, " groups *units"]:
        """Number of entries of each unit."""
        valid = jnp.ones((), bool) if self.valid is None else self.valid
        everywhere = jnp.broadcast_to(valid, self.shape)
        return self._product(everywhere.astype(jnp.float32))

    def gram(
        self, x: Num[Array, "*shape"], lead: Sequence[int], inputs: Sequence[int]
    ) -> Float[Array, " groups *lead inputs inputs"]:
        """Sums of `x x^T` over the rows of each group.

        Args:
          x: values.
          lead: axes that number separate products.
          inputs: axes of input units, in order.
        """
        x = real(x, self.valid).astype(jnp.float32)
        sound = jnp.isfinite(x)
        lost = self._product((~sound).astype(jnp.float32)) > 0
        x = jnp.where(sound, x, 0.0)
        rest = [a for a in range(x.ndim) if a not in (*lead, *inputs)]
        x = jnp.transpose(x, (*lead, *rest, *inputs))
        x = jnp.reshape(x, (*x.shape[: len(lead) + len(rest)], -1))
        batch = tuple(range(len(lead)))
        over = tuple(range(len(lead), len(lead) + len(rest)))
        numbers = lax.RaggedDotDimensionNumbers(
            ((over, over), (batch, batch)),
            lhs_ragged_dimensions=[len(lead) + rest.index(self.rows.axis)],
            rhs_group_dimensions=[],
        )
        gram = lax.ragged_dot_general(
            x,
            x,
            self.sizes,
            numbers,
            precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        broken = jnp.any(lost, axis=tuple(range(1 + len(lead), lost.ndim)))
        return jnp.where(broken[..., None, None], jnp.nan, gram)
