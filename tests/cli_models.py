"""What `--from tests.cli_models:NAME` finds: models, and mistakes users make."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from optax_muon import MatrixAxes


def parameters():
    """Shapes alone."""
    return {
        "mlp": {
            "kernel": jax.ShapeDtypeStruct((16, 32), jnp.float32),
            "bias": jax.ShapeDtypeStruct((32,), jnp.float32),
        }
    }


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.proj = nnx.LinearGeneral(16, (2, 8), rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)


def nnx_model():
    """Its statistics are no parameters, and its name tells no axes."""
    return Layer(nnx.Rngs(0))


def linen_model():
    """In boxes, and its name tells no axes."""
    init = nn.with_logical_partitioning(
        nn.initializers.lecun_normal(), ("embed", "heads", "kv")
    )
    module = nn.DenseGeneral((2, 8), kernel_init=init, name="proj")
    return module, jax.ShapeDtypeStruct((1, 16), jnp.float32)


class Experts(nnx.Module):
    def __init__(self):
        self.experts = nnx.Param(jnp.ones((3, 4, 8)))


def unexplained_nnx():
    """Three matrices that no layer made."""
    return Experts()


class LinenExperts(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("experts", nn.initializers.ones, (3, 4, 8))


def unexplained_linen():
    return LinenExperts(), jax.ShapeDtypeStruct((3, 5, 4), jnp.float32)


EXPERTS = MatrixAxes(1, 2)


def equinox_model():
    """[out, in], and a function among its leaves."""
    conv = eqx.nn.Conv2d(4, 16, 2, use_bias=False, key=jax.random.key(0))
    return {"conv": conv, "activation": jax.nn.relu}


def stacked_parameters():
    """Three matrices in a leaf, two side by side in another, and a vector."""
    return {
        "layers": jnp.ones((3, 4, 8)),
        "fused": jnp.ones((4, 12)),
        "bias": jnp.ones(4),
    }


STACKED_AXES = {
    "layers": MatrixAxes(1, 2),
    "fused": MatrixAxes(0, 1, fan_out_parts=(4, 8)),
    "bias": None,
}


def axes_with_a_bug(path, leaf):
    return leaf.no_such_attribute


def linen_without_inputs():
    return nn.Dense(3)


def undecided():
    return {"weight": jnp.ones((3, 4)), "rank_3": jnp.ones((3, 4, 5))}


def vectors():
    return {"bias": jnp.ones(4)}


def nothing():
    return None


def no_arrays():
    return {"learning_rate": 0.1, "kernel": jnp.ones((2, 2)), "name": "mlp"}


def needs_a_size(size, *, depth=1):
    raise AssertionError("never called")


def breaks():
    return 1 / 0


a_number = 3


def all_to_adamw(path, leaf):
    return None
