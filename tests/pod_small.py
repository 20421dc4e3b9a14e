"""A small model of the pod program on meshes of the test process's own devices."""

import jax
import numpy as np
from jax.sharding import AxisType

SIZE, CONTEXT = 16, 32
MODEL = {"width": 32, "layers": 1, "heads": 4, "context": CONTEXT}


def mesh_of(data: int, fsdp: int, tensor: int) -> jax.sharding.Mesh:
    """A mesh of the first so many devices."""
    return jax.make_mesh(
        (data, fsdp, tensor),
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
        devices=jax.devices()[: data * fsdp * tensor],
    )


def letters():
    """A corpus of random bytes."""
    import corpus

    text = np.random.default_rng(0).integers(1, 128, 9000, np.uint8)
    return corpus.Corpus("letters", text[:8000], text[8000:])


def trainings():
    """A function from the sizes of a mesh to the training there, made once for each."""
    from pod.run import GPTConfig
    from pod.training import Training

    made = {}

    def on(*shape):
        if shape not in made:
            made[shape] = Training(GPTConfig(**MODEL), mesh_of(*shape), 0.02, 0)
        return made[shape]

    return on
