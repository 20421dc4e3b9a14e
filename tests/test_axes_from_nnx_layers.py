"""axes_from_nnx layer by layer, against the Jacobian of what the layer computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from optax_muon import MatrixAxes, axes_from_nnx
from tests import jacobians
from tests.architectures_nnx import stack
from tests.jacobians import one_pixel
from tests.routing_cases import random_model

IMAGE = (1, 9, 9, 4)


def made(layer, *args, **options):
    """A layer whose parameters are random, without the time to compile initializers."""
    options["kernel_init"] = nnx.initializers.normal()
    return random_model(lambda rngs: layer(*args, rngs=rngs, **options))


def general(*features, **options):
    return lambda: made(nnx.LinearGeneral, *features, **options)


def einsum(equation, shape):
    return lambda: made(nnx.Einsum, equation, shape)


def conv(*args, **options):
    return lambda: made(nnx.Conv, *args, **options)


def conv_transpose(*args, **options):
    return lambda: made(nnx.ConvTranspose, *args, **options)


LAYERS = {
    "linear": (lambda: made(nnx.Linear, 3, 5), (3,)),
    "linear to one": (lambda: made(nnx.Linear, 3, 1), (3,)),
    "to heads": (general(3, (2, 4)), (3,)),
    "from heads": (general((2, 4), 5, axis=(-2, -1)), (2, 4)),
    "heads to heads": (general((2, 4), (5, 3), axis=(0, 1)), (2, 4)),
    "batch": (general(3, (5, 2), batch_axis={0: 4}), (4, 3)),
    "einsum": (einsum("td,dhk->thk", (3, 2, 4)), (1, 3)),
    "einsum, out first": (einsum("td,fd->tf", (5, 3)), (1, 3)),
    "einsum, heads first": (einsum("td,hdk->thk", (2, 3, 4)), (1, 3)),
    "einsum, from heads": (einsum("thk,hkd->td", (2, 4, 3)), (1, 2, 4)),
    "einsum, experts": (einsum("etd, edf -> etf", (4, 3, 5)), (4, 1, 3)),
    "einsum, experts last": (einsum("...de,dfe->...fe", (3, 5, 4)), (1, 3, 4)),
    "conv": (conv(4, 6, (3, 2)), IMAGE),
    "grouped conv": (conv(4, 6, (3, 2), feature_group_count=2), IMAGE),
    "conv transpose": (conv_transpose(4, 6, (3, 3)), IMAGE),
    "conv transpose, swapped": (
        conv_transpose(4, 6, (3, 3), transpose_kernel=True),
        IMAGE,
    ),
}


@pytest.mark.parametrize(("build", "shape"), LAYERS.values(), ids=LAYERS)
def test_matrices_are_what_the_layer_computes(build, shape):
    layer = build()
    axes = axes_from_nnx(layer)
    assert axes.get("bias") is None
    function = one_pixel(layer) if shape == IMAGE else layer
    x = jnp.zeros(shape)
    jacobians.check(layer.kernel.get_value(), axes["kernel"], function, x)


@pytest.mark.parametrize("axis", [0, 1, -2, -1])
@pytest.mark.parametrize(("build", "shape"), LAYERS.values(), ids=LAYERS)
def test_of_stacked_layers_each_is_a_matrix(build, shape, axis):
    """The same layers, seven of them stacked along an axis of their kernels."""
    layer = build()
    one = axes_from_nnx(layer)["kernel"]
    rng = np.random.default_rng(0)
    kernels = rng.standard_normal((7, *layer.kernel.shape)).astype("float32")
    layer.kernel.set_value(np.moveaxis(kernels, 0, axis))
    found = jacobians.singular_values(layer.kernel[...], axes_from_nnx(layer)["kernel"])
    expected = [jacobians.singular_values(kernel, one) for kernel in kernels]
    np.testing.assert_allclose(
        found, np.sort(np.concatenate(expected))[::-1], atol=1e-5
    )


ADAMW = {
    "embed": lambda rngs: nnx.Embed(5, 3, rngs=rngs),
    "depthwise": lambda rngs: nnx.Conv(6, 6, 3, feature_group_count=6, rngs=rngs),
    "multiplied": lambda rngs: nnx.Conv(3, 6, 3, feature_group_count=3, rngs=rngs),
    "one channel": lambda rngs: nnx.Conv(1, 8, (5, 5), rngs=rngs),
    "one channel, swapped": lambda rngs: nnx.ConvTranspose(
        1, 8, (2, 2), transpose_kernel=True, rngs=rngs
    ),
    "scale of heads": lambda rngs: nnx.Einsum("thd,hd->thd", (2, 3), rngs=rngs),
    "vectors of heads": lambda rngs: nnx.Einsum("thd,hd->th", (2, 3), rngs=rngs),
    "layer norm": lambda rngs: nnx.LayerNorm(4, rngs=rngs),
    "batch norm": lambda rngs: nnx.BatchNorm(4, rngs=rngs),
    "group norm": lambda rngs: nnx.GroupNorm(4, num_groups=2, rngs=rngs),
    "instance norm": lambda rngs: nnx.InstanceNorm(4, rngs=rngs),
    "prelu": lambda rngs: nnx.PReLU(),
    "stacked norms": lambda rngs: stack(lambda r: nnx.RMSNorm(4, rngs=r), 3, rngs),
    "stacked tables": lambda rngs: stack(lambda r: nnx.Embed(5, 3, rngs=r), 4, rngs),
    "stacked slopes": lambda rngs: stack(lambda r: nnx.PReLU(), 3, rngs),
}


@pytest.mark.parametrize("build", ADAMW.values(), ids=ADAMW)
def test_adamw(build):
    axes = axes_from_nnx(shapes(build))
    assert axes
    assert not jax.tree.leaves(axes)


def shapes(build):
    return nnx.eval_shape(lambda: build(nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("equation", "shape", "reason"),
    [
        ("td,...df->...tf", (2, 3, 5), "the ellipsis of"),
        ("td,dd->td", (3, 3), "takes a diagonal"),
        ("td,dfk->tf", (3, 5, 2), "sums it over 'k' alone"),
    ],
)
def test_einsums_that_do_not_tell(equation, shape, reason):
    layer = einsum(equation, shape)()
    with pytest.raises(ValueError, match=r"axes_from_nnx cannot tell.*\n") as caught:
        axes_from_nnx(layer)
    (line,) = str(caught.value).splitlines()[1:-1]
    assert line.startswith(f"  kernel  {shape} float32 of Einsum: ")
    assert reason in line
    axes = MatrixAxes(-2, -1)
    assert axes_from_nnx(layer, others={nnx.Einsum: axes})["kernel"] == axes


class Adapted(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.LoRALinear(3, 5, lora_rank=2, rngs=rngs)
        inside = nnx.Linear(5, 7, rngs=rngs)
        self.down = nnx.LoRA(5, 2, 7, base_module=inside, rngs=rngs)
        self.head = nnx.LoRALinear(7, 9, lora_rank=2, rngs=rngs)
        out = nnx.Linear(7, 9, rngs=rngs)
        self.lm_head = nnx.LoRA(7, 2, 9, base_module=out, rngs=rngs)
        normed = nnx.WeightNorm(nnx.Linear(7, 7, rngs=rngs), rngs=rngs)
        self.normed, self.logits = (
            normed,
            nnx.WeightNorm(nnx.Linear(7, 9, rngs=rngs), rngs=rngs),
        )
        self.readout = nnx.SpectralNorm(nnx.Linear(7, 9, rngs=rngs), rngs=rngs)


DENSE = MatrixAxes(0, 1)
FACTORS = {"lora_a": DENSE, "lora_b": DENSE}
NO_FACTORS = {"lora_a": None, "lora_b": None}
TO_ADAMW = {"kernel": None, "bias": None}


def test_wrapped_layers_are_what_they_wrap():
    """Factors of LoRA are two linear layers; a head is a head in any wrapper."""
    dense = {"kernel": DENSE, "bias": None}
    assert axes_from_nnx(shapes(Adapted)) == {
        "up": {**dense, "lora": FACTORS},
        "down": {"base_module": dense, **FACTORS},
        "head": {**TO_ADAMW, "lora": NO_FACTORS},
        "lm_head": {"base_module": TO_ADAMW, **NO_FACTORS},
        "normed": {"layer_instance": dense},
        "logits": {"layer_instance": TO_ADAMW},
        "readout": {"layer_instance": TO_ADAMW},
    }


def test_factors_alone():
    axes = axes_from_nnx(shapes(Adapted), wrt=nnx.LoRAParam)
    assert axes == {
        "up": {"lora": FACTORS},
        "down": FACTORS,
        "head": {"lora": NO_FACTORS},
        "lm_head": NO_FACTORS,
    }


def test_stacked_factors():
    """The rank is in no configuration; the other factor tells what is stacked."""
    axes = axes_from_nnx(
        shapes(lambda rngs: stack(lambda r: nnx.LoRA(3, 2, 5, rngs=r), 4, rngs, axis=1))
    )
    assert axes == {"lora_a": MatrixAxes(0, 2), "lora_b": MatrixAxes(0, 2)}


def test_einsum_with_bias():
    layer = made(nnx.Einsum, "td,dhk->thk", (3, 2, 4), (2, 4))
    assert axes_from_nnx(layer) == {"kernel": MatrixAxes(0, (1, 2)), "bias": None}


class Own(nnx.Module):
    """Names alone make no layer of Flax."""

    def __init__(self, rngs):
        self.kernel = nnx.Param(rngs.normal((3, 5)))


def test_kernels_of_other_modules_are_not_known():
    with pytest.raises(ValueError, match=r"  kernel  \(3, 5\) float32 of Own: made by"):
        axes_from_nnx(Own(nnx.Rngs(0)))
