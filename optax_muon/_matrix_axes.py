"""The axes of a leaf that form its matrices, and the leaf's shape seen through them."""

import dataclasses
import math
from typing import Any

import jax

Path = tuple[Any, ...]


class UndecidedLeafError(ValueError):
    """Raised by a rule for a leaf that it cannot decide; its text is the reason."""


class Stackable:
    """What a rule says of a leaf, if it can be said of a stack of such leaves."""

    def stacked(self, axis: int, shape: tuple[int, ...]) -> Any:
        """The same of leaves of `shape`, stacked along a new, non-negative `axis`."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, repr=False)
class MatrixAxes(Stackable):
    """The axes of a leaf that form a matrix [fan_in, fan_out]; the others are a batch.

    Attributes:
      fan_in: axis or axes over the inputs, merged in this order; () is a length of 1.
      fan_out: likewise over the outputs. Negative axes count from the end.
      fan_in_parts: lengths along the (merged) inputs of matrices that lie side by side
        in one leaf, each of which is treated as a leaf of its own; () for one matrix.
      fan_out_parts: likewise along the outputs. Only one side may have parts.

    >>> MatrixAxes(fan_in=0, fan_out=(1, 2))  # attention's query: d -> heads, head_dim
    MatrixAxes(fan_in=(0,), fan_out=(1, 2))
    >>> MatrixAxes(0, 1, fan_out_parts=(512, 128, 128))  # query, key and value in one
    MatrixAxes(fan_in=(0,), fan_out=(1,), fan_out_parts=(512, 128, 128))
    """

    fan_in: int | tuple[int, ...] = 0
    fan_out: int | tuple[int, ...] = 1
    _: dataclasses.KW_ONLY
    fan_in_parts: tuple[int, ...] = ()
    fan_out_parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for side in ("fan_in", "fan_out"):
            value = getattr(self, side)
            axes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
            if not all(map(_is_int, axes)):
                raise TypeError(f"{side}={value!r} must be an int or a tuple of ints.")
            object.__setattr__(self, side, axes)
        for side in ("fan_in_parts", "fan_out_parts"):
            value = getattr(self, side)
            if not isinstance(value, (tuple, list)) or not all(map(_is_int, value)):
                raise TypeError(f"{side}={value!r} must be a tuple of ints.")
            if len(value) == 1 or any(length < 1 for length in value):
                raise ValueError(
                    f"{side}={value!r} must be the lengths of two or more matrices "
                    "side by side, or () for one matrix."
                )
            object.__setattr__(self, side, tuple(value))
        if self.fan_in_parts and self.fan_out_parts:
            raise ValueError(
                f"{self} has parts along both sides; only one may have them: reshape "
                "the other into a batch axis, or keep such leaves apart."
            )

    def __repr__(self) -> str:
        shown = [f"{side}={getattr(self, side)}" for side in ("fan_in", "fan_out")]
        parts = ("fan_in_parts", "fan_out_parts")
        shown += [
            f"{side}={getattr(self, side)}" for side in parts if getattr(self, side)
        ]
        return f"MatrixAxes({', '.join(shown)})"

    def view(self, shape: tuple[int, ...]) -> "MatrixView":
        """These axes on a leaf of `shape`.

        Raises:
          UndecidedLeafError: an axis that the shape lacks, or that is named twice;
            parts that do not add up to their side.
        """
        rank = len(shape)

        def from_the_start(axes: Any) -> tuple[int, ...]:
            return tuple(a + rank if a < 0 else a for a in axes)

        fan_in, fan_out = from_the_start(self.fan_in), from_the_start(self.fan_out)
        used = fan_in + fan_out
        if not all(0 <= a < rank for a in used) or len(set(used)) < len(used):
            raise UndecidedLeafError(f"{self} does not fit a leaf of shape {shape}")
        batch = tuple(a for a in range(rank) if a not in used)
        view = MatrixView(
            shape, batch, fan_in, fan_out, self.fan_in_parts, self.fan_out_parts
        )
        for name, parts, length in zip(
            ("fan_in_parts", "fan_out_parts"),
            (self.fan_in_parts, self.fan_out_parts),
            view.fans,
            strict=True,
        ):
            if parts and sum(parts) != length:
                raise UndecidedLeafError(
                    f"{name}={parts} of {self} add up to {sum(parts)}, but that side "
                    f"is {length} long"
                )
        return view

    def stacked(self, axis: int, shape: tuple[int, ...]) -> "MatrixAxes":
        """The new axis is a batch axis: every layer stays a matrix of its own."""
        view = self.view(shape)
        fan_in, fan_out = (
            tuple(a + (a >= axis) for a in side)
            for side in (view.fan_in_axes, view.fan_out_axes)
        )
        return dataclasses.replace(self, fan_in=fan_in, fan_out=fan_out)


@dataclasses.dataclass(frozen=True)
class MatrixView:
    """A leaf's shape with its batch, fan-in and fan-out axes, all non-negative."""

    shape: tuple[int, ...]
    batch_axes: tuple[int, ...]
    fan_in_axes: tuple[int, ...]
    fan_out_axes: tuple[int, ...]
    fan_in_parts: tuple[int, ...] = ()
    fan_out_parts: tuple[int, ...] = ()

    @property
    def matrices(self) -> tuple[int, int, int]:
        """Shape [batch, fan_in, fan_out] of the leaf seen as matrices, parts joined."""
        batch, fan_in, fan_out = (
            math.prod(self.shape[a] for a in axes)
            for axes in (self.batch_axes, self.fan_in_axes, self.fan_out_axes)
        )
        return batch, fan_in, fan_out

    @property
    def fans(self) -> tuple[int, int]:
        """(fan_in, fan_out), parts joined."""
        return self.matrices[1:]

    @property
    def fans_of_parts(self) -> tuple[tuple[int, int], ...]:
        """(fan_in, fan_out) of each part; of the one matrix where there are none."""
        fan_in, fan_out = self.fans
        return tuple(
            (rows, columns)
            for rows in self.fan_in_parts or (fan_in,)
            for columns in self.fan_out_parts or (fan_out,)
        )

    @property
    def parts(self) -> tuple[int, ...]:
        """Lengths of the parts along the side that has them."""
        return self.fan_in_parts or self.fan_out_parts

    @property
    def parted_axes(self) -> tuple[int, ...]:
        """The axes of the side that has parts."""
        if not self.parts:
            return ()
        return self.fan_in_axes if self.fan_in_parts else self.fan_out_axes

    @property
    def joined(self) -> "MatrixView":
        """The same leaf with its parts seen as one matrix."""
        return dataclasses.replace(self, fan_in_parts=(), fan_out_parts=())

    @property
    def merged_axes(self) -> tuple[int, ...]:
        """The axes that a statistic of output neurons has no need of: the fan-in's.

        But not if they have parts, each of which has neurons of its own.
        """
        return () if self.fan_in_parts else self.fan_in_axes

    @property
    def neurons_shape(self) -> tuple[int, ...]:
        """The leaf's shape with one entry for each output neuron of each matrix."""
        return tuple(
            1 if axis in self.merged_axes else size
            for axis, size in enumerate(self.shape)
        )

    @property
    def reduced_axes(self) -> tuple[int, ...]:
        """The axes that a statistic of matrices has no need of: fan-in and fan-out.

        But not those of a side with parts, each of which is a matrix of its own.
        """
        axes = self.fan_in_axes + self.fan_out_axes
        return tuple(axis for axis in axes if axis not in self.parted_axes)

    @property
    def norms_shape(self) -> tuple[int, ...]:
        """The leaf's shape with one entry for each matrix, repeated along its parts."""
        return tuple(
            1 if axis in self.reduced_axes else size
            for axis, size in enumerate(self.shape)
        )

    @property
    def size(self) -> int:
        """How many entries the leaf has."""
        return math.prod(self.shape)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def path_names(path: Path) -> tuple[str, ...]:
    """The names along a key path, without the `.value` that NNX variables end in."""
    last = path[-1] if path else None
    if isinstance(last, jax.tree_util.GetAttrKey) and last.name == "value":
        path = path[:-1]
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def path_name(path: Path) -> str:
    """The names along a key path, joined by "/", as messages and tables have it."""
    return "/".join(path_names(path)) or "(root)"
