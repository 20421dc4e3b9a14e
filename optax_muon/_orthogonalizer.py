"""What the pipeline asks of a way to orthogonalize."""

import abc
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Float

from optax_muon._cost import Work
from optax_muon._mesh_axes import Axes

# Of an SVD or QDWH, times n^2 m: only their share of the time matters.
_EXACT_FLOPS = 30


class Orthogonalizer(abc.ABC):
    """How to find the polar factor U V^T of every matrix U S V^T in a stack.

    Attributes:
      either_orientation: whether rows and columns may trade places and be permuted, as
        a polar factor lets them.
    """

    either_orientation: ClassVar[bool] = True

    @abc.abstractmethod
    def polar_factor(self, x: Float[Array, "*batch m n"]) -> Float[Array, "*batch m n"]:
        """The (approximate) polar factors; in any real dtype, zeros give zeros."""

    def polar_factor_of_columns(
        self, x: Float[Array, "*batch n l"], axes: Axes, platform: str
    ) -> Float[Array, "*batch n l"]:
        """As `polar_factor`, inside `jax.shard_map`, of columns on different devices.

        Args:
          x: this device's columns of matrices that are not taller than wide.
          axes: the mesh axes, or digits of them, that the columns lie along.
          platform: "cpu", "gpu" or "tpu".
        """
        raise NotImplementedError(f"{self} needs whole matrices")

    def travel_dtype(self, dtype: np.dtype, platform: str) -> np.dtype:
        """The dtype in which matrices of `dtype` go to another device and back."""
        del platform
        return dtype

    def work(
        self, shape: tuple[int, int], devices: int, dtype: np.dtype, platform: str
    ) -> Work | None:
        """What each device does for one n x m matrix, n <= m, that some devices share.

        None if they cannot: `polar_factor_of_columns` is called only where they can.
        """
        del dtype, platform
        n, m = sorted(shape)
        return Work(_EXACT_FLOPS * n * n * m) if devices == 1 else None
