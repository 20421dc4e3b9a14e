"""The arguments of axes_from_nnx and axes_from_linen, and trees of other kinds."""

import importlib
import subprocess
import sys

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import optax_muon
from optax_muon import MatrixAxes, axes_from_linen, axes_from_nnx
from tests import architectures_linen, architectures_nnx
from tests.architecture_tables import LLAMA, MOE, check, flat

TOKENS = jax.ShapeDtypeStruct((2, 5), jnp.int32)


def of_linen(**options):
    return flat(axes_from_linen(architectures_linen.MoE(), TOKENS, **options))


def nnx_moe():
    return nnx.eval_shape(lambda: architectures_nnx.MoE(nnx.Rngs(0)))


def of_nnx(**options):
    return flat(axes_from_nnx(nnx_moe(), **options))


ALL = {path: row and row[0] for path, row in MOE.items()}
NO_ROUTER = ALL | {"layers/router/kernel": None}
NO_EXPERTS = ALL | dict.fromkeys(
    ("layers/experts/up/kernel", "layers/experts/down/kernel")
)

both = pytest.mark.parametrize("of", [of_linen, of_nnx], ids=["linen", "nnx"])


@both
def test_routers_are_muons_unless_they_are_named(of):
    assert of() == ALL
    assert of(adamw="router") == NO_ROUTER
    assert of(adamw="layers/rout.*") == NO_ROUTER
    assert of(adamw=("router", "experts")) == dict.fromkeys(ALL)


def test_adamw_by_classes():
    """Of all that is under such a module, and nothing else: not of lifted ones."""
    assert of_linen(adamw=architectures_linen.Expert) == NO_EXPERTS
    assert of_nnx(adamw=[architectures_nnx.Expert]) == NO_EXPERTS
    assert of_linen(adamw=nn.Embed) == of_nnx(adamw=nnx.Embed) == ALL
    nothing = dict.fromkeys(ALL)
    assert of_linen(adamw=nn.Dense) == of_nnx(adamw=nnx.Linear) == nothing
    dense = nn.vmap(
        nn.Dense, axis_size=3, variable_axes={"params": 0}, split_rngs={"params": True}
    )
    model = nn.Sequential([nn.Einsum((4, 5), "bd,de->be"), dense(6)])
    axes = axes_from_linen(model, jnp.ones((3, 4)), adamw=nn.Dense)
    assert axes["layers_0"]["kernel"] == MatrixAxes(0, 1)
    assert axes["layers_1"] == {"kernel": None, "bias": None}


def test_adamw_by_modules():
    model = nnx_moe()
    axes = axes_from_nnx(model, adamw=(model.layers.router,))
    assert flat(axes) == NO_ROUTER
    assert flat(axes_from_nnx(model, adamw=model.layers.experts)) == NO_EXPERTS
    # A list of NNX is a module, not a sequence of choices.
    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    model = nnx.Dict(blocks=nnx.List([linear]), up=nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    assert flat(axes_from_nnx(model, adamw=model["blocks"])) == {
        "blocks/0/kernel": None,
        "blocks/0/bias": None,
        "up/kernel": MatrixAxes(0, 1),
        "up/bias": None,
    }


@both
def test_choices_that_meet_nothing(of):
    with pytest.raises(ValueError, match="given choices that meet no param") as caught:
        of(adamw=("router", "rooter", nn.LayerNorm), others={"kernel": MatrixAxes()})
    unused = f'["adamw: \'rooter\'", "adamw: {nn.LayerNorm!r}", "others: \'kernel\'"]'
    assert unused in str(caught.value)
    assert "change the tree that comes back" in str(caught.value)


@both
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adamw": 3}, "adamw holds 3; each entry must be a pattern"),
        ({"adamw": ("router", None)}, "adamw holds None"),
        ({"others": {0: None}}, "others holds 0"),
        ({"others": {"w": 0}}, "others gave 0 for 'w'"),
        ({"others": {"w": (0, 1)}}, "others gave"),
        ({"others": "w"}, "others='w' must be a rule"),
        ({"others": MatrixAxes}, "must be a rule"),
        ({"others": MatrixAxes()}, "must be a rule"),
    ],
    ids=str,
)
def test_arguments_of_other_types(of, options, message):
    with pytest.raises(TypeError) as caught:
        of(**options)
    assert message in str(caught.value)


@both
def test_no_regular_expression(of):
    with pytest.raises(ValueError, match="is no regular expression"):
        of(adamw="router(")


def test_what_is_no_filter():
    with pytest.raises(TypeError, match="wrt=3 is no filter"):
        axes_from_nnx(nnx_moe(), wrt=3)


def test_modules_are_no_choices_for_linen():
    with pytest.raises(
        TypeError, match="must be a pattern of a path or a class of mod"
    ):
        of_linen(adamw=nn.Dense(3))


def test_rules_that_give_something_else():
    model = nnx.List([nnx.Param(jnp.ones((2, 3)))])
    with pytest.raises(TypeError, match=r"others gave \(0, 1\) for '0'"):
        axes_from_nnx(model, others=lambda path, leaf: (0, 1))


