"""Who does what of a stack: the cheapest division of its work among the devices."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

from optax_muon._cost import Work
from optax_muon._exchange import Division, Goal
from optax_muon._mesh_axes import Axes, Axis, Digit, name, ways
from optax_muon._placement import Placement, axes_of

# How many FLOPs take as long as moving one byte: 985 on a TPU v5e (197 TFLOP/s, 200
# GB/s in all directions), 765 on a v5p, 2200 between H100s (990 TFLOP/s, 450 GB/s).
# Devices that a CPU pretends to have move bytes through its memory.
FLOPS_PER_BYTE = {"cpu": 10, "gpu": 1000, "tpu": 1000}

# Narrower parts would leave most of a TPU's 128 x 128 unit idle.
MIN_COLUMNS = 128


def divide(
    placement: Placement,
    shape: tuple[int, int, int],
    itemsize: int,
    platform: str,
    work: Callable[[int], Work | None],
) -> Division:
    """The division that should take the least time, by FLOPs and bytes.

    Whole matrices on every device are best where there are enough of them. If not, some
    mesh axes, or the minor digit of one, may go to the columns: only products with the
    long side are divided then.
    Copies may also all do the same, which takes no gathering.

    Args:
      placement: where the shards lie.
      shape: [batch, n, m] of the stack: the matrices' whole n and m, but of the batch
        what one device has shards of.
      itemsize: bytes of an entry as it is moved.
      platform: "cpu", "gpu" or "tpu".
      work: what a device does for one matrix whose columns are on so many devices; None
        if that cannot be.
    """
    work = functools.cache(work)

    def time(division: Division) -> float:
        done = work(division.long.ways)
        if done is None:
            return math.inf
        own = -(-shape[0] // division.stack.ways)
        sent = bytes_sent(division, placement, shape, itemsize, done.reductions)
        return own * done.flops + FLOPS_PER_BYTE[platform] * sent

    return min(_divisions(placement, shape), key=time)


def _divisions(placement: Placement, shape: tuple[int, int, int]) -> Iterator[Division]:
    """All ways to send mesh axes to the stack, to the columns, or nowhere (copies).

    Besides, one axis may go in two digits to both: the minor one to the columns, so
    that those who share a matrix are neighbours.
    """
    yield from _goals(placement, shape)
    for axis, size in placement.shared:
        for minor in range(2, size):
            if size % minor == 0:
                yield from _goals(placement.split(name(axis), minor), shape)


def _goals(placement: Placement, shape: tuple[int, int, int]) -> Iterator[Division]:
    for rows, columns, copies in itertools.product(
        _parted(axes_of(placement.rows), 2),
        _parted(axes_of(placement.columns), 2),
        _parted(placement.copies, 3),
    ):
        division = Division(
            Goal(rows[0], columns[0], copies[0]), Goal(rows[1], columns[1], copies[1])
        )
        long = division.long
        # The columns that a device has are cut once more by what comes to them.
        cut = axes_of(placement.columns) + division.to_columns + long.copies
        wide_enough = shape[2] // long.ways >= MIN_COLUMNS
        if long.ways == 1 or (wide_enough and shape[2] % ways(cut) == 0):
            yield division


def _parted(axes: Axes, parts: int) -> Iterator[tuple[Axes, ...]]:
    """Every way to hand the axes out among so many parts; first all to the first.

    Of digits, the major one always goes to the first part, the minor one to the second.
    """

    def choices(axis: Axis) -> Iterable[int]:
        if isinstance(axis, Digit):
            return (1,) if axis.stride == 1 else (0,)
        return range(parts)

    for choice in itertools.product(*(choices(axis) for axis, _ in axes)):
        yield tuple(
            tuple(axis for axis, part in zip(axes, choice, strict=True) if part == k)
            for k in range(parts)
        )


def bytes_sent(
    division: Division,
    placement: Placement,
    shape: tuple[int, int, int],
    itemsize: int,
    reductions: int = 0,
) -> float:
    """Bytes that one device sends in a step, as bandwidth-optimal collectives do.

    Args:
      division: of the work.
      placement, shape, itemsize: as for `divide`.
      reductions: float32 sums over the devices that share a matrix, for each matrix.
    """
    batch, n, m = shape
    stack, long = division.stack, division.long
    padded = batch + -batch % division.stack.ways
    cuts = ways(axes_of(placement.rows) + axes_of(placement.columns))
    shards = padded * n * m * itemsize / cuts
    copies = ways(stack.copies + long.copies)
    exchanged = 2 * _away(shards / copies, ways(division.moved))
    gathered = _away(shards, copies)
    summed = reductions * padded / stack.ways * 4 * n * n
    return exchanged + gathered + 2 * _away(summed, long.ways)


def _away(size: float, parts: int) -> float:
    """What does not stay of `size` bytes cut into equal parts, one a device."""
    return size * (1 - 1 / parts)
