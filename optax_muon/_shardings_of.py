"""shardings_of: how parameters lie on a mesh, read off them or a model's metadata."""

import importlib
import importlib.util
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from optax_muon._routing import path_names

_HAS_FLAX = importlib.util.find_spec("flax") is not None


def shardings_of(params: Any) -> Any:
    """A tree for the argument `sharding`: what each leaf's array or metadata says.

    Args:
      params: live arrays; abstract ones (`jax.ShapeDtypeStruct`) with shardings; NNX
        states whose variables carry names of mesh axes; Linen's boxed variables
        (`nn.with_partitioning`, before `nn.unbox`). Where an array has a
        `NamedSharding`, it counts, not the metadata. Logical names are no mesh axes:
        translate them first (`nn.logical_to_mesh_sharding`).

    Returns:
      A tree with a leaf for every parameter: NamedSharding, PartitionSpec (from
      metadata; it needs a mesh in context), or None for an array on one device, which
      counts as a copy on each.

    Raises:
      TypeError: lists arrays with shardings of another kind.

    >>> import jax.numpy as jnp
    >>> print(shardings_of({"kernel": jnp.ones((2, 3))}))
    {'kernel': None}
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_box)
    found, failures = [], []
    for path, leaf in flat:
        sharding = _sharding(leaf)
        if sharding is not None and not isinstance(
            sharding, (NamedSharding, PartitionSpec)
        ):
            failures.append(f"  {'/'.join(path_names(path))}: {sharding}")
        found.append(sharding)
    if failures:
        raise TypeError(
            "shardings_of reads NamedShardings, but these leaves have others:\n"
            + "\n".join(failures)
            + "\nPut them on a mesh with jax.device_put(x, NamedSharding(mesh, spec))."
        )
    return jax.tree.unflatten(treedef, found)


def _is_box(x: Any) -> bool:
    """Whether x is a Linen box, or an NNX variable: both carry metadata."""
    return hasattr(x, "get_partition_spec") or _is_variable(x)


def _is_variable(x: Any) -> bool:
    return _HAS_FLAX and isinstance(x, importlib.import_module("flax.nnx").Variable)


def _sharding(leaf: Any) -> Any:
    for value in jax.tree.leaves(leaf)[:1]:
        if isinstance(value, jax.core.Tracer):
            raise TypeError(
                "shardings_of was called under jit, where arrays on a mesh of Auto "
                "axes do not tell how they lie; call it outside, on live parameters."
            )
        sharding = getattr(value, "sharding", None)
        if isinstance(sharding, NamedSharding):
            return sharding
        on_several = sharding is not None and len(sharding.device_set) > 1
        if on_several and not _is_box(leaf):
            return sharding
    if hasattr(leaf, "get_partition_spec"):
        return leaf.get_partition_spec()
    if _is_variable(leaf):
        spec = importlib.import_module("flax.nnx").get_partition_spec(leaf)
        return jax.tree.leaves(spec, is_leaf=lambda x: isinstance(x, PartitionSpec))[0]
    return None
