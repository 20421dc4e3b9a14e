"""What a compiled program does, from its text: collectives, FLOPs, and where.

Instructions in the body of a loop count as often as the loop runs, which XLA writes
beside it where it knows.
"""

import collections
import dataclasses
import math
import re

COLLECTIVES = (
    "all-to-all",
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2,
    "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8,
}  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+?) ([a-z][\w\-]*)\((.*)$"
)
_SHAPE = re.compile(r"\b(pred|[sufb]f?\d+)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction: its name, type as text, opcode, and all after the bracket."""

    name: str
    type: str
    opcode: str
    rest: str

    @property
    def bytes(self) -> int:
        """Of its result; of the largest array in a tuple's."""
        return max(
            (BYTES[kind] * _elements(dims) for kind, dims in _SHAPE.findall(self.type)),
            default=0,
        )

    @property
    def called(self) -> list[str]:
        names = []
        for text in _CALLED.findall(self.rest):
            names += [name.strip().lstrip("%") for name in text.strip("{}").split(",")]
        return names


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of collective at one place.

    Attributes:
      kind: one of `COLLECTIVES`.
      bytes: of what one device gets from it.
      times: how often it runs.
      in_loop: whether it is in the body of a loop.
      asynchronous: whether it is started and waited for apart.
    """

    kind: str
    bytes: int
    times: int
    in_loop: bool
    asynchronous: bool


class Program:
    """The computations of one compiled program (`compiled.as_text()`)."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        current: list[Instruction] | None = None
        for line in text.splitlines():
            if (head := _COMPUTATION.match(line)) and not line.startswith(" "):
                current = self.computations.setdefault(head[2], [])
                self.entry = head[2] if head[1] else self.entry
            elif current is not None and (found := _INSTRUCTION.match(line)):
                current.append(Instruction(*found.groups()))

    def runs(self) -> list[tuple[Instruction, int, bool, str]]:
        """(instruction, how often, in a loop, its computation) of all that can run."""
        found: list[tuple[Instruction, int, bool, str]] = []
        todo = [(self.entry, 1, False)]
        while todo:
            name, times, in_loop = todo.pop()
            for one in self.computations.get(name, ()):
                found.append((one, times, in_loop, name))
                trips = _TRIPS.search(one.rest)
                loop = one.opcode == "while"
                often = times * (int(trips[1]) if loop and trips else 1)
                todo += [(called, often, in_loop or loop) for called in one.called]
        return found

    def collectives(self) -> list[Collective]:
        """Every collective; a pair of start and done is one."""
        return [
            Collective(kind, one.bytes, times, in_loop, one.opcode != kind)
            for one, times, in_loop, _ in self.runs()
            for kind in [self._kind(one)]
            if kind is not None
        ]

    def _kind(self, one: Instruction) -> str | None:
        opcode = one.opcode.removesuffix("-start")
        if opcode in COLLECTIVES:
            return opcode
        return None

    def counts(self) -> dict[str, int]:
        """How many collectives of each kind stand in the program."""
        return dict(collections.Counter(one.kind for one in self.collectives()))

    def flops(self) -> int:
        """Of all products, loops multiplied out."""
        return sum(
            times * self._flops(one, computation)
            for one, times, _, computation in self.runs()
        )

    def _flops(self, one: Instruction, computation: str) -> int:
        if one.opcode not in ("dot", "convolution"):
            return 0
        [(_, dims)] = _SHAPE.findall(one.type)[:1]
        return 2 * _elements(dims) * self._contracted(one, computation)

    def _contracted(self, one: Instruction, computation: str) -> int:
        """The length of the sums in a product."""
        operands = self._operands(one, computation)
        if one.opcode == "dot":
            axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)
            return math.prod(operands[0][int(a)] for a in axes[1].split(",") if a)
        # A TPU's products are convolutions; batches are spatial axes that never mix.
        kernel = re.search(r"dim_labels=\w+_(\w+)->", one.rest)[1]
        return operands[1][kernel.index("i")]

    def _operands(self, one: Instruction, computation: str) -> list[list[int]]:
        """The shapes of an instruction's operands, by name or as they stand there."""
        inside = _bracket(one.rest)
        types = {i.name: i.type for i in self.computations[computation]}
        shapes = []
        for operand in re.split(r",\s*(?![^\[{]*[\]}])", inside):
            inline = _SHAPE.search(operand)
            text = operand if inline else types[operand.strip().lstrip("%")]
            dims = _SHAPE.search(text)[2]
            shapes.append([int(d) for d in dims.split(",") if d])
        return shapes


def _bracket(rest: str) -> str:
    """What stands before the bracket that closes."""
    depth = 1
    for at, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return rest[:at]
    raise ValueError(f"no closing bracket in {rest!r}")


def _elements(dims: str) -> int:
    return math.prod(int(d) for d in dims.split(",") if d)
