"""Meshes, leaves and their shardings, with the collectives that an update may have."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_muon import MatrixAxes

MESHES = {
    "x8": {"x": 8},
    "fsdp4_tensor2": {"fsdp": 4, "tensor": 2},
    "data2_fsdp2_tensor2": {"data": 2, "fsdp": 2, "tensor": 2},
}
EXCHANGE = {"all-to-all": 2}
GATHER = {"all-gather": 1}
SUMS = {"all-reduce": 3}


PLAIN = MatrixAxes(0, 1)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf's shape, mesh axes and, where names would not tell, matrix axes."""

    shape: tuple[int, ...]
    spec: P
    axes: MatrixAxes = PLAIN


@dataclasses.dataclass(frozen=True)
class Case:
    """Leaves on a mesh.

    Attributes:
      expected: how many collectives of each kind an update may have.
      tolerance: of float32 values against the unsharded update. Rounding is the same
        but where products are transposed, or sums of squares or of X X^T are ordered
        otherwise, which Keller Jordan's five steps magnify up to 485 times.
    """

    mesh: str
    leaves: dict[str, Leaf]
    expected: dict[str, int]
    tolerance: float = 1e-6


def several(count: int, *leaf: Any) -> dict[str, Leaf]:
    return {f"layer_{i:02d}": Leaf(*leaf) for i in range(count)}


HEADS = MatrixAxes(0, (1, 2))
OUT = MatrixAxes((0, 1), 2)
STACKED = MatrixAxes(1, 2)
WINDOW = MatrixAxes((0, 1, 2), 3)
FUSED = MatrixAxes(0, 1, fan_out_parts=(40, 12, 12))
FUSED_OUT = MatrixAxes((0, 1), 2, fan_in_parts=(40, 24))

