"""Products in plain XLA. Both return their sum unrounded, in the accumulation dtype.

That dtype is float32 for 16-bit operands: the caller finishes its epilogue there and
rounds once.
"""

from jax import lax
from jaxtyping import Array, Float

from optax_muon._casts import at_least_float32


def product(
    x: Float[Array, "*batch m k"],
    y: Float[Array, "*batch k n"],
    *,
    add: Float[Array, "*batch m n"],
    beta: Float[Array, ""],
) -> Float[Array, "*batch m n"]:
    """x y + beta add."""
    return _dot(x, y, contract_y=-2) + beta * add


def symmetric_product(
    x: Float[Array, "*batch n k"],
    *,
    add: Float[Array, "*batch n n"] | None = None,
    alpha: Float[Array, ""] | float = 1.0,
    beta: Float[Array, ""] | float = 0.0,
) -> Float[Array, "*batch n n"]:
    """alpha x x^T + beta add, a symmetric matrix: backends may compute one half."""
    gram = alpha * _dot(x, x, contract_y=-1)
    return gram if add is None else gram + beta * add


def _dot(
    x: Float[Array, "*batch m k"], y: Float[Array, "*batch p q"], contract_y: int
) -> Float[Array, "*batch m n"]:
    batch = tuple(range(x.ndim - 2))
    # At a TPU's default precision, float32 operands are rounded to bfloat16.
    full = x.dtype.itemsize >= 4
    return lax.dot_general(
        x,
        y,
        (((x.ndim - 1,), (y.ndim + contract_y,)), (batch, batch)),
        precision=lax.Precision.HIGHEST if full else lax.Precision.DEFAULT,
        preferred_element_type=at_least_float32(x.dtype),
    )
