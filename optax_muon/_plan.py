"""plan(): which leaf gets what, as data and as a table, before anything is trained."""

import dataclasses
import math
from typing import Any

import numpy as np

from optax_muon._casts import at_least_float32
from optax_muon._resolution import ADAM, MUON, MatrixAxesLike, Route, routes
from optax_muon._scaling import ScaleRule, as_scale_rule, scale_factor
from optax_muon._stacking import buckets


@dataclasses.dataclass(frozen=True)
class PlanLeaf:
    """What happens to one leaf.

    Attributes:
      path: names joined by "/".
      shape, dtype: of the leaf.
      optimizer: "muon" or "adamw".
      matrix: (fan_in, fan_out) of each of its matrices; None for AdamW.
      batch: how many matrices it holds; None for AdamW.
      scale: what a polar factor is multiplied by; None for AdamW.
      share: its fraction of all parameters, in [0, 1].
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    optimizer: str
    matrix: tuple[int, int] | None
    batch: int | None
    scale: float | None
    share: float


@dataclasses.dataclass(frozen=True)
class PlanBucket:
    """Matrices that go through one iteration together.

    Attributes:
      matrix: (rows, columns) of each; taller ones are transposed, so rows <= columns.
      dtype: of the stack: the leaves' own, but at least float32.
      count: how many matrices there are.
      paths: the leaves they come from.
    """

    matrix: tuple[int, int]
    dtype: np.dtype
    count: int
    paths: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The decisions for a tree of parameters; `str(plan)` is the table."""

    leaves: tuple[PlanLeaf, ...]
    buckets: tuple[PlanBucket, ...]

    def __str__(self) -> str:
        header = ("path", "shape", "optimizer", "matrix", "batch", "scale", "share")
        rows = [header, *map(_row, self.leaves)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [_line(row, widths) for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, *self._summary()])

    def _summary(self) -> list[str]:
        total = sum(math.prod(leaf.shape) for leaf in self.leaves)
        lines = [f"{_leaves(len(self.leaves))}, {total:,} parameters"]
        for name in (MUON, ADAM):
            mine = [leaf for leaf in self.leaves if leaf.optimizer == name]
            share = sum(leaf.share for leaf in mine)
            lines.append(
                f"  {name}: {_leaves(len(mine))}, {share:.1%} of the parameters"
            )
        stacks = ", ".join(
            f"{b.count} x {b.matrix[0]} x {b.matrix[1]} {b.dtype}" for b in self.buckets
        )
        lines.append(f"  stacks: {stacks or 'none'}")
        return lines


def plan(
    params: Any,
    matrix_axes: MatrixAxesLike = None,
    *,
    scale: str | ScaleRule | None = "adam_rms",
) -> Plan:
    """How `muon` treats each leaf of `params`: `print` it before you train.

    Args:
      params: arrays, or anything with shape and dtype (from `jax.eval_shape`, say).
      matrix_axes: as given to `muon`.
      scale: as given to `muon`.

    Raises:
      ValueError: as `muon(...).init`: lists every leaf that no rule decides.

    >>> import jax.numpy as jnp
    >>> params = {"dense": {"kernel": jnp.ones((64, 256)), "bias": jnp.ones(256)}}
    >>> print(plan(params))
    path          shape      optimizer  matrix    batch  scale  share
    ------------  ---------  ---------  --------  -----  -----  -----
    dense/bias    (256,)     adamw      -         -      -       1.5%
    dense/kernel  (64, 256)  muon       64 x 256  1      3.2    98.5%
    2 leaves, 16,640 parameters
      muon: 1 leaf, 98.5% of the parameters
      adamw: 1 leaf, 1.5% of the parameters
      stacks: 1 x 64 x 256 float32
    """
    decided = routes(params, matrix_axes)
    rule = as_scale_rule(scale)
    total = sum(math.prod(route.shape) for route in decided)
    return Plan(
        leaves=tuple(_leaf(route, rule, total) for route in decided),
        buckets=_buckets([route for route in decided if route.view is not None]),
    )


def _leaf(route: Route, rule: ScaleRule | None, total: int) -> PlanLeaf:
    view = route.view
    return PlanLeaf(
        path=route.path,
        shape=route.shape,
        dtype=route.dtype,
        optimizer=ADAM if view is None else MUON,
        matrix=None if view is None else view.fans,
        batch=None if view is None else view.matrices[0],
        scale=None if view is None else scale_factor(rule, *view.fans),
        share=math.prod(route.shape) / max(total, 1),
    )


def _buckets(matrices: list[Route]) -> tuple[PlanBucket, ...]:
    views = [route.view for route in matrices if route.view is not None]
    # What is stacked is the momentum's direction, which is at least float32.
    grouped = buckets(views, [at_least_float32(route.dtype) for route in matrices])
    return tuple(
        PlanBucket(
            matrix=(rows, columns),
            dtype=dtype,
            count=sum(views[i].matrices[0] for i in members),
            paths=tuple(matrices[i].path for i in members),
        )
        for (rows, columns, dtype), members in grouped
    )


def _leaves(count: int) -> str:
    return f"{count} leaf" if count == 1 else f"{count} leaves"


def _row(leaf: PlanLeaf) -> tuple[str, ...]:
    matrix = "-" if leaf.matrix is None else f"{leaf.matrix[0]} x {leaf.matrix[1]}"
    batch = "-" if leaf.batch is None else str(leaf.batch)
    scale = "-" if leaf.scale is None else f"{leaf.scale:.3g}"
    share = f"{leaf.share:.1%}"
    return (leaf.path, str(leaf.shape), leaf.optimizer, matrix, batch, scale, share)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    *cells, share = (cell.ljust(w) for cell, w in zip(row, widths, strict=True))
    return "  ".join([*cells, share.strip().rjust(widths[-1])])