@pytest.mark.parametrize("of", [axes_from_linen, axes_from_nnx])
@pytest.mark.parametrize("other", [{}, nnx.Linear, nn.Dense, None], ids=str)
def test_what_is_no_model(of, other):
    with pytest.raises(TypeError, match=r"flax.(nnx|linen).Module; pass"):
        of(other)


def test_models_of_the_other_library():
    with pytest.raises(TypeError, match="axes_from_linen takes Linen modules"):
        axes_from_nnx(nn.Dense(3))
    with pytest.raises(TypeError, match="axes_from_nnx takes NNX modules"):
        axes_from_linen(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), jnp.ones((1, 2)))


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("axes_from_nnx", "Flax"),
        ("axes_from_linen", "Flax"),
        ("axes_from_equinox", "Equinox"),
    ],
)
def test_without_the_library(name, library, monkeypatch):
    module = f"optax_muon._leaves_of_{name.removeprefix('axes_from_')}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    package = library.lower()
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.nn", None)
    message = f"{name} reads models of {library}.*: pip .*{package}"
    with pytest.raises(ImportError, match=message):
        getattr(optax_muon, name)(None)


def test_errors_inside_are_not_taken_for_a_missing_flax(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError("no such thing", name="orbax")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="no such thing"):
        axes_from_nnx(None)


def test_the_library_itself_needs_no_flax():
    code = "import sys; sys.modules['flax'] = None; import optax_muon"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- trees of other kinds -------------------------------------------------------------


def test_an_empty_model():
    assert axes_from_linen(nn.Dropout(0.5, deterministic=True), jnp.ones(3)) == {}
    assert axes_from_nnx(nnx.Dropout(0.5, rngs=nnx.Rngs(0))) == {}


class Boxed(nn.Module):
    """Parameters with names of axes; the stacked one among them."""

    @nn.compact
    def __call__(self, x):
        names = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
        scan = nn.scan(
            lambda layer, x, _: (layer(x), None),
            variable_axes={"params": 1},
            split_rngs={"params": True},
            length=3,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = scan(nn.Dense(4, kernel_init=names, name="layers"), x, None)
        logical = nn.with_logical_partitioning(nn.initializers.normal(), ("in", "out"))
        return nn.Dense(5, kernel_init=logical, name="last")(x)


BOXED = {
    "layers/kernel": (MatrixAxes(0, 2), (4, 4), 3),
    "layers/bias": None,
    "last/kernel": (MatrixAxes(0, 1), (4, 5), 1),
    "last/bias": None,
}


def test_boxed_parameters():
    model, x = Boxed(), jnp.ones((2, 4))
    axes = axes_from_linen(model, x)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    assert isinstance(params["layers"]["kernel"], nn.Partitioned)
    check(params, axes, BOXED)
    check(nn.unbox(params), axes, BOXED)


def test_flat_dictionaries():
    """Axes are flattened as parameters are, by the same function."""
    axes = axes_from_linen(architectures_linen.Llama(), TOKENS)
    model = nnx.eval_shape(lambda: architectures_nnx.Llama(nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    flattened = flax.traverse_util.flatten_dict(params, sep="/")
    check(flattened, flax.traverse_util.flatten_dict(axes, sep="/"), LLAMA)
    flattened = flax.traverse_util.flatten_dict(params)
    plan = optax_muon.plan(flattened, flax.traverse_util.flatten_dict(axes))
    assert [leaf.matrix for leaf in plan.leaves if leaf.matrix] == [
        LLAMA["/".join(path)][1] for path in sorted(flattened) if LLAMA["/".join(path)]
    ]


def test_variables_with_metadata_in_nnx():
    init = nnx.with_partitioning(nnx.initializers.normal(), (None, "model"))
    with nnx.use_eager_sharding(False):
        layer = nnx.Linear(3, 5, kernel_init=init, rngs=nnx.Rngs(0))
    table = {"kernel": (MatrixAxes(0, 1), (3, 5), 1), "bias": None}
    check(nnx.state(layer, nnx.Param), axes_from_nnx(layer), table)


def test_parts_train_as_leaves_of_their_own():
    """An LSTM with fused gates: updates are those of its gates one by one."""
    cell = nnx.OptimizedLSTMCell(5, 7, rngs=nnx.Rngs(0))
    axes = axes_from_nnx(cell)
    params = nnx.to_pure_dict(nnx.state(cell, nnx.Param))
    tx = optax_muon.muon(0.1, matrix_axes=axes)
    updates, _ = tx.update(params, tx.init(params), params)
    gates = {i: x for i, x in enumerate(jnp.split(params["dense_i"]["kernel"], 4, 1))}
    tx = optax_muon.muon(0.1, matrix_axes=MatrixAxes(0, 1))
    alone, _ = tx.update(gates, tx.init(gates), gates)
    np.testing.assert_allclose(
        updates["dense_i"]["kernel"],
        jnp.concatenate(list(alone.values()), 1),
        atol=1e-6,
    )
