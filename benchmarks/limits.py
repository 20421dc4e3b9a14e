"""The limit: the fewest FLOPs of the iteration at the rate of this machine's own GEMM.

With a matrix of short side n and long side m, alpha = m / n, a step of the iteration
X <- a X + (b A + c A A) X, A = X X^T, is 2 (2 alpha + 1) n^3 FLOPs in plain products.
Iterating on the Gram matrix instead (Amsel et al., The Polar Express, arXiv 2505.16932,
on rectangular matrices) keeps the long side out of the loop: four products of n x n a
step, of which the first step omits one and the last two. A restart forms X and its
Gram matrix anew: two long products more, and three square ones fewer.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_muon import NewtonSchulz, explain
from shapes import Case


def direct_flops(n: int, m: int, steps: int) -> int:
    """X X^T, A A and B X, in each step."""
    return steps * (4 * m * n**2 + 2 * n**3)


def gram_flops(n: int, m: int, steps: int, restarts: int) -> int:
    """(8 T - 6 + 4 alpha + r (4 alpha - 6)) n^3 for T steps and r restarts."""
    return (8 * steps - 6) * n**3 + 4 * m * n**2 + restarts * (4 * m - 6 * n) * n**2


def fewest_flops(n: int, m: int, steps: int, dtype: str) -> int:
    """The cheaper of both forms, the Gram form with the restarts that are safe."""
    gram = NewtonSchulz("keller_jordan", steps, method="gram", dtype=jnp.dtype(dtype))
    restarts = len(explain((n, m), gram).restarts)
    return min(direct_flops(n, m, steps), gram_flops(n, m, steps, restarts))


def standard_flops(case: Case, steps: int) -> int:
    """FLOPs of the direct form over a whole case: what rates are quoted in."""
    return sum(k * direct_flops(n, m, steps) for (n, m), k in case.stacks().items())


def limit_seconds(case: Case, steps: int, dtype: str, rates: dict[int, float]) -> float:
    """The time of the fewest FLOPs, each matrix at the rate of its short side's size.

    Args:
      case: its matrices.
      steps: of the iteration.
      dtype: of the products.
      rates: FLOP/s by the side of a square GEMM.
    """
    return sum(
        count * fewest_flops(n, m, steps, dtype) / rates[nearest_size(n, tuple(rates))]
        for (n, m), count in case.stacks().items()
    )


def nearest_size(n: int, sizes: tuple[int, ...]) -> int:
    """The smallest of the sizes that is no smaller than n, else the largest."""
    return min((size for size in sizes if size >= n), default=max(sizes))


def sizes_of(case: Case, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes whose rates the limit of a case needs."""
    return tuple(sorted({nearest_size(n, sizes) for n, _ in case.stacks()}))


class Gemm:
    """A chain X <- X Y of square products, each of which waits for the last.

    Y is Gaussian with variance 1 / n, which keeps the norm of X: no entry overflows or
    vanishes, and the processor sees no easier numbers than an optimizer's.

    Args:
      size: the side n.
      dtype: of X and Y.
      flops: about how many the chain has; it has four products at least.
      elements: as many matrices run side by side as have so many elements.
    """

    def __init__(self, size: int, dtype: str, flops: float, elements: int):
        batch = max(1, elements // size**2)
        product = 2 * batch * size**3
        length = max(4, round(flops / product))
        # A stack of one is a matrix, whose product XLA may compile better.
        shape = (size, size) if batch == 1 else (batch, size, size)
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((2, *shape), np.float32) / size**0.5
        self._x, self._y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
        self._chain = jax.jit(
            lambda x, y: lax.fori_loop(0, length, lambda _, z: jnp.matmul(z, y), x)
        )
        self.size, self.flops = size, length * product

    def __call__(self, repeats: int) -> None:
        for _ in range(repeats):
            x = self._chain(self._x, self._y)
        jax.block_until_ready(x)
