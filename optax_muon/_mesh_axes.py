"""Mesh axes and digits of them: a device's index, and collectives over either.

A mesh axis of 256 devices is cut in two digits as 256 = 64 * 4: the major one counts
groups of four neighbours, the minor one the devices in a group.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array


class Digit(NamedTuple):
    """One of the two digits of the index along a mesh axis.

    Attributes:
      axis: the mesh axis's name.
      whole: how many devices the axis has.
      stride: how many devices further on its next value is; 1 for the minor digit.
    """

    axis: str
    whole: int
    stride: int


Axis = str | Digit

Axes = tuple[tuple[Axis, int], ...]
"""Mesh axes, or digits of them, and into how many parts each cuts."""


def ways(axes: Axes) -> int:
    """Into how many parts the axes cut."""
    return math.prod(size for _, size in axes)


def digits(axis: str, size: int, minor: int) -> Axes:
    """A mesh axis in two digits, major first; the second has `minor` values."""
    return (Digit(axis, size, minor), size // minor), (Digit(axis, size, 1), minor)


def name(axis: Axis) -> str:
    """Of the mesh axis."""
    return axis.axis if isinstance(axis, Digit) else axis


def described(axes: Axes) -> str:
    """For people: "4 of fsdp, tensor"."""
    return ", ".join(
        f"{size} of {axis.axis}" if isinstance(axis, Digit) else axis
        for axis, size in axes
    )


def in_order(axes: Axes) -> Axes:
    """The same, but the digits of an axis follow each other, major first.

    The order in which a collective over the whole axis counts devices.
    """
    names = [name(axis) for axis, _ in axes]

    def place(entry: tuple[Axis, int]) -> tuple[int, int]:
        axis, _ = entry
        return names.index(name(axis)), -axis.stride if isinstance(axis, Digit) else 0

    return tuple(sorted(axes, key=place))


def index(axes: Axes) -> Array:
    """This device's, over all the axes, the first being the major one."""
    found = jnp.int32(0)
    for axis, size in axes:
        if isinstance(axis, Digit):
            along = lax.axis_index(axis.axis) // axis.stride % size
        else:
            along = lax.axis_index(axis)
        found = found * size + along
    return found


def all_to_all(x: Array, axes: Axes) -> Array:
    """Blocks along the first axis of x to the devices, counted as `in_order` does.

    Args:
      axes: no digit without the other.
    """
    return lax.all_to_all(x, _whole(axes), 0, 0, tiled=True) if axes else x


def all_gather(x: Array, axes: Axes) -> Array:
    """x of all devices, counted as `in_order` does: a new first axis.

    It is known to be the same on all of them.

    Args:
      axes: no digit without the other.
    """
    return lax.all_gather(x, _whole(axes), to="invarying")


def total(x: Array, axes: Axes) -> Array:
    """The sum over the devices along the axes."""
    together, groups = _groups(axes)
    if groups is None or not _is_checked(x):
        return lax.psum(x, together, axis_index_groups=groups)
    # Where it checks what varies, JAX refuses a sum over groups: the same in two.
    flat = jnp.pad(x.reshape(-1), (0, -x.size % ways(axes)))
    part = lax.psum_scatter(flat, together, axis_index_groups=groups, tiled=True)
    flat = lax.all_gather(part, together, axis_index_groups=groups, tiled=True)
    return flat[: x.size].reshape(x.shape)


def maximum(x: Array, axes: Axes) -> Array:
    """The maximum over the devices along the axes.

    Of few numbers: where `total` takes two collectives, all of them are gathered.
    """
    together, groups = _groups(axes)
    if groups is None or not _is_checked(x):
        return lax.pmax(x, together, axis_index_groups=groups)
    return lax.all_gather(x, together, axis_index_groups=groups).max(0)


def _is_checked(x: Array) -> bool:
    """Whether x, which varies, is in a `jax.shard_map` that checks along which axes."""
    return bool(jax.typeof(x).manual_axis_type.varying)


def _joined(axes: Axes) -> Axes:
    """`in_order`, with the mesh axis itself for digits that are the whole of it."""
    found: list[tuple[Axis, int]] = []
    for _, group in itertools.groupby(in_order(axes), lambda entry: name(entry[0])):
        entries = tuple(group)
        axis, _ = entries[0]
        if isinstance(axis, Digit) and ways(entries) == axis.whole:
            found.append((axis.axis, axis.whole))
        else:
            found += entries
    return tuple(found)


def _whole(axes: Axes) -> tuple[str, ...]:
    """The names of whole mesh axes."""
    names = []
    for axis, _ in _joined(axes):
        if isinstance(axis, Digit):
            raise ValueError(f"{described(axes)} are not whole mesh axes")
        names.append(axis)
    return tuple(names)


def _groups(axes: Axes) -> tuple[tuple[str, ...], list[list[int]] | None]:
    """Mesh axes, and who of the devices along all of them takes part with whom.

    In a group are devices that differ in `axes` alone; None is a single group.
    """
    joined = _joined(axes)
    together = tuple(name(axis) for axis, _ in joined)
    if not any(isinstance(axis, Digit) for axis, _ in joined):
        return together, None
    lengths: list[int] = []
    within: list[int] = []  # which of the lengths
    for axis, size in joined:
        if isinstance(axis, Digit):
            within.append(len(lengths) + 1)
            lengths += [axis.whole // (size * axis.stride), size, axis.stride]
        else:
            within.append(len(lengths))
            lengths.append(size)
    devices = np.arange(math.prod(lengths)).reshape(lengths)
    last = np.moveaxis(devices, within, range(-len(within), 0))
    return together, last.reshape(-1, ways(axes)).tolist()
