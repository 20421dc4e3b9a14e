"""One leaf's spec: of its type or of an entry of `sharding`, or why that is refused."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optax_muon._by_path import MISSING
from optax_muon._layout import Spec


def typed_sharding(leaf: Any) -> NamedSharding | None:
    """The leaf's sharding if its type tells one."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        sharding = leaf.sharding
    else:
        sharding = jax.typeof(leaf).sharding
    if isinstance(sharding, NamedSharding) and explicit_axes(sharding.mesh):
        return sharding
    return None


def explicit_axes(mesh: Any) -> tuple[str, ...]:
    """The mesh axes that types tell."""
    return tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    )


def told_spec(leaf: Any, entry: Any, mesh: Any, manual: Any, kept_out: Any) -> Spec:
    """The spec of an entry.

    Args:
      leaf: an array, or anything with shape and dtype.
      entry: NamedSharding or PartitionSpec.
      mesh: whose axes the entry may name.
      manual: mesh axes over which the leaf is cut already, within `shard_map`.
      kept_out: those of `KeepOut`.

    Raises:
      ValueError: the reason why leaf and entry do not go together.
    """
    spec = _fitting(entry, jnp.shape(leaf), mesh, manual)
    _check_type(leaf, spec, set(manual) - set(kept_out))
    return spec


def global_shape(
    local: tuple[int, ...], spec: Spec, mesh: Any, manual: Any
) -> tuple[int, ...]:
    """The leaf's shape outside `shard_map`."""
    return tuple(
        size * math.prod(mesh.shape[name] for name in axes if name in manual)
        for size, axes in zip(local, spec, strict=True)
    )


def spec_of(partition: PartitionSpec, rank: int) -> Spec:
    """The mesh axes of each of the leaf's axes."""
    if partition.unreduced:
        raise ValueError(
            f"{partition} is not summed yet over {sorted(partition.unreduced)}; "
            "jax.reshard it first"
        )
    entries = [*tuple(partition), *(None,) * (rank - len(partition))]
    return tuple(
        () if e is None else (e,) if isinstance(e, str) else tuple(e) for e in entries
    )


def _fitting(entry: Any, local: tuple[int, ...], mesh: Any, manual: Any) -> Spec:
    """The spec, if the mesh has its axes and they cut the leaf into equal parts."""
    if entry is MISSING:
        raise ValueError("the tree `sharding` has no entry for it")
    partition = entry.spec if isinstance(entry, NamedSharding) else entry
    partition = PartitionSpec() if partition is None else partition
    kind = entry.memory_kind if isinstance(entry, NamedSharding) else None
    if kind is not None and "host" in kind:
        raise ValueError(
            f"memory_kind={kind!r}; moments are kept in device memory only"
        )
    if len(partition) > len(local):
        raise ValueError(f"{partition} has more entries than the leaf has axes")
    if PartitionSpec.UNCONSTRAINED in tuple(partition):
        raise ValueError(f"{partition} leaves an axis to the compiler; name its axes")
    spec = spec_of(partition, len(local))
    used = [name for axes in spec for name in axes]
    unknown = [name for name in used if name not in mesh.shape]
    if unknown:
        raise ValueError(
            f"{partition} names {unknown}, but the mesh axes are {list(mesh.shape)} "
            "(logical names are to be translated first)"
        )
    if len(set(used)) < len(used):
        raise ValueError(f"{partition} names a mesh axis twice")
    for axis, (size, axes) in enumerate(zip(local, spec, strict=True)):
        parts = math.prod(mesh.shape[name] for name in axes if name not in manual)
        if size % parts:
            raise ValueError(
                f"axis {axis} of length {size} cannot be cut into {parts} equal parts "
                f"over {axes}"
            )
    return spec


def _check_type(leaf: Any, spec: Spec, held_apart: set[str]) -> None:
    """Raise if the leaf's type says something else than `spec`."""
    typed = typed_sharding(leaf)
    if typed is not None:
        explicit = explicit_axes(typed.mesh)
        visible = tuple(tuple(n for n in axes if n in explicit) for axes in spec)
        if spec_of(typed.spec, len(spec)) != visible:
            raise ValueError(
                f"its type says {typed.spec}; jax.reshard it, or mend that"
            )
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return
    named = {name for axes in spec for name in axes}
    varying = sorted((jax.typeof(leaf).manual_axis_type.varying & held_apart) - named)
    if varying:
        raise ValueError(
            f"it differs along mesh axes {varying}, which its spec says hold copies; "
            "average gradients over them first (jax.lax.pmean), or KeepOut them"
        )
