"""The matrices that `bench` times, and both optimizers for them."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import optax

from optax_muon._cli_arguments import UsageError
from optax_muon._cli_model import Model
from optax_muon._matrix_axes import MatrixAxes
from optax_muon._orthogonalizers import NewtonSchulz, explain
from optax_muon._planning import plan
from optax_muon._recipes import muon

# optax.contrib.muon's own, and as many steps.
_TABLE = "keller_jordan"
_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Matrices:
    """Leaves of shape (fan_in, fan_out), or (batch, fan_in, fan_out) of stacked ones.

    Attributes:
      shapes: by name.
    """

    shapes: dict[str, tuple[int, ...]]

    def __str__(self) -> str:
        counts = Counter(self.shapes.values())
        return ", ".join(
            f"{count} x {' x '.join(map(str, shape))}"
            for shape, count in counts.items()
        )

    def ours(self) -> optax.GradientTransformation:
        """`muon` with the coefficients of optax."""
        axes = {name: MatrixAxes(-2, -1) for name in self.shapes}
        return muon(_RATE, orthogonalizer=NewtonSchulz(_TABLE), matrix_axes=axes)

    def peer(self) -> optax.GradientTransformation:
        """`optax.contrib.muon`, told the same axes."""
        numbers = {
            name: optax.contrib.MuonDimensionNumbers(len(shape) - 2, len(shape) - 1)
            for name, shape in self.shapes.items()
        }
        return optax.contrib.muon(_RATE, muon_weight_dimension_numbers=numbers)

    def updates(
        self, tx: optax.GradientTransformation, dtype: str
    ) -> Callable[[], None]:
        """A function that makes one update, and returns when it is there."""
        gradients = {
            name: jax.random.normal(jax.random.key(seed), shape, dtype)
            for seed, (name, shape) in enumerate(self.shapes.items())
        }
        params = jax.tree.map(jnp.ones_like, gradients)
        state, step = jax.jit(tx.init)(params), jax.jit(tx.update)

        def update() -> None:
            nonlocal state
            updates, state = step(gradients, state, params)
            jax.block_until_ready((updates, state))

        return update

    def flops_of_ours(self, dtype: str, platform: str) -> float:
        """Of all products of an update, in the form that runs on the platform."""
        found = plan(
            {name: jax.ShapeDtypeStruct(s, dtype) for name, s in self.shapes.items()},
            {name: MatrixAxes(-2, -1) for name in self.shapes},
            orthogonalizer=NewtonSchulz(_TABLE),
            platform=platform,
        )
        assert found.flops is not None  # Newton-Schulz's products are counted
        return float(found.flops)

    def flops_of_optax(self, dtype: str) -> float:
        """Likewise: it runs the direct form, without skipping blocks as ours on CPU."""
        direct = NewtonSchulz(_TABLE, method="direct")
        return sum(
            (shape[0] if len(shape) == 3 else 1)
            * explain(shape, direct, dtype=dtype, platform="gpu").flops
            for shape in self.shapes.values()
        )


def of_shapes(counted: Iterable[tuple[tuple[int, int], int]]) -> Matrices:
    """So many leaves of each shape, as of a model whose layers are not stacked."""
    shapes = [shape for shape, count in counted for _ in range(count)]
    return Matrices({f"matrix_{i}": shape for i, shape in enumerate(shapes)})


def of_model(model: Model) -> Matrices:
    """Those of Muon's leaves; matrices side by side in one are leaves of their own."""
    shapes = {}
    for leaf in plan(model.params, model.matrix_axes).leaves:
        if leaf.matrix is None or leaf.batch is None:
            continue
        batch = () if leaf.batch == 1 else (leaf.batch,)
        for index, fans in enumerate(leaf.parts or (leaf.matrix,)):
            shapes[f"{leaf.path} {index}"] = (*batch, *fans)
    if not shapes:
        raise UsageError(
            "none of the model's leaves is Muon's, so there is no update to time; see "
            "`python -m optax_muon plan`, and --axes."
        )
    return Matrices(shapes)
