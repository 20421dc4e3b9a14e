"""What the pipeline asks of a way to orthogonalize."""

import abc
import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from optax_muon._casts import at_least_float32
from optax_muon._cost import Work
from optax_muon._mesh_axes import Axes

# Of an SVD or QDWH, times n^2 m: only their share of the time matters.
_EXACT_FLOPS = 30


@dataclasses.dataclass(frozen=True)
class Form:
    """What runs for matrices of one shape, as a plan tells it.

    Attributes:
      name: "direct" or "gram" of `NewtonSchulz`, "svd", "qdwh", or a function's name.
      restarts: 0-based steps after which Gram starts a new cycle.
      dtype: of its products' operands; None of a function, which may do as it likes.
    """

    name: str
    restarts: tuple[int, ...] = ()
    dtype: np.dtype | None = None

    def __str__(self) -> str:
        text = self.name if self.dtype is None else f"{self.name} in {self.dtype}"
        return f"{text}, restarts {self.restarts}" if self.restarts else text

    def as_dict(self) -> dict[str, Any]:
        """The attributes by name, the dtype by its own."""
        dtype = None if self.dtype is None else self.dtype.name
        return {"name": self.name, "restarts": self.restarts, "dtype": dtype}


class Orthogonalizer(abc.ABC):
    """How to find the polar factor U V^T of every matrix U S V^T in a stack.

    An instance is a pytree without arrays, so it selects the program that is compiled.
    A class that holds numbers to be traced says `static=False`, and registers itself.
    """

    def __init_subclass__(cls, static: bool = True, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if static:
            jax.tree_util.register_static(cls)

    @property
    def either_orientation(self) -> bool:
        """Whether rows and columns may trade places, as a polar factor lets them."""
        return True

    def input_dtype(self, dtype: np.dtype) -> np.dtype:
        """The dtype that directions of leaves of `dtype` are to be rounded to."""
        return at_least_float32(dtype)  # in which they are computed

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
        if devices > 1:
            return None
        n, m = sorted(shape)
        return Work(_EXACT_FLOPS * n * n * m, is_counted=False)

    def form(
        self, shape: tuple[int, int], devices: int, dtype: np.dtype, platform: str
    ) -> Form:
        """What runs for such matrices, with arguments as for `work`."""
        del shape, devices, platform
        return Form(type(self).__name__.lower(), dtype=at_least_float32(dtype))
