"""The sharded state: how it is made, and one jitted step of training."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_muon
from loop import State, mean_loss
from model import GPT, GPTConfig
from pod.layout import shardings
from usage import UsageError

# Lets Muon's all-to-alls run behind other work. Only TPUs know it, and of those not all
# slices: for a v5e of 4 x 8 chips the compiler refuses.
OVERLAP = {"xla_tpu_enable_async_all_to_all": "true"}


class Training:
    """A model and its optimizer on a mesh.

    Attributes:
      abstract: the state's shapes, dtypes and shardings, without memory.
      create: makes the first state, sharded from the start: no host or device ever
        holds more than its own shards.
      step: (state, windows) -> (state, loss). The old state is donated.
    """

    def __init__(
        self,
        model: GPTConfig,
        mesh: Mesh,
        learning_rate: float,
        seed: int,
        *,
        overlap: bool = False,
    ):
        def build() -> GPT:
            return GPT(model, rngs=nnx.Rngs(seed))

        graphdef, params = nnx.split(nnx.eval_shape(build))
        optimizer = optax_muon.muon(learning_rate, sharding=shardings(mesh, params))

        def fresh() -> State:
            params = nnx.split(build())[1]
            return State(params, optimizer.init(params))

        shapes = jax.eval_shape(fresh)
        layout = shardings(mesh, shapes)
        self.abstract = jax.tree.map(_placed, shapes, layout)
        self.create = jax.jit(fresh, out_shardings=layout)
        self.step = jax.jit(
            _step(graphdef, optimizer),
            donate_argnums=0,
            out_shardings=(layout, NamedSharding(mesh, P())),
            compiler_options=options_for(mesh.devices.flat[0].platform, overlap),
        )


def options_for(platform: str, overlap: bool) -> dict[str, str] | None:
    """What the compiler is told on a platform."""
    if overlap and platform != "tpu":
        raise UsageError(
            "--overlap",
            overlap,
            f"no compiler option overlaps exchanges on {platform}",
            "Leave it out",
        )
    return OVERLAP if overlap else None


def _placed(shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _step(graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation) -> Callable:
    def step(state: State, windows: jax.Array) -> tuple[State, jax.Array]:
        loss, grads = jax.value_and_grad(mean_loss, argnums=1)(
            graphdef, state.params, windows
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state), loss

    return step
