"""A stack cut back into the parts it was made of."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array


def split(stack: Array, sizes: Sequence[int]) -> list[Array]:
    """Parts of the given sizes, in order, along the first axis."""
    if len(sizes) == 1:
        return [stack]
    starts = [int(start) for start in np.cumsum([0, *sizes[:-1]])]

    def at_constants(stack: Array) -> list[Array]:
        return jnp.split(stack, starts[1:])

    def at_hidden_offsets(stack: Array) -> list[Array]:
        offsets = _hidden(starts)
        return [
            lax.dynamic_slice_in_dim(stack, offset, size, allow_negative_indices=False)
            for offset, size in zip(offsets, sizes, strict=True)
        ]

    return lax.platform_dependent(stack, cpu=at_hidden_offsets, default=at_constants)


def _hidden(values: Sequence[int]) -> list[Array]:
    """The values, which are not negative, as scalars that XLA does not see through.

    XLA's CPU compiles equal kernels once, but kernels that differ in a constant each on
    their own, 10 ms a slice; offsets that it cannot fold make them equal. Only a few
    are hidden: every value is the sum of a multiple of some radix and a rest.
    """
    radix = max(1, math.isqrt(max(values)))
    rests = sorted({value % radix for value in values})
    multiples = sorted({value - value % radix for value in values})

    def unchanged(i: Array | int, hidden: list[Array]) -> list[Array]:
        return [jnp.maximum(value, i) for value in hidden]  # i is -1, then 0

    constants = [jnp.int32(value) for value in (*rests, *multiples)]
    hidden = lax.fori_loop(-1, 1, unchanged, constants)
    of_rest = dict(zip(rests, hidden[: len(rests)], strict=True))
    of_multiple = dict(zip(multiples, hidden[len(rests) :], strict=True))
    return [of_multiple[v - v % radix] + of_rest[v % radix] for v in values]
