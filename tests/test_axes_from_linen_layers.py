"""axes_from_linen layer by layer, against the Jacobian of what the layer computes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from optax_muon import MatrixAxes, axes_from_linen
from tests import jacobians
from tests.jacobians import one_pixel
from tests.routing_cases import random_like

IMAGE = (1, 9, 9, 4)


def made(module, shape):
    """The axes of a module's parameters, and random ones."""
    axes = axes_from_linen(module, jax.ShapeDtypeStruct(shape, jnp.float32))
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape))
    return axes, random_like(shapes["params"])


def stack(layer, *args, axis=0, shared=False, **options):
    """Seven layers by `nn.vmap`, each of its own input or all of one."""
    stacked = nn.vmap(
        layer,
        in_axes=None if shared else 0,
        axis_size=7,
        variable_axes={"params": axis},
        split_rngs={"params": True},
    )
    return stacked(*args, **options)


LAYERS = {
    "dense": (nn.Dense(5), (3,)),
    "to heads": (nn.DenseGeneral((2, 4)), (3,)),
    "from heads": (nn.DenseGeneral(5, axis=(-2, -1)), (2, 4)),
    "heads to heads": (nn.DenseGeneral((5, 3), axis=(0, 1)), (2, 4)),
    "batch": (nn.DenseGeneral((5, 2), batch_dims=(0,)), (4, 3)),
    "einsum": (nn.Einsum((3, 2, 4), "td,dhk->thk"), (1, 3)),
    "einsum, out first": (nn.Einsum((5, 3), "td,fd->tf"), (1, 3)),
    "einsum, from heads": (nn.Einsum((2, 4, 3), "thk,hkd->td"), (1, 2, 4)),
    "einsum, experts": (nn.Einsum((4, 3, 5), "etd,edf->etf"), (4, 1, 3)),
    "conv": (nn.Conv(6, (3, 2)), IMAGE),
    "grouped conv": (nn.Conv(6, (3, 2), feature_group_count=2), IMAGE),
    "conv transpose": (nn.ConvTranspose(6, (3, 3)), IMAGE),
    "conv transpose, swapped": (
        nn.ConvTranspose(6, (3, 3), transpose_kernel=True),
        IMAGE,
    ),
    # Windows side by side, each with a matrix of its own.
    "local conv": (nn.ConvLocal(5, (2,), strides=2, padding="VALID"), (1, 6, 3)),
    "stacked dense": (stack(nn.Dense, 5), (7, 3)),
    "stacked along 1": (stack(nn.Dense, 5, axis=1), (7, 3)),
    "stacked along -1": (stack(nn.Dense, 5, axis=-1), (7, 3)),
    "stacked as wide, along 1": (stack(nn.Dense, 5, axis=1), (7, 7)),
    "stacked to heads": (stack(nn.DenseGeneral, (2, 4), axis=1), (7, 3)),
}


@pytest.mark.parametrize(("module", "shape"), LAYERS.values(), ids=LAYERS)
def test_matrices_are_what_the_layer_computes(module, shape):
    axes, params = made(module, shape)
    assert axes["bias"] is None

    def layer(x):
        return module.apply({"params": params}, x)

    function = one_pixel(layer) if shape == IMAGE else layer
    jacobians.check(params["kernel"], axes["kernel"], function, jnp.zeros(shape))


ADAMW = {
    "depthwise": (nn.Conv(6, (3, 3), feature_group_count=6), (1, 9, 9, 6)),
    "one channel": (nn.Conv(6, (3, 3)), (1, 9, 9, 1)),
    "one channel, swapped": (
        nn.ConvTranspose(6, (3, 3), transpose_kernel=True),
        (1, 9, 9, 1),
    ),
    "scale of heads": (nn.Einsum((2, 3), "thd,hd->thd", use_bias=False), (1, 2, 3)),
    "layer norm": (nn.LayerNorm(), (2, 3)),
    "norm of two axes": (nn.LayerNorm(feature_axes=(-2, -1)), (1, 2, 3)),
    "batch norm": (nn.BatchNorm(use_running_average=False), (2, 3)),
    "group norm": (nn.GroupNorm(num_groups=1), (2, 3)),
    "prelu": (nn.PReLU(), (2, 3)),
    "stacked norms": (stack(nn.RMSNorm), (7, 3)),
    "stacked slopes": (stack(nn.PReLU), (7, 3)),
}


