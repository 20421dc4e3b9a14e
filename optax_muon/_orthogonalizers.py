"""The configurations of `orthogonalize`: NewtonSchulz, Svd, Qdwh.

A configuration is frozen, hashable, picklable, and not callable, because
`optax.inject_hyperparams` takes every callable argument for a schedule.
"""

import dataclasses
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optax_muon import _checks, _exact
from optax_muon._casts import at_least_float32
from optax_muon._choice import (
    AUTO,
    DIRECT,
    GRAM,
    METHODS,
    Choice,
    check_gram,
    choose,
    gram_hazard,
)
from optax_muon._coefficients import as_table
from optax_muon._cost import Work, gram_flops
from optax_muon._loops import looped
from optax_muon._mesh_axes import Axes
from optax_muon._newton_schulz import direct, gram, normalize
from optax_muon._orthogonalizer import Form, Orthogonalizer
from optax_muon._polynomials import Row, check_rows


@dataclasses.dataclass(frozen=True)
class NewtonSchulz(Orthogonalizer):
    """Newton-Schulz: `steps` odd quintics applied to the singular values.

    For n x m matrices with n <= m, alpha = m / n, the direct form takes
    2 T (2 alpha + 1) n^3 FLOPs in T steps; the Gram form, which iterates on X X^T and
    comes back to X at every restart, 8 T - 6 + 4 alpha + r (4 alpha - 6) with r
    restarts: the fewer above alpha = 1.5. On CPU, the direct form skips one block in
    four of its symmetric products from 512 rows on. `explain` says what runs.

    Attributes:
      coefficients: a name in `COEFFICIENTS`, or rows (a, b, c), one a step.
      steps: how many steps; None takes the table's own number. Fewer than the table has
        take its first rows; past its end the last row repeats.
      method: "direct", "gram", or "auto": the cheaper of the two for each shape, of
        those that are safe with these coefficients in this dtype.
      dtype: of the products' operands. None means bfloat16 on TPU and GPU, float32 on
        CPU, chosen for the platform that the program is compiled for; float64 input
        is then computed in float64 everywhere. Sums are at least float32, and float32
        products run at full precision on every platform.
      restarts: for method "gram": the 0-based steps after which it comes back to X;
        None picks the fewest that are safe: rounding noise must stay small in the
        dtype, and not carry a singular value to where the polynomials diverge.

    Raises:
      ValueError: unknown name, malformed or unsafe rows, fewer than one step, no float
        dtype; a Gram form that the dtype cannot bear.

    >>> NewtonSchulz("keller_jordan", steps=3)
    NewtonSchulz(coefficients='keller_jordan', steps=3, method='auto', dtype=None, \
restarts=None)

    References:
      Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
      Amsel et al., The Polar Express, arXiv 2505.16932, 2025.
      Dao-AILab, Gram Newton-Schulz, 2025: the Gram form and its restarts.
    """

    coefficients: Any = "polar_express"
    steps: int | None = None
    _: dataclasses.KW_ONLY
    method: str = AUTO
    dtype: Any = None
    restarts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        table = as_table(self.coefficients)
        if not isinstance(self.coefficients, str):  # lists would not hash
            object.__setattr__(self, "coefficients", table)
        if self.steps is not None and not (_is_int(self.steps) and self.steps >= 1):
            raise ValueError(
                f"steps={self.steps!r} must be a positive int, or None for the "
                f"table's own {table.steps}: the loop's length is compiled in."
            )
        if self.steps is not None:
            object.__setattr__(self, "steps", int(self.steps))
        check_rows(self.rows, self.coefficients)
        _checks.check_choice("method", self.method, METHODS)
        object.__setattr__(self, "dtype", _checks.float_dtype("dtype", self.dtype))
        if self.restarts is not None:
            self._check_restarts()
        if self.method == GRAM:
            check_gram(self.rows, self.restarts, self.dtype)

    @property
    def rows(self) -> tuple[Row, ...]:
        """The (a, b, c) of every step that runs."""
        return as_table(self.coefficients).schedule(self.steps)

    def choice(self, shape: tuple[int, ...], dtype: Any, platform: str) -> Choice:
        """What runs for matrices [..., m, n] of `dtype` on "cpu", "gpu" or "tpu"."""
        return choose(
            shape,
            self.rows,
            self._operands(dtype, platform),
            method=self.method,
            restarts=self.restarts,
            platform=platform,
        )

    def travel_dtype(self, dtype: np.dtype, platform: str) -> np.dtype:
        # Its exponents are those of float32; float16 would need scaling first.
        narrow = self._operands(dtype, platform) == jnp.bfloat16
        return jnp.dtype(jnp.bfloat16) if narrow and dtype == jnp.float32 else dtype

    def work(
        self, shape: tuple[int, int], devices: int, dtype: np.dtype, platform: str
    ) -> Work | None:
        if devices == 1:
            return Work(self.choice(shape, dtype, platform).flops)
        choice = self._choice_of_columns(shape, dtype, platform)
        if choice is None:
            return None
        n, m = sorted(shape)
        flops = gram_flops(n, m / devices, len(self.rows), choice.restarts)
        return Work(flops, reductions=len(choice.restarts) + 1)

    def form(
        self, shape: tuple[int, int], devices: int, dtype: np.dtype, platform: str
    ) -> Form:
        choose = self.choice if devices == 1 else self._choice_of_columns
        choice = choose(shape, dtype, platform)
        assert choice is not None  # or its columns would not be on several devices
        return Form(choice.method, choice.restarts, choice.dtype)

    def polar_factor_of_columns(
        self, x: Float[Array, "*batch n l"], axes: Axes, platform: str
    ) -> Float[Array, "*batch n l"]:
        choice = self._choice_of_columns(x.shape, x.dtype, platform)
        assert choice is not None  # `work` said so
        dtype = x.dtype
        x = gram(x, self.rows, choice.restarts, choice.dtype, choice.module, axes)
        return x.astype(dtype)

    def _choice_of_columns(
        self, shape: tuple[int, ...], dtype: np.dtype, platform: str
    ) -> Choice | None:
        """The Gram form if it is allowed: only it leaves the long side alone."""
        operands = self._operands(dtype, platform)
        if self.method == DIRECT or gram_hazard(self.rows, operands) is not None:
            return None
        return choose(
            shape,
            self.rows,
            operands,
            method=GRAM,
            restarts=self.restarts,
            platform=platform,
        )

    def polar_factor(self, x: Float[Array, "*batch m n"]) -> Float[Array, "*batch m n"]:
        def run(platform: str, matrices: jax.Array) -> jax.Array:
            return self._run(self.choice(x.shape, x.dtype, platform), matrices)

        return looped(run, x)

    def _operands(self, dtype: Any, platform: str) -> np.dtype:
        """The dtype of the products' operands."""
        on_cpu = at_least_float32(dtype)
        elsewhere = on_cpu if on_cpu == jnp.float64 else jnp.dtype(jnp.bfloat16)
        return self.dtype or (on_cpu if platform == "cpu" else elsewhere)

    def _run(
        self, choice: Choice, x: Float[Array, "*batch m n"]
    ) -> Float[Array, "*batch m n"]:
        wide = x.shape[-2] <= x.shape[-1]
        x = x if wide else x.mT
        if choice.method == GRAM:
            x = gram(x, self.rows, choice.restarts, choice.dtype, choice.module)
        else:
            x = normalize(x).astype(at_least_float32(choice.dtype))
            x = direct(x, self.rows, choice.dtype, choice.module)
        return x if wide else x.mT

    def _check_restarts(self) -> None:
        restarts: Any = self.restarts
        last = len(self.rows) - 2
        if self.method != GRAM:
            raise ValueError(
                f"restarts={restarts!r} belongs to the Gram form, but method is "
                f"{self.method!r}; pass method='gram' as well, or leave restarts out."
            )
        if (
            not isinstance(restarts, (tuple, list))
            or not all(_is_int(k) and 0 <= k <= last for k in restarts)
            or list(restarts) != sorted(set(restarts))
        ):
            raise ValueError(
                f"restarts={restarts!r} must be a tuple of ascending 0-based steps, "
                f"below {last + 1} for {last + 2} steps: a new cycle begins after each."
            )
        object.__setattr__(self, "restarts", tuple(int(k) for k in restarts))