CASES = {
    "rows": Case("x8", several(8, (32, 64), P("x")), EXCHANGE),
    "columns": Case("x8", several(8, (32, 64), P(None, "x")), EXCHANGE),
    "rows and columns": Case(
        "fsdp4_tensor2", several(8, (32, 64), P("fsdp", "tensor")), EXCHANGE
    ),
    "tall": Case("fsdp4_tensor2", several(8, (64, 32), P("tensor", "fsdp")), EXCHANGE),
    "two mesh axes on one": Case(
        "fsdp4_tensor2", several(8, (32, 64), P(("fsdp", "tensor"))), EXCHANGE
    ),
    "two mesh axes on one, minor first": Case(
        "fsdp4_tensor2", several(8, (32, 64), P(None, ("tensor", "fsdp"))), EXCHANGE
    ),
    "three mesh axes": Case(
        "data2_fsdp2_tensor2",
        several(8, (32, 64), P(("data", "fsdp"), "tensor")),
        EXCHANGE,
    ),
    "copies": Case(
        "data2_fsdp2_tensor2",
        several(8, (32, 64), P("fsdp", "tensor")),
        EXCHANGE | GATHER,
    ),
    "one axis, copies over two": Case(
        "data2_fsdp2_tensor2", several(8, (32, 64), P("tensor")), EXCHANGE | GATHER
    ),
    "replicated": Case("data2_fsdp2_tensor2", several(8, (32, 64), P()), GATHER),
    "heads": Case(
        "fsdp4_tensor2",
        several(8, (32, 4, 16), P("fsdp", "tensor"), HEADS),
        EXCHANGE,
    ),
    "head_dim": Case(  # the minor of two merged axes
        "fsdp4_tensor2",
        several(8, (32, 4, 16), P("fsdp", None, "tensor"), HEADS),
        EXCHANGE,
    ),
    "heads and head_dim": Case(
        "fsdp4_tensor2",
        several(8, (32, 4, 16), P(None, "fsdp", "tensor"), HEADS),
        EXCHANGE,
    ),
    "attention's out": Case(
        "fsdp4_tensor2",
        several(8, (4, 16, 32), P("tensor", None, "fsdp"), OUT),
        EXCHANGE,
    ),
    "convolutions": Case(
        "fsdp4_tensor2",
        several(8, (3, 3, 16, 32), P(None, None, "fsdp", "tensor"), WINDOW),
        EXCHANGE,
        tolerance=1e-5,
    ),
    "scanned": Case(
        "fsdp4_tensor2",
        several(1, (8, 32, 64), P(None, "fsdp", "tensor"), STACKED),
        EXCHANGE,
    ),
    # Fewer matrices than devices: sums of the norm's maximum and squares, and of X X^T
    # in the single cycle that float32 has.
    "few": Case("x8", several(2, (64, 1024), P("x")), EXCHANGE | SUMS, tolerance=1e-5),
    "few, columns": Case(
        "x8", several(2, (64, 1024), P(None, "x")), EXCHANGE | SUMS, tolerance=1e-5
    ),
    "few, copies": Case(
        "x8", several(2, (64, 1024), P()), GATHER | SUMS, tolerance=1e-5
    ),
    "few, rows and columns": Case(
        "fsdp4_tensor2",
        several(2, (64, 1024), P("fsdp", "tensor")),
        EXCHANGE | SUMS,
        tolerance=1e-5,
    ),
    "experts": Case("x8", several(2, (8, 32, 64), P("x"), STACKED), {}),
    "experts, and copies": Case(
        "fsdp4_tensor2", several(2, (4, 32, 64), P("fsdp"), STACKED), GATHER
    ),
    "experts and rows": Case(
        "fsdp4_tensor2",
        several(2, (4, 32, 64), P("tensor", "fsdp"), STACKED),
        EXCHANGE,
    ),
    "fewer than devices": Case("x8", several(3, (32, 64), P("x")), EXCHANGE),
    "a single matrix": Case(
        "fsdp4_tensor2", several(1, (32, 64), P("fsdp", "tensor")), EXCHANGE
    ),
    "not divisible": Case(
        "fsdp4_tensor2", several(11, (32, 64), P("fsdp", "tensor")), EXCHANGE
    ),
    "square, both orientations": Case(
        "fsdp4_tensor2",
        several(4, (32, 32), P("fsdp", "tensor"))
        | {"out": Leaf((32, 32), P("tensor", "fsdp"))},
        EXCHANGE,
        tolerance=1e-5,
    ),
    "wide and tall": Case(
        "fsdp4_tensor2",
        several(4, (32, 64), P("fsdp", "tensor"))
        | {"down": Leaf((64, 32), P("tensor", "fsdp"))},
        EXCHANGE,
    ),
    "fused": Case(  # devices' boundaries lie inside the parts
        "fsdp4_tensor2", several(8, (32, 64), P("tensor", "fsdp"), FUSED), EXCHANGE
    ),
    "fused along the fan-in": Case(
        "fsdp4_tensor2",
        several(2, (8, 8, 32), P("fsdp", "tensor"), FUSED_OUT),
        EXCHANGE,
        tolerance=1e-5,
    ),
    "all mixed": Case(
        "data2_fsdp2_tensor2",
        {
            "a": Leaf((32, 64), P("fsdp", "tensor")),
            "b": Leaf((32, 64), P("tensor")),
            "c": Leaf((64, 32), P(None, ("fsdp", "data"))),
            "d": Leaf((8, 32, 64), P("data"), STACKED),
            "e": Leaf((32, 4, 16), P("fsdp", "tensor"), HEADS),
            "f": Leaf((16, 48), P()),
        },
        # a with e, b, and c move; only of d, four on a device, is there work to share.
        {"all-to-all": 6, "all-gather": 1},
    ),
}


def mesh_of(name: str, kind: AxisType) -> jax.sharding.Mesh:
    sizes = MESHES[name]
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(kind,) * len(sizes)
    )


def on_mesh(case: Case, mesh: jax.sharding.Mesh, seed: int) -> dict[str, jax.Array]:
    """Gaussian leaves."""
    rng = np.random.default_rng(seed)
    return {
        name: jax.device_put(
            jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
            NamedSharding(mesh, leaf.spec),
        )
        for name, leaf in case.leaves.items()
    }


def axes_of(case: Case) -> dict[str, MatrixAxes]:
    return {name: leaf.axes for name, leaf in case.leaves.items()}