@pytest.mark.parametrize(("module", "shape"), ADAMW.values(), ids=ADAMW)
def test_adamw(module, shape):
    axes, _ = made(module, shape)
    assert axes
    assert not jax.tree.leaves(axes)


class CalledWithEquation(nn.Module):
    """Einsums that get their equations when they are called, either way."""

    @nn.compact
    def __call__(self, x):
        x = nn.Einsum((5, 3), name="a")(x, "td,fd->tf")
        return nn.Einsum((6, 5), use_bias=False, name="b")(x, einsum_str="td,fd->tf")


def test_equations_of_calls():
    axes, _ = made(CalledWithEquation(), (1, 3))
    out_in = {"kernel": MatrixAxes(fan_in=1, fan_out=0)}
    assert axes == {"a": {**out_in, "bias": None}, "b": out_in}


class OwnEinsum(nn.Einsum):
    """Takes a mask where others take the equation, and makes its kernel itself."""

    @nn.compact
    def __call__(self, x, mask=1.0):
        return x @ self.param("kernel", self.kernel_init, self.shape) * mask


class Masked(nn.Module):
    @nn.compact
    def __call__(self, x):
        return OwnEinsum((3, 5), name="own")(x, x[..., :1])


@pytest.mark.parametrize(
    ("module", "shape", "reason"),
    [
        (nn.Einsum((2, 3, 5), "td,...df->...tf", use_bias=False), (1, 3), "ellipsis"),
        (nn.Einsum((3, 3), "td,dd->td", use_bias=False), (1, 3), "takes a diagonal"),
        (nn.Einsum((3, 5, 2), "td,dfk->tf", use_bias=False), (1, 3), "sums it over"),
        (Masked(), (1, 3), "no call tells its equation"),
    ],
    ids=["ellipsis", "diagonal", "sum", "no equation"],
)
def test_einsums_that_do_not_tell(module, shape, reason):
    with pytest.raises(ValueError, match=rf"kernel  .* of \w*Einsum: .*{reason}"):
        made(module, shape)


class Cells(nn.Module):
    """Cells that Flax has in Linen alone."""

    @nn.compact
    def __call__(self, images):
        x = nn.RNN(nn.ConvLSTMCell(5, (3, 3)), name="conv_lstm")(images)
        x = x.mean((2, 3))
        x = nn.RNN(nn.MGUCell(6), name="mgu")(x)
        x = nn.Bidirectional(nn.RNN(nn.LSTMCell(3)), nn.RNN(nn.SimpleCell(4)))(x)
        return x


def test_cells():
    axes, _ = made(Cells(), (1, 2, 4, 4, 3))
    dense = MatrixAxes(0, 1)
    gates = MatrixAxes((0, 1, 2), 3, fan_out_parts=(5, 5, 5, 5))
    kernels = {
        cell: {name: layer["kernel"] for name, layer in layers.items()}
        for cell, layers in axes.items()
    }
    assert kernels == {
        "ConvLSTMCell_0": {"ih": gates, "hh": gates},
        "MGUCell_0": dict.fromkeys(("if", "in", "hf", "hn"), dense),
        "LSTMCell_0": dict.fromkeys(
            ("ii", "if", "ig", "io", "hi", "hf", "hg", "ho"), dense
        ),
        "SimpleCell_0": {"i": dense, "h": dense},
    }


