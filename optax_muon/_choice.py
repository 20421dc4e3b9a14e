"""What Newton-Schulz runs for a shape, and why: the form, restarts and products."""

import dataclasses
from types import ModuleType

import jax.numpy as jnp
import numpy as np

from optax_muon._cost import (
    direct_flops,
    gram_flops,
    noise_growth,
    noise_limit,
    safe_restarts,
    slope_at_zero,
    slope_limit,
)
from optax_muon._polynomials import Row, margin
from optax_muon._products import halves, xla

AUTO, DIRECT, GRAM = METHODS = ("auto", "direct", "gram")

# In bfloat16 Gram products, tables of margin 1.039 and more hold, as test_numerics.py
# asserts; at 1.011, singular values were pushed past the threshold and diverged.
LEAST_MARGIN = 1.03

# With few rows nothing averages rounding out: of 4000 matrices of 8 rows, the Gram form
# in bfloat16 made some diverge, with two tables. They cost next to nothing directly.
LEAST_ROWS = 64

# Measured on XLA's CPU: from this short side on, half-size blocks are large enough to
# multiply at nearly the full rate; at 256, skipping one block in four cost 10 to 50 %.
_HALVES_FROM = 320
_HALVES_SHARE = 3 / 4


@dataclasses.dataclass(frozen=True)
class Choice:
    """What runs for one shape of matrices on one platform.

    Attributes:
      method: "direct" or "gram".
      restarts: 0-based steps after which Gram starts a new cycle; () for direct.
      dtype: of the products' operands.
      products: "xla", plain products, or "halves", which skips one block in four of
        every symmetric product.
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
    in_halves = platform == "cpu" and n >= _HALVES_FROM
    share = _HALVES_SHARE if in_halves else 1.0
    if restarts is None:
        restarts = safe_restarts(rows, dtype)
    direct = direct_flops(n, m, len(rows), share)
    gram = gram_flops(n, m, len(rows), restarts, share)
    compared = f"{gram:.3g} FLOPs in the Gram form, {direct:.3g} directly"
    if method != AUTO:
        reason = f"method={method!r} was asked for ({compared})"
    elif (hazard := gram_hazard(rows, dtype) or _too_few(n, dtype)) is not None:
        method, reason = DIRECT, hazard
    else:
        method = GRAM if gram < direct else DIRECT
        reason = f"the cheaper form: {compared}"
    return Choice(
        method=method,
        restarts=restarts if method == GRAM else (),
        dtype=dtype,
        products="halves" if in_halves else "xla",
        flops=gram if method == GRAM else direct,
        reason=reason,
    )


def gram_hazard(rows: tuple[Row, ...], dtype: np.dtype) -> str | None:
    """Why the Gram form in `dtype` is unsafe with any restarts; None if it is safe."""
    slope, steepest = slope_at_zero(rows), slope_limit(dtype)
    if slope > steepest:
        return (
            f"the coefficients multiply small singular values by {slope:.3g}, and with "
            f"them the rounding noise of the Gram form; {dtype} bears {steepest:.3g}"
        )
    if dtype.itemsize == 2 and (found := margin(rows)) < LEAST_MARGIN:
        return (
            f"the coefficients' margin is {found:.4g}: rounding to {dtype} in the Gram "
            "form can push a singular value past where they diverge; it needs "
            f"{LEAST_MARGIN}"
        )
    return None


def _too_few(n: int, dtype: np.dtype) -> str | None:
    if dtype.itemsize > 2 or n >= LEAST_ROWS:
        return None
    return f"{n} rows are too few to average out rounding to {dtype} in the Gram form"


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
    growth, limit = noise_growth(rows, restarts or ()), noise_limit(dtype)
    if restarts is not None and growth > limit:
        raise ValueError(
            f"restarts={restarts} is not safe with {where}: rounding noise in X X^T "
            f"grows {growth:.3g} times within a cycle, {dtype} bears {limit:.3g}. Use "
            f"restarts=None, which means {safe_restarts(rows, dtype)} there."
        )
