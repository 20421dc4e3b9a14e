"""plan(): which leaf gets what, as data and as a table, before anything is trained."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from optax_muon import _checks
from optax_muon._casts import at_least_float32
from optax_muon._exchange import Division
from optax_muon._functions import OrthogonalizerLike, as_orthogonalizer
from optax_muon._mesh_axes import described
from optax_muon._orthogonalizer import Orthogonalizer
from optax_muon._orthogonalizers import NewtonSchulz
from optax_muon._placement import PlacedView, place, whole_leaves
from optax_muon._polar_factors import division_of, traffic, work_on
from optax_muon._resolution import (
    ADAM,
    MUON,
    MatrixAxesLike,
    MatrixRoute,
    Route,
    routes,
)
from optax_muon._scaling import ScaleRule, as_scale_rule, scale_factor
from optax_muon._sharding import ShardingLike
from optax_muon._stacking import Stack, stacks


@dataclasses.dataclass(frozen=True)
class PlanLeaf:
    """What happens to one leaf.

    Attributes:
      path: names joined by "/".
      shape, dtype: of the leaf.
      optimizer: "muon" or "adamw".
      matrix: (fan_in, fan_out) of each of its matrices, parts joined; None for AdamW.
      batch: how many of those it holds; None for AdamW.
      parts: (fan_in, fan_out) of the matrices side by side in each; () if it is one.
      scale: what a polar factor is multiplied by, or those of the parts; None for
        AdamW.
      share: its fraction of all parameters, in [0, 1].
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    optimizer: str
    matrix: tuple[int, int] | None
    batch: int | None
    scale: float | tuple[float, ...] | None
    share: float
    parts: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class PlanBucket:
    """Matrices that go through one iteration together.

    Attributes:
      matrix: (rows, columns) of each; taller ones are transposed, so rows <= columns,
        unless the orthogonalizer is a function.
      dtype: of the momentum's directions: the leaves' own, but at least float32. On TPU
        and GPU, float32 ones are stacked and moved in bfloat16.
      count: how many matrices there are.
      paths: the leaves they come from.
      division: which mesh axes, or digits of them, share the work: those in `stack` by
        matrices, those in `long` by the columns of each; none without sharding.
      own: how many matrices one device orthogonalizes, or its columns of so many.
      flops: of one device in a step.
      bytes_sent: by one device in a step.
    """

    matrix: tuple[int, int]
    dtype: np.dtype
    count: int
    paths: tuple[str, ...]
    division: Division
    own: int
    flops: float
    bytes_sent: float

    @property
    def is_divided(self) -> bool:
        """Whether devices share the work on it."""
        return self.own < self.count or bool(self.division.column_axes)

    def __str__(self) -> str:
        name = f"{self.count} x {self.matrix[0]} x {self.matrix[1]} {self.dtype}"
        if not self.is_divided:
            return name
        what = f"{self.own} a device"
        if self.division.column_axes:
            what += f", columns over {described(self.division.column_axes)}"
        return f"{name}: {what}, which sends {_bytes(self.bytes_sent)}"


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
        if any(bucket.is_divided for bucket in self.buckets):
            return [*lines, *(f"  stack: {bucket}" for bucket in self.buckets)]
        stacks = ", ".join(map(str, self.buckets))
        return [*lines, f"  stacks: {stacks or 'none'}"]


