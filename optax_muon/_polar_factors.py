"""The bracket of the pipeline: the polar factors of all leaves, one stack a shape."""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
from jax import lax

from optax_muon._cost import Work
from optax_muon._division import bytes_sent, divide
from optax_muon._exchange import Division, exchange
from optax_muon._functions import polar
from optax_muon._orthogonalizer import Form, Orthogonalizer
from optax_muon._parts import in_parts, shapes_of_parts
from optax_muon._placement import PlacedView
from optax_muon._stacking import Stack, join, part, stacks

Leaves = Mapping[int, jax.Array]
"""Some of a tree's leaves, by their indices."""


def polar_factors(
    leaves: Sequence[jax.Array],
    views: Sequence[PlacedView],
    orthogonalizer: Orthogonalizer,
) -> list[jax.Array]:
    """The polar factor of every matrix in every leaf, on one device.

    Args:
      leaves: where they are sharded, this device's shards.
      views: one a leaf.
      orthogonalizer: a configuration.

    Returns:
      Arrays like the leaves.
    """
    results: dict[int, jax.Array] = {}
    for stack in stacks(
        views,
        [leaf.dtype for leaf in leaves],
        either_orientation=orthogonalizer.either_orientation,
    ):
        on = partial(_of_stack, stack, views, orthogonalizer)
        # A TPU and a GPU do the same.
        results |= lax.platform_dependent(
            {i: leaves[i] for i in stack.members},
            cpu=partial(on, "cpu"),
            default=partial(on, "gpu"),
        )
    return [results[i] for i in range(len(leaves))]


def _of_stack(
    stack: Stack,
    views: Sequence[PlacedView],
    orthogonalizer: Orthogonalizer,
    platform: str,
    leaves: Leaves,
) -> Leaves:
    """The polar factors of a stack's members, by way of their owners if there are."""
    division = division_of(stack, orthogonalizer, platform)

    def polar_factor(x: jax.Array) -> jax.Array:
        if axes := division.column_axes:
            return orthogonalizer.polar_factor_of_columns(x, axes, platform)
        return in_parts(partial(polar, orthogonalizer=orthogonalizer), x, stack)

    dtype = orthogonalizer.travel_dtype(stack.dtype, platform)
    joined = join(leaves, views, stack, dtype)
    factors = exchange(polar_factor, joined, stack.placement, division)
    return part(factors, views, stack)


def division_of(
    stack: Stack, orthogonalizer: Orthogonalizer, platform: str
) -> Division:
    """Who does what of a stack on "cpu", "gpu" or "tpu"."""
    if not stack.placement.shared:
        return Division()
    return divide(
        stack.placement,
        stack.shape,
        orthogonalizer.travel_dtype(stack.dtype, platform).itemsize,
        platform,
        partial(_work, stack, orthogonalizer, platform),
    )


def traffic(
    stack: Stack, division: Division, orthogonalizer: Orthogonalizer, platform: str
) -> float:
    """Bytes that one device sends for a stack in a step."""
    return bytes_sent(
        division,
        stack.placement,
        stack.shape,
        orthogonalizer.travel_dtype(stack.dtype, platform).itemsize,
        work_on(stack, division, orthogonalizer, platform).reductions,
    )


def work_on(
    stack: Stack, division: Division, orthogonalizer: Orthogonalizer, platform: str
) -> Work:
    """What one device does for each matrix of a stack that it has a part in."""
    work = _work(stack, orthogonalizer, platform, division.long.ways)
    assert work is not None  # or it would not be divided so
    return work


def forms_on(
    stack: Stack, division: Division, orthogonalizer: Orthogonalizer, platform: str
) -> tuple[Form, ...]:
    """What runs for each part of a stack's matrices; for a whole one if it is one."""
    return tuple(
        orthogonalizer.form(shape, division.long.ways, stack.dtype, platform)
        for shape in shapes_of_parts(stack)
    )


def _work(
    stack: Stack, orthogonalizer: Orthogonalizer, platform: str, devices: int
) -> Work | None:
    shapes = shapes_of_parts(stack)
    if len(shapes) == 1:
        return orthogonalizer.work(shapes[0], devices, stack.dtype, platform)
    if devices > 1:
        return None  # a device's columns would be of some parts and not of others
    works = [orthogonalizer.work(each, 1, stack.dtype, platform) for each in shapes]
    known = [work for work in works if work is not None]
    return Work(
        sum(work.flops for work in known),
        is_counted=all(work.is_counted for work in known),
    )
