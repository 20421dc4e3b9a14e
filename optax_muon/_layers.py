"""What a layer says of its kernel: which axes are inputs and which are outputs.

Of numbers and equations alone: nothing here knows Flax. None is AdamW throughout, as in
rules.
"""

import dataclasses

from optax_muon._matrix_axes import MatrixAxes, UndecidedLeafError

DENSE = MatrixAxes(0, 1)


@dataclasses.dataclass(frozen=True)
class Declared:
    """What one layer says of one of its parameters, as it is without stacked axes.

    Attributes:
      axes: its matrix axes; None for AdamW.
      shape: what the layer's configuration implies; None in it is a length that it does
        not tell, None in its place a shape that it does not tell.
      is_embedding: a table of embeddings, for AdamW whatever else reads it.
      problem: why the layer cannot say, in place of axes.
    """

    axes: MatrixAxes | None = None
    shape: tuple[int | None, ...] | None = None
    is_embedding: bool = False
    problem: str | None = None


def general(batch: int, inputs: int, outputs: int) -> MatrixAxes | None:
    """The axes of a kernel [*batch, *inputs, *outputs], of so many axes each.

    One without inputs or without outputs multiplies entry by entry, or sums: a vector.

    >>> general(0, 1, 2)  # attention's query: d -> heads, head_dim
    MatrixAxes(fan_in=(0,), fan_out=(1, 2))
    """
    first = batch + inputs
    return _matrix(tuple(range(batch, first)), tuple(range(first, first + outputs)))


def einsum(equation: str) -> MatrixAxes | None:
    """The axes of the second operand of an einsum, by the letters they have.

    Letters that are summed over are fan-in, those of the result alone are fan-out, and
    those of the first operand and the result a batch.

    Raises:
      UndecidedLeafError: an ellipsis in the operand, a letter twice in it, or a letter
        of it alone.

    >>> einsum("btd,dhk->bthk")
    MatrixAxes(fan_in=(0,), fan_out=(1, 2))
    >>> einsum("ebd,edf->ebf")  # a matrix for each expert
    MatrixAxes(fan_in=(1,), fan_out=(2,))
    """
    operands, result = equation.replace(" ", "").split("->")
    inputs, kernel = operands.split(",")
    if "." in kernel:
        raise UndecidedLeafError(f"the ellipsis of {equation!r} may be batch or output")
    if len(set(kernel)) < len(kernel):
        raise UndecidedLeafError(f"{equation!r} takes a diagonal of it")
    alone = set(kernel) - set(inputs) - set(result)
    if alone:
        raise UndecidedLeafError(f"{equation!r} sums it over {min(alone)!r} alone")
    return _matrix(
        tuple(axis for axis, letter in enumerate(kernel) if letter not in result),
        tuple(axis for axis, letter in enumerate(kernel) if letter not in inputs),
    )


def convolution(
    shape: tuple[int, ...], inputs: int = -2, outputs: int = -1, *, parts: int = 1
) -> MatrixAxes | None:
    """The axes of a kernel with the inputs of a group, its outputs, and a window.

    The window counts with the inputs. One input channel a group is depthwise, where no
    matrix mixes channels, or an input layer: both are AdamW's. The outputs of each
    group are a matrix of their own: they see other inputs than the rest.

    Args:
      shape: of the kernel.
      inputs, outputs: which axes they are; all others are the window. As they stand,
        those of Flax's kernels.
      parts: how many matrices of one size lie along the outputs: groups, or gates.

    >>> convolution((3, 3, 16, 32))
    MatrixAxes(fan_in=(0, 1, 2), fan_out=(3,))
    >>> convolution((32, 16, 3, 3), inputs=1, outputs=0)  # channels first
    MatrixAxes(fan_in=(1, 2, 3), fan_out=(0,))
    """
    if shape[inputs] == 1:
        return None
    outputs %= len(shape)
    fan_in = tuple(axis for axis in range(len(shape)) if axis != outputs)
    return side_by_side(MatrixAxes(fan_in, outputs), parts, shape[outputs])


def local_convolution(rank: int) -> MatrixAxes:
    """The axes of a kernel [*positions, inputs, outputs]: a matrix each position."""
    return MatrixAxes(rank - 2, rank - 1)


def side_by_side(axes: MatrixAxes, count: int, outputs: int) -> MatrixAxes:
    """So many matrices of one size, which share all outputs: gates, or groups."""
    parts = (outputs // count,) * count if count > 1 else ()
    return dataclasses.replace(axes, fan_out_parts=parts)


def _matrix(fan_in: tuple[int, ...], fan_out: tuple[int, ...]) -> MatrixAxes | None:
    return MatrixAxes(fan_in, fan_out) if fan_in and fan_out else None
