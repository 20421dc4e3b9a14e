"""Loops over a stack: one matrix at a time, or as many as fit under a cap."""

from collections.abc import Callable
from functools import partial

import jax
from jax import lax
from jaxtyping import Array, Float

from optax_muon._casts import at_least_float32

# In float32, of the matrices that are iterated at once: an iteration holds them three
# to four times, and products of this size no longer gain from being more.
MAX_CHUNK_BYTES = 2**24


def in_chunks(
    function: Callable[[jax.Array], jax.Array],
    x: Float[Array, "*batch m n"],
    max_bytes: int = MAX_CHUNK_BYTES,
) -> Float[Array, "*batch m n"]:
    """`function` of as many matrices at a time as fit under the cap in float32.

    It takes one matrix at least, and fewer than fit if all chunks can have one size:
    each size is compiled. The result has the dtype, and the memory, of x.
    """

    def narrow(x: Array) -> Array:
        return function(x).astype(x.dtype)

    stack = x.reshape((-1, *x.shape[-2:]))
    each = x.shape[-2] * x.shape[-1] * at_least_float32(x.dtype).itemsize
    count = stack.shape[0]
    fit = max(1, max_bytes // each)
    if count <= fit:
        return narrow(stack).reshape(x.shape)
    divisors = (size for size in range(fit, fit // 2, -1) if count % size == 0)
    at_once = next(divisors, fit)
    chunks, rest = divmod(count, at_once)

    def step(start: Array | int, size: int, stack: Array) -> Array:
        chunk = narrow(lax.dynamic_slice_in_dim(stack, start, size))
        return lax.dynamic_update_slice_in_dim(stack, chunk, start, 0)

    stack = lax.fori_loop(0, chunks, lambda k, s: step(k * at_once, at_once, s), stack)
    if rest:
        stack = step(chunks * at_once, rest, stack)
    return stack.reshape(x.shape)


def looped(
    run: Callable[[str, jax.Array], jax.Array], x: Float[Array, "*batch m n"]
) -> Float[Array, "*batch m n"]:
    """`run(platform, matrices)` of a stack, as many at a time as suits the platform.

    It is asked on "cpu" and on "gpu", as whose equal a TPU counts.
    """
    return lax.platform_dependent(
        x,
        cpu=lambda x: one_by_one(partial(run, "cpu"), x),
        default=lambda x: in_chunks(partial(run, "gpu"), x),
    )


def one_by_one(
    function: Callable[[jax.Array], jax.Array], x: Float[Array, "*batch m n"]
) -> Float[Array, "*batch m n"]:
    """`function` of each matrix in turn, in the dtype and the memory of the stack.

    XLA's CPU runs batched products slower than single ones, and spends as long on the
    pages of a second buffer (which `lax.map` would take) as on filling it.
    """
    stack = x.reshape((-1, *x.shape[-2:]))

    def step(k: Array | int, stack: Array) -> Array:
        one = lax.dynamic_index_in_dim(stack, k, keepdims=False)
        one = function(one).astype(stack.dtype)
        return lax.dynamic_update_index_in_dim(stack, one, k, 0)

    count = stack.shape[0]
    stack = step(0, stack) if count == 1 else lax.fori_loop(0, count, step, stack)
    return stack.reshape(x.shape)
