"""Models on meshes of TPU chips, as data: what tpu_aot.py compiles."""

import dataclasses
from typing import Any, NamedTuple

from jax.sharding import PartitionSpec as P

from optax_muon import MatrixAxes

PLAIN = MatrixAxes(0, 1)
HEADS = MatrixAxes(0, (1, 2))
FROM_HEADS = MatrixAxes((0, 1), 2)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter: its shape, mesh axes, and matrix axes (None: AdamW's)."""

    shape: tuple[int, ...]
    spec: P
    axes: MatrixAxes | None = PLAIN


Model = dict[str, Leaf]


@dataclasses.dataclass(frozen=True)
class Chip:
    """Public figures of a TPU (cloud.google.com/tpu/docs), for roofline estimates.

    Attributes:
      flops: bfloat16 products, per second.
      memory: bytes of HBM moved per second.
      network: bytes per second over all links of a chip together.
    """

    flops: float
    memory: float
    network: float


CHIPS = {
    "v5e": Chip(197e12, 819e9, 200e9),
    "v5p": Chip(459e12, 2765e9, 600e9),
}


class Bounds(NamedTuple):
    """What is aimed at.

    Attributes:
      all_to_alls: at most so many.
      temporary: at most so many gigabytes.
      compile_share: at most this share of optax's time to compile, if there is a bound.
    """

    all_to_alls: int
    temporary: float
    compile_share: float | None = None


@dataclasses.dataclass(frozen=True)
class Target:
    """A model on a topology.

    Attributes:
      name: of the target.
      topology: as libtpu names it: "v5e:4x4".
      mesh: names and sizes of mesh axes.
      model: the parameters.
      bounds: what is aimed at, if anything.
    """

    name: str
    topology: str
    mesh: dict[str, int]
    model: Model
    bounds: Bounds | None = None

    @property
    def chip(self) -> Chip:
        return CHIPS[self.topology.split(":")[0]]


def gpt(layers: int, width: int, rows: Any, columns: Any) -> Model:
    """Separate layers of 2-D kernels; `rows` and `columns` shard each kernel's input
    and output, the other way round where a branch comes back to the stream."""
    into, back = P(rows, columns), P(columns, rows)
    shapes = {
        "q": ((width, width), into),
        "k": ((width, width), into),
        "v": ((width, width), into),
        "o": ((width, width), back if columns else into),
        "up": ((width, 4 * width), into),
        "down": ((4 * width, width), back if columns else into),
    }
    return {
        f"layer_{i:02d}/{name}": Leaf(*leaf)
        for i in range(layers)
        for name, leaf in shapes.items()
    }


def llama3_8b(*, scanned: bool) -> Model:
    """Llama 3 8B: 32 layers of width 4096, 8 key-value heads, MLPs of 14336."""
    width, layers = 4096, 32
    one = {
        "query": Leaf((width, 32, 128), P("fsdp", "tensor"), HEADS),
        "key": Leaf((width, 8, 128), P("fsdp", "tensor"), HEADS),
        "value": Leaf((width, 8, 128), P("fsdp", "tensor"), HEADS),
        "out": Leaf((32, 128, width), P("tensor", None, "fsdp"), FROM_HEADS),
        "gate": Leaf((width, 14336), P("fsdp", "tensor")),
        "up": Leaf((width, 14336), P("fsdp", "tensor")),
        "down": Leaf((14336, width), P("tensor", "fsdp")),
    }
    outside = {
        "embedding": Leaf((128256, width), P("tensor", "fsdp"), None),
        "lm_head": Leaf((width, 128256), P("fsdp", "tensor"), None),
    }
    if scanned:
        return outside | {name: stacked(layers, leaf) for name, leaf in one.items()}
    return outside | {
        f"layer_{i:02d}/{name}": leaf
        for i in range(layers)
        for name, leaf in one.items()
    }


def mixture_of_experts() -> Model:
    """16 layers of width 2048, each with 64 experts of 1024, sharded over `fsdp`."""
    width, layers, experts, hidden = 2048, 16, 64, 1024
    expert = {
        "gate": Leaf(
            (experts, width, hidden), P("fsdp", None, "tensor"), MatrixAxes(1, 2)
        ),
        "up": Leaf(
            (experts, width, hidden), P("fsdp", None, "tensor"), MatrixAxes(1, 2)
        ),
        "down": Leaf((experts, hidden, width), P("fsdp", "tensor"), MatrixAxes(1, 2)),
        "router": Leaf((width, experts), P("fsdp")),
        "query": Leaf((width, 16, 128), P("fsdp", "tensor"), HEADS),
        "key": Leaf((width, 4, 128), P("fsdp", "tensor"), HEADS),
        "value": Leaf((width, 4, 128), P("fsdp", "tensor"), HEADS),
        "out": Leaf((16, 128, width), P("tensor", None, "fsdp"), FROM_HEADS),
    }
    return {
        f"layer_{i:02d}/{name}": leaf
        for i in range(layers)
        for name, leaf in expert.items()
    }


def stacked(layers: int, leaf: Leaf) -> Leaf:
    """All layers' leaves as one, with a layer axis in front."""
    axes = leaf.axes
    if axes is not None:
        axes = MatrixAxes(
            tuple(axis + 1 for axis in axes.fan_in),
            tuple(axis + 1 for axis in axes.fan_out),
        )
    return Leaf((layers, *leaf.shape), P(None, *leaf.spec), axes)


# Each topology's mesh for models that are sharded over two axes.
MESHES = {
    "v5e:4x4": {"fsdp": 8, "tensor": 2},
    "v5e:4x8": {"fsdp": 8, "tensor": 4},
    "v5e:16x16": {"fsdp": 64, "tensor": 4},
    "v5p:4x4x4": {"fsdp": 16, "tensor": 4},
}
MODELS = {
    "gpt_12x2048": gpt(12, 2048, "fsdp", "tensor"),
    "llama3_8b": llama3_8b(scanned=False),
    "llama3_8b_scanned": llama3_8b(scanned=True),
    "moe_16x64x1024": mixture_of_experts(),
}
TARGETS = (
    Target(
        "gpt_12x2048_rows",
        "v5e:4x4",
        {"fsdp": 16},
        gpt(12, 2048, "fsdp", None),
        bounds=Bounds(all_to_alls=8, temporary=0.22, compile_share=1 / 8),
    ),
    Target(
        "gpt_10x1536",
        "v5e:4x8",
        MESHES["v5e:4x8"],
        gpt(10, 1536, "fsdp", "tensor"),
        bounds=Bounds(all_to_alls=16, temporary=0.06),
    ),
    Target(
        "gpt_32x4096",
        "v5e:16x16",
        MESHES["v5e:16x16"],
        gpt(32, 4096, "fsdp", "tensor"),
        bounds=Bounds(all_to_alls=16, temporary=0.75),
    ),
    *(
        Target(f"{name} on {topology}", topology, mesh, model)
        for topology, mesh in MESHES.items()
        for name, model in MODELS.items()
    ),
)
# Strong scaling: one model on more and more chips; weak: as many layers as chips allow.
SCALES = {
    1: "v5e:1x1",
    4: "v5e:2x2",
    16: "v5e:4x4",
    64: "v5e:8x8",
    256: "v5e:16x16",
    1024: "v5p:8x8x16",
}
# 1024 chips are v5p: of v5e there are no more than 256 in one slice.
SCALING = tuple(
    Target(
        f"{kind} {chips}", topology, {"fsdp": chips}, gpt(layers, 2048, "fsdp", None)
    )
    for chips, topology in SCALES.items()
    for kind, layers in (("strong", 64), ("weak", chips // 4))
    if layers > 0
)
