"""Which mesh axes shard each leaf: told by the argument `sharding`, or by the types."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from optax_muon._by_path import entries_by_path
from optax_muon._enclosing import enclosing_sharding
from optax_muon._layout import Layout
from optax_muon._leaf_specs import (
    explicit_axes,
    global_shape,
    spec_of,
    told_spec,
    typed_sharding,
)
from optax_muon._matrix_axes import Path, path_name

ShardingLike = Any
"""A tree (or prefix) of NamedSharding or PartitionSpec, or `KeepOut`. None, in a part,
is what the recipe or `route` around it has; without that, the types tell."""


@dataclasses.dataclass(frozen=True)
class KeepOut:
    """A `sharding` some of whose mesh axes carry none of the optimizer's traffic.

    By default every mesh axis that holds copies of a matrix takes its share of the
    work, and gathers the results. Over a slow network between data centres that may
    cost more than it saves: kept out, such an axis does the work once on each side.

    Attributes:
      axes: name or names of mesh axes; none of them may shard rows or columns.
      sharding: as without `KeepOut`.

    >>> KeepOut("dcn").axes
    ('dcn',)
    """

    axes: str | tuple[str, ...]
    sharding: Any = None

    def __post_init__(self) -> None:
        axes = (self.axes,) if isinstance(self.axes, str) else self.axes
        if (
            not isinstance(axes, (tuple, list))
            or not axes
            or not all(isinstance(name, str) for name in axes)
        ):
            raise TypeError(
                f"KeepOut(axes={self.axes!r}) must be the name of a mesh axis, or a "
                "tuple of names."
            )
        if isinstance(self.sharding, KeepOut):
            raise TypeError("KeepOut(sharding=KeepOut(...)): name all axes in one.")
        object.__setattr__(self, "axes", tuple(axes))


def read_layout(tree: Any, sharding: ShardingLike, transformation: str) -> Layout:
    """The layout of `tree`.

    Args:
      tree: arrays, or anything with shape and dtype.
      sharding: the user's argument.
      transformation: its name, for messages.

    Raises:
      ValueError: lists every leaf whose spec does not fit, with the reason; no mesh, or
        more than one.
      TypeError: leaves of `sharding` of another type.
    """
    kept_out: tuple[str, ...] = ()
    sharding = enclosing_sharding(sharding)
    if isinstance(sharding, KeepOut):
        kept_out, sharding = tuple(sharding.axes), sharding.sharding
        if sharding is None:
            around = enclosing_sharding(None)
            sharding = around.sharding if isinstance(around, KeepOut) else around
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    if sharding is None:
        layout = _typed_layout([leaf for _, leaf in flat], transformation)
    else:
        layout = _told_layout(tree, flat, sharding, kept_out, transformation)
    unknown = [name for name in kept_out if name not in dict(layout.sizes)]
    if unknown and flat:
        raise ValueError(
            f"{transformation}: KeepOut names {unknown}, but the mesh axes are "
            f"{[name for name, _ in layout.sizes]}; pass KeepOut(axes, sharding) with "
            "the parameters' shardings, or a mesh of Explicit axes."
        )
    named = {name for spec in layout.specs for axes in spec for name in axes}
    return dataclasses.replace(
        layout,
        kept_out=kept_out,
        # Or a vmap over such an axis would find it taken.
        enter=tuple(n for n in layout.enter if n in named or n not in kept_out),
    )


def _typed_layout(leaves: list[Any], transformation: str) -> Layout:
    """From sharding-in-types: only Explicit axes show there."""
    shapes = tuple(jnp.shape(leaf) for leaf in leaves)
    typed = [typed_sharding(leaf) for leaf in leaves]
    meshes = [t.mesh for t in typed if t is not None]
    if not meshes:
        return Layout(shapes, tuple(((),) * len(shape) for shape in shapes))
    mesh = meshes[0]
    explicit = explicit_axes(mesh)
    if AxisType.Auto in mesh.axis_types:
        raise ValueError(
            f"{transformation}: sharding=None reads the types, but of the mesh axes "
            f"{mesh.axis_names} they tell only {explicit}, the Explicit ones; pass "
            "sharding=optax_muon.shardings_of(params), from outside jit."
        )
    specs = tuple(
        ((),) * len(shape) if t is None else spec_of(t.spec, len(shape))
        for t, shape in zip(typed, shapes, strict=True)
    )
    in_context = not jax.sharding.get_abstract_mesh().empty
    return Layout(
        shapes,
        specs,
        sizes=tuple((name, mesh.shape[name]) for name in explicit),
        enter=explicit,
        mesh=None if in_context else mesh,
    )


def _told_layout(
    tree: Any,
    flat: list[tuple[Path, Any]],
    sharding: Any,
    kept_out: tuple[str, ...],
    transformation: str,
) -> Layout:
    entry_of = entries_by_path(
        "sharding", "NamedSharding or PartitionSpec", tree, sharding, _is_entry
    )
    entries = [entry_of(path) for path, _ in flat]
    mesh = _one_mesh(entries, transformation) if flat else None
    context = jax.sharding.get_abstract_mesh()
    seen = context if mesh is None else mesh
    manual = context.manual_axes
    shapes, specs, failures = [], [], []
    for (path, leaf), entry in zip(flat, entries, strict=True):
        local = jnp.shape(leaf)
        try:
            spec = told_spec(leaf, entry, seen, manual, kept_out)
            specs.append(spec)
            shapes.append(global_shape(local, spec, seen, manual))
        except ValueError as error:
            name = path_name(path)
            failures.append(f"  {name}  {local}: {error}")
    if failures:
        raise ValueError(
            f"{transformation}: sharding does not fit these leaves:\n"
            + "\n".join(failures)
            + "\nPass the shardings that the parameters have: "
            "optax_muon.shardings_of(params) reads them."
        )
    _check_devices(flat, mesh, transformation)
    return Layout(
        tuple(shapes),
        tuple(specs),
        sizes=tuple(seen.shape.items()),
        enter=tuple(name for name in seen.axis_names if name not in manual),
        mesh=mesh if context.empty else None,
    )


def _check_devices(
    flat: list[tuple[Path, Any]], mesh: Any, transformation: str
) -> None:
    """Raise if arrays, outside jit, lie on other devices than the mesh has."""
    if isinstance(jnp.zeros(()), jax.core.Tracer) or not isinstance(mesh, Mesh):
        return  # arrays that jit finds are constants: JAX moves those
    told = list(mesh.devices.flat)
    for path, leaf in flat:
        there = _devices(leaf)
        if there in ([], told):
            continue
        ids = [str([d.id for d in devices][:9]) for devices in (there, told)]
        raise ValueError(
            f"{transformation}: sharding is of a mesh of the {len(told)} device(s) "
            f"{ids[1]}, but {path_name(path)} lies on the {len(there)} device(s) "
            f"{ids[0]}; JAX needs the same ones in the same order. Put the parameters "
            "there first, jax.device_put(params, sharding), or pass a sharding of the "
            "mesh on which they lie."
        )


def _devices(leaf: Any) -> list[Any]:
    """Where an array is held, in order, if that is known and not for JAX to choose."""
    known = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    if not known or not leaf.committed:
        return []
    own: Any = leaf.sharding
    if isinstance(own, NamedSharding):
        return list(own.mesh.devices.flat)
    return list(own.device_set) if len(own.device_set) == 1 else []


def _is_entry(x: Any) -> bool:
    return isinstance(x, (NamedSharding, PartitionSpec))


def _one_mesh(entries: list[Any], transformation: str) -> Any:
    """The mesh of all NamedShardings; None where only the context has one."""
    meshes = {e.mesh for e in entries if isinstance(e, NamedSharding)}
    context = jax.sharding.get_abstract_mesh()
    shapes = {tuple(mesh.shape.items()) for mesh in meshes}
    if not context.empty:
        shapes.add(tuple(context.shape.items()))
    if len(shapes) > 1 or len(meshes) > 1:
        raise ValueError(
            f"{transformation}: sharding (or it and the mesh in context) names several "
            f"meshes: {sorted(map(str, meshes or shapes))}; all leaves must lie on one "
            "mesh, of the same devices in the same order."
        )
    if not shapes and any(isinstance(e, PartitionSpec) for e in entries):
        raise ValueError(
            f"{transformation}: sharding holds PartitionSpecs, but there is no mesh in "
            "context; call jax.set_mesh(mesh) first, or pass NamedShardings."
        )
    return next(iter(meshes), None)
