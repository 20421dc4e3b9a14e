"""Whether two states are the same, bit by bit, on whatever mesh each of them lies."""

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# Odd numbers that spread a bit over the word: 2^32 divided by the golden ratio, and
# the two of MurmurHash3's last step (Appleby, public domain, 2011).
GOLDEN, MIX_1, MIX_2 = 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35


def checksums(tree: Any) -> list[int]:
    """A 32-bit checksum of each leaf, of at most 32 bits an entry; almost for free.

    Words are mixed with their index and added modulo 2^32. That sum does not depend
    on its order, so neither does the checksum on how the leaf is cut among devices.
    """
    leaves = jax.tree.leaves(tree)
    sums = _copied(_checksums, leaves[0].sharding.mesh)(leaves)
    return [int(one) for one in sums]


def sha256(tree: Any) -> str:
    """The digest of all bytes. It brings each leaf, one by one, to every host."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        whole = _copied(_same, leaf.sharding.mesh)(leaf)
        digest.update(np.asarray(whole).tobytes())
    return digest.hexdigest()


@functools.cache
def _copied(function: Callable, mesh: Mesh) -> Callable:
    """The function, its results whole on every device, where each host can read."""
    return jax.jit(function, out_shardings=NamedSharding(mesh, P()))


def _same(leaf: jax.Array) -> jax.Array:
    return leaf


def _checksums(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_checksum(leaf) for leaf in leaves]


def _checksum(leaf: jax.Array) -> jax.Array:
    words = jax.lax.bitcast_convert_type(
        leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    ).astype(jnp.uint32)
    index = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        here = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        index = index * jnp.uint32(size) + here
    return _mixed(words ^ _mixed(index * jnp.uint32(GOLDEN))).sum(dtype=jnp.uint32)


def _mixed(words: jax.Array) -> jax.Array:
    words = (words ^ (words >> 16)) * jnp.uint32(MIX_1)
    words = (words ^ (words >> 13)) * jnp.uint32(MIX_2)
    return words ^ (words >> 16)
