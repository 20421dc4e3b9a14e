"""Which axes of a leaf are stacked layers: those that one layer's shape has not.

`nn.scan`, `nnx.scan` and `vmap` add axes to leaves. Where lengths coincide, such as 32
layers of 32 heads, several axes of a leaf may be the added one. Then other leaves tell,
but those alone that are known to be stacked together with it, by one transformation:
that stacks them along the same axis, counted from the start or from the end, and to
the same length. Stacks side by side in a model may lie along axes of their own.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

Axes = tuple[int, ...]
Lengths = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Stacked:
    """A leaf that may be stacked.

    Attributes:
      names: its path.
      shape: that of the whole leaf.
      layer: that of one layer, if it is known; None in it is any length.
      together: so many of its names lead to the outermost module that is known to be
        stacked as a whole.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    layer: Lengths | None
    together: int


def stacked_axes(leaves: Sequence[Stacked]) -> list[set[Axes]]:
    """For each leaf the axes that may be the stacked ones: one entry if it is decided.

    None at all says that the shape does not fit the layer's, or that this is not known.

    >>> kernel = Stacked(("out", "kernel"), (8, 8, 4, 5), (8, 4, 5), together=1)
    >>> bias = Stacked(("out", "bias"), (8, 5), (5,), together=1)
    >>> stacked_axes([kernel]), stacked_axes([kernel, bias])
    ([{(0,), (1,)}], [{(0,)}, {(0,)}])
    """
    possible = [_possible(leaf) for leaf in leaves]
    return [
        _agreed(i, leaves, possible) if len(axes) > 1 else axes
        for i, axes in enumerate(possible)
    ]


def without(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """The shape of one layer of a stack."""
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _possible(leaf: Stacked) -> set[Axes]:
    if leaf.layer is None or len(leaf.layer) > len(leaf.shape):
        return set()
    rank = len(leaf.shape)
    return {
        axes
        for axes in itertools.combinations(range(rank), rank - len(leaf.layer))
        if all(
            size is None or size == found
            for size, found in zip(leaf.layer, without(leaf.shape, axes), strict=True)
        )
    }


def _agreed(
    i: int, leaves: Sequence[Stacked], possible: Sequence[set[Axes]]
) -> set[Axes]:
    """The axes of leaf i that agree with other leaves of its module, or around it."""
    rank = len(leaves[i].shape)
    for peers in _enclosing(i, leaves, possible):
        agreed = _numberings(possible[i], leaves[i].shape)
        for j in peers:
            agreed &= _numberings(possible[j], leaves[j].shape)
        axes = {tuple(sorted(axis % rank for axis in one)) for one, _ in agreed}
        if len(axes) == 1:
            return axes
    return possible[i]


def _enclosing(
    i: int, leaves: Sequence[Stacked], possible: Sequence[set[Axes]]
) -> Iterator[list[int]]:
    """The leaves of the modules around leaf i, the innermost first, while all stack."""

    def depth(j: int) -> int:
        return len(min(possible[j]))

    names = leaves[i].names
    for length in range(len(names) - 1, leaves[i].together - 1, -1):
        inside = [
            j
            for j, leaf in enumerate(leaves)
            if leaf.names[:length] == names[:length] and possible[j]
        ]
        if any(depth(j) < depth(i) for j in inside):
            return
        yield [j for j in inside if depth(j) == depth(i)]


def _numberings(axes: set[Axes], shape: tuple[int, ...]) -> set[tuple[Axes, Axes]]:
    """Each axis by its number from the start, and by that from the end; and lengths."""
    rank = len(shape)
    return {
        (numbered, tuple(sorted(shape[axis] for axis in one)))
        for one in axes
        for numbered in itertools.product(*((axis, axis - rank) for axis in one))
    }
