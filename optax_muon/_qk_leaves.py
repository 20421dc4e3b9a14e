"""Which entries of a leaf make queries and keys of which heads: `QKLeaf`.

`_qk_rules` says it of leaves by their names, `_qk_attentions` puts leaves together.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_muon._matrix_axes import Stackable, UndecidedLeafError

# None: entries that keep their size, as values do.
ROLES = ("query", "key", "rotary_query", None)

Parts = tuple[tuple[str | None, int], ...]


@dataclasses.dataclass(frozen=True)
class QKLeaf(Stackable):
    """What a leaf holds of an attention: of which heads, and where.

    Attributes:
      attention: the path of the attention module, its names joined by "/".
      parts: "query" or "key" for a whole leaf; else (role, size) of each part along
        the axis `along`, which tile one head, or all of the axis. Roles: "query";
        "key"; "rotary_query", MLA's part that meets a rotary key shared by all heads;
        None, which nothing scales, such as values.
      heads: the axis that holds heads; None for a leaf of one head.
      along: the axis that the parts lie along.
      head_width: how many entries of the axis `heads` one head has: 1, or head_dim
        where heads and features are merged, heads outermost.
      group: how many query heads one head of this leaf holds, where the query heads
        that share a key head lie together as one.
      layers: the axes of stacked layers, in the order they have in `max_logits`.

    Negative axes count from the end, so that one description fits kernel and bias.

    >>> QKLeaf("block_0/attention", "query").parts  # kernel [d, heads, head_dim]
    'query'
    >>> fused = QKLeaf(  # [d, 8 query, 2 key and 2 value heads, head_dim]
    ...     "block_0/attention", (("query", 8), ("key", 2), (None, 2)), along=-2
    ... )
    >>> merged = QKLeaf(  # the same as [d, 12 * 64]
    ...     "block_0/attention",
    ...     (("query", 512), ("key", 128), (None, 128)),
    ...     heads=-1,
    ...     head_width=64,
    ... )
    >>> grouped = QKLeaf(  # [d, 2 * (4 + 1 + 1) * 64]: a key head with its query heads
    ...     "block_0/attention",
    ...     (("query", 256), ("key", 64), (None, 64)),
    ...     heads=-1,
    ...     head_width=384,
    ...     group=4,
    ... )
    """

    attention: str
    parts: str | Parts
    _: dataclasses.KW_ONLY
    heads: int | None = -2
    along: int = -1
    head_width: int = 1
    group: int = 1
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.attention, str):
            raise TypeError(
                f"attention={self.attention!r} must be names joined by '/'."
            )
        if not isinstance(self.parts, str):
            object.__setattr__(self, "parts", tuple(map(tuple, self.parts)))
        parts = ((self.parts, 1),) if isinstance(self.parts, str) else self.parts
        if not parts or not all(r in ROLES and _is_count(n) for r, n in parts):
            raise ValueError(
                f"parts={self.parts!r} must be a role or a tuple of (role, size), with "
                f"roles of {ROLES} and sizes of at least 1."
            )
        object.__setattr__(self, "layers", tuple(self.layers))
        axes = (self.along, *self.layers, *([] if self.heads is None else [self.heads]))
        if not all(isinstance(a, int) and not isinstance(a, bool) for a in axes):
            raise TypeError(f"{self}: heads, along and layers must be axes, ints.")
        for name in ("head_width", "group"):
            if not _is_count(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)!r} must be an int >= 1.")

    def stacked(self, axis: int, shape: tuple[int, ...]) -> "QKLeaf":
        """The new axis is one of layers."""
        heads, along, layers = self._axes(shape)

        def moved(a: int) -> int:
            return a + (a >= axis)

        return dataclasses.replace(
            self,
            heads=None if self.heads is None else moved(heads),
            along=moved(along),
            layers=(axis, *map(moved, layers)),
        )

    def view(self, shape: tuple[int, ...]) -> "QKView":
        """These parts in a leaf of `shape`.

        Raises:
          UndecidedLeafError: axes that the shape lacks; parts that do not tile it.
        """
        heads, along, layers = self._axes(shape)
        width = shape[along] if self.heads is None else self.head_width
        tile = width if heads == along else shape[along]
        parts = ((self.parts, tile),) if isinstance(self.parts, str) else self.parts
        size = sum(n for _, n in parts)
        # One after the other along the axis of heads, and each with heads of its own.
        in_a_row = heads == along and size == shape[along] != width
        fits = all(n % width == 0 for _, n in parts) if in_a_row else size == tile
        if not fits or shape[heads] % width:
            raise UndecidedLeafError(f"{self} does not tile a leaf of shape {shape}")
        counts = [n // width if in_a_row else shape[heads] // width for _, n in parts]
        return QKView(
            shape=shape,
            layers=layers,
            heads=heads,
            along=along,
            width=width,
            in_a_row=in_a_row,
            parts=tuple((r, n, c) for (r, n), c in zip(parts, counts, strict=True)),
            group=self.group,
        )

    def _axes(self, shape: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        """Heads, along and layers, non-negative; one head lies where its parts do."""
        rank = len(shape)
        heads = self.along if self.heads is None else self.heads
        axes = [a + rank if a < 0 else a for a in (heads, self.along, *self.layers)]
        heads, along, *layers = axes
        if not all(0 <= a < rank for a in axes) or (
            len({heads, along, *layers}) < len({heads, along}) + len(layers)
        ):
            raise UndecidedLeafError(f"{self} does not fit a leaf of shape {shape}")
        return heads, along, tuple(layers)


@dataclasses.dataclass(frozen=True)
class QKView:
    """A leaf's shape with its parts (role, size, heads), and non-negative axes."""

    shape: tuple[int, ...]
    layers: tuple[int, ...]
    heads: int
    along: int
    width: int
    in_a_row: bool
    parts: tuple[tuple[str | None, int, int], ...]
    group: int

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """How many layers are stacked along each axis of layers."""
        return tuple(self.shape[a] for a in self.layers)

    def counts(self, *roles: str) -> set[int]:
        """How many heads, as this leaf counts, its parts of these roles have."""
        return {count for role, _, count in self.parts if role in roles}

    def spread(self, numbers: Mapping[str, Float[Array, "*layers heads"]]) -> Array:
        """Numbers for the key heads, by role, as an array to multiply the leaf with."""
        pieces = []
        for role, size, count in self.parts:
            if role is None:
                one = jnp.ones((*self.layer_sizes, count))
            else:
                one = numbers[role]
                one = jnp.repeat(one, count // one.shape[-1], axis=-1)
            if self.in_a_row:
                pieces.append(jnp.repeat(one, self.width, axis=-1))
            else:
                pieces.append(jnp.broadcast_to(one[..., None], (*one.shape, size)))
        whole = jnp.concatenate(pieces, axis=-1)
        axes = [*self.layers, self.heads]
        if self.along != self.heads:
            whole = jnp.repeat(whole, self.width, axis=-2)
            axes.append(self.along)
        elif not self.in_a_row:
            whole = whole.reshape(*whole.shape[:-2], -1)
        whole = whole.transpose(sorted(range(len(axes)), key=axes.__getitem__))
        others = [a for a in range(len(self.shape)) if a not in axes]
        return jnp.expand_dims(whole, others)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
