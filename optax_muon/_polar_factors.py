"""The bracket of the pipeline: the polar factors of all leaves, one stack a shape."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
from jax import lax

from optax_muon._cost import Work
from optax_muon._division import bytes_sent, divide
from optax_muon._exchange import Division, exchange
from optax_muon._orthogonalize import orthogonalize
from optax_muon._orthogonalizer import Orthogonalizer
from optax_muon._placement import PlacedView
from optax_muon._stacking import Stack, stacks, through_stack


def polar_factors(
    leaves: Sequence[jax.Array],
    views: Sequence[PlacedView],
    orthogonalizer: Orthogonalizer,
) -> list[jax.Array]:
    """The polar factor of every matrix in every leaf, on one device.

    Args:
      leaves: of at least float32; where they are sharded, this device's shards.
      views: one a leaf.
      orthogonalizer: a configuration.

    Returns:
      Arrays like the leaves.
    """
    results: list[jax.Array] = list(leaves)
    for stack in stacks(
        views,
        [leaf.dtype for leaf in leaves],
        either_orientation=orthogonalizer.either_orientation,
    ):
        members = [leaves[i] for i in stack.members]
        of_members = [views[i] for i in stack.members]
        factors = _factors(members, of_members, stack, orthogonalizer)
        for i, factor in zip(stack.members, factors, strict=True):
            results[i] = factor
    return results


def _factors(
    leaves: list[jax.Array],
    views: list[PlacedView],
    stack: Stack,
    orthogonalizer: Orthogonalizer,
) -> list[jax.Array]:
    through = partial(
        through_stack,
        views=views,
        either_orientation=orthogonalizer.either_orientation,
    )
    if not stack.placement.shared or 0 in stack.shape:
        return through(partial(orthogonalize, orthogonalizer=orthogonalizer), leaves)

    def on(platform: str) -> Callable[..., list[jax.Array]]:
        division = division_of(stack, orthogonalizer, platform)
        dtype = orthogonalizer.travel_dtype(stack.dtype, platform)

        def owned(x: jax.Array) -> jax.Array:
            if division.column_axes:
                return orthogonalizer.polar_factor_of_columns(
                    x, division.column_axes, platform
                )
            return orthogonalize(x, orthogonalizer)

        def run(*leaves: jax.Array) -> list[jax.Array]:
            cast = [leaf.astype(dtype) for leaf in leaves]
            move = partial(
                exchange, owned, placement=stack.placement, division=division
            )
            factors = through(move, cast)
            return [factor.astype(stack.dtype) for factor in factors]

        return run

    # A TPU and a GPU do the same.
    return lax.platform_dependent(*leaves, cpu=on("cpu"), default=on("gpu"))


def division_of(
    stack: Stack, orthogonalizer: Orthogonalizer, platform: str
) -> Division:
    """Who does what of a stack on "cpu", "gpu" or "tpu"."""
    if not stack.placement.shared or 0 in stack.shape:
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
    if 0 in stack.shape:
        return Work(0.0)
    work = _work(stack, orthogonalizer, platform, division.long.ways)
    assert work is not None  # or it would not be divided so
    return work


def _work(
    stack: Stack, orthogonalizer: Orthogonalizer, platform: str, devices: int
) -> Work | None:
    _, n, m = stack.shape
    return orthogonalizer.work((n, m), devices, stack.dtype, platform)