def _is_int(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Svd(Orthogonalizer):
    """The exact polar factor U_r V_r^T by SVD; directions of rank noise get no step."""

    def polar_factor(self, x: Float[Array, "*batch m n"]) -> Float[Array, "*batch m n"]:
        return _exact.polar_svd(x)


@dataclasses.dataclass(frozen=True)
class Qdwh(Orthogonalizer):
    """The exact polar factor by QDWH; matrices without full rank are completed.

    Raises:
      TypeError: inside a `jax.shard_map` of your own that checks what varies over mesh
        axes, which JAX's QDWH is not written for.
    """

    def polar_factor(self, x: Float[Array, "*batch m n"]) -> Float[Array, "*batch m n"]:
        try:
            return _exact.polar_qdwh(x)
        except TypeError as error:
            if not jax.sharding.get_abstract_mesh().manual_axes:
                raise
            raise TypeError(
                f"orthogonalizer={self!r} cannot run on {jax.typeof(x)}: "
                f"{str(error).splitlines()[0]} Inside jax.shard_map, pass "
                "check_vma=False to it, or take Svd() or NewtonSchulz()."
            ) from error


def explain(
    shape: tuple[int, ...],
    orthogonalizer: NewtonSchulz = NewtonSchulz(),
    *,
    dtype: Any = "float32",
    platform: str | None = None,
) -> Choice:
    """What `NewtonSchulz` runs for matrices of a shape, and why.

    Args:
      shape: [..., m, n].
      orthogonalizer: the configuration.
      dtype: of the matrices; the products' own is in the answer.
      platform: "cpu", "gpu" or "tpu"; None means this process's default.

    Raises:
      TypeError: an orthogonalizer without a choice, such as `Svd()`.
      ValueError: fewer than two axes; an unknown platform.

    >>> choice = explain((384, 1536), NewtonSchulz("keller_jordan"), platform="tpu")
    >>> choice.method, choice.restarts, str(choice.dtype)
    ('gram', (1, 3), 'bfloat16')
    """
    if not isinstance(orthogonalizer, NewtonSchulz):
        raise TypeError(
            f"orthogonalizer={orthogonalizer!r} leaves nothing to choose; explain() "
            "tells what NewtonSchulz(...) runs."
        )
    if (
        not isinstance(shape, (tuple, list))
        or len(shape) < 2
        or not all(_is_int(size) and size > 0 for size in shape)
    ):
        raise ValueError(
            f"shape={shape!r} is not that of matrices [..., m, n]; pass a tuple of two "
            "or more positive ints, such as x.shape."
        )
    platform = jax.default_backend() if platform is None else platform
    _checks.check_choice("platform", platform, ("cpu", "gpu", "tpu"))
    checked = _checks.float_dtype("dtype", dtype) or jnp.dtype(jnp.float32)
    return orthogonalizer.choice(tuple(shape), checked, platform)
