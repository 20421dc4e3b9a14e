"""The Newton-Schulz iteration in its two forms, direct and Gram.

An odd polynomial p acts on X = U S V^T as U p(S) V^T, so a chain of them that takes
(0, 1] to about 1 takes X to about its polar factor U V^T with matrix products alone
(Higham, Functions of Matrices, 2008, chapter 8; Jordan et al., Muon, 2024).
"""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from optax_muon._casts import at_least_float32, widen
from optax_muon._cost import runs
from optax_muon._mesh_axes import Axes, maximum, total
from optax_muon._polynomials import Row


def normalize(
    x: Float[Array, "*batch m n"], column_axes: Axes = ()
) -> Float[Array, "*batch m n"]:
    """x / ||x||_F in the accumulation dtype, exact for any magnitude; 0 stays 0.

    An exact power of two first brings the largest entry into [1, 2), so that squares
    neither overflow nor vanish; then the norm is at least 1 unless x is 0, and no
    epsilon is needed.

    Args:
      x: matrices, or on each device some columns of them.
      column_axes: the mesh axes that columns lie along, inside `jax.shard_map`.
    """
    scaled, norm = _power_of_two_scaled(widen(x), column_axes)
    return scaled / norm


def _power_of_two_scaled(
    x: Float[Array, "*batch m n"], column_axes: Axes
) -> tuple[Float[Array, "*batch m n"], Float[Array, "*batch 1 1"]]:
    """x times an exact power of two, in x's dtype, and the norm of that; 1 for 0."""
    wide = widen(x)
    largest = jnp.max(jnp.abs(wide), axis=(-2, -1), keepdims=True)
    if column_axes:
        largest = maximum(largest, column_axes)
    _, exponent = jnp.frexp(largest)  # largest = f 2^exponent, f in [1/2, 1)
    # Powers of two outside the normal numbers would be flushed to zero.
    smallest = jnp.finfo(x.dtype).minexp
    exponent = jnp.clip(1 - exponent, smallest, -smallest)
    power = jnp.ldexp(jnp.ones_like(largest), exponent)
    wide = wide * power
    squares = jnp.sum(wide * wide, axis=(-2, -1), keepdims=True)
    if column_axes:
        squares = total(squares, column_axes)
    # The maximum first: the square root has no derivative at 0.
    return wide.astype(x.dtype), jnp.sqrt(jnp.maximum(squares, 1))


def direct(
    x: Float[Array, "*batch n m"],
    rows: tuple[Row, ...] | Float[Array, "steps 3"],
    dtype: jnp.dtype,
    products: ModuleType,
) -> Float[Array, "*batch n m"]:
    """Per step R = X X^T; P = b R + c R^2; X = a X + P X.

    Args:
      x: normalised matrices, n <= m, in the accumulation dtype of `dtype`.
      rows: one (a, b, c) for each step.
      dtype: what the operands of products are rounded to; X itself is not, or the
        rounding of its first steps would grow by a at every later one.
      products: a module of `optax_muon._products`.
    """
    table = _table(rows, dtype)

    def step(k: Array, x: Any) -> Any:
        a, b, c = table[k]
        low = _rounded(x, dtype)
        wide = products.gram(low)
        r = _rounded(wide, dtype)
        p = products.symmetric_product(r, r, alpha=c, plus=[(b, wide)])
        return products.product(_rounded(p, dtype), low, plus=[(a, x)])

    x = products.split(x)
    return products.join(lax.fori_loop(0, len(rows), step, x))


