"""The mesh of all devices, and how parameters and batches lie on it."""

import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from usage import UsageError

# Batches are cut over data and fsdp, parameters over fsdp and tensor. An axis that
# --mesh leaves out has size 1, so one rule serves every mesh.
AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))

# Layers that lead back into the residual stream. The layers before them leave their
# outputs cut over tensor, and these take them as they come.
INWARD = {"out", "down"}


def parse_mesh(text: str | None, devices: int) -> dict[str, int]:
    """The size of every axis, from "data=2,fsdp=4"; None puts all devices on fsdp."""
    if text is None:
        text = f"fsdp={devices}"
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in AXES:
            raise _refused(text, f"{name!r} is none of the axes {', '.join(AXES)}")
        if name in sizes:
            raise _refused(text, f"{name} is given twice")
        if not size.isdecimal() or int(size) < 1:
            raise _refused(text, f"the size of {name} is {size!r}, no positive number")
        sizes[name] = int(size)
    if math.prod(sizes.values()) != devices:
        raise _refused(
            text,
            f"it takes {math.prod(sizes.values())} devices and there are {devices}",
        )
    return {name: sizes.get(name, 1) for name in AXES}


def _refused(text: str, reason: str) -> UsageError:
    return UsageError(
        "--mesh",
        text,
        reason,
        "Write AXIS=SIZE pairs such as data=2,fsdp=4 whose product is the number of "
        "devices of all processes",
    )


def make_mesh(sizes: dict[str, int]) -> Mesh:
    """All devices of all processes, near ones along the last axes."""
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
    )


def spec_of(path: tuple, rank: int) -> P:
    """Matrices over fsdp and tensor, vectors and scalars a copy on every device.

    Moments have the names of their parameters, so the rule serves optimizer states.
    """
    if rank < 2:
        return P()
    if INWARD.intersection(_name(path).split("/")):
        return P("tensor", *(None,) * (rank - 2), "fsdp")
    return P("fsdp", "tensor")


def shardings(mesh: Mesh, tree: Any) -> Any:
    """The sharding of each leaf; one error for all that cannot be cut evenly."""
    uneven = []

    def sharding(path, leaf):
        spec = spec_of(path, len(leaf.shape))
        for size, axis in zip(leaf.shape, spec, strict=False):
            parts = 1 if axis is None else mesh.shape[axis]
            if size % parts:
                uneven.append(f"{_name(path)} {leaf.shape} into {parts} over {axis}")
        return NamedSharding(mesh, spec)

    tree = jax.tree_util.tree_map_with_path(sharding, tree)
    if uneven:
        raise UsageError(
            "--mesh",
            text_of(mesh),
            f"it cannot cut evenly {'; '.join(uneven)}",
            "Choose axes that divide --width and --heads",
        )
    return tree


def batch_sharding(mesh: Mesh, size: int) -> NamedSharding:
    """Windows of the global batch over data and fsdp."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if size % parts:
        raise UsageError(
            "--batch",
            size,
            f"the mesh {text_of(mesh)} cuts it into {parts} equal parts",
            f"Choose a multiple of {parts}",
        )
    return NamedSharding(mesh, BATCH)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def text_of(mesh: Mesh) -> str:
    """The mesh as --mesh has it."""
    return ",".join(f"{name}={size}" for name, size in mesh.shape.items())
