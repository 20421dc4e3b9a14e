"""What a compiled program does, from its text: collectives, FLOPs, and where.

Instructions in the body of a loop count as often as the loop runs: XLA's CPU writes
that beside it, a TPU's program counts from one constant to another.
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
    r"(?:calls|to_apply|body|condition|\w+_computations?)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_REFERENCE = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction: its name, type as text, opcode, and all after the bracket."""

    name: str
    type: str
    opcode: str
    rest: str

    @property
    def bytes(self) -> int:
        """Of its result, a tuple's arrays together; of a start, what it will give."""
        type_ = self.type
        if self.opcode.endswith("-start") and self.opcode != "all-reduce-start":
            type_ = _parts(type_)[1]  # (operands, results, ...)
        return sum(
            BYTES[kind] * _elements(dims) for kind, dims in _SHAPE.findall(type_)
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
      sent: bytes that one device sends over the network, at best.
      times: how often it runs.
      in_loop: whether it is in the body of a loop.
    """

    kind: str
    sent: float
    times: int
    in_loop: bool


class Program:
    """The computations of one compiled program (`compiled.as_text()`)."""

    def __init__(self, text: str) -> None:
        devices = re.search(r"num_partitions=(\d+)", text)
        self.devices = int(devices[1]) if devices else 1
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
                loop = one.opcode == "while"
                often = times * (self._trips(one, name) if loop else 1)
                todo += [(called, often, in_loop or loop) for called in one.called]
        return found

    def _trips(self, loop: Instruction, computation: str) -> int:
        """How often a loop runs."""
        if known := _TRIPS.search(loop.rest):
            return int(known[1])
        condition = {
            i.name: i
            for name in re.findall(r"condition=%?([\w.\-]+)", loop.rest)
            for i in self.computations[name]
        }
        [compared] = [i for i in condition.values() if i.opcode == "compare"]
        counter, end = (
            condition[n] for n in _REFERENCE.findall(_bracket(compared.rest))
        )
        place = re.search(r"index=(\d+)", counter.rest)
        if (
            end.opcode != "constant"
            or place is None
            or "direction=LT" not in compared.rest
        ):
            raise ValueError(f"{loop.name} does not count up to a constant")
        here = {i.name: i for i in self.computations[computation]}
        start = here[_REFERENCE.findall(_bracket(loop.rest))[0]]
        while start.opcode in ("tuple", "copy", "bitcast", "get-tuple-element"):
            operands = _REFERENCE.findall(_bracket(start.rest))
            at = int(place[1]) if start.opcode == "tuple" else 0
            start = here[operands[at]]
        if start.opcode != "constant":
            raise ValueError(f"{loop.name} does not count up from a constant")
        return int(_bracket(end.rest)) - int(_bracket(start.rest))

    def collectives(self) -> list[Collective]:
        """Every collective once.

        A TPU's compiler may run one piece by piece inside other fusions, loops
        included, to hide it; those pieces are one, wherever they stand.
        """
        found: dict[object, Collective] = {}
        for at, (one, times, in_loop, _) in enumerate(self.runs()):
            kind = one.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            sent = _sent(kind, one, self.devices)
            if chain := re.search(r'chain_id="(\d+)"', one.rest):
                found[kind, chain[1]] = Collective(kind, sent, 1, in_loop=False)
            else:
                found[at] = Collective(kind, sent, times, in_loop)
        return list(found.values())

    def overlapped(self) -> int:
        """How many collectives have products scheduled between start and done."""
        found = 0
        for name, computation in self.computations.items():
            place = {one.name: at for at, one in enumerate(computation)}
            for done in computation:
                if not done.opcode.endswith("-done"):
                    continue
                start = _REFERENCE.findall(_bracket(done.rest))[0]
                if start not in place or not self._is_collective(
                    computation[place[start]]
                ):
                    continue
                between = computation[place[start] + 1 : place[done.name]]
                found += any(self._has_products(one, name) for one in between)
        return found

    def _is_collective(self, one: Instruction) -> bool:
        if one.opcode.removesuffix("-start") in COLLECTIVES:
            return True
        inside = (i for name in one.called for i in self.computations.get(name, ()))
        return one.opcode == "async-start" and any(
            i.opcode in COLLECTIVES for i in inside
        )

    def _has_products(self, one: Instruction, computation: str) -> bool:
        if one.opcode in ("dot", "convolution"):
            return True
        return any(
            self._has_products(inner, name)
            for name in one.called
            for inner in self.computations.get(name, ())
        )

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


def _sent(kind: str, one: Instruction, devices: int) -> float:
    """Bytes that leave a device, by the algorithms that send least."""
    group = _group_size(one.rest) or devices
    away = 1 - 1 / group
    if kind == "all-reduce":
        return 2 * away * one.bytes
    if kind == "reduce-scatter":
        return away * group * one.bytes
    if kind == "collective-permute":
        return one.bytes
    return away * one.bytes


def _group_size(rest: str) -> int:
    """How many devices take part together; 0 means all."""
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    return len(listed[1].split(",")) if listed else 0


def _parts(type_: str) -> list[str]:
    """The types in a tuple's type."""
    parts, depth = [""], 0
    for letter in type_[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


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
