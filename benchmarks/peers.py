"""The contestants: the same five steps of Muon by us, by optax.contrib, and by torch.

All use Keller Jordan's coefficients, a momentum of 0.95 and Nesterov's direction. Each
does its whole update of all leaves, which is not quite the same work: ours scales by
shape where optax.contrib's core does not, and torch's step also applies the update,
with weight decay. Both are passes over the elements, beside some hundred products.
"""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any, ClassVar
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

import machine
import optax_muon
from shapes import Case, as_matrix
from store import UsageError

SEED = 0
STEPS = 5

Run = Callable[[int], None]
"""Does the work so many times, and returns when it is done."""


def gradients(case: Case) -> dict[str, np.ndarray]:
    """The gradient of every leaf: random normal, the same at every step."""
    rng = np.random.default_rng(SEED)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in case.leaves}


@dataclasses.dataclass(frozen=True)
class JaxContestant:
    """An optax transformation, compiled as one program.

    Attributes:
      name: in the results.
      about: what is computed in which dtype.
      dtype: of gradients, momentum and updates.
      transformation: builds it for the leaves of a case.
      comparable: always, since those that meet have one dtype.
    """

    name: str
    about: str
    dtype: str
    transformation: Callable[[Case], optax.GradientTransformation]
    comparable: ClassVar[bool] = True

    def available(self) -> bool:
        return True

    def abstract(self, case: Case) -> tuple[Any, Any]:
        """Gradients and state as shapes, for programs that are never run."""
        leaves = {
            name: jax.ShapeDtypeStruct(shape, self.dtype) for name, shape in case.leaves
        }
        return leaves, jax.eval_shape(self.transformation(case).init, leaves)

    def prepare(self, case: Case, gradients: dict[str, np.ndarray]) -> Run:
        """Updates one after another, each from the state that the last one left."""
        transformation = self.transformation(case)
        leaves = {name: jnp.asarray(g, self.dtype) for name, g in gradients.items()}
        update = jax.jit(transformation.update)
        state = transformation.init(leaves)

        def run(repeats: int) -> None:
            nonlocal state
            for _ in range(repeats):
                steps, state = update(leaves, state)
            jax.block_until_ready((steps, state))

        return run


def ours(products: str) -> Callable[[Case], optax.GradientTransformation]:
    """optax_muon, with the products' operands in a dtype."""

    def transformation(case: Case) -> optax.GradientTransformation:
        axes = {
            name: optax_muon.MatrixAxes(tuple(range(len(shape) - 1)), len(shape) - 1)
            for name, shape in case.leaves
        }
        return optax_muon.scale_by_muon(
            orthogonalizer=optax_muon.NewtonSchulz(
                "keller_jordan", STEPS, dtype=jnp.dtype(products)
            ),
            matrix_axes=axes,
        )

    return transformation


def optax_contrib(case: Case) -> optax.GradientTransformation:
    """optax.contrib's core with its own defaults, which are these coefficients."""
    axes = {
        name: optax.contrib.MuonDimensionNumbers(
            reduction_axis=tuple(range(len(shape) - 1)), output_axis=len(shape) - 1
        )
        for name, shape in case.leaves
    }
    return optax.contrib.scale_by_muon(ns_steps=STEPS, weight_dimension_numbers=axes)


@dataclasses.dataclass(frozen=True)
class TorchContestant:
    """torch.optim.Muon on the CPU, on as many threads as there are processors.

    Attributes:
      name: in the results.
      about: what is computed in which dtype.
      iteration: the context its steps are taken in.
      comparable: whether its products have the dtype of ours.
    """

    name: str
    about: str
    iteration: Callable[[], contextlib.AbstractContextManager]
    comparable: bool = True

    def available(self) -> bool:
        return importlib.util.find_spec("torch") is not None

    def optimizer(self, case: Case, gradients: dict[str, np.ndarray]) -> Any:
        """One parameter of zeros a leaf, as torch lays matrices out: (out, in)."""
        import torch

        if not hasattr(torch.optim, "Muon"):
            raise UsageError(
                "torch",
                torch.__version__,
                "it has no torch.optim.Muon",
                "Install requirements-peers.txt, or no torch at all",
            )
        torch.set_num_threads(machine.cores())
        parameters = []
        for name, shape in case.leaves:
            gradient = gradients[name].reshape(as_matrix(shape)).T.copy()
            parameter = torch.nn.Parameter(torch.zeros(gradient.shape))
            parameter.grad = torch.from_numpy(gradient)
            parameters.append(parameter)
        return torch.optim.Muon(parameters, ns_steps=STEPS)

    def prepare(self, case: Case, gradients: dict[str, np.ndarray]) -> Run:
        optimizer = self.optimizer(case, gradients)

        def run(repeats: int) -> None:
            with self.iteration():
                for _ in range(repeats):
                    optimizer.step()

        return run


def float32_iteration() -> contextlib.AbstractContextManager:
    """In here torch's cast to bfloat16, which Muon begins with, is one to float32."""
    import torch

    return mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.float)


OURS = JaxContestant("ours", "all in float32", "float32", ours("float32"))
OPTAX = JaxContestant("optax", "all in float32", "float32", optax_contrib)
TORCH_AS_IS = TorchContestant(
    "torch_bfloat16",
    "as it is: iterates in bfloat16, where ours does in float32",
    contextlib.nullcontext,
    comparable=False,
)
TORCH_FLOAT32 = TorchContestant(
    "torch_float32", "patched to iterate in float32", float32_iteration
)

MIXED = JaxContestant(
    "ours", "float32 leaves, products of bfloat16", "float32", ours("bfloat16")
)
OPTAX_DEFAULT = dataclasses.replace(
    OPTAX, about="all in float32, at the platform's own precision of products"
)
LOW = JaxContestant(
    "ours_bfloat16", "leaves and products in bfloat16", "bfloat16", ours("bfloat16")
)
OPTAX_LOW = JaxContestant(
    "optax_bfloat16", "all in bfloat16", "bfloat16", optax_contrib
)

Contestant = JaxContestant | TorchContestant


def matches(platform: str) -> list[tuple[JaxContestant, list[Contestant]]]:
    """Each of ours, and who meets it on a platform: on the same leaves."""
    if platform == "cpu":
        return [(OURS, [OPTAX, TORCH_AS_IS, TORCH_FLOAT32])]
    return [(MIXED, [OPTAX_DEFAULT]), (LOW, [OPTAX_LOW])]


def contestants(platform: str) -> list[Contestant]:
    """All who run on a platform, ours first."""
    return [one for mine, rivals in matches(platform) for one in (mine, *rivals)]


def jax_matches(platform: str) -> list[tuple[JaxContestant, JaxContestant]]:
    """Each of ours and the optax peer it is held against."""
    return [
        (mine, rival)
        for mine, rivals in matches(platform)
        for rival in rivals
        if isinstance(rival, JaxContestant)
    ]


def jax_contestants(platform: str) -> list[JaxContestant]:
    """All that are compiled by JAX."""
    return [one for pair in jax_matches(platform) for one in pair]