class Lifted(nn.Module):
    """The same layer under every transformation that keeps its shape."""

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.jit(nn.Dense)(5, use_bias=False)(x)
            x = nn.remat(nn.Dense)(5, use_bias=False)(x)
        x = nn.WeightNorm(nn.Dense(5, use_bias=False), name="norm")(x)
        x = nn.SpectralNorm(nn.Dense(5, use_bias=False))(x, update_stats=True)
        return nn.remat_scan(nn.Dense, lengths=(2, 3))(5, use_bias=False, name="deep")(
            x
        )


@pytest.mark.parametrize("_", ["once", "with what jit has cached"])
def test_lifted(_):
    axes, _ = made(Lifted(), (2, 5))
    dense = {"kernel": MatrixAxes(0, 1)}
    assert axes == {
        **{f"JitDense_{i}": dense for i in range(2)},
        **{f"CheckpointDense_{i}": dense for i in range(2)},
        **{f"Dense_{i}": dense for i in range(2)},
        "norm": {"Dense_0/kernel/scale": None},
        "deep": {"kernel": MatrixAxes(2, 3)},
    }


class Wrapped(nn.Module):
    def setup(self):
        self.hidden = nn.WeightNorm(nn.Dense(5))
        self.logits = nn.WeightNorm(nn.Dense(5))
        self.readout = nn.SpectralNorm(nn.Dense(5))

    def __call__(self, x):
        return self.readout(self.logits(self.hidden(x)), update_stats=True)


def test_wrapped_layers_are_what_they_wrap():
    axes, _ = made(Wrapped(), (2, 5))
    kernels = {name: layer["layer_instance"]["kernel"] for name, layer in axes.items()}
    assert kernels == {"hidden": MatrixAxes(0, 1), "logits": None, "readout": None}


class Measured(nn.Dense):
    def width(self):
        return self.features


class SeenFromOutside(nn.Module):
    """A layer of a scan, of which a method is also called outside, on the stack."""

    @nn.compact
    def __call__(self, x):
        layer = Measured(4, name="layers")
        scan = nn.scan(
            lambda layer, x, _: (layer(x), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = scan(layer, x, None)
        return x / layer.width()


def test_a_stack_that_is_seen_from_outside():
    axes, _ = made(SeenFromOutside(), (2, 4))
    assert axes == {"layers": {"kernel": MatrixAxes(1, 2), "bias": None}}


class SharesScope(nn.Module):
    """Its kernel lies in its own scope, and its parameter beside it."""

    def setup(self):
        self.dense = nn.Dense(5)
        nn.share_scope(self, self.dense)
        self.own = self.param("own", nn.initializers.zeros, (5,))

    def __call__(self, x):
        return self.dense(x) + self.own


def test_a_shared_scope():
    axes, _ = made(SharesScope(), (2, 3))
    assert axes == {"kernel": MatrixAxes(0, 1), "bias": None, "own": None}


class Branching(nn.Module):
    """Asks for more than an array: a flag, a name, another method, another stream."""

    def setup(self):
        self.up = nn.Dense(5)
        self.down = nn.Dense(3)

    def encode(self, inputs, train, *, kind):
        x = self.up(inputs["x"])
        if train and kind == "deep":
            x = self.down(x * jax.random.uniform(self.make_rng("noise"), x.shape))
        return x


def test_arguments_go_to_init():
    module, inputs = Branching(), {"x": jnp.ones((2, 4))}
    rngs = {name: jax.random.key(0) for name in ("params", "noise")}
    options = {"kind": "deep", "method": "encode", "rngs": rngs}
    assert axes_from_linen(module, inputs, True, **options).keys() == {"up", "down"}
    options["method"] = Branching.encode
    assert axes_from_linen(module, inputs, False, **options).keys() == {"up"}
    options["method"] = lambda module, x, train, kind: module.encode(
        x, train, kind=kind
    )
    assert axes_from_linen(module, inputs, False, **options).keys() == {"up"}
