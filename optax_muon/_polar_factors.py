"""The bracket of the pipeline: the polar factors of all leaves, one chain a shape."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optax_muon._cost import Work
from optax_muon._division import bytes_sent, divide
from optax_muon._exchange import Division, Exchange
from optax_muon._orthogonalize import orthogonalize
from optax_muon._orthogonalizer import Orthogonalizer
from optax_muon._placement import PlacedView
from optax_muon._splitting import split
from optax_muon._stacking import Stack, chains, join, part, stacks

Leaves = Mapping[int, jax.Array]
"""Some of a tree's leaves, by their indices."""


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
    found = stacks(
        views,
        [leaf.dtype for leaf in leaves],
        either_orientation=orthogonalizer.either_orientation,
    )
    results: dict[int, jax.Array] = {}
    for chain in chains(found):
        given = {i: leaves[i] for stack in chain for i in stack.members}
        on = partial(_of_chain, chain, views, orthogonalizer)
        # A TPU and a GPU do the same.
        results |= lax.platform_dependent(
            given, cpu=partial(on, "cpu"), default=partial(on, "gpu")
        )
    return [results[i] for i in range(len(leaves))]


def _of_chain(
    chain: Sequence[Stack],
    views: Sequence[PlacedView],
    orthogonalizer: Orthogonalizer,
    platform: str,
    leaves: Leaves,
) -> Leaves:
    """The polar factors of a chain's leaves, by way of their owners.

    Its stacks travel apart, since they lie in different ways, but are iterated as one:
    the program has one iteration for all of them.
    """
    dtype = orthogonalizer.travel_dtype(chain[0].dtype, platform)
    alike: dict[Any, list[tuple[Stack, Exchange, jax.Array]]] = {}
    for stack in chain:
        division = division_of(stack, orthogonalizer, platform)
        shards = join(leaves, views, stack, dtype)
        exchange = Exchange.of(shards.shape, stack.placement, division)
        owned = exchange.to_owners(shards)
        # What is alike on some devices seems to differ once it is joined with what does
        # differ: a user's `jax.shard_map` checks types alone.
        key = frozenset(division.column_axes), exchange.varying
        alike.setdefault(key, []).append((stack, exchange, owned))
    results: dict[int, jax.Array] = {}
    for together in alike.values():
        # Barriers, or XLA would widen x before it is rearranged, and narrow it after.
        x = lax.optimization_barrier(jnp.concatenate([own for *_, own in together]))
        if column_axes := together[0][1].division.column_axes:
            x = orthogonalizer.polar_factor_of_columns(x, column_axes, platform)
        else:
            x = orthogonalize(x, orthogonalizer)
        x = lax.optimization_barrier(x.astype(dtype))
        parts = split(x, [len(own) for *_, own in together])
        for (stack, exchange, _), each in zip(together, parts, strict=True):
            results |= part(exchange.to_shards(each), views, stack)
    return results


def division_of(
    stack: Stack, orthogonalizer: Orthogonalizer, platform: str
) -> Division:
    """Who does what of a stack on "cpu", "gpu" or "tpu"."""
    if stack.is_local:
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
