"""What is measured, as data: the matrices of models, and the plan of a platform."""

import collections
import dataclasses
import math
from collections.abc import Iterator

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """The hidden matrices of a model.

    Attributes:
      name: how the case is called on the command line and in the results.
      leaves: name and shape of each leaf. The last axis is the fan-out, all others
        together are the fan-in: (fan_in, fan_out), or (height, width, in, out).
      rounds: how many rounds are timed on a CPU.
      headline: where the bounds on speed are claimed for it: "cpu", "accelerator", "".
      wide: whether all its matrices have an aspect ratio of 3 or more, so that the Gram
        form should beat the GEMM rate, counted in the direct form's FLOPs.
    """

    name: str
    leaves: tuple[tuple[str, Shape], ...]
    rounds: int
    headline: str = ""
    wide: bool = False

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.leaves)

    def stacks(self) -> dict[tuple[int, int], int]:
        """How many matrices have the sides (short, long), whichever way they lie."""
        sides = (tuple(sorted(as_matrix(shape))) for _, shape in self.leaves)
        return dict(collections.Counter(sides))


def as_matrix(shape: Shape) -> tuple[int, int]:
    """(fan_in, fan_out) of a leaf."""
    return math.prod(shape[:-1]), shape[-1]


def gpt(layers: int, d: int, *, fused: bool) -> tuple[tuple[str, Shape], ...]:
    """A GPT's matrices, with attention as GPT-2 lays it out (fused) or as Flax does."""
    attention = (
        {"qkv": (d, 3 * d), "out": (d, d)}
        if fused
        else {"query": (d, d), "key": (d, d), "value": (d, d), "out": (d, d)}
    )
    layer = attention | {"up": (d, 4 * d), "down": (4 * d, d)}
    return tuple(
        (f"layer_{index}_{name}", shape)
        for index in range(layers)
        for name, shape in layer.items()
    )


def resnet18() -> tuple[tuple[str, Shape], ...]:
    """Every convolution of ResNet-18 for ImageNet (He et al., 2015, table 1)."""

    def blocks() -> Iterator[tuple[str, Shape]]:
        yield "stem", (7, 7, 3, 64)
        before = 64
        for stage, width in enumerate((64, 128, 256, 512)):
            if width != before:
                yield f"stage_{stage}_shortcut", (1, 1, before, width)
            for index in range(4):  # two blocks of two
                fan = before if index == 0 else width
                yield f"stage_{stage}_conv_{index}", (3, 3, fan, width)
            before = width

    return tuple(blocks())


def llama_layer(d: int, kv: int, ffn: int) -> tuple[tuple[str, Shape], ...]:
    """One layer of Llama 3 (arXiv 2407.21783, table 3): grouped queries, SwiGLU."""
    return (
        *(("query", (d, d)), ("key", (d, kv)), ("value", (d, kv)), ("out", (d, d))),
        *(("gate", (d, ffn)), ("up", (d, ffn)), ("down", (ffn, d))),
    )


EVERYWHERE = (
    Case("gpt_4x384", gpt(4, 384, fused=True), 15, headline="cpu"),
    Case("gpt_4x384_split", gpt(4, 384, fused=False), 15, headline="cpu"),
    Case("gpt_2x768", gpt(2, 768, fused=True), 9, headline="cpu"),
    Case("gpt_2x768_split", gpt(2, 768, fused=False), 9, headline="cpu"),
    Case("resnet18", resnet18(), 7),
    Case(
        "wide_mlp",  # one square of 4096 outweighs the rest
        (("in", (784, 4096)), ("hidden", (4096, 4096)), ("out", (4096, 10))),
        3,
    ),
    Case("gpt2_small", gpt(12, 768, fused=True), 1),
)
ACCELERATORS = (
    Case("gpt2_medium", gpt(24, 1024, fused=True), 1, headline="accelerator"),
    Case("llama_8b_layer", llama_layer(4096, 1024, 14336), 1, headline="accelerator"),
    Case("aspect_3", tuple((f"w{i}", (1024, 3072)) for i in range(24)), 1, wide=True),
    Case("aspect_3.5", tuple((f"w{i}", (4096, 14336)) for i in range(3)), 1, wide=True),
    Case("aspect_4", tuple((f"w{i}", (2048, 8192)) for i in range(8)), 1, wide=True),
)
# One model, deeper and deeper: what a program costs to make must not follow.
DEPTHS = tuple(
    Case(f"gpt_{n}x384", gpt(n, 384, fused=True), 9) for n in (4, 12, 24, 48)
)

SMOKE = (
    Case("smoke_mlp", (("up", (8, 16)), ("down", (16, 8))), 2, headline="cpu"),
    Case("smoke_conv", (("conv", (3, 3, 4, 8)),), 2),
)
SMOKE_DEPTHS = tuple(
    Case(f"smoke_{n}x8", tuple((f"layer_{i}", (8, 16)) for i in range(n)), 1)
    for n in (1, 2)
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """All there is to measure on a platform.

    Attributes:
      cases: of the parts `update` and `memory`.
      depths: of the part `compile`, from shallow to deep.
      sizes: sides of the square GEMMs.
      dtypes: of the GEMMs; the first is that of our products.
      gemm_flops: about how much work one sample of a GEMM is.
      gemm_elements: at least so many elements are multiplied side by side: a single
        small product leaves an accelerator mostly idle, and a stack of them does not.
      sample_seconds: a sample repeats its work until it takes about so long.
      rounds: instead of each case's own, unless None.
    """

    cases: tuple[Case, ...]
    depths: tuple[Case, ...]
    sizes: tuple[int, ...]
    dtypes: tuple[str, ...]
    gemm_flops: float
    gemm_elements: int
    sample_seconds: float
    rounds: int | None = None

    def parts(self) -> dict[str, list[str]]:
        """The names of the cases of every part, in the order they are run."""
        cases = [case.name for case in self.cases]
        depths = [case.name for case in self.depths]
        return {
            "gemm": list(self.dtypes),
            "update": cases,
            "compile": depths,
            "memory": cases,
        }


CPU_SIZES = (384, 768, 1024, 2048)
# About 0.2 s at 100 GFLOP/s, and 10 ms at 500 TFLOP/s.
CPU = Plan(EVERYWHERE, DEPTHS, CPU_SIZES, ("float32",), 2e10, 1, 0.05)
ACCELERATOR = Plan(
    cases=EVERYWHERE + ACCELERATORS,
    depths=DEPTHS,
    sizes=(*CPU_SIZES, 4096, 8192),
    dtypes=("bfloat16", "float32"),
    gemm_flops=5e12,
    gemm_elements=4096**2,
    sample_seconds=0.1,
    rounds=21,
)


def plan(platform: str, *, smoke: bool) -> Plan:
    """What is measured on a platform; with `smoke` the same parts, on tiny matrices."""
    full = CPU if platform == "cpu" else ACCELERATOR
    if not smoke:
        return full
    return Plan(SMOKE, SMOKE_DEPTHS, (8, 16), full.dtypes, 1, 1, 0.0, rounds=2)
