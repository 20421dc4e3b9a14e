"""shardings_of: how parameters lie on a mesh, read off them or a model's metadata."""

import numbers
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from optax_muon._boxes import imported_nnx, is_box, is_variable
from optax_muon._matrix_axes import path_name


def shardings_of(params: Any) -> Any:
    """A tree for the argument `sharding`: what each leaf's array or metadata says.

    Args:
      params: live arrays; abstract ones (`jax.ShapeDtypeStruct`) with shardings; NNX
        states whose variables carry names of mesh axes; Linen's boxed variables
        (`nn.with_partitioning`, before `nn.unbox`); or specs and shardings themselves,
        as `nnx.get_partition_spec` and `nn.get_partition_spec` give. Where an array has
        a `NamedSharding`, it counts, and its metadata must not say otherwise. Logical
        names are no mesh axes: translate them first (`nn.logical_to_mesh_sharding`).

    Returns:
      A tree with a leaf for every parameter: NamedSharding, PartitionSpec (from
      metadata; it needs a mesh in context), or None for an array on one device, which
      counts as a copy on each.

    Raises:
      TypeError: lists arrays with shardings of another kind, and leaves that are
        neither arrays nor any of the above.
      ValueError: lists arrays that lie in another way than their metadata says; or
        abstract arrays, none of which says how it will lie.

    >>> import jax.numpy as jnp
    >>> print(shardings_of({"kernel": jnp.ones((2, 3))}))
    {'kernel': None}
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_box)
    found, others, contradictions = [], [], []
    for path, leaf in flat:
        name = path_name(path)
        values = jax.tree.leaves(leaf, is_leaf=_is_told)
        live = _of_array(values[0]) if values else None
        told = _of_metadata(leaf)
        if live is None or _is_told(live):
            found.append(told if live is None else live)
        else:
            others.append(f"  {name}: {live!r}")
        if isinstance(live, NamedSharding) and _contradicts(live, told, values[0]):
            contradictions.append(f"  {name}: {told}, but it lies as {live.spec}")
    if others:
        raise TypeError(
            "shardings_of reads NamedShardings and PartitionSpecs, off arrays and "
            "metadata, but these leaves have, or are, something else:\n"
            + "\n".join(others)
            + "\nPut them on a mesh with jax.device_put(x, NamedSharding(mesh, spec))."
        )
    if contradictions:
        raise ValueError(
            "shardings_of: these arrays do not lie as their metadata says:\n"
            + "\n".join(contradictions)
            + "\nMove them with jax.device_put, or pass them without their metadata."
        )
    untold = all(told is None for told in found)
    if untold and any(_is_abstract(leaf) for _, leaf in flat):
        raise ValueError(
            "shardings_of: nothing says how these abstract arrays will lie. Pass live "
            "parameters, or give each jax.ShapeDtypeStruct its sharding, which "
            "jax.eval_shape does not keep."
        )
    return jax.tree.unflatten(treedef, found)


def _is_abstract(leaf: Any) -> bool:
    return any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(leaf))


def _contradicts(live: NamedSharding, told: PartitionSpec | None, value: Any) -> bool:
    """Whether an array lies in another way than metadata for its mesh says."""
    if told is None or live is value:
        return False
    entries = [(axes,) if isinstance(axes, str) else axes or () for axes in told]
    named = {name for axes in entries for name in axes}
    if not named or not named <= set(live.mesh.axis_names):
        return False
    return not live.is_equivalent_to(NamedSharding(live.mesh, told), value.ndim)


def _is_told(x: Any) -> bool:
    return isinstance(x, (NamedSharding, PartitionSpec))


def _of_array(value: Any) -> Any:
    """An array's sharding over several devices; what is no array, itself."""
    if _is_told(value):
        return value
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            "shardings_of was called under jit, where arrays on a mesh of Auto axes do "
            "not tell how they lie; call it outside, on live parameters."
        )
    if isinstance(value, numbers.Number):
        return None
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        return value
    sharding = getattr(value, "sharding", None)
    if isinstance(sharding, NamedSharding):
        return sharding
    on_several = sharding is not None and len(sharding.device_set) > 1
    return sharding if on_several else None


def _of_metadata(leaf: Any) -> PartitionSpec | None:
    """What a Linen box or an NNX variable says."""
    if hasattr(leaf, "get_partition_spec"):
        return leaf.get_partition_spec()
    if is_variable(leaf):
        spec = imported_nnx().get_partition_spec(leaf)
        specs = jax.tree.leaves(spec, is_leaf=_is_told)
        return specs[0] if specs else None
    return None
