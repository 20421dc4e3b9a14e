"""What a plan says of one leaf, and of one stack of matrices: data, and cells of it."""

import dataclasses
from typing import Any

import numpy as np

from optax_muon._exchange import Division
from optax_muon._mesh_axes import described
from optax_muon._orthogonalizer import Form
from optax_muon._tables import Table, amount


@dataclasses.dataclass(frozen=True)
class PlanLeaf:
    """What happens to one leaf.

    Attributes:
      path: names joined by "/".
      shape, dtype: of the leaf.
      optimizer: "muon" or "adamw".
      matrix: (fan_in, fan_out) of each of its matrices, parts joined; None for AdamW.
      batch: how many of those it holds; None for AdamW.
      scale: what a polar factor is multiplied by, or those of the parts; None for
        AdamW.
      share: its fraction of all parameters, in [0, 1].
      state_bytes: of its momentum, or AdamW's two moments, on one device.
      total_state_bytes: of those arrays whole, copies on other devices not counted.
      parts: (fan_in, fan_out) of the matrices side by side in each; () if it is one.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    optimizer: str
    matrix: tuple[int, int] | None
    batch: int | None
    scale: float | tuple[float, ...] | None
    share: float
    state_bytes: int
    total_state_bytes: int
    parts: tuple[tuple[int, int], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The attributes by name, the dtype by its own."""
        return _fields(self) | {"dtype": self.dtype.name}

    @property
    def cells(self) -> tuple[str, ...]:
        """Of its line in the table."""
        batch = "-" if self.batch is None else str(self.batch)
        row = (self.path, str(self.shape), self.optimizer, self._matrix_cell, batch)
        return (*row, self._scale_cell, f"{self.share:.1%}")

    @property
    def _matrix_cell(self) -> str:
        """ "64 x 256", or "64 x (128 + 64 + 64)" of three side by side."""
        if self.matrix is None:
            return "-"
        cells = [str(length) for length in self.matrix]
        for side, lengths in enumerate(zip(*self.parts, strict=True)):
            if sum(lengths) == self.matrix[side]:
                cells[side] = f"({' + '.join(map(str, lengths))})"
        return " x ".join(cells)

    @property
    def _scale_cell(self) -> str:
        if self.scale is None:
            return "-"
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        return ", ".join(f"{scale:.3g}" for scale in scales)


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
      forms: what runs for them: of matrices with parts, one form for each part.
      division: which mesh axes, or digits of them, share the work: those in `stack` by
        matrices, those in `long` by the columns of each; none without sharding.
      own: how many matrices one device orthogonalizes, or its columns of so many.
      flops: of one device in a step; None where products are not counted, as for
        `Svd()`, `Qdwh()` and functions. See `Plan.flops`.
      bytes_sent: by one device in a step, as collectives of optimal bandwidth do.
    """

    matrix: tuple[int, int]
    dtype: np.dtype
    count: int
    paths: tuple[str, ...]
    forms: tuple[Form, ...]
    division: Division
    own: int
    flops: float | None
    bytes_sent: float

    @property
    def is_divided(self) -> bool:
        """Whether devices share the work on it."""
        return self.own < self.count or bool(self.division.column_axes)

    def as_dict(self) -> dict[str, Any]:
        """The attributes by name, dtypes by their own; the division as mesh axes."""
        return _fields(self) | {
            "dtype": self.dtype.name,
            "forms": [form.as_dict() for form in self.forms],
            "division": {
                "stack": described(self.division.stack.axes),
                "long": described(self.division.long.axes),
            },
        }

    def cells(self, *, is_divided: bool) -> tuple[str, ...]:
        """Of its line in the table of stacks.

        Args:
          is_divided: whether to tell what a device has, and what it sends.
        """
        forms = "; ".join(dict.fromkeys(map(str, self.forms)))
        sent = (self._on_a_device, amount(self.bytes_sent, "B")) if is_divided else ()
        flops = "-" if self.flops is None else amount(self.flops, "FLOP")
        return (self._name, forms, *sent, flops)

    def __str__(self) -> str:
        if not self.is_divided:
            return self._name
        sent = amount(self.bytes_sent, "B")
        return f"{self._name}: {self._on_a_device} a device, which sends {sent}"

    @property
    def _name(self) -> str:
        return f"{self.count} x {self.matrix[0]} x {self.matrix[1]} {self.dtype}"

    @property
    def _on_a_device(self) -> str:
        columns = described(self.division.column_axes)
        return f"{self.own}, columns over {columns}" if columns else str(self.own)


def leaf_table(leaves: tuple[PlanLeaf, ...]) -> Table:
    """One line for each leaf."""
    header = ("path", "shape", "optimizer", "matrix", "batch", "scale", "share")
    return Table(header, [leaf.cells for leaf in leaves])


def bucket_table(buckets: tuple[PlanBucket, ...]) -> Table:
    """One line for each stack, with two columns more where devices share the work."""
    is_divided = any(bucket.is_divided for bucket in buckets)
    shared = ("a device has", "sends") if is_divided else ()
    header = ("stack", "form", *shared, "computes")
    return Table(header, [bucket.cells(is_divided=is_divided) for bucket in buckets])


def _fields(record: Any) -> dict[str, Any]:
    """By name; not those inside of them."""
    return {
        field.name: getattr(record, field.name) for field in dataclasses.fields(record)
    }
