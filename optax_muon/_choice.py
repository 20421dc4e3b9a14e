"""What Newton-Schulz runs for a shape, and why: the form, restarts and products."""

import dataclasses
from types import ModuleType

import jax.numpy as jnp
import numpy as np

from optax_muon._cost import cycles, direct_flops, gram_flops
from optax_muon._polynomials import Row
from optax_muon._products import halves, xla
from optax_muon._rounding import (
    safe_restarts,
    slope_at_zero,
    slope_limit,
    unsafe_cycle,
)

AUTO, DIRECT, GRAM = METHODS = ("auto", "direct", "gram")

# Measured on XLA's CPU: from this short side on, half-size blocks are large enough to
# multiply at nearly the full rate. Skipping one block in four saved 4 to 7 % of the
# time at 512, 13 % at 768, 18 % at 2048; at 256 it cost 10 to 50 %.
_HALVES_FROM = 512
_HALVES_SHARE = 3 / 4


@dataclasses.dataclass(frozen=True)
class Choice:
    """What runs for one shape of matrices on one platform.

    Attributes:
      method: "direct" or "gram".
      restarts: 0-based steps after which Gram starts a new cycle; () for direct.
      dtype: of the products' operands.
      products: "xla", plain products, or "halves", which skips one block in four of
        every symmetric product (large matrices in the direct form on a CPU).
      flops: of the whole iteration, for one matrix.
      reason: why, in one sentence.
    """

    method: str
    restarts: tuple[int, ...]
    dtype: np.dtype
    products: str
    flops: float
    reason: str

    @property
    def module(self) -> ModuleType:
        """The module of `optax_muon._products`."""
        return {"xla": xla, "halves": halves}[self.products]


def choose(
    shape: tuple[int, ...],
    rows: tuple[Row, ...],
    dtype: np.dtype,
    *,
    method: str,
    restarts: tuple[int, ...] | None,
    platform: str,
) -> Choice:
    """The cheaper form by FLOPs of those that are safe, unless `method` names one."""
    n, m = sorted(shape[-2:])
    in_halves = products_of_direct(n, platform) is halves
    if restarts is None:
        restarts = safe_restarts(rows, dtype)
    direct = direct_flops(n, m, len(rows), _HALVES_SHARE if in_halves else 1.0)
    gram = gram_flops(n, m, len(rows), restarts)
    compared = f"{gram:.3g} FLOPs in the Gram form, {direct:.3g} directly"
    if method != AUTO:
        reason = f"method={method!r} was asked for ({compared})"
    elif (hazard := gram_hazard(rows, dtype)) is not None:
        method, reason = DIRECT, hazard
    else:
        method = GRAM if gram < direct else DIRECT
        reason = f"the cheaper form: {compared}"
    return Choice(
        method=method,
        restarts=restarts if method == GRAM else (),
        dtype=dtype,
        products="halves" if in_halves and method == DIRECT else "xla",
        flops=gram if method == GRAM else direct,
        reason=reason,
    )


def products_of_direct(n: int, platform: str) -> ModuleType:
    """The products of the direct form on n x m matrices, n <= m."""
    return halves if platform == "cpu" and n >= _HALVES_FROM else xla


def gram_hazard(rows: tuple[Row, ...], dtype: np.dtype) -> str | None:
    """Why the Gram form in `dtype` is unsafe with any restarts; None if it is safe."""
    slope, steepest = slope_at_zero(rows), slope_limit(dtype)
    if slope > steepest:
        return (
            f"the coefficients multiply small singular values by {slope:.3g}, and with "
            f"them the rounding noise of the Gram form; {dtype} bears {steepest:.3g}"
        )
    for step in range(len(rows)):
        if (why := unsafe_cycle(rows, step, step + 1, dtype)) is not None:
            return why
    return None


def check_gram(
    rows: tuple[Row, ...], restarts: tuple[int, ...] | None, dtype: np.dtype | None
) -> None:
    """Raise unless the Gram form is safe in `dtype` (None: in bfloat16 as well)."""
    where = f"dtype={dtype or 'None, which is bfloat16 on TPU and GPU'}"
    dtype = jnp.dtype(dtype or jnp.bfloat16)
    hazard = gram_hazard(rows, dtype)
    if hazard is not None:
        raise ValueError(
            f"method='gram' is not safe with {where}: {hazard}. Use method='auto' or "
            "'direct', dtype='float32', or other coefficients (a larger safety factor)."
        )
    if restarts is None:
        return
    for start, stop in cycles(restarts, len(rows)):
        if (why := unsafe_cycle(rows, start, stop, dtype)) is not None:
            raise ValueError(
                f"restarts={restarts} is not safe with {where}: {why}. Use "
                f"restarts=None, which means {safe_restarts(rows, dtype)} there."
            )
