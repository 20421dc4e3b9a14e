"""Linen's boxes and NNX's variables: parameters that carry names of their axes."""

import importlib
import sys
from typing import Any


def is_box(x: Any) -> bool:
    """Whether x is a Linen box, or an NNX variable: both carry metadata."""
    return hasattr(x, "replace_boxed") or is_variable(x)  # any `nn.meta.AxisMetadata`


def is_variable(x: Any) -> bool:
    """Whether x is an NNX variable."""
    nnx = imported_nnx()
    return nnx is not None and isinstance(x, nnx.Variable)


def params_of(model: Any) -> Any:
    """The `nnx.Param`s of an NNX module; anything else is a tree of them already."""
    nnx = imported_nnx()
    if nnx is not None and isinstance(model, nnx.Module):
        return nnx.state(model, nnx.Param)
    return model


def imported_nnx() -> Any:
    """flax.nnx, or None where nobody has imported it: then nothing can be of its types.

    `sys.modules` alone could give a module that another thread is still importing.
    """
    return importlib.import_module("flax.nnx") if "flax.nnx" in sys.modules else None


def axis_names(leaf: Any) -> tuple[Any, ...]:
    """The names as they were given, not as mesh axes; () where there are none."""
    if is_variable(leaf):
        names = leaf.get_metadata().get("out_sharding")
    elif hasattr(leaf, "names"):  # LogicallyPartitioned, Partitioned
        names = leaf.names
    else:  # a module of NNX inside Linen has boxes with the variable's metadata
        names = getattr(leaf, "metadata", {}).get("out_sharding")
    return tuple(tuple(x) if isinstance(x, list) else x for x in names or ())