def gram(
    x: Float[Array, "*batch n m"],
    rows: tuple[Row, ...],
    restarts: tuple[int, ...],
    dtype: jnp.dtype,
    products: ModuleType,
    column_axes: Axes = (),
) -> Float[Array, "*batch n m"]:
    """Cycles of steps on R = X X^T alone; each ends with X <- (q I + Q) X.

    A step is p(X) = (a I + P) X with P = b R + c R^2. Within a cycle

      q I + Q <- (q I + Q) (a I + P),    R <- (a I + P) R (a I + P)

    let the singular values see the same polynomials as in the direct form, but of all
    products only R and Q X have the long side. q stays apart from Q so that X passes
    unrounded: in 16 bits its rounding noise, which has full rank, would grow by q.

    Rounding makes R indefinite, and a step multiplies its negative eigenvalues by a^2;
    a restart forms R anew and bounds that. Each cycle is a loop of its own; cycles of
    one length in a row are a loop of them, so that they compile once.

    Args:
      x: matrices, n <= m, of any magnitude.
      rows: one (a, b, c) for each step.
      restarts: the 0-based steps after which a new cycle begins.
      dtype: what the operands of products are rounded to. P and Q are rounded for
        good; X and R are not, or where few entries matter, rounding them would change
        small singular values by more than their own size.
      products: a module of `optax_muon._products`.
      column_axes: the mesh axes that columns lie along, inside `jax.shard_map`: each
        cycle then sums R over them once, outside of loops, and all else stays on the
        device.
    """
    table = _table(rows, dtype)
    norm = None
    if x.dtype == dtype == jnp.bfloat16:
        # It stays as it is until it has been multiplied once, without another rounding;
        # what that gives is divided.
        x, norm = _power_of_two_scaled(x, column_axes)
    else:
        x = normalize(x, column_axes).astype(at_least_float32(dtype))

    def cycle(table: Array, x: Any, norm: Array | None) -> Any:
        low = _rounded(x, dtype)
        r = products.gram(low)
        if column_axes:
            r = total(r, column_axes)
        if norm is not None:
            r = jax.tree.map(lambda part: part / norm**2, r)
        scalar, q = _cycle(r, table, dtype, products)
        x = products.product(q, low, plus=[(scalar, x)])
        return x if norm is None else jax.tree.map(lambda part: part / norm, x)

    x = products.split(x)
    for start, count, length in runs(restarts, len(rows)):
        tables = table[start : start + count * length].reshape(count, length, 3)

        def step(k: Array | int, carry: Any, tables: Array = tables) -> Any:
            x, norm = carry
            x = cycle(tables[k], x, norm)
            return x, None if norm is None else jnp.ones_like(norm)

        carry = x, norm
        if count == 1 or column_axes:
            for k in range(count):
                carry = step(k, carry)
        else:
            carry = lax.fori_loop(0, count, step, (jax.tree.map(widen, x), norm))
        x, norm = carry[0], None
    return products.join(x)


def _cycle(
    r: Any, table: Float[Array, "steps 3"], dtype: jnp.dtype, products: ModuleType
) -> tuple[Float[Array, ""], Any]:
    """(q, Q) with (q I + Q) X = p_T(... p_1(X)), the polynomials being the table's.

    Args:
      r: X X^T, in the accumulation dtype.
    """
    low = dtype.itemsize < 4

    def times(s: Any, t: Any, **epilogue: Any) -> Any:
        operands = _rounded(s, dtype), _rounded(t, dtype)
        return products.symmetric_product(*operands, **epilogue)

    def times_shifted(r: Any, p: Any, a: Array) -> Any:
        """R (a I + P); in 16 bits a R stays unrounded, as R is."""
        if low:
            return times(r, p, plus=[(a, r)])
        # Rounded apart, a R and R P cancel: an error of 6e-3 for 8e-4 on signs of rank
        # one, 384 x 1152, with Keller Jordan's rows in one cycle.
        return times(r, products.shifted(p, a))

    def polynomial(r: Any, b: Array, c: Array) -> Any:
        return _rounded(times(r, r, alpha=c, plus=[(b, r)]), dtype)

    def step(k: Array, carry: Any) -> Any:
        r, p, scalar, q = carry
        # By a I + P twice: its square, expanded, cancels where p(1) is small, and the
        # rounding of its terms would be all that remains.
        for _ in range(2):
            r = times_shifted(r, p, table[k - 1, 0])
        a, b, c = table[k]
        p = polynomial(r, b, c)
        q = _rounded(times(q, p, plus=[(scalar, p), (a, q)]), dtype)
        return r, p, a * scalar, q

    a, b, c = table[0]
    p = polynomial(r, b, c)
    if len(table) == 1:
        return a, p
    *_, scalar, q = lax.fori_loop(1, len(table), step, (r, p, a, p))
    return scalar, q


def _table(
    rows: tuple[Row, ...] | Float[Array, "steps 3"], dtype: jnp.dtype
) -> Float[Array, "steps 3"]:
    return jnp.asarray(rows, at_least_float32(dtype)).reshape(-1, 3)


def _rounded(tree: Any, dtype: jnp.dtype) -> Any:
    """In `dtype`; XLA would undo a mere cast where its result is widened again."""
    low = jnp.finfo(dtype)

    def rounded(array: Array) -> Array:
        if array.dtype == dtype:  # rounding that changes nothing would cost a copy
            return array
        # Not for float16, whose subnormal numbers it would flush to zero.
        if low.nexp == jnp.finfo(array.dtype).nexp:
            array = lax.reduce_precision(array, low.nexp, low.nmant)
        return array.astype(dtype)

    return jax.tree.map(rounded, tree)
