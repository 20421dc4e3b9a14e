"""How the leaves of a tree lie on a mesh, and functions of one device's shards."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optax_muon._matrix_axes import path_name

Sizes = tuple[tuple[str, int], ...]
"""Names and sizes of mesh axes."""

Spec = tuple[tuple[str, ...], ...]
"""The names of the mesh axes on each axis of a leaf, major first."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the leaves of a tree lie on a mesh; static, and part of what is compiled.

    Attributes:
      shapes: the global shape of each leaf.
      specs: the mesh axes on each axis of each leaf.
      sizes: the mesh axes that may take part, in the mesh's order.
      kept_out: those of them that hold copies and take no part.
      enter: the axes that `jax.shard_map` must enter; the others, if any, a user's own
        has entered already.
      mesh: of those axes; None means the one in context.
    """

    shapes: tuple[tuple[int, ...], ...]
    specs: tuple[Spec, ...]
    sizes: Sizes = ()
    kept_out: tuple[str, ...] = ()
    enter: tuple[str, ...] = ()
    mesh: Any = None

    @property
    def devices(self) -> int:
        """How many the mesh has; 1 where nothing tells of a mesh."""
        return math.prod(size for _, size in self.sizes)

    def local(self, shape: tuple[int, ...], spec: Spec) -> tuple[int, ...]:
        """The shape of one device's shard of a leaf."""
        sizes = dict(self.sizes)
        return tuple(
            size // math.prod(sizes[name] for name in axes)
            for size, axes in zip(shape, spec, strict=True)
        )

    def partition_specs(self) -> list[PartitionSpec]:
        """The specs as `jax.shard_map` takes them: over the axes to enter."""
        return [
            PartitionSpec(*(_entry(axes, self.enter) for axes in spec))
            for spec in self.specs
        ]

    def on_shards(self, function: Callable[..., Any], *leaves: Any, rest: Any) -> Any:
        """`function(*leaves, rest)` of one device's shards.

        Args:
          function: returns as many lists of leaves, sharded as they came.
          leaves: lists, each with an array for every leaf.
          rest: arrays that every device has a copy of.
        """
        if not self.enter:
            return function(*leaves, rest)
        specs = self.partition_specs()
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=(*(specs for _ in leaves), PartitionSpec()),
            out_specs=tuple(specs for _ in leaves),
            axis_names=set(self.enter),
            check_vma=False,  # a user's function, or QDWH, is not written for it
        )(*leaves, rest)

    def entered(self, index: int) -> Spec:
        """Of a leaf's spec, the axes that a user's own `jax.shard_map` has entered."""
        return tuple(
            tuple(name for name in axes if name not in self.enter)
            for axes in self.specs[index]
        )

    def constrain(self, leaves: Sequence[Any]) -> list[Any]:
        """The leaves, laid out over the mesh axes for which the compiler chooses."""
        if not self.enter:
            return list(leaves)
        mesh = jax.sharding.get_abstract_mesh() if self.mesh is None else self.mesh
        kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
        chosen = [name for name in self.enter if kinds[name] == AxisType.Auto]
        if not chosen:
            return list(leaves)

        def place(leaf: Any, spec: Spec) -> Any:
            partition = PartitionSpec(*(_entry(axes, chosen) for axes in spec))
            where = partition if self.mesh is None else NamedSharding(mesh, partition)
            return jax.lax.with_sharding_constraint(leaf, where)

        return list(map(place, leaves, self.specs))

    def without(self, merged: Sequence[tuple[int, ...]]) -> "Layout":
        """That of statistics of the leaves, which have length 1 along merged axes."""
        specs = tuple(
            tuple(() if axis in gone else axes for axis, axes in enumerate(spec))
            for spec, gone in zip(self.specs, merged, strict=True)
        )
        return dataclasses.replace(self, specs=specs)


def check_same(transformation: str, tree: Any, new: Layout, stored: Layout) -> None:
    """Raise unless gradients lie on the mesh as the stored momentum does.

    Raises:
      ValueError: lists every leaf that does not, by types or NamedShardings.
    """
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    failures = [
        f"  {path_name(path)}  {shape}: gradient {here}, momentum {there}"
        for path, shape, here, there in zip(
            paths, new.shapes, new.specs, stored.specs, strict=True
        )
        if here != there
    ]
    if failures:
        raise ValueError(
            f"{transformation}: gradients and momentum are sharded over other axes:\n"
            + "\n".join(failures)
            + "\nBring them together with jax.reshard; gradients and state should lie "
            "as the parameters do."
        )


def _entry(axes: tuple[str, ...], kept: Sequence[str]) -> str | tuple[str, ...] | None:
    names = tuple(name for name in axes if name in kept)
    return None if not names else names[0] if len(names) == 1 else names
