"""axes_from_logical: what its rules make of names, and what it refuses."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import optax_muon
from optax_muon import LOGICAL_RULES, MatrixAxes, axes_from_logical, stacked
from tests.logical_models import linen_params, nnx_model


def boxed(*names, shape=None, box=nn.LogicallyPartitioned):
    shape = shape or tuple(range(2, 2 + len(names)))
    return box(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def of(*names, rules=LOGICAL_RULES, **options):
    return axes_from_logical(rules)({"w": boxed(*names, **options)})["w"]


@pytest.mark.parametrize(
    ("names", "axes"),
    [
        ("embed heads kv", MatrixAxes(0, (1, 2))),
        ("heads kv embed", MatrixAxes((0, 1), 2)),
        ("embed kv", MatrixAxes(0, 1)),  # one key head for all
        ("embed embed", MatrixAxes(0, 1)),
        ("mlp heads kv", MatrixAxes(0, (1, 2))),
        ("heads kv heads kv", MatrixAxes((0, 1), (2, 3))),
        ("kv heads", MatrixAxes(0, 1)),  # no heads of a head_dim that comes first
        ("layers embed mlp", MatrixAxes(1, 2)),
        ("embed mlp layers", MatrixAxes(0, 1)),
        ("heads layers kv embed", MatrixAxes((0, 2), 3)),
        ("stage layers experts mlp embed", MatrixAxes(3, 4)),
        ("embed experts", MatrixAxes(0, 1)),
        ("layers embed layers experts", MatrixAxes(1, 3)),
        ("embed qkv heads head_dim", MatrixAxes(0, (2, 3))),
        ("layers heads kv", None),
        ("experts mlp", None),
        ("layers experts", None),
        ("layers stage", None),
        ("vocab embed", None),
        ("embed layers vocab", None),
        ("relpos_buckets heads", None),
    ],
)
def test_kinds_in_their_order(names, axes):
    assert of(*names.split()) == axes


def test_vectors_need_no_names():
    shapes = {"a": (), "b": (3,)}
    params = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()}
    params |= {"c": boxed("unheard_of"), "d": boxed("embed", "mlp")}
    assert axes_from_logical()(params) == dict.fromkeys("abc") | {"d": MatrixAxes()}


def test_partitioned_boxes_are_read_as_well():
    assert of("embed", "mlp", box=nn.Partitioned) == MatrixAxes(0, 1)


def test_sharding_of_older_nnx_code():
    deprecated = pytest.warns(DeprecationWarning, match="use 'out_sharding'")
    with nnx.use_eager_sharding(False), deprecated:
        param = nnx.Param(jnp.ones((2, 3)), sharding=("mlp", "embed"))
    assert axes_from_logical()({"w": param}) == {"w": MatrixAxes(0, 1)}


def test_modules_of_nnx_inside_linen():
    def make(rngs):
        init = nnx.with_partitioning(nnx.initializers.ones, ("embed", "mlp"))
        return nnx.Linear(2, 3, kernel_init=init, rngs=rngs)

    module = nnx.bridge.to_linen(make)
    with nnx.use_eager_sharding(False):
        variables = module.init(jax.random.key(0), jnp.ones((1, 2)))
    expected = {"kernel": MatrixAxes(0, 1), "bias": None}
    assert axes_from_logical()(variables["params"]) == expected


def test_rules_of_a_user():
    more = LOGICAL_RULES | {"width": "side", ("embed", None): MatrixAxes(1, 0)}
    assert of("embed", "width", rules=more) == MatrixAxes(0, 1)
    assert of("embed", None, rules=more) == MatrixAxes(1, 0)
    assert of("embed", "mlp", rules=more | {("embed", "mlp"): None}) is None
    assert of("a", "b", rules={"a": "side", "b": "side"}) == MatrixAxes(0, 1)


def test_others_decides_leaves_without_names_and_no_others():
    bare = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    params = {"head": {"kernel": bare}, "up": {"kernel": bare}, "w": boxed("mlp", "kv")}
    rule = axes_from_logical(LOGICAL_RULES, others=optax_muon.flax_matrix_axes)
    assert rule(params) == {
        "head": {"kernel": None},
        "up": {"kernel": MatrixAxes(0, 1)},
        "w": MatrixAxes(0, 1),
    }
    rule = axes_from_logical(adamw="w", others={"up": MatrixAxes(1, 0), "head": None})
    assert rule(params) == rule(params)
    assert rule(params) == {
        "head": {"kernel": None},
        "up": {"kernel": MatrixAxes(1, 0)},
        "w": None,
    }


# --- refusals -----------------------------------------------------------------------


def test_one_error_lists_every_leaf_that_is_not_decided():
    bare = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    params = {
        "unknown": boxed("embed", "width", None, ("fsdp", "tensor")),
        "sides": boxed("embed", "heads", "kv", "mlp"),
        "short": boxed("embed", "mlp", shape=(2, 3, 4)),
        "bare": {"kernel": bare},
        "rule": boxed("a", "b"),
        "several": nn.LogicallyPartitioned((bare, bare), ("embed", "mlp")),
        "good": boxed("embed", "mlp"),
    }
    rules = LOGICAL_RULES | {("a", "b"): MatrixAxes(0, 2)}
    with pytest.raises(ValueError, match=r"\Aaxes_from_logical cannot") as caught:
        axes_from_logical(rules)(params)
    _, *lines, remedy = str(caught.value).splitlines()
    found = [re.fullmatch(r"  (\S+)  (\(.*\)|.* no names): (.*)", x) for x in lines]
    reasons = {match[1]: match[3] for match in found}
    assert len(lines) == len(reasons)
    assert reasons == {
        "unknown": "the rules do not say what ['width', None, ('fsdp', 'tensor')] are",
        "sides": "3 sides, where a matrix has two: embed, heads kv, mlp",
        "short": "2 names for 3 axes; transforms name new axes by their metadata, "
        "partition_name",
        "bare/kernel": "nothing says what its axes are",
        "rule": f"{MatrixAxes(0, 2)} does not fit a leaf of shape (2, 3)",
        "several": "one box around 2 arrays",
    }
    assert "(2, 3, 4) ('embed', 'mlp')" in str(caught.value)
    assert "LOGICAL_RULES | {name: kind}" in remedy


@pytest.mark.parametrize("build", [linen_params, nnx_model])
def test_scans_along_the_last_axis_whose_name_flax_misplaces(build):
    with pytest.raises(
        ValueError, match=r"'layers'.* last axis of length 3\. .* at -1"
    ):
        axes_from_logical(others=stacked("layers", axis=-1))(build(-1))


def test_stacks_of_several_lengths_are_in_their_place():
    params = {
        "encoder": boxed("embed", "layers", "mlp", shape=(4, 2, 6)),
        "decoder": boxed("mlp", "layers", "embed", shape=(6, 3, 4)),
    }
    expected = dict.fromkeys(params, MatrixAxes(0, 2))
    assert axes_from_logical()(params) == expected


@pytest.mark.parametrize("unboxed", [True, False], ids=["unboxed", "nnx"])
def test_names_at_no_leaf_at_all(unboxed):
    if unboxed:
        named = nn.unbox(linen_params())
    else:
        named = nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"at none of \d+ leaves.*before nn.unbox"):
        axes_from_logical()(named)


def test_no_leaf_at_all():
    assert axes_from_logical()({}) == {}


def test_used_as_a_rule_it_says_what_to_do():
    params = {"w": jnp.ones((2, 3))}
    with pytest.raises(TypeError, match=r"axes_from_logical\(rules\)\(model\)"):
        optax_muon.plan(params, axes_from_logical())


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (linen_params(), r"axes_from_logical\(rules\)\(parameters\)"),
        (nnx.Linear(2, 3, rngs=nnx.Rngs(0)), r"\(rules\)\(parameters\)"),
        ([("embed", "fsdp")], "no mapping.*Mesh axes"),
        ({"embed": "fsdp"}, "hold\n  'embed': 'fsdp'\nMesh axes"),
        ({"mlp": "side", "a": None, 3: "side"}, "\n  'a': None\n  3: 'side'\nMesh"),
        ({("embed", "mlp"): "side"}, r"\n  \('embed', 'mlp'\): 'side'\n"),
    ],
)
def test_rules_that_are_none(rules, message):
    with pytest.raises(TypeError, match=f"(?s){message}"):
        axes_from_logical(rules)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"others": MatrixAxes()}, TypeError, "must be a rule"),
        ({"others": MatrixAxes}, TypeError, "must be a rule"),
        ({"others": "stacked"}, TypeError, "must be a rule"),
        ({"adamw": 3}, TypeError, "adamw holds 3"),
        ({"adamw": int}, TypeError, "each entry must be a pattern of a path"),
        ({"others": lambda path, leaf: (0, 1)}, TypeError, r"others gave \(0, 1\)"),
        ({"others": {"bare": MatrixAxes(0, 2)}}, ValueError, "bare.* does not fit"),
        ({"others": {"w": None, "bare": None}}, ValueError, "others: 'w'"),
        ({"adamw": "v", "others": {"bare": None}}, ValueError, "adamw: 'v'"),
    ],
)
def test_arguments_of_other_kinds(options, error, message):
    bare = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    with pytest.raises(error, match=message):
        axes_from_logical(**options)({"bare": bare, "w": boxed("mlp", "kv")})