def plan(
    params: Any,
    matrix_axes: MatrixAxesLike = None,
    sharding: ShardingLike = None,
    *,
    scale: str | ScaleRule | None = "adam_rms",
    orthogonalizer: OrthogonalizerLike = NewtonSchulz(),
    platform: str | None = None,
) -> Plan:
    """How `muon` treats each leaf of `params`: `print` it before you train.

    Args:
      params: arrays, or anything with shape and dtype (from `jax.eval_shape`, say).
      matrix_axes, sharding, scale, orthogonalizer: as given to `muon`.
      platform: "cpu", "gpu" or "tpu", on which the devices' shares depend; None means
        this process's default.

    Raises:
      ValueError: as `muon(...).init`: lists every leaf that no rule decides, or whose
        sharding does not fit.

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
    configuration = as_orthogonalizer(orthogonalizer)
    platform = jax.default_backend() if platform is None else platform
    _checks.check_choice("platform", platform, ("cpu", "gpu", "tpu"))
    layout, whole = whole_leaves(params, sharding, "plan")
    decided = routes(whole, matrix_axes)
    matrices = [
        (MatrixRoute(route.path, route.shape, route.dtype, route.view), spec)
        for route, spec in zip(decided, layout.specs, strict=True)
        if route.view is not None
    ]
    views = place(
        [route for route, _ in matrices],
        [spec for _, spec in matrices],
        layout,
        "plan",
    )
    rule = as_scale_rule(scale)
    total = sum(math.prod(route.shape) for route in decided)
    grouped = stacks(
        views,
        # Momentum's directions are at least float32.
        [at_least_float32(route.dtype) for route, _ in matrices],
        either_orientation=configuration.either_orientation,
    )
    paths = [route.path for route, _ in matrices]
    return Plan(
        leaves=tuple(_leaf(route, rule, total) for route in decided),
        buckets=tuple(
            _bucket(stack, views, paths, configuration, platform) for stack in grouped
        ),
    )


def _leaf(route: Route, rule: ScaleRule | None, total: int) -> PlanLeaf:
    view, share = route.view, math.prod(route.shape) / max(total, 1)
    leaf = PlanLeaf(route.path, route.shape, route.dtype, ADAM, None, None, None, share)
    if view is None:
        return leaf
    scales = tuple(scale_factor(rule, *fans) for fans in view.fans_of_parts)
    return dataclasses.replace(
        leaf,
        optimizer=MUON,
        matrix=view.fans,
        batch=view.matrices[0],
        scale=scales if view.parts else scales[0],
        parts=view.fans_of_parts if view.parts else (),
    )


def _bucket(
    stack: Stack,
    views: Sequence[PlacedView],
    paths: list[str],
    orthogonalizer: Orthogonalizer,
    platform: str,
) -> PlanBucket:
    batch, *matrix = stack.shape
    division = division_of(stack, orthogonalizer, platform)
    own = -(-batch // division.stack.ways)
    work = work_on(stack, division, orthogonalizer, platform)
    return PlanBucket(
        matrix=(matrix[0], matrix[1]),
        dtype=stack.dtype,
        count=sum(views[i].whole.matrices[0] for i in stack.members),
        paths=tuple(paths[i] for i in stack.members),
        division=division,
        own=own,
        flops=own * work.flops,
        bytes_sent=traffic(stack, division, orthogonalizer, platform),
    )


def _leaves(count: int) -> str:
    return f"{count} leaf" if count == 1 else f"{count} leaves"


def _row(leaf: PlanLeaf) -> tuple[str, ...]:
    batch = "-" if leaf.batch is None else str(leaf.batch)
    share = f"{leaf.share:.1%}"
    cells = (_matrix_cell(leaf), batch, _scale_cell(leaf.scale), share)
    return (leaf.path, str(leaf.shape), leaf.optimizer, *cells)


def _matrix_cell(leaf: PlanLeaf) -> str:
    """ "64 x 256", or "64 x (128 + 64 + 64)" of three side by side."""
    if leaf.matrix is None:
        return "-"
    cells = [str(length) for length in leaf.matrix]
    for side, lengths in enumerate(zip(*leaf.parts, strict=True)):
        if sum(lengths) == leaf.matrix[side]:
            cells[side] = f"({' + '.join(map(str, lengths))})"
    return " x ".join(cells)


def _scale_cell(scale: float | tuple[float, ...] | None) -> str:
    if scale is None:
        return "-"
    return ", ".join(
        f"{s:.3g}" for s in (scale if isinstance(scale, tuple) else [scale])
    )


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    *cells, share = (cell.ljust(w) for cell, w in zip(row, widths, strict=True))
    return "  ".join([*cells, share.strip().rjust(widths[-1])])


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
